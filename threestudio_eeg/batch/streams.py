"""Random numbers of several trials in one process: each trial draws as if it were alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..noise import Draws


class Stream:
    """A state of torch's generators, of the CPU and of one device, that one trial draws from.

    It starts as the generators stand. Python's and NumPy's generators are not kept: no training
    step of the embedded host draws from them.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._state = self._read()

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """Let the global generators be this trial's inside the block."""
        before = self._read()
        self._write(self._state)
        try:
            yield
        finally:
            self._state = self._read()
            self._write(before)

    def _read(self) -> list[Tensor]:
        cuda = [torch.cuda.get_rng_state(self._device)] if self._device.type == "cuda" else []
        return [torch.get_rng_state(), *cuda]

    def _write(self, state: list[Tensor]) -> None:
        torch.set_rng_state(state[0])
        if self._device.type == "cuda":
            torch.cuda.set_rng_state(state[1], self._device)


def merged_draws(parts: list[Draws]) -> Draws:
    """Draws of a batch whose views are sorted by trial, from the trials' own.

    What the LoRA is trained on is k times as long as the views, all views k times over.
    """
    n = len(parts[0].t)

    def joined(name: str) -> Tensor | None:
        values = [getattr(part, name) for part in parts]
        if values[0] is None:
            return None
        repeated = [value.unflatten(0, (-1, n)) for value in values]
        return torch.cat(repeated, dim=1).flatten(0, 1)

    fields: dict[str, Any] = {name: joined(name) for name in Draws.__dataclass_fields__}
    return Draws(**fields)
