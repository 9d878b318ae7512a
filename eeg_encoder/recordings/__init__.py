"""Recordings: one module per source format, each returning a TrialSet; splits; simulation."""
