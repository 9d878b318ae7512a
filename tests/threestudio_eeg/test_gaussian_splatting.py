"""Splats that grow and go, their files, their surface, their learning rates."""

from __future__ import annotations

import pytest
import torch
import trimesh

from eeg_encoder.errors import InputError
from threestudio_eeg.builtin.gaussian_density import as_matter, level_on_lattice
from threestudio_eeg.builtin.gaussian_files import GaussianMeshExporter, SplatFile, read_splats
from threestudio_eeg.builtin.gaussian_rasteriser import Splats, rotation_matrices
from threestudio_eeg.builtin.registry import find
from threestudio_eeg.builtin.regularisers import REGULARISERS


def splats_of(n=6, **cfg):
    torch.manual_seed(0)
    geometry = find("gaussian-splatting")(
        {"max_num": 10, "init_num_pts": n, "radius": 0.65, "pc_init_radius": 0.3, **cfg}
    )
    with torch.no_grad():
        geometry._rotation.normal_()
        geometry._scaling[:n] = torch.rand(n, 3) - 3
    return geometry


def moments(geometry, places):
    """Mean (3,) and covariance (3, 3) of the even mixture of splats at ``places``."""
    means = geometry._xyz[places]
    axes = rotation_matrices(geometry._rotation[places]) * geometry._scaling[places].exp()[:, None]
    offsets = means - means.mean(0)
    spread = axes @ axes.transpose(1, 2) + offsets[:, :, None] * offsets[:, None]
    return means.mean(0), spread.mean(0)


def grow(geometry, place, gradient=1.0, step=50):
    geometry.gradient_sum[place], geometry.gradient_count[place] = gradient, 1
    geometry.update_step(0, step)


@torch.no_grad()
def test_a_split_keeps_mean_and_covariance():
    geometry = splats_of(split_thresh=1e-3, densify_from_iter=1)
    before = moments(geometry, [2])
    grow(geometry, 2)
    assert geometry.alive.tolist() == [True] * 7 + [False] * 3
    after = moments(geometry, [2, 6])
    torch.testing.assert_close(after, before)
    assert not torch.equal(geometry._xyz[2], geometry._xyz[6])
    assert not geometry.gradient_sum.any()


@torch.no_grad()
def test_a_copy_is_as_opaque_as_the_one_was():
    geometry = splats_of(split_thresh=10.0, densify_from_iter=1, opacity_init=0.6)
    grow(geometry, 3)
    both = geometry._opacity[[3, 6]].sigmoid()
    assert (1 - (1 - both).prod()).item() == pytest.approx(0.6, abs=1e-5)
    for name in ("_xyz", "_scaling", "_rotation", "_features_dc"):
        assert torch.equal(getattr(geometry, name)[3], getattr(geometry, name)[6])


@torch.no_grad()
def test_the_most_wanted_get_the_free_places_and_no_number_is_drawn():
    geometry = splats_of(8, densify_from_iter=1)
    before, state = geometry._features_dc.clone(), torch.get_rng_state()
    geometry._features_dc[:8, 0, 0] = torch.arange(8.0)
    geometry.gradient_sum[:8] = torch.tensor([1.0, 9, 2, 8, 3, 4, 5, 6])
    geometry.gradient_count[:8] = 1
    geometry.update_step(0, 50)
    assert geometry.alive.all()
    assert geometry._features_dc[8:, 0, 0].tolist() == [1.0, 3.0]
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(before, geometry._features_dc)


@torch.no_grad()
def test_faint_splats_go_and_their_places_are_filled_again():
    geometry = splats_of(densify_from_iter=1, prune_from_iter=1, split_thresh=10.0)
    geometry._opacity[1] = -10
    geometry.update_step(0, 50)
    assert geometry.indices.tolist() == [0, 2, 3, 4, 5]
    grow(geometry, 4, step=100)
    assert geometry.indices.tolist() == [0, 1, 2, 3, 4, 5]
    assert torch.equal(geometry._xyz[1], geometry._xyz[4])
    geometry._opacity.fill_(-10)
    with pytest.raises(InputError, match="training step 150: splats: found none left"):
        geometry.update_step(0, 150)


