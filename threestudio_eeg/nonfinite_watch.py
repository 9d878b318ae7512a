"""A watch over gradient norms that does not wait for the device."""

from __future__ import annotations

from torch import Tensor

from eeg_encoder.errors import InputError

from .late_number import LateNumber


class NonFiniteWatch:
    """Say when a gradient was not finite, without waiting for the device.

    On a CUDA device the norm is copied while the next steps run and looked at once it has arrived,
    so the error comes a few steps late and names the step it belongs to.
    """

    def __init__(self, where: str) -> None:
        self.where = where
        self._pending: tuple[int, LateNumber] | None = None

    def add(self, step: int, norm: Tensor) -> None:
        """Take in the gradient norm of a step."""
        if self._pending is None:
            self._pending = (step, LateNumber(norm))
        if norm.device.type != "cuda":
            self.check()

    def check(self) -> None:
        """Look at what has arrived.

        Raises
        ------
        InputError
            When a norm is nan or infinite.
        """
        if self._pending is None or not self._pending[1].has_arrived():
            return
        (step, norm), self._pending = self._pending, None
        value = float(norm)
        if not abs(value) < float("inf"):
            expected = "a finite number (set grad_clip, or half_precision_weights=false)"
            raise InputError(self.where, f"gradient norm at step {step}", value, expected)
