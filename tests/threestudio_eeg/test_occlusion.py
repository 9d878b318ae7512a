"""How much light is lost on the way out of a field, and the surface where it is."""

import itertools
import math

import numpy as np
import pytest
import torch

from eeg_encoder.errors import InputError
from threestudio_eeg.builtin.isosurface import ImplicitGeometry
from threestudio_eeg.builtin.registry import find
from threestudio_eeg.builtin.stage_conversion import converted_geometry
from threestudio_eeg.occlusion import occlusion

from .test_representations import train
from .test_stages import grid_from

STEPS = [step for step in itertools.product((-1, 0, 1), repeat=3) if any(step)]


def depth(density, spacing, start, step):
    """Optical depth from a point to the outside, one neighbour after the other."""
    length = math.dist((0, 0, 0), [s * w for s, w in zip(step, spacing, strict=True)])
    place, total = start, 0.0
    while True:
        following = tuple(i + s for i, s in zip(place, step, strict=True))
        if not all(0 <= i < n for i, n in zip(following, density.shape, strict=True)):
            return total + length * density[place] / 2
        total += length * (density[place] + density[following]) / 2
        place = following


def reference(density, spacing):
    """The same, one line of one point after the other."""
    least = np.full(density.shape, np.inf)
    for start in np.ndindex(*density.shape):
        for step in STEPS:
            one = depth(density, spacing, start, step)
            other = depth(density, spacing, start, [-s for s in step])
            lost = 1 - math.exp(-min(one, other))
            least[start] = min(least[start], lost / max(1 - math.exp(-one - other), 0.5))
    return least


@pytest.mark.parametrize("shape", [(5, 4, 6), (1, 3, 2)])
def test_the_clearest_of_all_ways(shape):
    density = np.random.default_rng(0).exponential(2.0, shape) ** 2
    spacing = (0.1, 0.3, 0.2)
    found = occlusion(torch.from_numpy(density), spacing)
    assert found.shape == shape
    assert np.allclose(found.numpy(), reference(density, spacing), atol=1e-12)


class Ball(ImplicitGeometry):
    """Matter of one density in a ball, with a void in its middle and a way into it."""

    radius, void, density = 0.5, 0.25, 20.0

    def forward_density(self, points):
        distance = points.norm(dim=-1, keepdim=True)
        solid = (distance < self.radius) & (distance > self.void)
        tunnel = (points[..., 1:].abs() < 0.02).all(-1, keepdim=True)
        return self.density * (solid & ~tunnel).float()

    forward_level = forward_density

    def export(self, points, **_):
        return {}


def ball(**cfg):
    return Ball({"isosurface_threshold": 10.0, "isosurface_resolution": 64, **cfg})


def exporter(geometry, **cfg):
    return find("occlusion-mesh-exporter")(cfg, geometry=geometry, material=None, background=None)


def test_the_surface_is_where_so_much_light_is_lost():
    """A ball of density 20 hides a point d below its surface by 1 - exp(-20 d)."""
    for occluded in (0.3, 0.6):
        mesh = exporter(ball(), occlusion=occluded).coloured_mesh()
        away = np.abs(mesh.vertices[:, 1:]).max(axis=1) > 0.1
        depth = 0.5 - np.linalg.norm(mesh.vertices[away], axis=1)
        assert np.median(depth) == pytest.approx(-math.log(1 - occluded) / 20, abs=0.01)


def test_a_translucent_sheet_is_as_much_inside_as_a_wall():
    """Its middle loses half of what all of it loses; haze below that is nowhere inside."""

    def middle(opacity):
        density = torch.zeros(9, 9, 9)
        density[4] = -math.log(1 - opacity) / 0.1
        return float(occlusion(density, (0.1, 0.1, 0.1))[4, 4, 4])

    assert middle(0.999) > middle(0.6) > 0.5
    assert middle(0.6) == pytest.approx((1 - 0.4**0.5) / 0.6, rel=1e-5)
    assert middle(0.2) == pytest.approx((1 - 0.8**0.5) / 0.5, rel=1e-5)


def test_what_no_picture_shows_is_solid():
    whole = 4 / 3 * math.pi * 0.5**3
    hollow = find("mesh-exporter")({}, geometry=ball(), material=None, background=None)
    assert hollow.coloured_mesh().volume < 0.9 * whole
    assert exporter(ball()).coloured_mesh().volume == pytest.approx(0.88 * whole, rel=0.06)
    geometry = ball()
    exporter(geometry)
    points = torch.tensor([[0.0, 0.1, 0.1], [0.0, 0.3, 0.3], [0.0, 0.4, 0.4], [0.9, 0.9, 2.0]])
    assert geometry.solid(points).tolist() == [True, True, False, False]


@pytest.mark.parametrize("value", [0.0, 1.0, -2.0])
def test_an_impossible_occlusion_is_named(value):
    with pytest.raises(InputError, match=r"occlusion: found .* between 0 and 1"):
        exporter(ball(), occlusion=value)


def test_a_clear_field_says_what_its_occlusion_is():
    clear = ball()
    clear.density = 0.1
    with pytest.raises(InputError, match=r"exporter.occlusion: found 0.3, with values .* 0.0"):
        exporter(clear).coloured_mesh()


def test_a_field_without_a_density_is_meshed_as_ever():
    geometry = find("implicit-sdf")({"sdf_bias": "sphere", "sdf_bias_params": 0.4})
    torch.nn.init.zeros_(geometry.encoding.encoding.encoding.params)
    exporter(geometry)
    assert geometry.surface_occlusion is None


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return train("implicit-volume", tmp_path_factory.mktemp("coarse"), steps=1)


def test_a_mesh_starts_where_the_run_s_exporter_has_the_surface(run):
    def size(**override):
        grid = grid_from(run, config={"geometry_only": True}, override=override or None)
        return float(grid.surface().v_pos.detach().norm(dim=-1).mean())

    by_exporter = size()
    by_threshold = size(isosurface_threshold=4.0)
    assert by_exporter != pytest.approx(by_threshold, rel=0.01)
    splats = converted_geometry(
        find("gaussian-splatting"), {"init_num_pts": 500}, run / "ckpts" / "last.ckpt"
    )
    spread = splats.stored()["_xyz"].norm(dim=-1).mean()
    assert float(spread) == pytest.approx(by_exporter, rel=0.02)
