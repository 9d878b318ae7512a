"""Evaluation protocols that refuse leaking splits, and controls, both by name."""

from .controls import CONTROLS, Control, find_control
from .protocols import PROTOCOLS, Protocol, find_protocol
from .split import Leak, Split, find_leaks, refuse_leaks

__all__ = [
    "CONTROLS",
    "PROTOCOLS",
    "Control",
    "Leak",
    "Protocol",
    "Split",
    "find_control",
    "find_leaks",
    "find_protocol",
    "refuse_leaks",
]
