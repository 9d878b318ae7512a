"""A watch over gradient norms that does not wait for the device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from eeg_encoder.errors import InputError


class NonFiniteWatch:
    """Say when a gradient was not finite, without waiting for the device.

    On a CUDA device the norm is copied while the next steps run and looked at once it has arrived,
    so the error comes a few steps late and names the step it belongs to.
    """

    def __init__(self, where: str) -> None:
        self.where = where
        self._pending: tuple[int, Tensor, Any] | None = None

    def add(self, step: int, norm: Tensor) -> None:
        """Take in the gradient norm of a step."""
        if norm.device.type != "cuda":
            self._judge(step, norm)
        elif self._pending is None:
            value = torch.empty((), dtype=norm.dtype, pin_memory=True)
            value.copy_(norm, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
            self._pending = (step, value, event)

    def check(self) -> None:
        """Look at what has arrived.

        Raises
        ------
        InputError
            When a norm is nan or infinite.
        """
        if self._pending is not None and self._pending[2].query():
            step, value, _ = self._pending
            self._pending = None
            self._judge(step, value)

    def _judge(self, step: int, norm: Tensor) -> None:
        value = float(norm)
        if not abs(value) < float("inf"):
            expected = "a finite number (set grad_clip, or half_precision_weights=false)"
            raise InputError(self.where, f"gradient norm at step {step}", value, expected)
