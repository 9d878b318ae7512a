import importlib

import numpy as np
import pytest

from eeg_encoder.errors import InputError
from threestudio_eeg.compat import pysdf

trimesh = pytest.importorskip("trimesh")
POINTS = np.array([[0, 0, 0], [0.9, 0, 0], [2, 0, 0], [0, -3, 0]], np.float32)


def exact_sphere(fake):
    """libigl's two functions for a unit sphere."""

    def radius(points):
        return np.linalg.norm(points, axis=1)

    fake(
        "igl",
        point_mesh_squared_distance=lambda p, v, f: ((radius(p) - 1) ** 2, None, None),
        fast_winding_number=lambda v, f, p: (radius(p) < 1).astype(float),
    )


def test_needed_where_it_is_absent(absent, fake):
    absent("pysdf")
    assert pysdf.reason("cuda")
    fake("pysdf", SDF=object)
    assert pysdf.reason("cuda") is None


def test_positive_inside(fake):
    exact_sphere(fake)
    pysdf.apply("cpu")
    sphere = trimesh.creation.icosphere()
    sdf = importlib.import_module("pysdf").SDF(sphere.vertices, sphere.faces)
    found = sdf(POINTS)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [1, 0.1, -1, -2], atol=1e-6)


def test_with_the_real_libigl():
    pytest.importorskip("igl")
    sphere = trimesh.creation.icosphere(subdivisions=4)
    found = pysdf.SDF(sphere.vertices, sphere.faces)(POINTS)
    np.testing.assert_allclose(found, [1, 0.1, -1, -2], atol=5e-3)


def test_without_libigl_it_says_so(absent):
    absent("igl")
    with pytest.raises(InputError, match="pysdf: SDF: .*libigl"):
        pysdf.SDF(np.zeros((3, 3)), np.zeros((1, 3), int))
