"""The guidance step near the hardware's limit: recorded as a CUDA graph, within a budget.

The eager guidance is the reference. What is recorded is that very code with its gradients
(:class:`.step.RecordedStep`), so both give the same numbers up to rounding.
"""

from .budget import Settings, settings_for
from .modes import MODES, resolve_acceleration
from .networks import can_fuse, prepare_networks
from .step import RecordedStep
from .trials import TrialPrompts

__all__ = [
    "MODES",
    "RecordedStep",
    "Settings",
    "TrialPrompts",
    "can_fuse",
    "prepare_networks",
    "resolve_acceleration",
    "settings_for",
]
