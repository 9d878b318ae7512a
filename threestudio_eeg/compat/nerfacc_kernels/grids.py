"""Rays through boxes and through occupancy grids, packed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .segments import RaySegmentsSpec, starts_of_chunks

CHUNK = 1 << 22
# Distances closer than this, and than as much of their length, are one: nerfacc's own tolerance.
SAME = 1e-6


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

    Steps begin at the near plane and follow one another. Those of equal length do so whatever is
    occupied; those that grow keep the length of the first one while they cross an empty cell, as
    nerfacc's do. Where grids overlap, the first one that holds a point decides (nerfacc's grids
    are nested, the smallest first).

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
        0 or less, the intervals are the pieces of the ray inside each cell, of the grid that
        decides there.
    traverse_steps_limit
        Most samples of a ray; 0 or less is no limit.
    compute_intervals, compute_samples, compute_terminate_planes, over_allocate
        Ignored: everything is computed, and nothing needs room in advance.

    Returns
    -------
    intervals, samples : RaySegmentsSpec
        Edges, neighbours sharing one; middles. nerfacc's list has an edge twice where the ray
        crosses an empty cell between two steps.
    Tensor
        Where each ray stopped, (R,).
    """
    enter, leave = _stretches(t_sorted, t_indices, hits, near_planes, far_planes, rays_mask)
    scene = _Scene(rays_o, rays_d, binaries, aabbs, near_planes, far_planes, enter, leave)
    found = [
        _traverse(part, step_size, cone_angle, traverse_steps_limit)
        for part in _parts(scene, step_size, cone_angle)
    ]
    t_starts, t_ends, counts, stops = (torch.cat(column) for column in zip(*found, strict=True))
    rays = torch.arange(len(counts), device=counts.device).repeat_interleave(counts)
    return (
        _edges(t_starts, t_ends, rays, len(counts)),
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


def _parts(scene: _Scene, step: float, cone: float) -> Iterator[_Scene]:
    """The rays in pieces small enough to look at all their steps at once."""
    n_grids, *sides = scene.binaries.shape
    longest = (scene.end - scene.start).clamp(min=0).amax().item() if len(scene.near) else 0.0
    steps = longest / step if step > 0 else 0.0
    if step <= 0 or cone > 0:
        steps += n_grids * (sum(sides) + 3)
    size = max(1, int(CHUNK / max(steps, 1)))
    for begin in range(0, max(len(scene.near), 1), size):
        yield scene.rows(slice(begin, begin + size))


def _traverse(
    scene: _Scene, step: float, cone: float, limit: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Kept intervals, packed: starts and ends; counts and stops by ray."""
    if step > 0 and cone > 0:
        edges, keep = _growing_steps(scene, step, cone, limit)
        stops = edges[:, -1]
    else:
        edges = _step_edges(scene, step) if step > 0 else _cell_edges(scene)
        middles = (edges[:, :-1] + edges[:, 1:]) / 2
        keep = _occupied(scene, middles) & (edges[:, :-1] < edges[:, 1:])
        if limit > 0:
            keep &= keep.cumsum(1) <= limit
        stops = _stops(scene, edges, middles, keep, limit)
    return edges[:, :-1][keep], edges[:, 1:][keep], keep.sum(1), stops


def _step_edges(scene: _Scene, step: float) -> Tensor:
    """Edges (R, K + 1) of equal steps that cover each ray's stretch."""
    start, end = _finite_stretch(scene)
    first = ((start - scene.near) / step - 0.5).ceil().clamp(min=0)
    count = int(((end - start) / step).amax().item()) + 2 if len(start) else 1
    number = first[:, None] + torch.arange(count + 1, device=start.device)
    return scene.near[:, None] + number * step


def _growing_steps(scene: _Scene, step: float, cone: float, limit: int) -> tuple[Tensor, Tensor]:
    """Edges (R, K + 1) of growing steps, and which of the K intervals are samples.

    All rays move at once: by a step with its middle in an occupied cell, or out of a cell that is
    empty or done. Intervals that are not samples may be empty, or cross a whole cell.
    """
    ends, occupied, n_cells = _cells(scene)
    t, cell = scene.near, torch.zeros_like(n_cells)
    n_kept = torch.zeros_like(n_cells)
    edges, keep = [t], []
    while True:
        going = cell < n_cells
        if limit > 0:
            going &= n_kept < limit
        if not bool(going.any()):
            break
        at = cell.clamp(max=ends.shape[1] - 1)[:, None]
        end, full = ends.gather(1, at).squeeze(1), occupied.gather(1, at).squeeze(1)
        length = (t * cone).clamp(min=step)
        short = t + length / 2 < end
        sample = going & full & short
        skipped = ((end - t) / length - 0.5).ceil() * (going & ~full & short)
        t = t + torch.where(sample, 1, skipped) * length
        cell = cell + (going & ~sample)
        n_kept = n_kept + sample
        edges.append(t)
        keep.append(sample)
    kept = torch.stack(keep, 1) if keep else torch.zeros_like(occupied[:, :0])
    return torch.stack(edges, 1), kept


def _cells(scene: _Scene) -> tuple[Tensor, Tensor, Tensor]:
    """Where each ray leaves its cells (R, C), which are occupied, and how many there are (R,).

    The way to the first grid counts as an empty cell.
    """
    edges = torch.cat((scene.near[:, None], _cell_edges(scene)), 1)
    starts, ends = edges[:, :-1], edges[:, 1:]
    occupied = _occupied(scene, (starts + ends) / 2)
    passed = starts < ends
    order = (~passed).byte().sort(dim=1, stable=True).indices
    return ends.gather(1, order), occupied.gather(1, order), passed.sum(1)


def _finite_stretch(scene: _Scene) -> tuple[Tensor, Tensor]:
    """Start and end of each ray's stretch; an empty one at the near plane where it misses."""
    missed = scene.end <= scene.start
    return scene.start.where(~missed, scene.near), scene.end.where(~missed, scene.near)


def _cell_edges(scene: _Scene) -> Tensor:
    """Distances (R, K), in order, at which rays pass from cell to cell of the grid that decides."""
    _, end = _finite_stretch(scene)
    found = []
    for number, box in enumerate(scene.aabbs):
        inner = []
        for axis, side in enumerate(scene.binaries.shape[1:]):
            planes = torch.arange(1, side, device=box.device, dtype=box.dtype) / side
            planes = box[axis] + planes * (box[axis + 3] - box[axis])
            inner.append((planes - scene.rays_o[:, axis, None]) / scene.rays_d[:, axis, None])
        enter, leave = scene.enter[:, number, None], scene.leave[:, number, None]
        crossings = torch.cat((enter, *inner, leave), 1)
        passed = crossings.isfinite()
        slack = SAME * (1 + crossings.abs())
        passed[:, 1:-1] &= ((crossings > enter + slack) & (crossings < leave - slack))[:, 1:-1]
        for first in range(number):
            after = crossings > scene.enter[:, first, None] - slack
            passed &= ~(after & (crossings < scene.leave[:, first, None] + slack))
        found.append(crossings.where(passed, end[:, None]))
    return torch.cat(found, 1).sort(1).values


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


def _edges(t_starts: Tensor, t_ends: Tensor, rays: Tensor, n_rays: int) -> RaySegmentsSpec:
    """Edges of packed intervals; an interval shares its first edge with the one it follows."""
    fresh = torch.ones_like(rays, dtype=torch.bool)
    fresh[1:] = (t_starts[1:] != t_ends[:-1]) | (rays[1:] != rays[:-1])
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
