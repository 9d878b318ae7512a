"""Occupancy grid, ray marching and compositing over packed samples, in plain torch.

Samples of all rays lie in one list, ordered by ray and by depth; ``ray_indices`` says whose they
are. Same conventions as nerfacc (R. Li et al., NerfAcc, ICCV 2023), whose grid buffers load here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

EARLY_STOP = 1e-4
PointFunction = Callable[[Tensor], Tensor]


@dataclass
class Samples:
    """Packed intervals along rays: ``t_starts``, ``t_ends``, ``ray_indices``, each (N,)."""

    t_starts: Tensor
    t_ends: Tensor
    ray_indices: Tensor

    def __len__(self) -> int:
        return len(self.t_starts)

    @property
    def t_middles(self) -> Tensor:
        return (self.t_starts + self.t_ends) / 2

    def positions(self, rays_o: Tensor, rays_d: Tensor) -> Tensor:
        """Middles of the intervals in the world, (N, 3)."""
        origins = rays_o.index_select(0, self.ray_indices)
        directions = rays_d.index_select(0, self.ray_indices)
        return torch.addcmul(origins, directions, self.t_middles[:, None])

    def select(self, mask: Tensor) -> Samples:
        """Keep the samples where ``mask`` (N,) is true."""
        index = mask.nonzero().view(-1)
        return Samples(self.t_starts[index], self.t_ends[index], self.ray_indices[index])


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
) -> Samples:
    """Equal steps through the box of ``grid``, kept where the middle falls in an occupied cell.

    Parameters
    ----------
    rays_o, rays_d
        Origins and unit directions, (R, 3).
    step
        Length of an interval.
    jitter
        Shift each ray's intervals by a uniform part of a step (stratified sampling).

    Returns
    -------
    Samples
        Ordered by ray, then by depth.
    """
    entry, leave = intersect_box(rays_o, rays_d, grid.box, near, far)
    if jitter:
        entry = entry + torch.rand_like(entry) * step
    n_steps = math.ceil(grid.diagonal / step)
    t_middles = entry[:, None] + (torch.arange(n_steps, device=entry.device) + 0.5) * step
    inside = (t_middles < leave[:, None]).view(-1).nonzero().view(-1)
    ray_indices = inside.div(n_steps, rounding_mode="floor")
    middles = t_middles.view(-1).index_select(0, inside)
    samples = Samples(middles - step / 2, middles + step / 2, ray_indices)
    return samples.select(grid.occupied(samples.positions(rays_o, rays_d)))


class OccupancyGrid(nn.Module):
    """Which cells of a box hold density: an exponential moving maximum, thresholded.

    Parameters
    ----------
    box
        Corners (2, 3).
    resolution
        Cells along a side.

    Attributes
    ----------
    occs
        Moving maximum of the opacity of one step, (resolution ** 3,).
    binaries
        Occupied or not, (1, resolution, resolution, resolution).
    """

    resolution: Tensor
    aabbs: Tensor
    occs: Tensor
    binaries: Tensor

    def __init__(self, box: Tensor, resolution: int = 32) -> None:
        super().__init__()
        self.side = resolution
        self.register_buffer("resolution", torch.tensor([resolution] * 3, dtype=torch.int32))
        self.register_buffer("aabbs", box.reshape(1, 6).clone().float())
        self.register_buffer("occs", torch.zeros(resolution**3))
        self.register_buffer("binaries", torch.zeros((1,) + (resolution,) * 3, dtype=torch.bool))
        self.diagonal = float((box[1] - box[0]).norm())

    @property
    def box(self) -> Tensor:
        return self.aabbs.view(2, 3)

    def fill(self) -> None:
        """Declare every cell occupied."""
        self.occs.fill_(1)
        self.binaries.fill_(True)

    def occupied(self, points: Tensor) -> Tensor:
        """Whether each point (N, 3) lies in an occupied cell, (N,); outside the box, no."""
        low, high = self.box
        cell = (points - low) * (self.side / (high - low))
        index = cell.long().clamp_(0, self.side - 1)
        flat = (index[:, 0] * self.side + index[:, 1]) * self.side + index[:, 2]
        inside = ((cell >= 0) & (cell <= self.side)).all(-1)
        return self.binaries.view(-1).index_select(0, flat) & inside

    @torch.no_grad()
    def update(
        self,
        global_step: int,
        opacity: PointFunction,
        *,
        threshold: float = 0.01,
        decay: float = 0.95,
        warmup_steps: int = 256,
        every: int = 16,
    ) -> None:
        """Every ``every`` steps, look again: at all cells during warm-up, then at a sample.

        The sample is a quarter of the cells drawn uniformly, and the occupied ones (at most another
        quarter, drawn). A cell is occupied when its value exceeds the mean, or ``threshold`` where
        that is lower.

        Parameters
        ----------
        opacity
            Maps points (N, 3) to the density times the step length, (N,).
        """
        if global_step % every:
            return
        cells = self._all_cells() if global_step < warmup_steps else self._some_cells()
        low, high = self.box
        place = self._coordinates(cells) + torch.rand(len(cells), 3, device=cells.device)
        found = opacity(low + place / self.side * (high - low)).view(-1).to(self.occs.dtype)
        self.occs[cells] = torch.maximum(self.occs[cells] * decay, found)
        self.binaries.copy_(
            (self.occs > self.occs.mean().clamp(max=threshold)).view_as(self.binaries)
        )

    def _all_cells(self) -> Tensor:
        return torch.arange(self.side**3, device=self.occs.device)

    def _some_cells(self) -> Tensor:
        count = self.side**3 // 4
        uniform = torch.randint(self.side**3, (count,), device=self.occs.device)
        occupied = self.binaries.view(-1).nonzero().view(-1)
        if len(occupied) > count:
            occupied = occupied[torch.randint(len(occupied), (count,), device=occupied.device)]
        return torch.cat((uniform, occupied)).unique()

    def _coordinates(self, cells: Tensor) -> Tensor:
        side = self.side
        planes = (cells // side**2, cells // side % side, cells % side)
        return torch.stack(planes, dim=-1).float()


def first_samples(ray_indices: Tensor, n_rays: int) -> Tensor:
    """Position of each ray's first sample in the packed list, (R,)."""
    counts = torch.zeros(n_rays, dtype=torch.long, device=ray_indices.device)
    counts.index_add_(0, ray_indices, torch.ones_like(ray_indices))
    return counts.cumsum(0) - counts


