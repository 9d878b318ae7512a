"""Training stages, one a module, and what they share."""
