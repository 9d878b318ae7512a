"""Ray marching in Triton: the backend of :mod:`.marching` for a GPU.

The kernel runs twice, to count each ray's samples and to write them. Both runs are one compiled
program, so that they agree to the last bit.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .marching import Samples
from .occupancy import OccupancyGrid

RAYS = 4
CHUNK = 32
WARPS = 4


def march(
    rays_o: Tensor,
    rays_d: Tensor,
    grid: OccupancyGrid,
    start: Tensor,
    first: Tensor,
    leave: Tensor,
    step: float,
    capacity: int | None = None,
) -> Samples:
    """Samples of rays (R, 3); arguments as :func:`.marching.march_reference`.

    With ``capacity`` nothing waits for the device, and the list has that length.
    """
    n_rays, device = len(rays_o), rays_o.device
    rays_o, rays_d = rays_o.contiguous(), rays_d.contiguous()
    counts = torch.zeros(n_rays, dtype=torch.int64, device=device)
    low, high = grid.box
    cells = torch.cat((low, grid.side / (high - low)))
    occupied = grid.binaries.view(torch.uint8)

    def walk(offsets: Tensor, samples: Samples, length: int) -> None:
        _march_kernel[(triton.cdiv(n_rays, RAYS),)](
            rays_o,
            rays_d,
            start,
            first,
            leave,
            cells,
            occupied,
            counts,
            offsets,
            samples.t_starts,
            samples.t_ends,
            samples.ray_indices,
            n_rays,
            length,
            step,
            SIDE=grid.side,
            LEVELS=grid.levels,
            RAYS=RAYS,
            CHUNK=CHUNK,
            num_warps=WARPS,
        )

    none = Samples(start.new_empty(1), start.new_empty(1), counts.new_empty(1))
    walk(counts, none, 0)
    reached = counts.cumsum(0)
    if capacity is None:
        length = int(reached[-1]) if n_rays else 0
        samples = Samples(
            start.new_empty(length), start.new_empty(length), counts.new_empty(length)
        )
    else:
        length = capacity
        samples = Samples(
            start.new_zeros(length),
            start.new_zeros(length),
            counts.new_full((length,), n_rays - 1),
            (reached[-1] - length).clamp(min=0),
        )
    if length:
        walk(reached - counts, samples, length)
    return samples


@triton.jit(do_not_specialize=["length"])
def _march_kernel(
    rays_o, rays_d, start, first, leave, cells, occupied, counts, offsets,
    t_starts, t_ends, ray_indices, n_rays, length, step,
    SIDE: tl.constexpr, LEVELS: tl.constexpr, RAYS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """A row of threads looks at ``CHUNK`` steps of its ray at a time."""
    ray = tl.program_id(0) * RAYS + tl.arange(0, RAYS)
    there = ray < n_rays
    begin = tl.load(start + ray, mask=there, other=0.0)
    number = tl.load(first + ray, mask=there, other=0.0)
    end = tl.load(leave + ray, mask=there, other=-1.0)
    place = tl.load(offsets + ray, mask=there, other=0)[:, None]
    scale_x, scale_y, scale_z = tl.load(cells + 3), tl.load(cells + 4), tl.load(cells + 5)
    origin_x = tl.load(rays_o + ray * 3, mask=there, other=0.0)[:, None] - tl.load(cells)
    origin_y = tl.load(rays_o + ray * 3 + 1, mask=there, other=0.0)[:, None] - tl.load(cells + 1)
    origin_z = tl.load(rays_o + ray * 3 + 2, mask=there, other=0.0)[:, None] - tl.load(cells + 2)
    toward_x = tl.load(rays_d + ray * 3, mask=there, other=0.0)[:, None]
    toward_y = tl.load(rays_d + ray * 3 + 1, mask=there, other=0.0)[:, None]
    toward_z = tl.load(rays_d + ray * 3 + 2, mask=there, other=0.0)[:, None]
    steps_left = tl.ceil((end - begin) / step - number).to(tl.int32)
    longest = tl.max(steps_left, axis=0)
    column = tl.arange(0, CHUNK)[None, :]
    found = tl.zeros([RAYS, 1], tl.int32)
    k = 0
    while k < longest:
        middle = begin[:, None] + (number[:, None] + ((k + column).to(tl.float32) + 0.5)) * step
        x = (origin_x + middle * toward_x) * scale_x
        y = (origin_y + middle * toward_y) * scale_y
        z = (origin_z + middle * toward_z) * scale_z
        table = tl.zeros([RAYS, CHUNK], tl.int32)
        reach = SIDE / 2.0
        if LEVELS > 1:
            furthest = tl.maximum(
                tl.abs(x - reach), tl.maximum(tl.abs(y - reach), tl.abs(z - reach))
            )
            shrink = tl.full([RAYS, CHUNK], 1.0, tl.float32)
            for level in tl.static_range(LEVELS - 1):
                outside = furthest > reach * 2**level
                table += outside.to(tl.int32)
                shrink = tl.where(outside, shrink * 0.5, shrink)
            x, y, z = (
                (x - reach) * shrink + reach,
                (y - reach) * shrink + reach,
                (z - reach) * shrink + reach,
            )
        inside = (middle < end[:, None]) & (x >= 0) & (y >= 0) & (z >= 0)
        inside = inside & (x <= SIDE) & (y <= SIDE) & (z <= SIDE)
        i = tl.minimum(tl.maximum(x, 0.0), SIDE - 1).to(tl.int32)
        j = tl.minimum(tl.maximum(y, 0.0), SIDE - 1).to(tl.int32)
        l = tl.minimum(tl.maximum(z, 0.0), SIDE - 1).to(tl.int32)
        cell = ((table * SIDE + i) * SIDE + j) * SIDE + l
        kept = tl.load(occupied + cell, mask=inside, other=0) != 0
        one = kept.to(tl.int32)
        at = place + found + tl.cumsum(one, axis=1) - 1
        into = kept & (at < length)
        tl.store(t_starts + at, middle - step / 2, mask=into)
        tl.store(t_ends + at, middle + step / 2, mask=into)
        tl.store(ray_indices + at, (ray[:, None] + tl.zeros_like(one)).to(tl.int64), mask=into)
        found += tl.sum(one, axis=1)[:, None]
        k += CHUNK
    total = tl.sum(found, axis=1)
    tl.store(counts + ray, total.to(tl.int64), mask=there)
