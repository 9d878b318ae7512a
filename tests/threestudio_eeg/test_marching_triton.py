"""Marching and compositing in Triton against the torch code."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from threestudio_eeg.neural_fields.compositing import accumulate, render_weights, spread
from threestudio_eeg.neural_fields.marching import Samples, march
from threestudio_eeg.neural_fields.occupancy import OccupancyGrid

from .kernels import DEVICE, run_in_interpreter, runs_kernels

BOX = torch.tensor([[-1.0, -1.0, -1.0], [1.0, 1.0, 1.2]])
N_RAYS = 11


def scene(levels: int):
    torch.manual_seed(0)
    grid = OccupancyGrid(BOX, 8, levels)
    grid.binaries.copy_(torch.rand(grid.binaries.shape) < 0.4)
    origins = F.normalize(torch.randn(N_RAYS, 3), dim=-1) * 2.5
    targets = torch.rand(N_RAYS, 3) * 2 - 1
    directions = F.normalize(targets - origins, dim=-1)
    directions[0] = torch.tensor([0.0, 0.0, 1.0])
    return grid.to(DEVICE), origins.to(DEVICE), directions.to(DEVICE)


def both(function):
    results = []
    for backend in ("torch", "triton"):
        torch.manual_seed(2)
        results.append(function(backend))
    return results


def assert_same(found: Samples, expected: Samples) -> None:
    assert torch.equal(found.ray_indices, expected.ray_indices)
    torch.testing.assert_close(found.t_starts, expected.t_starts, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.t_ends, expected.t_ends, atol=1e-5, rtol=0)


def test_in_the_interpreter():
    run_in_interpreter(__file__)


@runs_kernels
@pytest.mark.parametrize("levels", [1, 3])
@pytest.mark.parametrize("jitter", [False, True])
def test_samples_are_the_same(levels, jitter):
    grid, origins, directions = scene(levels)
    options = {"near": 0.3, "far": 4.0, "jitter": jitter}
    expected, found = both(lambda b: march(origins, directions, grid, 0.1, backend=b, **options))
    assert len(expected) > 50
    assert_same(found, expected)


@runs_kernels
@pytest.mark.parametrize("spare", [-20, 20])
def test_lists_of_fixed_length(spare):
    grid, origins, directions = scene(1)
    everything = march(origins, directions, grid, 0.1, backend="torch")
    capacity = len(everything) + spare
    expected, found = both(
        lambda b: march(origins, directions, grid, 0.1, capacity=capacity, backend=b)
    )
    assert len(found) == capacity
    assert int(found.overflow) == int(expected.overflow) == max(-spare, 0)
    assert_same(found, expected)


@runs_kernels
def test_compositing_and_its_gradients_are_the_same():
    grid, origins, directions = scene(1)
    samples = march(origins, directions, grid, 0.05, backend="torch")
    torch.manual_seed(3)
    density = (torch.rand(len(samples)) * 3).double().to(DEVICE).requires_grad_()
    colour = torch.rand(len(samples), 3).double().to(DEVICE).requires_grad_()

    def pictures(backend):
        weights, transmittance, alpha = render_weights(density, samples, N_RAYS, backend)
        rgb = accumulate(weights, colour, samples, N_RAYS, backend)
        opacity = accumulate(weights, None, samples, N_RAYS, backend)
        apart = (colour - spread(rgb, samples, backend)) ** 2
        variance = accumulate(weights, apart, samples, N_RAYS, backend)
        loss = (rgb**2).sum() + (opacity**3).sum() + variance.sum()
        loss = loss + (transmittance**2).sum() / 9 + (alpha**3).sum()
        gradients = torch.autograd.grad(loss, (density, colour))
        return weights, transmittance, alpha, rgb, opacity, variance, *gradients

    for expected, found in zip(*both(pictures), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


@runs_kernels
def test_rays_without_samples():
    grid, origins, directions = scene(1)
    grid.binaries.zero_()
    samples = march(origins, directions, grid, 0.1, backend="triton")
    assert len(samples) == 0
    weights, _, _ = render_weights(torch.zeros(0, device=DEVICE), samples, N_RAYS, "triton")
    assert accumulate(weights, None, samples, N_RAYS, "triton").tolist() == [[0.0]] * N_RAYS


@pytest.mark.gpu
def test_a_picture_of_real_size():
    torch.manual_seed(0)
    grid = OccupancyGrid(torch.tensor([[-1.0] * 3, [1.0] * 3]), 32).cuda()
    grid.binaries.copy_(torch.rand(grid.binaries.shape, device="cuda") < 0.3)
    origins = torch.tensor([[0.0, -1.6, 0.1]]).cuda().expand(1 << 16, 3)
    directions = F.normalize(torch.rand(1 << 16, 3, device="cuda") * 1.8 - 0.9 - origins, dim=-1)
    counts = []
    for backend in ("torch", "triton"):
        samples = march(origins, directions, grid, 3.464 / 512, backend=backend)
        counts.append(torch.bincount(samples.ray_indices, minlength=1 << 16))
    assert float((counts[0] != counts[1]).double().mean()) < 1e-2
    assert abs(int(counts[0].sum()) - int(counts[1].sum())) < 1e-4 * int(counts[0].sum())
