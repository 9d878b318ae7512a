"""Rays through boxes and through occupancy grids, packed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .segments import RaySegmentsSpec, starts_of_chunks

CHUNK = 1 << 22


def ray_aabb_intersect(
    rays_o: Tensor,
    rays_d: Tensor,
    aabbs: Tensor,
    near_plane: float,
    far_plane: float,
    miss_value: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Where rays (R, 3) enter and leave boxes (M, 6): two tensors (R, M), and whether they do.

    Distances are cut at the planes; a ray that misses, or leaves a box behind its origin, has
    ``miss_value`` in both.
    """
    low, high = aabbs[:, :3], aabbs[:, 3:]
    inverse = 1 / rays_d[:, None]
    first = (low - rays_o[:, None]) * inverse
    second = (high - rays_o[:, None]) * inverse
    # 0 / 0: the ray runs inside a face of the box, which bounds it nowhere.
    enter = torch.minimum(first, second).nan_to_num(-math.inf, math.inf, -math.inf).amax(-1)
    leave = torch.maximum(first, second).nan_to_num(math.inf, math.inf, -math.inf).amin(-1)
    hits = (enter <= leave) & (leave > 0)
    enter = torch.where(hits, enter.clamp(min=near_plane), miss_value)
    leave = torch.where(hits, leave.clamp(max=far_plane), miss_value)
    return enter, leave, hits


@dataclass
class _Scene:
    """Rays, grids, and the stretch (R, M) of each ray inside each grid."""

    rays_o: Tensor
    rays_d: Tensor
    binaries: Tensor
    aabbs: Tensor
    near: Tensor
    far: Tensor
    enter: Tensor
    leave: Tensor

    def rows(self, rows: slice) -> _Scene:
        return _Scene(
            self.rays_o[rows],
            self.rays_d[rows],
            self.binaries,
            self.aabbs,
            *(part[rows] for part in (self.near, self.far, self.enter, self.leave)),
        )

    @property
    def start(self) -> Tensor:
        """First distance inside any grid, (R,); infinite where a ray misses all."""
        return self.enter.amin(-1)

    @property
    def end(self) -> Tensor:
        """Last distance inside any grid, (R,); minus infinity where a ray misses all."""
        return self.leave.amax(-1)


def traverse_grids(
    rays_o: Tensor,
    rays_d: Tensor,
    rays_mask: Tensor,
    binaries: Tensor,
    aabbs: Tensor,
    t_sorted: Tensor,
    t_indices: Tensor,
    hits: Tensor,
    near_planes: Tensor,
    far_planes: Tensor,
    step_size: float,
    cone_angle: float,
    compute_intervals: bool,
    compute_samples: bool,
    compute_terminate_planes: bool,
    traverse_steps_limit: int,
    over_allocate: bool,
) -> tuple[RaySegmentsSpec, RaySegmentsSpec, Tensor]:
    """Intervals of each ray whose middle lies in an occupied cell.

    Steps begin at the near plane and follow one another whatever is occupied, so that a sample's
    place does not depend on the grid. Where grids overlap, the first one that holds a point decides
    (nerfacc's grids are nested, the smallest first).

    Parameters
    ----------
    rays_o, rays_d, rays_mask
        Origins and unit directions, (R, 3), and which rays to follow, (R,).
    binaries, aabbs
        Occupancy (M, X, Y, Z) and boxes (M, 6).
    t_sorted, t_indices, hits
        Entries and exits (R, 2 M) by distance; number m < M enters grid m, m + M leaves it; which
        grids are hit (R, M).
    near_planes, far_planes
        Distances (R,).
    step_size, cone_angle
        An interval that begins at t is ``max(t * cone_angle, step_size)`` long. With ``step_size``
        0 or less, the intervals are the pieces of the ray inside each cell.
    traverse_steps_limit
        Most samples of a ray; 0 or less is no limit.
    compute_intervals, compute_samples, compute_terminate_planes, over_allocate
        Ignored: everything is computed, and nothing needs room in advance.

    Returns
    -------
    intervals, samples : RaySegmentsSpec
        Edges, neighbours sharing one; middles.
    Tensor
        Where each ray stopped, (R,).
    """
    enter, leave = _stretches(t_sorted, t_indices, hits, near_planes, far_planes, rays_mask)
    scene = _Scene(rays_o, rays_d, binaries, aabbs, near_planes, far_planes, enter, leave)
    found = [
        _traverse(part, step_size, cone_angle, traverse_steps_limit)
        for part in _parts(scene, step_size)
    ]
    t_starts, t_ends, fresh, counts, stops = (
        torch.cat(column) for column in zip(*found, strict=True)
    )
    rays = torch.arange(len(counts), device=counts.device).repeat_interleave(counts)
    return (
        _edges(t_starts, t_ends, fresh, rays, len(counts)),
        _middles(t_starts, t_ends, rays, counts),
        stops,
    )


