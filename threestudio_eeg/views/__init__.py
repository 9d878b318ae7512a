"""Multi-view sets of a finished object: ``threestudio-eeg views``."""
