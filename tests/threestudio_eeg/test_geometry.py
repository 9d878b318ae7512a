"""The implicit volume: its density, normals and surface."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from eeg_encoder.errors import InputError
from threestudio_eeg.builtin.isosurface import Mesh, remove_small_components
from threestudio_eeg.builtin.registry import find

GRID = {
    "otype": "HashGrid",
    "n_levels": 3,
    "n_features_per_level": 2,
    "log2_hashmap_size": 10,
    "base_resolution": 4,
    "per_level_scale": 1.5,
}


def volume(**cfg):
    torch.manual_seed(0)
    small = {"pos_encoding_config": GRID, "isosurface_resolution": 32, **cfg}
    return find("implicit-volume")(small)


def points(n=20):
    directions = F.normalize(torch.randn(n, 3, generator=torch.Generator().manual_seed(2)), dim=-1)
    return directions * 0.4


def test_blob():
    geometry = volume()
    bias = geometry.density_bias(torch.tensor([[0.0, 0, 0], [0.5, 0, 0]]))
    assert bias.view(-1).tolist() == [10, 0]
    gaussian = volume(density_bias="blob_dreamfusion")
    bias = gaussian.density_bias(torch.tensor([[0.5, 0.0, 0.0]]))
    torch.testing.assert_close(bias, 10 * torch.exp(torch.tensor([[-0.5]])))


def test_output():
    out = volume(n_feature_dims=5, normal_type=None)(torch.rand(2, 7, 3), output_normal=True)
    shapes = {name: tuple(value.shape) for name, value in out.items()}
    assert shapes == {"density": (2, 7, 1), "features": (2, 7, 5)}


def test_no_points():
    out = volume()(torch.rand(0, 3), output_normal=True)
    assert out["density"].shape == (0, 1)
    assert out["normal"].shape == (0, 3)


@pytest.mark.parametrize(
    "normal_type", ["analytic", "finite_difference", "finite_difference_laplacian"]
)
def test_normals_of_the_blob_point_outwards(normal_type):
    geometry = volume(normal_type=normal_type, finite_difference_normal_eps=1e-3)
    normal = geometry(points(), output_normal=True)["normal"]
    torch.testing.assert_close(normal, F.normalize(points(), dim=-1), atol=0.02, rtol=0)


def test_analytic_normals_train_the_grid_and_work_without_gradients():
    geometry = volume(normal_type="analytic")
    with torch.no_grad():
        geometry.encoding.encoding.encoding.params.normal_()
    normal = geometry(points(), output_normal=True)["normal"]
    (normal * torch.randn_like(normal)).sum().backward()
    assert geometry.encoding.encoding.encoding.params.grad.abs().max() > 0
    with torch.no_grad():
        again = geometry(points(), output_normal=True)["normal"]
    assert not again.requires_grad
    torch.testing.assert_close(again, normal.detach())


def test_predicted_normals_are_unit_vectors():
    normal = volume(normal_type="pred")(points(), output_normal=True)["normal"]
    torch.testing.assert_close(normal.norm(dim=-1), torch.ones(20))


def test_blob_width_is_annealed_in_the_density():
    plan = {"min_anneal_step": 10, "max_anneal_step": 20, "start_val": 0.5, "end_val": 0.25}
    geometry = volume(anneal_density_blob_std_config=plan)
    x = torch.tensor([[0.25, 0.0, 0.0]])
    seen = []
    for step in (0, 10, 15, 20, 99):
        geometry.update_step(0, step)
        seen.append(float(geometry.density_bias(x)))
    torch.testing.assert_close(torch.tensor(seen), torch.tensor([5.0, 5.0, 10 / 3, 0.0, 0.0]))


@pytest.mark.parametrize("method", ["mt", "mc-cpu"])
def test_surface_of_the_blob_is_a_closed_ball(method):
    """Density 5 of the blob of std 0.5 and scale 10 lies at radius 0.25."""
    trimesh = pytest.importorskip("trimesh")
    geometry = volume(isosurface_threshold=5.0, isosurface_method=method)
    mesh = geometry.isosurface()
    assert isinstance(mesh, Mesh)
    radius = mesh.v_pos.norm(dim=-1)
    assert (radius - 0.25).abs().max() < 0.01
    body = trimesh.Trimesh(mesh.v_pos.numpy(), mesh.t_pos_idx.numpy(), process=False)
    assert body.is_watertight
    assert body.volume == pytest.approx(4 / 3 * 3.14159 * 0.25**3, rel=0.05)


def test_surface_that_leaves_the_cube_is_closed_there():
    trimesh = pytest.importorskip("trimesh")
    geometry = volume(radius=0.2, isosurface_threshold=1.0)
    mesh = geometry.isosurface()
    body = trimesh.Trimesh(mesh.v_pos.numpy(), mesh.t_pos_idx.numpy(), process=True)
    assert mesh.v_pos.abs().max() <= 0.2
    assert body.volume == pytest.approx(0.4**3, rel=0.05)


def test_auto_threshold_gives_a_surface():
    assert len(volume(isosurface_threshold="auto").isosurface().t_pos_idx) > 0


def test_empty_surface_names_threshold_and_densities():
    with pytest.raises(InputError, match=r"threshold: found 30, with values from .* to 8\."):
        volume(isosurface_threshold=30.0).isosurface()


def test_small_components_go():
    big = torch.tensor([[0, 1, 2], [0, 2, 3], [0, 3, 1], [1, 3, 2]])
    faces = torch.cat((torch.tensor([[4, 5, 6]]), big + 7))
    vertices = torch.arange(33.0).view(11, 3)
    kept = remove_small_components(Mesh(vertices, faces), 1.0)
    torch.testing.assert_close(kept.v_pos, vertices[7:])
    assert torch.equal(kept.t_pos_idx, big)
    assert len(remove_small_components(Mesh(vertices, faces), 1).t_pos_idx) == 5


def test_export_gives_the_features_of_forward():
    geometry = volume()
    x = torch.rand(2, 5, 3)
    torch.testing.assert_close(geometry.export(x)["features"], geometry(x)["features"])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("normal_type", "smooth"),
        ("isosurface_method", "poisson"),
        ("density_bias", "blob"),
        ("isosurface_threshold", "high"),
        ("isosurface_deformable_grid", True),
        ("radious", 1.0),
    ],
)
def test_bad_config(field, value):
    with pytest.raises(InputError, match=field):
        volume(**{field: value})
