"""Pictures instead of objects: sampled, or distilled as particles: ``threestudio-eeg images``."""
