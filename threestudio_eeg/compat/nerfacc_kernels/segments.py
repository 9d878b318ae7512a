"""The record that nerfacc passes to and from its compiled operations."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class RaySegmentsSpec:
    """Values along rays: packed in one list, or the same number for every ray.

    Attributes
    ----------
    vals
        Edges or samples, (N,) packed or (..., n) batched.
    chunk_starts, chunk_cnts
        Where each ray begins in the list, and how long it is, (R,); packed only.
    ray_indices
        The ray of each value, (N,); packed only.
    is_left, is_right
        Whether an edge begins an interval, and whether it ends one, (N,); packed only.
    is_valid
        Whether a sample was made, (N,).
    """

    vals: Tensor | None = None
    chunk_starts: Tensor | None = None
    chunk_cnts: Tensor | None = None
    ray_indices: Tensor | None = None
    is_left: Tensor | None = None
    is_right: Tensor | None = None
    is_valid: Tensor | None = None

    @property
    def batched(self) -> bool:
        return self.vals is not None and self.vals.dim() > 1

    def values(self) -> Tensor:
        """All values in one list."""
        assert self.vals is not None
        return self.vals.reshape(-1)

    def n_rays(self) -> int:
        if self.batched:
            assert self.vals is not None
            return self.vals.shape[:-1].numel()
        assert self.chunk_cnts is not None
        return len(self.chunk_cnts)

    def bounds(self) -> tuple[Tensor, Tensor]:
        """First and last position of each ray in the list, (R,) each."""
        if self.batched:
            assert self.vals is not None
            length = self.vals.shape[-1]
            first = torch.arange(self.n_rays(), device=self.vals.device) * length
            return first, first + length - 1
        assert self.chunk_starts is not None
        assert self.chunk_cnts is not None
        return self.chunk_starts, self.chunk_starts + self.chunk_cnts - 1

    def rays(self) -> Tensor:
        """The ray of each value, (N,)."""
        if self.batched:
            assert self.vals is not None
            numbers = torch.arange(self.n_rays(), device=self.vals.device)
            return numbers.repeat_interleave(self.vals.shape[-1])
        if self.ray_indices is not None:
            return self.ray_indices
        return rays_of_chunks(self.counts())

    def counts(self) -> Tensor:
        """How many values each ray has, (R,)."""
        first, last = self.bounds()
        return last - first + 1


def rays_of_chunks(counts: Tensor) -> Tensor:
    """The ray of each value of a packed list, from how many each ray has."""
    return torch.arange(len(counts), device=counts.device).repeat_interleave(counts)


def starts_of_chunks(counts: Tensor) -> Tensor:
    """Where each ray begins in a packed list."""
    return counts.cumsum(0) - counts
