"""The ways in which a guidance step can run."""

from __future__ import annotations

import torch

from eeg_encoder.errors import InputError

MODES = ("auto", "none", "graphs")


def resolve_acceleration(wanted: str, device: torch.device) -> str:
    """Return ``none`` or ``graphs``; ``auto`` is ``graphs`` on CUDA, else ``none``.

    ``graphs`` on another device records nothing and replays by running the step again
    (:class:`.graphs.Rerun`): the same plumbing, for tests.

    Raises
    ------
    InputError
        For another word.
    """
    if wanted not in MODES:
        raise InputError("guidance", "acceleration", wanted, ", ".join(MODES))
    if wanted != "auto":
        return wanted
    return "graphs" if device.type == "cuda" else "none"