def exclusive_sum(values: Tensor, ray_indices: Tensor, n_rays: int) -> Tensor:
    """Sum of what lies in front of each sample on its ray, (N,).

    One running sum over all rays, minus its value where the ray begins; in double precision, so
    that the difference keeps single precision however many rays went before.
    """
    running = values.double()
    before = running.cumsum(0) - running
    if len(values) == 0:
        return before.to(values.dtype)
    first = first_samples(ray_indices, n_rays).clamp(max=len(values) - 1)
    start = before.index_select(0, first.index_select(0, ray_indices))
    return (before - start).to(values.dtype)


def render_weights(density: Tensor, samples: Samples, n_rays: int) -> tuple[Tensor, Tensor, Tensor]:
    """Weights, transmittance and alpha of packed samples, each (N,).

    ``alpha = 1 - exp(-density dt)``, ``T = exp(-sum of density dt in front)``, ``w = T alpha``
    (Max 1995; Mildenhall et al., NeRF, eq. 3).
    """
    depth = density * (samples.t_ends - samples.t_starts)
    transmittance = torch.exp(-exclusive_sum(depth, samples.ray_indices, n_rays))
    alpha = -torch.expm1(-depth)
    return transmittance * alpha, transmittance, alpha


@torch.no_grad()
def visible(
    density: Tensor, samples: Samples, n_rays: int, alpha_threshold: float | Tensor
) -> Tensor:
    """Samples worth shading, (N,): opaque enough, and not hidden behind opaque ones."""
    _, transmittance, alpha = render_weights(density, samples, n_rays)
    return (alpha >= alpha_threshold) & (transmittance >= EARLY_STOP)


def accumulate(weights: Tensor, values: Tensor | None, ray_indices: Tensor, n_rays: int) -> Tensor:
    """Weighted sum along rays: (N,) and (N, C) to (R, C); without values, of ones: (R, 1)."""
    share = weights[:, None] if values is None else weights[:, None] * values
    total = share.new_zeros(n_rays, share.shape[1])
    return total.index_add(0, ray_indices, share)
