"""The dense grid: what it stores, its blob, normals, surface."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from eeg_encoder.errors import InputError
from threestudio_eeg.builtin import volume_grid
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


@pytest.fixture
def smoothings(monkeypatch):
    """Standard deviations of the smoothings that are done, in order."""
    done = []

    def counted(values, std, transposed=False):
        done.append(std)
        return smoothed(values, std, transposed)

    monkeypatch.setattr(volume_grid, "smoothed", counted)
    return done


def uneven(**cfg):
    geometry = grid(smoothing=1.0, density_bias=0.0, density_activation="none", **cfg)
    with torch.no_grad():
        geometry.grid.normal_(generator=torch.Generator().manual_seed(0))
    geometry.update_step(0, 0)
    return geometry


def test_look_ups_of_a_step_share_one_smoothing(smoothings):
    geometry = uneven(normal_type=None)
    with torch.no_grad():
        seen = geometry.forward_density(points())
    out = geometry(points())
    torch.testing.assert_close(out["density"], seen)
    geometry.export(points())
    assert len(smoothings) == 1
    out["density"].sum().backward()
    assert len(smoothings) == 2  # the gradient's


def test_gradients_are_those_of_a_grid_smoothed_anew_in_every_look_up():
    geometry = uneven(normal_type="pred", grid_size=(6, 7, 8))
    with torch.no_grad():
        geometry.normal_grid.normal_(generator=torch.Generator().manual_seed(1))
        geometry.forward_density(points())
    fields = geometry(points(), output_normal=True)
    density = geometry.forward_density(-points())
    loss = fields["features"].square().sum() + density.exp().sum() + fields["normal"][:, 0].sum()
    loss.backward(retain_graph=True)
    found = [geometry.grid.grad.clone(), geometry.normal_grid.grad.clone()]
    loss.backward()
    for parameter, once in zip((geometry.grid, geometry.normal_grid), found, strict=True):
        torch.testing.assert_close(parameter.grad, 2 * once)

    plain = grid(
        density_bias=0.0, density_activation="none", normal_type="pred", grid_size=(6, 7, 8)
    )
    values, normals = (p.detach().requires_grad_() for p in (geometry.grid, geometry.normal_grid))
    del plain.grid, plain.normal_grid
    plain.grid, plain.normal_grid = smoothed(values, 1.0), smoothed(normals, 1.0)
    fields = plain(points(), output_normal=True)
    density = plain.forward_density(-points())
    loss = fields["features"].square().sum() + density.exp().sum() + fields["normal"][:, 0].sum()
    for own, other in zip(found, torch.autograd.grad(loss, (values, normals)), strict=True):
        torch.testing.assert_close(own, other)


def test_a_smoothed_grid_is_forgotten_when_the_grid_changes():
    geometry = uneven(normal_type=None)

    def is_fresh():
        expected = F.grid_sample(
            smoothed(geometry.grid[:, :1], geometry.smoothing),
            points().view(1, 1, 1, -1, 3),
            align_corners=False,
        )
        return torch.allclose(geometry.forward_density(points()).view(-1), expected.view(-1))

    assert is_fresh()
    optimizer = torch.optim.AdamW([geometry.grid], lr=0.1)
    geometry.forward_density(points()).sum().backward()
    optimizer.step()
    assert is_fresh()
    geometry.load_state_dict({**geometry.state_dict(), "grid": torch.randn(1, 4, 8, 8, 8)})
    assert is_fresh()
    geometry.grid.data.mul_(2)  # leaves no trace, but the next step looks anew
    geometry.update_step(0, 1)
    assert is_fresh()
    with torch.inference_mode():
        assert is_fresh()
    geometry.forward_density(points()).sum().backward()
    geometry.smoothing = 0.5
    assert is_fresh()
