"""Samples along rays through an occupancy grid.

Samples of all rays lie in one list, ordered by ray and by depth; ``ray_indices`` says whose they
are. The conventions are nerfacc's (R. Li et al., NerfAcc, ICCV 2023): steps of one length are laid
from the near plane on, and a step is kept where its middle falls in an occupied cell.

:func:`march_reference` says what is computed; :mod:`.marching_triton` is the same on a GPU.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .backends import choose_backend
from .occupancy import OccupancyGrid
from .rows import take_rows

STEPS_AT_ONCE = 1 << 18
"""Places looked at together by :func:`march_reference`: what fits into a processor's cache."""


@dataclass
class Samples:
    """Packed intervals along rays.

    Attributes
    ----------
    t_starts, t_ends, ray_indices
        Where each interval begins and ends, and its ray: each (N,).
    overflow
        Where the list has a fixed length: how many samples found no place in it, a tensor of one
        number. Places left over hold intervals of length zero on the last ray.
    """

    t_starts: Tensor
    t_ends: Tensor
    ray_indices: Tensor
    overflow: Tensor | None = None
    _offsets: dict[int, Tensor] = field(default_factory=dict, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.t_starts)

    @property
    def t_middles(self) -> Tensor:
        return (self.t_starts + self.t_ends) / 2

    def positions(self, rays_o: Tensor, rays_d: Tensor) -> Tensor:
        """Middles of the intervals in the world, (N, 3)."""
        origins = take_rows(rays_o, self.ray_indices)
        directions = take_rows(rays_d, self.ray_indices)
        return torch.addcmul(origins, directions, self.t_middles[:, None])

    def offsets(self, n_rays: int) -> Tensor:
        """Where each ray's samples begin in the list, and its length at the end: (R + 1,)."""
        if n_rays not in self._offsets:
            self._offsets[n_rays] = ray_offsets(self.ray_indices, n_rays)
        return self._offsets[n_rays]

    def select(self, mask: Tensor, capacity: int | None = None, n_rays: int = 0) -> Samples:
        """Keep the samples where ``mask`` (N,) is true.

        Parameters
        ----------
        capacity
            Length of the new list. Without it the list is as long as needed, which takes a round
            trip to the device.
        n_rays
            Number of rays; needed with ``capacity`` alone.
        """
        if capacity is None:
            return self.at(mask.nonzero().view(-1))
        place = mask.cumsum(0) - 1
        kept = mask & (place < capacity)
        place = torch.where(kept, place, capacity)
        t_starts = self.t_starts.new_zeros(capacity + 1).scatter_(0, place, self.t_starts)
        t_ends = self.t_ends.new_zeros(capacity + 1).scatter_(0, place, self.t_ends)
        rays = torch.full_like(place[:1], n_rays - 1).repeat(capacity + 1)
        rays.scatter_(0, place, self.ray_indices)
        overflow = (mask.sum() - capacity).clamp(min=0)
        if self.overflow is not None:
            overflow = overflow + self.overflow
        return Samples(t_starts[:-1], t_ends[:-1], rays[:-1], overflow)

    def at(self, places: Tensor) -> Samples:
        """The samples at ascending ``places`` of the list."""
        return Samples(
            take_rows(self.t_starts, places),
            take_rows(self.t_ends, places),
            take_rows(self.ray_indices, places),
        )


def ray_offsets(ray_indices: Tensor, n_rays: int) -> Tensor:
    """Where each ray's samples begin in the packed list, and its length at the end: (R + 1,)."""
    rays = torch.arange(n_rays + 1, device=ray_indices.device, dtype=ray_indices.dtype)
    return torch.searchsorted(ray_indices, rays)


def intersect_box(
    rays_o: Tensor, rays_d: Tensor, box: Tensor, near: float = 0.0, far: float = 1e10
) -> tuple[Tensor, Tensor]:
    """Entry and exit of rays (R, 3) through a box (2, 3); exit <= entry where a ray misses."""
    direction = torch.where(rays_d.abs() < 1e-10, torch.full_like(rays_d, 1e-10), rays_d)
    first, second = (box[0] - rays_o) / direction, (box[1] - rays_o) / direction
    entry = torch.minimum(first, second).amax(-1).clamp(min=near, max=far)
    leave = torch.maximum(first, second).amin(-1).clamp(min=near, max=far)
    return entry, leave


def march(
    rays_o: Tensor,
    rays_d: Tensor,
    grid: OccupancyGrid,
    step: float,
    *,
    near: float = 0.0,
    far: float = 1e10,
    jitter: bool = False,
    capacity: int | None = None,
    backend: str | None = None,
) -> Samples:
    """Equal steps from the near plane on, kept where the middle falls in an occupied cell.

    Parameters
    ----------
    rays_o, rays_d
        Origins and unit directions, (R, 3).
    step
        Length of an interval.
    jitter
        Shift each ray's intervals by a uniform part of a step (stratified sampling).
    capacity
        Length of the list of samples; what does not fit is left out and counted. Without it the
        list is as long as needed, which takes a round trip to the device.
    backend
        ``torch`` or ``triton``; by default :func:`.backends.choose_backend`.

    Returns
    -------
    Samples
        Ordered by ray, then by depth.
    """
    entry, leave = intersect_box(rays_o, rays_d, grid.occupied_box(), near, far)
    shift = torch.rand_like(entry) * step if jitter else torch.zeros_like(entry)
    start = near + shift
    first = torch.ceil((entry - start) / step - 0.5).clamp_(min=0)
    if choose_backend(rays_o, backend) == "triton":
        from .marching_triton import march as march_triton

        return march_triton(rays_o, rays_d, grid, start, first, leave, step, capacity)
    samples = march_reference(rays_o, rays_d, grid, start, first, leave, step)
    if capacity is None:
        return samples
    everything = torch.ones_like(samples.ray_indices, dtype=torch.bool)
    return samples.select(everything, capacity, len(rays_o))


def march_reference(
    rays_o: Tensor,
    rays_d: Tensor,
    grid: OccupancyGrid,
    start: Tensor,
    first: Tensor,
    leave: Tensor,
    step: float,
) -> Samples:
    """Samples of rays (R, 3) in plain torch.

    Parameters
    ----------
    start
        Where each ray's steps are laid from, (R,).
    first
        Number of the first step to look at, (R,).
    leave
        Where to stop looking, (R,).
    """
    hits = (start + (first + 0.5) * step < leave).nonzero().view(-1)
    if len(hits) == 0:
        return Samples(start.new_zeros(0), start.new_zeros(0), hits)
    n_steps = math.ceil(float(((leave - start) / step - first)[hits].max()))
    offsets = torch.arange(n_steps, device=start.device) + 0.5
    parts = []
    for rays in hits.split(max(STEPS_AT_ONCE // n_steps, 1)):
        t_middles = start[rays, None] + (first[rays, None] + offsets) * step
        inside = (t_middles < leave[rays, None]).view(-1).nonzero().view(-1)
        t_middles = t_middles.view(-1).index_select(0, inside)
        index = rays.index_select(0, inside.div(n_steps, rounding_mode="floor"))
        near_part = Samples(t_middles - step / 2, t_middles + step / 2, index)
        parts.append(near_part.select(grid.occupied(near_part.positions(rays_o, rays_d))))
    return Samples(
        torch.cat([part.t_starts for part in parts]),
        torch.cat([part.t_ends for part in parts]),
        torch.cat([part.ray_indices for part in parts]),
    )
