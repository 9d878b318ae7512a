"""Occupancy grid, marching and compositing against loops that say what they do."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from threestudio_eeg.neural_fields.compositing import (
    accumulate,
    exclusive_sum,
    render_weights,
    visible,
)
from threestudio_eeg.neural_fields.marching import Samples, intersect_box, march
from threestudio_eeg.neural_fields.occupancy import OccupancyGrid

BOX = torch.tensor([[-1.0, -1.0, -1.0], [1.0, 1.0, 1.0]])
COUNTS = [0, 3, 1, 0, 5, 0]


def packed(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    index = torch.repeat_interleave(torch.arange(len(COUNTS)), torch.tensor(COUNTS))
    starts = torch.arange(len(index), dtype=dtype)
    lengths = torch.rand(len(index), generator=generator, dtype=dtype)
    density = torch.rand(len(index), generator=generator, dtype=dtype) * 2
    return Samples(starts, starts + lengths, index), density


def weights_by_loop(density, samples, n_rays):
    weights, transmittances = [], []
    for ray in range(n_rays):
        transmittance = 1.0
        for i in (samples.ray_indices == ray).nonzero().view(-1).tolist():
            alpha = 1 - math.exp(-float(density[i] * (samples.t_ends[i] - samples.t_starts[i])))
            weights.append(transmittance * alpha)
            transmittances.append(transmittance)
            transmittance *= 1 - alpha
    return torch.tensor(weights).to(density), torch.tensor(transmittances).to(density)


def random_rays(n):
    generator = torch.Generator().manual_seed(1)
    origins = F.normalize(torch.randn(n, 3, generator=generator), dim=-1) * 2.5
    targets = torch.rand(n, 3, generator=generator) * 2 - 1
    return origins, F.normalize(targets - origins, dim=-1)


def test_compositing_equals_the_loop():
    samples, density = packed()
    weights, transmittance, _ = render_weights(density, samples, len(COUNTS))
    expected = weights_by_loop(density, samples, len(COUNTS))
    torch.testing.assert_close(weights, expected[0], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(transmittance, expected[1], atol=1e-6, rtol=1e-5)


def test_accumulate_equals_the_loop():
    samples, density = packed()
    values = torch.randn(len(samples), 3, dtype=torch.float64)
    found = accumulate(density, values, samples, len(COUNTS))
    for ray in range(len(COUNTS)):
        mask = samples.ray_indices == ray
        torch.testing.assert_close(found[ray], (density[mask, None] * values[mask]).sum(0))


def test_compositing_gradcheck():
    samples, density = packed()
    values = torch.randn(len(samples), 3, dtype=torch.float64, requires_grad=True)

    def picture(density, values):
        weights, _, _ = render_weights(density, samples, len(COUNTS))
        return accumulate(weights, values, samples, len(COUNTS))

    assert torch.autograd.gradcheck(picture, (density.requires_grad_(), values))


def test_sum_keeps_precision_behind_many_rays():
    n_rays = 20_000
    index = torch.repeat_interleave(torch.arange(n_rays), 10)
    values = torch.full((n_rays * 10,), 1 / 3)
    last = exclusive_sum(values, index, n_rays).view(n_rays, 10)[-1]
    torch.testing.assert_close(last, torch.arange(10) / 3, atol=1e-6, rtol=1e-6)


def test_hidden_and_faint_samples_are_not_visible():
    samples = Samples(torch.arange(4.0), torch.arange(4.0) + 1, torch.zeros(4, dtype=torch.long))
    density = torch.tensor([1e-6, 50.0, 50.0, 1.0])
    assert visible(density, samples, 1, 0.01).tolist() == [False, True, False, False]


def test_rays_through_the_box():
    origins = torch.tensor([[3.0, 0, 0], [3.0, 0, 0], [0.0, 0, 0], [3.0, 5, 0]])
    directions = torch.tensor([[-1.0, 0, 0], [1.0, 0, 0], [0.0, 0, 1], [-1.0, 0, 0]])
    entry, leave = intersect_box(origins, directions, BOX)
    assert (entry[0], leave[0]) == (2, 4)
    assert (entry[2], leave[2]) == (0, 1)
    assert leave[1] <= entry[1]
    assert leave[3] <= entry[3]


@pytest.mark.parametrize("jitter", [False, True])
def test_full_grid_is_marched_from_wall_to_wall(jitter):
    grid = OccupancyGrid(BOX, 8)
    grid.fill()
    rays_o, rays_d = random_rays(50)
    step = 0.05
    samples = march(rays_o, rays_d, grid, step, jitter=jitter)
    entry, leave = intersect_box(rays_o, rays_d, BOX)
    length = accumulate(samples.t_ends - samples.t_starts, None, samples, 50)[:, 0]
    assert ((length - (leave - entry)).abs() <= 1.5 * step).all()
    order = samples.ray_indices * 1000 + samples.t_starts
    assert (order.diff() > 0).all()


def test_only_occupied_cells_are_sampled():
    grid = OccupancyGrid(BOX, 8)
    grid.binaries[0] = torch.rand(8, 8, 8, generator=torch.Generator().manual_seed(0)) < 0.3
    rays_o, rays_d = random_rays(50)
    samples = march(rays_o, rays_d, grid, 0.05)
    full = OccupancyGrid(BOX, 8)
    full.fill()
    every = march(rays_o, rays_d, full, 0.05)
    expected = 0
    for point in every.positions(rays_o, rays_d):
        x, y, z = ((point + 1) * 4).long().clamp(0, 7).tolist()
        expected += int(grid.binaries[0, x, y, z])
    assert len(samples) == expected > 0


def test_empty_grid_gives_no_samples():
    rays_o, rays_d = random_rays(5)
    samples = march(rays_o, rays_d, OccupancyGrid(BOX, 8), 0.1)
    weights, _, _ = render_weights(torch.zeros(0), samples, 5)
    assert accumulate(weights, None, samples, 5).tolist() == [[0.0]] * 5


@pytest.mark.parametrize("first_step", [0, 256])
def test_grid_finds_a_ball_and_forgets_it(first_step):
    torch.manual_seed(0)
    grid = OccupancyGrid(BOX, 16)
    for turn in range(8):
        grid.update(first_step + 16 * turn, lambda p: (p.norm(dim=-1) < 0.5).float())
    assert grid.occupied(torch.zeros(1, 3)).all()
    assert not grid.occupied(torch.tensor([[0.9, 0.9, 0.9], [1.5, 0, 0]])).any()
    before = grid.binaries.clone()
    grid.update(first_step + 3, lambda p: torch.zeros(len(p)))
    assert (grid.binaries == before).all()
    for turn in range(150):
        grid.update(16 * turn, lambda p: torch.zeros(len(p)), warmup_steps=10**9)
    assert float(grid.occs.max()) < 1e-3


@pytest.mark.parametrize("levels", [1, 2])
@pytest.mark.parametrize("which", ["one cell", "a corner", "some", "all", "none"])
def test_marching_around_the_occupied_cells_finds_what_marching_everywhere_finds(
    which, levels, monkeypatch
):
    torch.manual_seed(0)
    grid = OccupancyGrid(torch.tensor([[-1.0, -1.0, -1.0], [1.0, 1.0, 1.2]]), 8, levels)
    cells = {
        "one cell": [(0, 3, 5, 2)],
        "a corner": [(0, 7, 7, 7)],
        "some": [(0, 1, 2, 3), (0, 4, 4, 4), (0, 2, 6, 5)],
        "all": [(slice(None),) * 4],
        "none": [],
    }[which]
    for cell in cells:
        grid.binaries[cell] = True
    origins = F.normalize(torch.randn(300, 3), dim=-1) * 2.5
    directions = F.normalize(torch.rand(300, 3) * 2 - 1 - origins, dim=-1)
    found = march(origins, directions, grid, 0.05)
    monkeypatch.setattr(type(grid), "occupied_box", lambda self: self.outer_box)
    expected = march(origins, directions, grid, 0.05)
    assert (len(expected) > 0) == (which != "none")
    assert torch.equal(found.ray_indices, expected.ray_indices)
    torch.testing.assert_close(found.t_starts, expected.t_starts, atol=1e-6, rtol=0)


def test_box_of_the_occupied_cells():
    grid = OccupancyGrid(BOX, 8)
    grid.binaries[0, 2:4, 0, 7] = True
    expected = torch.tensor([[-0.5, -1.0, 0.75], [0.0, -0.75, 1.0]])
    torch.testing.assert_close(grid.occupied_box(), expected, atol=0.01, rtol=0)
