"""A threestudio extension: EEG-conditioned score distillation, its embedded host and its phantom."""

__version__ = "0.1.0"
