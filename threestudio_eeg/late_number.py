"""A number that the device computes, read once it has arrived: the host does not wait for it."""

from __future__ import annotations

import torch
from torch import Tensor


class LateNumber:
    """One number on its way to the host.

    Parameters
    ----------
    value
        A tensor of one number. On a CUDA device it is copied while what follows runs.
    """

    def __init__(self, value: Tensor) -> None:
        self._value, self._event = value, None
        if value.device.type == "cuda":
            self._value = torch.empty((), dtype=value.dtype, pin_memory=True)
            self._value.copy_(value, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()

    def has_arrived(self) -> bool:
        """Whether it can be read; off a CUDA device it always can."""
        return self._event is None or self._event.query()

    def __float__(self) -> float:
        return float(self._value)
