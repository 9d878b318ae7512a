"""How long the list of samples will be, from how long it was: nothing waits for the device."""

from __future__ import annotations

from collections import deque

import torch
from torch import Tensor

from .marching import Samples

MARGIN = 1.25
"""What a list may be longer than all before it."""
SEEN_FIRST, FORGOTTEN_AFTER = 16, 1000
"""Lists of any length before one is fixed, and after which their lengths are looked at again."""
MOST = 1 << 20
"""Samples from which the work they are takes longer than the wait for their count."""
MULTIPLE = 1 << 12


class LengthForecast:
    """Lengths of lists of samples, one list a step; those of another number of rays start anew.

    A list of fixed length that was too short says so when the device is done with it, and the next
    ones are longer.
    """

    def __init__(self) -> None:
        self._n_rays, self._seen, self._longest = 0, 0, 0
        self._pending: deque[tuple[Tensor, torch.cuda.Event | None, int]] = deque()

    def capacity(self, n_rays: int) -> int | None:
        """The next list's length, or None where it should be as long as it has to be."""
        if n_rays != self._n_rays or self._seen >= FORGOTTEN_AFTER:
            self._n_rays, self._seen, self._longest = n_rays, 0, 0
            self._pending.clear()
        while self._pending and (self._pending[0][1] is None or self._pending[0][1].query()):
            overflow, _, length = self._pending.popleft()
            if int(overflow) > 0:
                self._longest = max(self._longest, length + int(overflow))
        length = -(-int(self._longest * MARGIN) // MULTIPLE) * MULTIPLE
        return length if self._seen >= SEEN_FIRST and 0 < length <= MOST else None

    def note(self, samples: Samples) -> None:
        """Learn from the list of a step."""
        self._seen += 1
        if samples.overflow is None:
            self._longest = max(self._longest, len(samples))
            return
        overflow, done = samples.overflow.detach(), None
        if overflow.is_cuda:
            overflow = torch.empty_like(overflow, device="cpu", pin_memory=True).copy_(
                overflow, non_blocking=True
            )
            done = torch.cuda.Event()
            done.record()
        self._pending.append((overflow, done, len(samples)))
