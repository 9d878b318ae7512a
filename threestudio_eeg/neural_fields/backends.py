"""Which implementation of a kernel runs: Triton on a GPU, torch elsewhere, or the one asked for."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

from torch import Tensor

from eeg_encoder.errors import InputError

BACKENDS = ("torch", "triton")
WORD = 16
"""Triton's kernels read whole words where numbers begin at, and there are, multiples of it."""


def choose_backend(tensor: Tensor, wanted: str | None = None) -> str:
    """``wanted``, or Triton for tensors on a GPU where it is installed, else torch.

    Raises
    ------
    InputError
        When ``wanted`` is unknown.
    """
    if wanted is None:
        return "triton" if tensor.is_cuda and _has_triton() else "torch"
    if wanted not in BACKENDS:
        raise InputError("neural field", "backend", wanted, f"one of {', '.join(BACKENDS)}")
    return wanted


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None
