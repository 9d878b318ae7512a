"""Conditions and representations beside each other, trial by trial: ``threestudio-eeg compare``."""
