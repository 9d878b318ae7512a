"""The signed distance field and its renderer."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from eeg_encoder.errors import InputError
from threestudio_eeg.builtin import neus_renderer
from threestudio_eeg.builtin.cameras import c2w_from_angles, camera_batch
from threestudio_eeg.builtin.registry import find
from threestudio_eeg.builtin.regularisers import eikonal
from threestudio_eeg.neural_fields.marching import Samples

ENCODING = {
    "otype": "HashGrid",
    "n_levels": 3,
    "n_features_per_level": 2,
    "log2_hashmap_size": 10,
    "base_resolution": 4,
    "per_level_scale": 1.5,
}
SPHERE = {"sdf_bias": "sphere", "sdf_bias_params": 0.5}


def field(**cfg):
    torch.manual_seed(0)
    small = {"pos_encoding_config": ENCODING, "isosurface_resolution": 32, **cfg}
    return find("implicit-sdf")(small)


def flat_field(**cfg):
    """The bias alone: the network gives zero."""
    geometry = field(**{**SPHERE, **cfg})
    for parameter in geometry.sdf_network.parameters():
        parameter.data.zero_()
    return geometry


def points(n=20, radius=0.4):
    directions = F.normalize(torch.randn(n, 3, generator=torch.Generator().manual_seed(2)), dim=-1)
    return directions * radius


def renderer(geometry, **cfg):
    return find("neus-volume-renderer")(
        {"num_samples_per_ray": 256, "learned_variance_init": 0.5, **cfg},
        geometry=geometry,
        material=find("no-material")({}),
        background=find("solid-color-background")({"color": [0.25, 0.5, 0.75]}),
    )


def view(size=(33, 33)):
    one = torch.ones(1)
    batch = camera_batch(c2w_from_angles(0 * one, 0 * one, 2 * one), math.radians(60) * one, *size)
    return {**batch, "light_positions": batch["camera_positions"]}


def test_bias_is_the_distance_and_the_surface_its_sphere():
    geometry = flat_field()
    torch.testing.assert_close(geometry.forward_sdf(points())[:, 0], torch.full((20,), -0.1))
    mesh = geometry.isosurface()
    torch.testing.assert_close(
        mesh.v_pos.norm(dim=-1), torch.full((len(mesh.v_pos),), 0.5), atol=5e-3, rtol=0
    )
    ellipsoid = flat_field(sdf_bias="ellipsoid", sdf_bias_params=[0.5, 0.25, 0.5])
    assert ellipsoid.forward_sdf(torch.tensor([[0.0, 0.25, 0.0]])).abs() < 1e-6


@pytest.mark.parametrize("kind", ["analytic", "finite_difference", "finite_difference_laplacian"])
def test_normals_point_outwards_and_the_slope_is_one(kind):
    geometry = flat_field(normal_type=kind, finite_difference_normal_eps=1e-3)
    out = geometry(points(), output_normal=True)
    torch.testing.assert_close(out["normal"], F.normalize(points(), dim=-1), atol=5e-3, rtol=0)
    assert eikonal(out) < 1e-4


def test_eikonal_trains_the_grid_through_analytic_normals():
    geometry = field(normal_type="analytic")
    eikonal(geometry(points(), output_normal=True)).backward()
    assert geometry.encoding.encoding.encoding.params.grad.abs().max() > 0
    with torch.no_grad():
        assert not geometry(points(), output_normal=True)["sdf_grad"].requires_grad


def test_progressive_step_follows_the_levels():
    encoding = {
        **ENCODING,
        "otype": "ProgressiveBandHashGrid",
        "start_level": 1,
        "start_step": 10,
        "update_steps": 5,
    }
    geometry = field(
        pos_encoding_config=encoding, finite_difference_normal_eps="progressive", radius=2.0
    )
    geometry.update_step(0, 0)
    assert geometry.finite_difference_normal_eps == pytest.approx(4 / 4)
    geometry.update_step(0, 15)
    assert geometry.finite_difference_normal_eps == pytest.approx(4 / 6)


def test_shape_init_trains_to_the_shape(monkeypatch):
    from threestudio_eeg.builtin import implicit_sdf

    monkeypatch.setattr(implicit_sdf, "INIT_STEPS", 150)
    monkeypatch.setattr(implicit_sdf, "INIT_RATE", 1e-2)
    monkeypatch.setattr(implicit_sdf, "INIT_POINTS", 2000)
    geometry = field(shape_init="sphere", shape_init_params=0.4)
    before = geometry.forward_sdf(points(radius=0.4)).abs().mean()
    geometry.initialize_shape()
    assert geometry.forward_sdf(points(radius=0.4)).abs().mean() < 0.1 * before.clamp(min=0.4)


def test_rendered_sphere_has_its_depth_and_outline():
    module = renderer(flat_field())
    for step in (0, 16):
        module.update_step(0, step)
    with torch.no_grad():
        out = module.eval()(**view())
    assert float(out["opacity"][0, 16, 16]) == pytest.approx(1.0, abs=1e-2)
    assert float(out["depth"][0, 16, 16]) == pytest.approx(1.5, abs=0.02)
    assert float(out["opacity"][0, 0, 0]) == 0.0
    # a sphere of radius 1/2 seen from 2 fills a disc of half angle asin(1/4)
    seen = math.tan(math.asin(0.25)) / math.tan(math.radians(30)) * 33 / 2
    area = float(out["opacity"].sum())
    assert area == pytest.approx(math.pi * seen**2, rel=0.05)
    assert float(out["inv_std"]) == pytest.approx(math.exp(5.0), rel=1e-5)
    torch.testing.assert_close(
        out["comp_normal"][0, 16, 16], torch.tensor([1.0, 0.5, 0.5]), atol=0.1, rtol=0
    )


@pytest.mark.parametrize("use_volsdf", [False, True])
def test_training_reaches_grid_and_sharpness(use_volsdf):
    cfg = {"use_volsdf": use_volsdf, "learned_variance_init": 0.3, "grid_prune": False}
    module = renderer(field(**SPHERE), **cfg)
    out = module(**view(size=(8, 8)))
    total = torch.zeros(64).index_add(0, out["ray_indices"], out["weights"][:, 0])
    torch.testing.assert_close(total.view_as(out["opacity"]), out["opacity"])
    assert 0 < out["opacity"].max() <= 1 + 1e-5
    (out["comp_rgb"].mean() + out["opacity"].mean()).backward()
    assert module.variance._inv_std.grad.abs() > 0
    assert module.geometry.sdf_network.layers[0].weight.grad.abs().max() > 0


def test_transmittance_is_the_product_of_what_lies_in_front():
    alpha = torch.tensor([0.5, 0.25, 0.0, 1.0, 0.3], dtype=torch.float64)
    rays = torch.tensor([0, 0, 0, 2, 2])
    samples = Samples(torch.zeros(5), torch.ones(5), rays)
    found = neus_renderer.transmittance(alpha, samples, 3)
    expected = torch.tensor([1, 0.5, 0.375, 1, 0], dtype=torch.float64)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_formulas_at_written_out_values():
    sdf, inv_std = torch.tensor(0.1), torch.tensor(10.0)
    before, after = 1 / (1 + math.exp(-1.5)), 1 / (1 + math.exp(-0.5))
    alpha = neus_renderer.neus_alpha(sdf, torch.tensor(-1.0), torch.tensor(0.1), inv_std)
    assert float(alpha) == pytest.approx((before - after + 1e-5) / (before + 1e-5), rel=1e-5)
    # VolSDF: outside, (1 / beta) (1/2) exp(-d / beta)
    density = neus_renderer.volsdf_density(sdf, inv_std)
    assert float(density) == pytest.approx(10 * 0.5 * math.exp(-1), rel=1e-5)
    assert float(neus_renderer.volsdf_density(-sdf, inv_std)) == pytest.approx(
        10 * (1 - 0.5 * math.exp(-1)), rel=1e-5
    )


def test_a_volume_is_no_distance():
    with pytest.raises(InputError, match="neus-volume-renderer: geometry: found ImplicitVolume"):
        renderer(find("implicit-volume")({"pos_encoding_config": ENCODING}))


@pytest.mark.parametrize(
    ("cfg", "words"),
    [
        ({"normal_type": None}, "normal_type"),
        ({"sdf_bias": "cube"}, "sdf_bias: found cube"),
        ({"sdf_bias": "sphere"}, "sdf_bias: found sphere None"),
        ({"shape_init": "mesh:a.obj"}, "shape_init"),
        ({"finite_difference_normal_eps": "progressive"}, "pos_encoding_config.otype"),
        ({"finite_difference_normal_eps": "small"}, "finite_difference_normal_eps"),
    ],
)
def test_bad_config(cfg, words):
    with pytest.raises(InputError, match=words):
        field(**cfg)
