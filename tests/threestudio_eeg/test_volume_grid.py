"""The dense grid: what it stores, its blob, normals, surface."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from eeg_encoder.errors import InputError
from threestudio_eeg.builtin.registry import find
from threestudio_eeg.builtin.volume_grid import smoothed


def grid(**cfg):
    return find("volume-grid")({"grid_size": (8, 8, 8), "isosurface_resolution": 32, **cfg})


def points(n=20, radius=0.4):
    directions = F.normalize(torch.randn(n, 3, generator=torch.Generator().manual_seed(2)), dim=-1)
    return directions * radius


def test_values_are_read_at_the_cells_centres_along_z_y_x():
    geometry = grid(density_bias=0.0, density_activation="none", normal_type=None)
    with torch.no_grad():
        geometry.grid.copy_(torch.randn_like(geometry.grid))
    x, y, z = 5, 2, 6
    centre = (torch.tensor([[x, y, z]]) + 0.5) / 8 * 2 - 1
    out = geometry(centre)
    torch.testing.assert_close(out["density"][0, 0], geometry.grid[0, 0, z, y, x])
    torch.testing.assert_close(out["features"][0], geometry.grid[0, 1:, z, y, x])


def test_blob_and_surface():
    geometry = grid(density_blob_scale=10.0, isosurface_threshold=3.0)
    places = torch.tensor([[0.0, 0, 0], [0.9, 0, 0]])
    inside, outside = geometry.forward_density(places).view(-1).tolist()
    assert inside == pytest.approx(10.0, abs=1e-3)
    assert outside < 1e-3
    radius = geometry.isosurface().v_pos.norm(dim=-1)
    # softplus(10 (1 - r / 0.5)) = 3
    assert radius.mean() == pytest.approx(0.5 * (1 - 2.9489 / 10), abs=0.02)
    assert radius.std() < 0.01


@pytest.mark.parametrize("kind", ["finite_difference", "finite_difference_laplacian"])
def test_normals_of_the_blob_point_outwards(kind):
    normal = grid(normal_type=kind)(points(), output_normal=True)["normal"]
    torch.testing.assert_close(normal, F.normalize(points(), dim=-1), atol=0.02, rtol=0)


def test_density_scale_is_learned_without_a_blob():
    geometry = grid(density_bias=-1.0, normal_type="pred")
    with torch.no_grad():
        geometry.grid.normal_()
        geometry.normal_grid.normal_()
    out = geometry(points(), output_normal=True)
    (out["density"].sum() + out["normal"][:, 0].sum()).backward()
    assert geometry.density_scale.grad != 0
    assert geometry.grid.grad.abs().max() > 0
    assert geometry.normal_grid.grad.abs().max() > 0


@pytest.mark.parametrize(
    ("cfg", "words"),
    [
        ({"normal_type": "analytic"}, "normal_type: found analytic"),
        ({"density_bias": "ball"}, "density_bias: found ball"),
        ({"grid_size": (0, 4, 4)}, "grid_size"),
        ({"isosurface_threshold": "low"}, "isosurface_threshold: found low"),
    ],
)
def test_bad_config(cfg, words):
    with pytest.raises(InputError, match=words):
        grid(**cfg)


def test_smoothing_keeps_what_is_even_and_spreads_what_is_not():
    even = torch.full((1, 2, 5, 6, 7), 3.0)
    torch.testing.assert_close(smoothed(even, 1.5), even)
    peak = torch.zeros(1, 1, 9, 9, 9)
    peak[0, 0, 4, 4, 4] = 1
    spread = smoothed(peak, 1.0)[0, 0]
    assert spread[4, 4, 5] / spread[4, 4, 4] == pytest.approx(math.exp(-0.5), rel=1e-3)
    torch.testing.assert_close(spread, spread.permute(2, 0, 1))
    assert smoothed(peak, 0.0) is peak


def test_smoothing_follows_its_schedule_and_is_what_is_read():
    geometry = grid(smoothing=[0, 2.0, 0.5, 100], density_bias=0.0, density_activation="none")
    with torch.no_grad():
        geometry.grid.normal_(generator=torch.Generator().manual_seed(0))
    centre = (torch.tensor([[5, 2, 6]]) + 0.5) / 8 * 2 - 1
    for step, std in ((0, 2.0), (50, 1.25), (100, 0.5), (500, 0.5)):
        geometry.update_step(0, step)
        assert geometry.smoothing == pytest.approx(std)
        expected = smoothed(geometry.grid, std)[0, 0, 6, 2, 5]
        torch.testing.assert_close(geometry.forward_density(centre)[0, 0], expected)
    geometry.forward_density(centre).sum().backward()
    assert (geometry.grid.grad[:, 0] != 0).sum() > 1
