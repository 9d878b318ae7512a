"""Drawing new intervals where the weight lies, and finding values among sorted ones."""

from __future__ import annotations

import torch
from torch import Tensor

from .segments import RaySegmentsSpec, rays_of_chunks, starts_of_chunks

SMALLEST = 1e-10


def searchsorted(query: RaySegmentsSpec, key: RaySegmentsSpec) -> tuple[Tensor, Tensor]:
    """Neighbours of each value among its ray's sorted ones.

    Returns
    -------
    left, right : Tensor
        Positions with ``key[left] <= query < key[right]``, in the query's shape; the nearest end
        for a value outside. Positions in the list, or on the ray when the query is batched.
    """
    assert query.vals is not None
    first, last = (bound[query.rays()] for bound in key.bounds())
    found = _upper_bound(key.values(), first, last, query.values())
    left, right = _neighbours(found, first, last)
    if query.batched:
        left, right = left - first, right - first
    return left.view(query.vals.shape), right.view(query.vals.shape)


def importance_sampling(
    ray_segments: RaySegmentsSpec,
    cdfs: Tensor,
    n_intervals_per_ray: Tensor | int,
    stratified: bool,
) -> tuple[RaySegmentsSpec, RaySegmentsSpec]:
    """Inverse transform sampling: equal steps of the distribution become intervals.

    Parameters
    ----------
    ray_segments
        Edges along rays.
    cdfs
        The distribution's value at each edge.
    n_intervals_per_ray
        One number, or one a ray (R,).
    stratified
        Shift each ray's samples by a uniform part of a step, instead of half a step.

    Returns
    -------
    intervals, samples : RaySegmentsSpec
        Batched for one number of intervals, packed for many. A ray with one sample has the whole
        ray as its interval.
    """
    counts, batch = _how_many(ray_segments, n_intervals_per_ray)
    rays = rays_of_chunks(counts)
    samples = _draw(ray_segments, cdfs.reshape(-1), counts, rays, stratified)
    edges = _edges_between(ray_segments, samples, counts, rays)
    if batch is not None:
        n = int(n_intervals_per_ray)
        return RaySegmentsSpec(edges.view(*batch, n + 1)), RaySegmentsSpec(samples.view(*batch, n))
    return _packed_edges(edges, counts), _packed(samples, counts, rays)


def _how_many(
    segments: RaySegmentsSpec, asked: Tensor | int
) -> tuple[Tensor, tuple[int, ...] | None]:
    """Samples of each ray (R,), and the batch's shape when all have the same number."""
    n_rays = segments.n_rays()
    if isinstance(asked, Tensor):
        return asked.reshape(-1).long(), None
    assert segments.vals is not None
    counts = torch.full((n_rays,), asked, device=segments.vals.device)
    return counts, tuple(segments.vals.shape[:-1]) if segments.batched else (n_rays,)


def _draw(
    segments: RaySegmentsSpec, cdfs: Tensor, counts: Tensor, rays: Tensor, stratified: bool
) -> Tensor:
    first, last = segments.bounds()
    low, high = cdfs[first], cdfs[last]
    shift = torch.rand_like(low) if stratified else torch.full_like(low, 0.5)
    number = torch.arange(len(rays), device=rays.device) - starts_of_chunks(counts)[rays]
    step = (high - low) / counts
    u = low[rays] + (number + shift[rays]) * step[rays]
    first, last = first[rays], last[rays]
    left, right = _neighbours(_upper_bound(cdfs, first, last, u), first, last)
    t_left, t_right = segments.values()[left], segments.values()[right]
    rise = cdfs[right] - cdfs[left]
    flat = rise < SMALLEST
    part = (u - cdfs[left]) / torch.where(flat, 1, rise)
    return torch.where(flat, (t_left + t_right) / 2, t_left + part * (t_right - t_left))


def _edges_between(
    segments: RaySegmentsSpec, samples: Tensor, counts: Tensor, rays: Tensor
) -> Tensor:
    """Edges half-way between samples, packed: one more than samples, for rays that have any."""
    values, (first, last) = segments.values(), segments.bounds()
    filled = counts > 0
    start, n_edges = starts_of_chunks(counts), counts + filled
    edge_start = starts_of_chunks(n_edges)
    place = torch.arange(len(rays), device=rays.device) - start[rays]
    edges = samples.new_empty(len(samples) + int(filled.sum()))

    later = (place > 0).nonzero().squeeze(1)
    edges[(edge_start[rays] + place)[later]] = (samples[later - 1] + samples[later]) / 2

    begin, end = start[filled], (start + counts - 1)[filled]
    several = counts[filled] > 1
    head = samples[begin] - (samples[torch.minimum(begin + 1, end)] - samples[begin]) / 2
    tail = samples[end] + (samples[end] - samples[torch.maximum(end - 1, begin)]) / 2
    t_min, t_max = values[first[filled]], values[last[filled]]
    edges[edge_start[filled]] = torch.where(several, torch.maximum(head, t_min), t_min)
    edges[(edge_start + n_edges - 1)[filled]] = torch.where(
        several, torch.minimum(tail, t_max), t_max
    )
    return edges


def _packed(samples: Tensor, counts: Tensor, rays: Tensor) -> RaySegmentsSpec:
    return RaySegmentsSpec(samples, starts_of_chunks(counts), counts, rays)


def _packed_edges(edges: Tensor, counts: Tensor) -> RaySegmentsSpec:
    n_edges = counts + (counts > 0)
    starts = starts_of_chunks(n_edges)
    is_left = torch.ones_like(edges, dtype=torch.bool)
    is_right = is_left.clone()
    filled = counts > 0
    is_right[starts[filled]] = False
    is_left[(starts + n_edges - 1)[filled]] = False
    rays = rays_of_chunks(n_edges)
    return RaySegmentsSpec(edges, starts, n_edges, rays, is_left=is_left, is_right=is_right)


def _neighbours(found: Tensor, first: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
    """The positions around ``found``, kept between ``first`` and ``last``."""
    left = torch.minimum(torch.maximum(found - 1, first), last)
    return left, torch.minimum(torch.maximum(found, first), last)


def _upper_bound(values: Tensor, first: Tensor, last: Tensor, query: Tensor) -> Tensor:
    """The first position in [first, last) whose value exceeds the query's; ``last`` where none."""
    low, high = first.clone(), last.clone()
    longest = int((last - first).amax()) if len(first) else 0
    for _ in range(longest.bit_length()):
        middle = (low + high) // 2
        open_ = low < high
        above = values[middle.clamp(max=len(values) - 1)] > query
        high = torch.where(open_ & above, middle, high)
        low = torch.where(open_ & ~above, middle + 1, low)
    return low