def _stretches(
    t_sorted: Tensor, t_indices: Tensor, hits: Tensor, near: Tensor, far: Tensor, mask: Tensor
) -> tuple[Tensor, Tensor]:
    """Entry and exit (R, M) of each grid between the planes; (inf, -inf) where there is none."""
    by_number = torch.empty_like(t_sorted).scatter_(1, t_indices, t_sorted)
    n_grids = hits.shape[1]
    enter = torch.maximum(by_number[:, :n_grids], near[:, None])
    leave = torch.minimum(by_number[:, n_grids:], far[:, None])
    inside = hits & mask[:, None] & (enter < leave)
    return enter.where(inside, math.inf), leave.where(inside, -math.inf)


def _parts(scene: _Scene, step: float) -> Iterator[_Scene]:
    """The rays in pieces small enough to look at all their steps at once."""
    n_grids, *sides = scene.binaries.shape
    longest = (scene.end - scene.start).clamp(min=0).amax().item() if len(scene.near) else 0.0
    steps = longest / step if step > 0 else n_grids * (sum(sides) + 3)
    size = max(1, int(CHUNK / max(steps, 1)))
    for begin in range(0, max(len(scene.near), 1), size):
        yield scene.rows(slice(begin, begin + size))


def _traverse(
    scene: _Scene, step: float, cone: float, limit: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Kept intervals, packed: starts, ends, whether each begins a run; counts and stops by ray."""
    edges = _step_edges(scene, step, cone) if step > 0 else _cell_edges(scene)
    starts, ends = edges[:, :-1], edges[:, 1:]
    middles = (starts + ends) / 2
    keep = _occupied(scene, middles) & (starts < ends)
    if limit > 0:
        keep &= keep.cumsum(1) <= limit
    fresh = keep.clone()
    fresh[:, 1:] &= ~keep[:, :-1]
    counts = keep.sum(1)
    stops = _stops(scene, edges, middles, keep, limit)
    return starts[keep], ends[keep], fresh[keep], counts, stops


def _step_edges(scene: _Scene, step: float, cone: float) -> Tensor:
    """Edges (R, K + 1) of equal or growing steps that cover each ray's stretch."""
    if cone > 0:
        return _growing_edges(scene, step, cone)
    start, end = _finite_stretch(scene)
    first = ((start - scene.near) / step - 0.5).ceil().clamp(min=0)
    count = int(((end - start) / step).amax().item()) + 2 if len(start) else 1
    number = first[:, None] + torch.arange(count + 1, device=start.device)
    return scene.near[:, None] + number * step


def _growing_edges(scene: _Scene, step: float, cone: float) -> Tensor:
    _, end = _finite_stretch(scene)
    edges = [scene.near]
    while len(edges) < 2 or bool((edges[-1] < end).any()):
        edges.append(edges[-1] + (edges[-1] * cone).clamp(min=step))
    return torch.stack(edges, dim=1)


def _finite_stretch(scene: _Scene) -> tuple[Tensor, Tensor]:
    """Start and end of each ray's stretch; an empty one at the near plane where it misses."""
    missed = scene.end <= scene.start
    return scene.start.where(~missed, scene.near), scene.end.where(~missed, scene.near)


def _cell_edges(scene: _Scene) -> Tensor:
    """Distances (R, K) at which rays cross a plane between cells of any grid, in order."""
    start, end = _finite_stretch(scene)
    crossings = [start[:, None], end[:, None]]
    for box in scene.aabbs:
        for axis, side in enumerate(scene.binaries.shape[1:]):
            planes = torch.linspace(0, 1, side + 1, device=box.device, dtype=box.dtype)
            planes = box[axis] + planes * (box[axis + 3] - box[axis])
            crossings.append((planes - scene.rays_o[:, axis, None]) / scene.rays_d[:, axis, None])
    edges = torch.cat(crossings, dim=1).nan_to_num(0, math.inf, -math.inf)
    edges = torch.maximum(torch.minimum(edges, end[:, None]), start[:, None])
    return edges.sort(1).values


def _occupied(scene: _Scene, middles: Tensor) -> Tensor:
    """Whether the point at each distance (R, K) lies in an occupied cell."""
    n_grids, *shape = scene.binaries.shape
    distance = middles[..., None]
    within = (distance >= scene.enter[:, None]) & (distance < scene.leave[:, None])
    place = within.any(-1).view(-1).nonzero().view(-1)
    grid = within.view(-1, n_grids).index_select(0, place).int().argmax(-1)
    ray = place.div(middles.shape[1], rounding_mode="floor")
    points = torch.addcmul(
        scene.rays_o.index_select(0, ray),
        scene.rays_d.index_select(0, ray),
        middles.reshape(-1).index_select(0, place)[:, None],
    )
    low, high = scene.aabbs[:, :3], scene.aabbs[:, 3:]
    sides = torch.tensor(shape, device=points.device)
    per_length = sides / (high - low)
    cell = (points - low.index_select(0, grid)) * per_length.index_select(0, grid)
    x, y, z = torch.minimum(cell.floor().long().clamp(min=0), sides - 1).unbind(1)
    index = ((grid * shape[0] + x) * shape[1] + y) * shape[2] + z
    occupied = torch.zeros_like(middles, dtype=torch.bool)
    occupied.view(-1)[place] = scene.binaries.reshape(-1).index_select(0, index)
    return occupied


def _stops(scene: _Scene, edges: Tensor, middles: Tensor, keep: Tensor, limit: int) -> Tensor:
    """The first edge whose interval is past the grids, or the end of the last sample allowed."""
    past = (middles < scene.end[:, None]).sum(1, keepdim=True)
    stops = edges.gather(1, past).squeeze(1)
    stops = torch.where(scene.end > scene.start, stops, scene.near)
    if limit > 0:
        last = (keep * torch.arange(1, keep.shape[1] + 1, device=keep.device)).amax(1)
        at_last = edges.gather(1, last[:, None]).squeeze(1)
        stops = torch.where(keep.sum(1) >= limit, at_last, stops)
    return stops


def _edges(
    t_starts: Tensor, t_ends: Tensor, fresh: Tensor, rays: Tensor, n_rays: int
) -> RaySegmentsSpec:
    """Edges of packed intervals; an interval shares its first edge with the one it follows."""
    right = (1 + fresh.long()).cumsum(0) - 1
    total = int(right[-1]) + 1 if len(right) else 0
    vals = t_starts.new_empty(total)
    vals[right - 1], vals[right] = t_starts, t_ends
    ray_indices = rays.new_empty(total)
    ray_indices[right - 1], ray_indices[right] = rays, rays
    is_left = torch.zeros_like(ray_indices, dtype=torch.bool)
    is_right = is_left.clone()
    is_left[right - 1] = True
    is_right[right] = True
    counts = torch.bincount(ray_indices, minlength=n_rays)
    return RaySegmentsSpec(
        vals, starts_of_chunks(counts), counts, ray_indices, is_left=is_left, is_right=is_right
    )


def _middles(t_starts: Tensor, t_ends: Tensor, rays: Tensor, counts: Tensor) -> RaySegmentsSpec:
    middles = (t_starts + t_ends) / 2
    return RaySegmentsSpec(
        middles,
        starts_of_chunks(counts),
        counts,
        rays,
        is_valid=torch.ones_like(rays, dtype=torch.bool),
    )