@torch.no_grad()
def test_a_step_acts_once_and_never_in_evaluation():
    geometry = splats_of(densify_from_iter=1, opacity_reset_interval=50, prune_until_iter=0)
    geometry.eval()
    grow(geometry, 0)
    assert geometry.alive.sum() == 6
    geometry.train()
    geometry.update_step(0, 50)
    assert geometry.alive.sum() == 7
    assert geometry._opacity.sigmoid().max() <= 0.01 + 1e-6
    geometry._opacity.fill_(1.0)
    geometry.gradient_sum.fill_(1.0)
    geometry.gradient_count.fill_(1.0)
    geometry.update_step(0, 50)
    assert geometry.alive.sum() == 7
    assert geometry._opacity.min() == 1.0


def test_gradients_in_the_pictures_are_counted_where_a_splat_is_seen():
    geometry = splats_of(3)
    means = torch.zeros(2, 3, 2, requires_grad=True) + 0.0
    radii = torch.tensor([[1.0, 0, 2], [3.0, 0, 0]])
    geometry.watch(means, radii, height=4, width=8)
    weights = torch.tensor([[[3.0, 0], [5, 5], [0, 1]], [[0, 2], [5, 5], [7, 7]]])
    (means * weights).sum().backward()
    assert geometry.gradient_sum[:3].tolist() == [3 * 4 + 2 * 2, 0, 1 * 2]
    assert geometry.gradient_count[:3].tolist() == [2, 0, 1]
    assert geometry.max_radii2D[:3].tolist() == [3, 0, 2]


def test_files_hold_what_is_stored(tmp_path):
    geometry = splats_of()
    with torch.no_grad():
        geometry._features_dc.normal_()
    path = tmp_path / "splats.ply"
    SplatFile(geometry.stored()).export(path)
    for name, value in read_splats(path).items():
        assert torch.equal(value, geometry.stored()[name]), name
    again = splats_of(geometry_convert_from=str(path))
    assert torch.equal(again.alive, geometry.alive)
    assert len(trimesh.load(path).vertices) == 6
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(InputError, match="splats.ply: size: found"):
        read_splats(path)
    path.write_bytes(b"ply\nformat ascii 1.0\nend_header\n")
    with pytest.raises(InputError, match="splats.ply: header"):
        read_splats(path)
    with pytest.raises(InputError, match="no such file"):
        read_splats(tmp_path / "none.ply")


def shell(**cfg):
    """1,500 round splats on a sphere."""
    place = {"radius": 0.65, "pc_init_radius": 0.4, "sphere": True}
    return find("gaussian-splatting")({**place, "max_num": 1500, "init_num_pts": 1500, **cfg})


def test_a_shell_of_splats_is_a_solid_object_with_their_colour(tmp_path):
    geometry = shell(opacity_init=0.9, isosurface_resolution=40)
    with torch.no_grad():
        geometry._features_dc[:, 0] = torch.tensor([1.0, -1.0, 0.0])
    exporter = GaussianMeshExporter(
        {"fmt": "ply"}, geometry=geometry, material=None, background=None
    )
    mesh, splats = exporter()
    assert mesh.mesh.is_watertight
    radius = (mesh.mesh.volume * 3 / 4 / 3.1416) ** (1 / 3)
    assert 0.4 < radius < 0.5, "a little thicker than the shell of splats"
    assert len(mesh.mesh.split()) == 1, "no second surface inside"
    rgb = [round(255 * (0.5 + 0.28209479 * c)) for c in (1, -1, 0)]
    assert abs(mesh.mesh.visual.vertex_colors[:, :3].astype(int) - rgb).max() <= 1
    assert splats.save_name == "model-splats.ply"
    inside = geometry.solid(torch.tensor([[0.0, 0, 0], [0.4, 0, 0], [0.6, 0, 0]]))
    assert inside.tolist() == [True, True, False]


