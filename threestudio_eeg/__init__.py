"""A threestudio extension: score distillation from EEG, an embedded host, and a phantom."""

__version__ = "0.1.0"
