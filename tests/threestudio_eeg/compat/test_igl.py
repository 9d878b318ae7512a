import importlib
from pathlib import Path

import numpy as np
import pytest

from eeg_encoder.errors import InputError
from threestudio_eeg.compat import igl


def strict(*arrays):
    """A binding that takes double precision and long integers only."""
    for array in arrays:
        if array.dtype not in (np.float64, np.int64):
            raise TypeError(array.dtype)
    return arrays


@pytest.fixture
def modern(fake):
    return fake(
        "igl",
        fast_winding_number=strict,
        point_mesh_squared_distance=strict,
        readOBJ=lambda path: path,
    )


def test_needed_where_names_are_gone(modern, fake):
    assert igl.reason("cuda") == ("this libigl has no fast_winding_number_for_meshes, read_obj")
    fake("igl", **dict.fromkeys(igl.NAMES))
    assert igl.reason("cuda") is None


@pytest.mark.parametrize("name", igl.NAMES[:2])
def test_single_precision_is_taken_again(modern, name):
    igl.apply("cpu")
    vertices, faces = np.zeros((4, 3), np.float32), np.zeros((2, 3), np.int32)
    found = getattr(modern, name)(vertices, faces, [[0.0, 1.0, 2.0]])
    assert [array.dtype for array in found] == [np.float64, np.int64, np.float64]


def test_obj_files_are_read_with_the_old_arguments(modern):
    igl.apply("cpu")
    assert modern.read_obj(Path("a.obj"), float) == "a.obj"


def test_after_it_nothing_is_needed(modern):
    igl.apply("cpu")
    assert igl.reason("cpu") is None


def test_without_libigl_use_is_an_error(absent):
    absent("igl")
    assert igl.reason("cpu")
    igl.apply("cpu")
    module = importlib.import_module("igl")
    for name in igl.NAMES:
        with pytest.raises(InputError, match=f"igl: {name}: .* pip install libigl"):
            getattr(module, name)()


def test_the_real_libigl():
    real = pytest.importorskip("igl")
    if igl.reason("cpu"):
        igl.apply("cpu")
    trimesh = pytest.importorskip("trimesh")
    box = trimesh.creation.box()
    points = np.array([[0, 0, 0], [2, 0, 0]], np.float32)
    vertices, faces = box.vertices.astype(np.float32), box.faces.astype(np.int32)
    winding = real.fast_winding_number_for_meshes(vertices, faces, points)
    np.testing.assert_allclose(winding, [1, 0], atol=1e-2)
    squared, *_ = real.point_mesh_squared_distance(points, vertices, faces)
    np.testing.assert_allclose(squared, [0.25, 2.25])
