"""Rays through boxes and occupancy grids, against a walk along each ray."""

import math

import pytest
import torch

from threestudio_eeg.compat.nerfacc_kernels import grids
from threestudio_eeg.neural_fields import marching

BOX = torch.tensor([-1.0, -1.0, -1.0, 1.0, 1.0, 1.0])


def rays(count=40, seed=0):
    """From a sphere of radius 3, towards points near the origin; some miss the box."""
    generator = torch.Generator().manual_seed(seed)
    origins = torch.nn.functional.normalize(torch.randn(count, 3, generator=generator), dim=-1) * 3
    targets = torch.randn(count, 3, generator=generator)
    return origins, torch.nn.functional.normalize(targets - origins, dim=-1)


def grid(levels=1, side=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    occupied = torch.rand(levels, side, side, side, generator=generator) < 0.4
    return occupied, torch.stack([BOX * 2**level for level in range(levels)])


def traverse(
    rays_o, rays_d, binaries, aabbs, *, near=None, step=0.1, cone=0.0, limit=-1, mask=None
):
    n_rays = len(rays_o)
    near = torch.zeros(n_rays) if near is None else near
    far = torch.full((n_rays,), 1e10)
    enter, leave, hits = grids.ray_aabb_intersect(
        rays_o, rays_d, aabbs, -math.inf, math.inf, math.inf
    )
    t_sorted, t_indices = torch.cat((enter, leave), -1).sort(-1)
    mask = torch.ones(n_rays, dtype=torch.bool) if mask is None else mask
    return grids.traverse_grids(
        *(rays_o, rays_d, mask, binaries, aabbs, t_sorted, t_indices, hits, near, far),
        *(step, cone, True, True, True, limit, False),
    )


def walk(origin, direction, binaries, aabbs, near, step, cone, limit):
    """Kept steps of one ray, and where it stopped: nerfacc's loop over the cells on its way.

    In an empty cell the first step's length is kept; without a step, cells are the steps.
    """
    stretches = [box_by_planes(origin, direction, box, near) for box in aabbs]
    last = max(leave for _, leave in stretches)
    t, place, kept = near, near, []
    while place < last and (limit <= 0 or len(kept) < limit):
        end, full = cell_at(origin, direction, binaries, aabbs, stretches, place)
        if step <= 0:
            kept += [(place, end)] * full
            t = end
        dt = length(t, step, cone)
        while step > 0 and t + dt / 2 < end and (limit <= 0 or len(kept) < limit):
            kept += [(t, t + dt)] * full
            t += dt
            dt = length(t, step, cone) if full else dt
        place = end
    return kept, t


def cell_at(origin, direction, binaries, aabbs, stretches, place):
    """Where the cell just after a place on the ray ends, and whether it is occupied."""
    beyond = place + 1e-9
    ends = [t for stretch in stretches for t in stretch if beyond < t < math.inf]
    level = next((i for i, (enter, leave) in enumerate(stretches) if enter <= beyond < leave), None)
    if level is None:
        return min(ends), False
    box = aabbs[level]
    for axis in range(3):
        planes = torch.linspace(float(box[axis]), float(box[axis + 3]), binaries.shape[1] + 1)
        crossings = (planes.double() - origin[axis]) / direction[axis]
        ends += crossings[crossings > beyond].tolist()
    end = min(ends)
    return end, occupied(origin + direction * (place + end) / 2, binaries[level], box)


def length(t, step, cone):
    return max(t * cone, step)


def box_by_planes(origin, direction, box, near):
    enter, leave = near, math.inf
    for axis in range(3):
        a = float((box[axis] - origin[axis]) / direction[axis])
        b = float((box[axis + 3] - origin[axis]) / direction[axis])
        enter, leave = max(enter, min(a, b)), min(leave, max(a, b))
    return (enter, leave) if enter < leave else (math.inf, -math.inf)


def occupied(point, binaries, box):
    side = binaries.shape[0]
    x, y, z = ((point - box[:3]) / (box[3:] - box[:3]) * side).long().clamp(0, side - 1).tolist()
    return bool(binaries[x, y, z])


@pytest.mark.parametrize(("step", "cone"), [(0.1, 0.0), (0.1, 0.08), (0.03, 0.05), (0.0, 0.0)])
@pytest.mark.parametrize("levels", [1, 3])
@pytest.mark.parametrize("limit", [-1, 5])
def test_steps_against_a_walk(levels, step, cone, limit):
    rays_o, rays_d = (part.double() for part in rays())
    binaries, aabbs = grid(levels)
    near = torch.linspace(0, 0.09, len(rays_o)).double()
    intervals, samples, stops = traverse(
        rays_o, rays_d, binaries, aabbs.double(), near=near, step=step, cone=cone, limit=limit
    )
    starts, ends = intervals.vals[intervals.is_left], intervals.vals[intervals.is_right]
    walked = [
        walk(*ray, binaries, aabbs.double(), float(t), step, cone, limit)
        for *ray, t in zip(rays_o, rays_d, near, strict=True)
    ]
    expected = torch.tensor([pair for kept, _ in walked for pair in kept]).double()
    torch.testing.assert_close(torch.stack((starts, ends), -1), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(samples.vals, (starts + ends) / 2)
    counts = [len(kept) for kept, _ in walked]
    assert samples.chunk_cnts.tolist() == counts
    assert samples.ray_indices.tolist() == [ray for ray, n in enumerate(counts) for _ in range(n)]
    stopped = torch.tensor([stop for _, stop in walked]).double()
    torch.testing.assert_close(stops, stopped, rtol=0, atol=1e-6)


def test_neighbouring_intervals_share_an_edge():
    binaries, aabbs = grid()
    binaries[:] = True
    origin, direction = torch.tensor([[-3.0, 0.1, 0.1]]), torch.tensor([[1.0, 0.0, 0.0]])
    intervals, samples, _ = traverse(origin, direction, binaries, aabbs, step=0.25)
    assert samples.vals.tolist() == [2.125 + 0.25 * number for number in range(8)]
    assert intervals.vals.tolist() == [2 + 0.25 * number for number in range(9)]
    assert intervals.is_left.tolist() == [True] * 8 + [False]
    assert intervals.is_right.tolist() == [False] + [True] * 8
    assert intervals.chunk_starts.tolist() == [0]
    assert intervals.chunk_cnts.tolist() == [9]
    binaries[:, 4] = False
    intervals, _, _ = traverse(origin, direction, binaries, aabbs, step=0.25)
    assert intervals.vals.tolist() == [2, 2.25, 2.5, 2.75, 3, 3.25, 3.5, 3.75, 4]


def test_without_a_step_the_pieces_in_each_cell():
    rays_o, rays_d = (part.double() for part in rays(12))
    binaries, aabbs = grid()
    intervals, samples, _ = traverse(rays_o, rays_d, binaries, aabbs.double(), step=0.0)
    starts, ends = intervals.vals[intervals.is_left], intervals.vals[intervals.is_right]
    origin, direction = rays_o[samples.ray_indices], rays_d[samples.ray_indices]
    for t in (starts * 0.99 + ends * 0.01, starts * 0.01 + ends * 0.99):
        points = origin + direction * t[:, None]
        assert all(occupied(point, binaries[0], BOX) for point in points)
    fine, _, _ = traverse(rays_o, rays_d, binaries, aabbs.double(), step=0.002)
    lengths = fine.vals[fine.is_right] - fine.vals[fine.is_left]
    torch.testing.assert_close((ends - starts).sum(), lengths.sum(), rtol=2e-3, atol=0)


@pytest.mark.parametrize("cone", [0.0, 0.05])
def test_rays_in_pieces_give_the_same(monkeypatch, cone):
    scene = (*rays(), *grid(2))
    whole = traverse(*scene, cone=cone)
    monkeypatch.setattr(grids, "CHUNK", 100)
    pieces = traverse(*scene, cone=cone)
    for one, other in zip(whole[:2], pieces[:2], strict=True):
        assert vars(one).keys() == vars(other).keys()
        for name, value in vars(one).items():
            assert value is None or torch.equal(value, getattr(other, name))
    assert torch.equal(whole[2], pieces[2])


@pytest.mark.parametrize("cone", [0.0, 0.05])
def test_masked_rays_have_no_samples(cone):
    rays_o, rays_d = rays()
    mask = torch.arange(len(rays_o)) % 2 == 0
    _, samples, stops = traverse(rays_o, rays_d, *grid(), mask=mask, cone=cone)
    assert (stops[~mask] == 0).all()
    assert samples.chunk_cnts[mask].sum() > 0
    assert samples.chunk_cnts[~mask].sum() == 0


@pytest.mark.parametrize("cone", [0.0, 0.05])
def test_no_rays_and_rays_that_all_miss(cone):
    binaries, aabbs = grid()
    _, samples, stops = traverse(torch.zeros(0, 3), torch.zeros(0, 3), binaries, aabbs, cone=cone)
    assert len(samples.vals) == len(stops) == 0
    away = torch.tensor([[5.0, 5.0, 5.0]])
    intervals, samples, stops = traverse(away, away / away.norm(), binaries, aabbs, cone=cone)
    assert len(samples.vals) == len(intervals.vals) == 0
    assert samples.chunk_cnts.tolist() == [0]
    assert stops.tolist() == [0]


def test_the_embedded_host_marches_the_same():
    rays_o, rays_d = rays(200)
    binaries, aabbs = grid()
    ours = marching.OccupancyGrid(BOX.view(2, 3), 8)
    ours.binaries.copy_(binaries)
    expected = marching.march(rays_o, rays_d, ours, 0.1)
    intervals, samples, _ = traverse(rays_o, rays_d, binaries, aabbs)
    assert torch.equal(samples.ray_indices, expected.ray_indices)
    starts = intervals.vals[intervals.is_left]
    torch.testing.assert_close(starts, expected.t_starts, rtol=0, atol=2e-6)


def test_boxes_against_their_planes():
    rays_o, rays_d = rays()
    aabbs = torch.stack((BOX, BOX * 0.3 + 0.2))
    enter, leave, hits = grids.ray_aabb_intersect(rays_o, rays_d, aabbs, 2.0, 3.5, -1.0)
    for ray, (origin, direction) in enumerate(zip(rays_o, rays_d, strict=True)):
        for box in range(2):
            a, b = box_by_planes(origin, direction, aabbs[box], 0.0)
            assert bool(hits[ray, box]) == (a < b)
            expected = (max(a, 2.0), min(b, 3.5)) if a < b else (-1.0, -1.0)
            found = (float(enter[ray, box]), float(leave[ray, box]))
            assert found == pytest.approx(expected, abs=1e-5)
    assert 0 < hits.sum() < hits.numel()


@pytest.mark.parametrize(
    ("origin", "direction", "expected"),
    [
        ([0.0, 0.0, 0.0], [0.0, 0.0, 1.0], (-1.0, 1.0, True)),
        ([1.0, 0.0, -2.0], [0.0, 0.0, 1.0], (1.0, 3.0, True)),
        ([2.0, 0.0, -2.0], [0.0, 0.0, 1.0], (math.inf, math.inf, False)),
        ([0.0, 0.0, 2.0], [0.0, 0.0, 1.0], (math.inf, math.inf, False)),
    ],
    ids=["inside", "in a face", "beside", "behind"],
)
def test_rays_along_an_axis(origin, direction, expected):
    found = grids.ray_aabb_intersect(
        torch.tensor([origin]), torch.tensor([direction]), BOX[None], -math.inf, math.inf, math.inf
    )
    assert tuple(part.item() for part in found) == expected