@pytest.mark.parametrize("opacity", [0.2, 0.9, 1.0])
def test_a_ray_through_the_middle_of_matter_loses_the_splat_s_opacity(opacity):
    splat = Splats(
        torch.zeros(1, 3),
        torch.full((1, 3), 0.05),
        torch.tensor([[1.0, 0.0, 0.0, 0.0]]),
        torch.tensor([opacity]),
    )
    box = torch.tensor([[-0.3] * 3, [0.3] * 3])
    density = level_on_lattice(as_matter(splat), box, 61)
    for ray in (density[:, 30, 30], density[30, :, 30], density[30, 30, :]):
        lost = 1 - torch.exp(-ray.sum() * 0.01)
        assert float(lost) == pytest.approx(opacity, abs=2e-3)


def test_a_translucent_shell_is_solid_by_occlusion():
    """The sum of its Gaussians has two surfaces, and leaks between them."""
    torch.manual_seed(0)
    geometry = shell(opacity_init=0.5, isosurface_resolution=48)
    parts = {"geometry": geometry, "material": None, "background": None}
    area, volume = 4 * 3.1416 * 0.4**2, 4 / 3 * 3.1416 * 0.4**3
    assert GaussianMeshExporter({}, **parts).coloured_mesh().area > 1.9 * area
    mesh = GaussianMeshExporter({"occlusion": 0.3}, **parts).coloured_mesh()
    assert len(mesh.split()) == 1
    assert mesh.area < 1.3 * area
    assert volume < mesh.volume < 1.4 * volume
    inside = geometry.solid(torch.tensor([[0.0, 0, 0], [0.3, 0, 0], [0.6, 0, 0]]))
    assert inside.tolist() == [True, True, False]
    with pytest.raises(InputError, match=r"occlusion: found 2.0"):
        GaussianMeshExporter({"occlusion": 2.0}, **parts)


def test_rates_of_the_config_are_followed():
    geometry = splats_of(position_lr=[0, 0.1, 0.01, 100], scale_lr=0.5)
    rates = {group["name"]: group["lr"] for group in geometry.own_groups()}
    assert rates["_xyz"] == pytest.approx(0.1)
    assert rates["_scaling"] == 0.5
    assert rates["_opacity"] == 0.05
    schedule = geometry.own_groups()[0]["schedule"]
    assert schedule == [0, 0.1, 0.01, 100]


@pytest.mark.parametrize(
    ("cfg", "words"),
    [
        ({"sh_degree": 1}, "sh_degree: found 1"),
        ({"init_num_pts": 11}, "init_num_pts: found 11, expected 1 to 10"),
        ({"geometry_convert_from": "shap-e:a dog"}, "geometry_convert_from: found shap-e"),
        ({"pred_normal": True}, "pred_normal"),
        ({"opacity_init": 1.0}, "opacity_init"),
    ],
)
def test_bad_config(cfg, words):
    with pytest.raises(InputError, match=words):
        splats_of(**{"n": cfg.pop("init_num_pts", 6), **cfg})


def test_regularisers_by_hand():
    geometry = splats_of(2)
    with torch.no_grad():
        geometry._xyz[:2] = torch.tensor([[0.3, 0, 0.4], [0, 0, 1]])
        geometry._scaling[:2] = torch.tensor([[0.3, 0.4, 1e-6]]).log()
        geometry._opacity[:2] = torch.logit(torch.tensor([[0.5], [0.25]]))
    picture = torch.zeros(1, 2, 2, 1)
    picture[0, 0, 0] = 1
    out = {"splats": geometry.splats()[0], "comp_rgb": picture, "depth": picture}
    expected = {
        "position": 0.75,
        "opacity": 0.5 * 0.75,
        "scales": 1.4,
        "tv_loss": 2 * (0.5 + 0.5),
        "depth_tv_loss": 2.0,
    }
    for name, value in expected.items():
        assert REGULARISERS[name](out).item() == pytest.approx(value, rel=1e-4), name
    for name in ("position", "normal_consistency", "z_variance"):
        with pytest.raises(InputError, match=f"lambda_{name}"):
            REGULARISERS[name]({"opacity": picture})
