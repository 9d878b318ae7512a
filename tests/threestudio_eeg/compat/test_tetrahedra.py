import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from threestudio_eeg.builtin.tetrahedra import CubeGrid, FileGrid, marching_tetrahedra
from threestudio_eeg.compat import tetrahedra


class Helper:
    """As threestudio's helper: reads a file when it is made."""

    def __init__(self, resolution, tets_path):
        self.resolution, self.tets_path = resolution, tets_path
        with np.load(tets_path) as arrays:
            self.vertices, self.indices = arrays["vertices"], arrays["indices"]


@pytest.fixture
def helper(fake):
    for name in ("threestudio", "threestudio.models"):
        fake(name)
    made = type("MarchingTetrahedraHelper", (Helper,), {"__init__": Helper.__init__})
    fake(tetrahedra.ISOSURFACE, MarchingTetrahedraHelper=made)
    tetrahedra.apply("cpu")
    return made


def test_needed_where_a_file_is_missing_or_only_a_pointer_to_one(fake, tmp_path):
    package = tmp_path / "threestudio" / "__init__.py"
    fake("threestudio", __file__=str(package))
    assert tetrahedra.reason("cpu") == "load/tets has no grid of 32, 64, 128"
    folder = tmp_path / "load" / "tets"
    folder.mkdir(parents=True)
    for n in (32, 64):
        np.savez(folder / f"{n}_tets.npz", vertices=np.zeros(1))
    (folder / "128_tets.npz").write_text("version https://git-lfs.github.com/spec/v1\n")
    assert tetrahedra.reason("cuda") == "load/tets has no grid of 128"
    np.savez(folder / "128_tets.npz", vertices=np.zeros(1))
    assert tetrahedra.reason("cpu") is None


def test_a_grid_is_made(helper):
    made = helper(16, "load/tets/16_tets.npz")
    assert (made.resolution, made.tets_path) == (16, "load/tets/16_tets.npz")
    assert made.vertices.shape == (9**3, 3)
    assert made.indices.shape == (6 * 8**3, 4)
    a, b, c, d = np.moveaxis(made.vertices[made.indices].astype(float), 1, 0)
    volumes = (np.cross(b - a, c - a) * (d - a)).sum(-1) / 6
    assert volumes.min() > 0
    assert volumes.sum() == pytest.approx(1)


def test_a_file_that_is_there_is_read(helper, tmp_path):
    path = tmp_path / "16_tets.npz"
    np.savez(path, vertices=np.zeros((2, 3)), indices=np.zeros((1, 4), int))
    assert len(helper(16, str(path)).vertices) == 2


def test_the_whole_grid_has_the_surface_of_its_cubes(tmp_path):
    cubes = CubeGrid(8)
    whole = FileGrid(tetrahedra.write_grid(16, tmp_path / "tets.npz"), 16)
    sdf = (cubes.vertices - 0.5).norm(dim=1) - 0.3
    surfaces = [marching_tetrahedra(grid, grid.vertices, sdf) for grid in (cubes, whole)]
    for ours, theirs in zip(*surfaces, strict=True):
        assert ours.shape == theirs.shape
    torch.testing.assert_close(surfaces[0][0], surfaces[1][0])


BALL = """
import sys
from pathlib import Path
from threestudio_eeg import compat

compat.activate("cpu", threestudio=Path(sys.argv[1]))
import threestudio
from threestudio_eeg.compat import tetrahedra

if tetrahedra.REMEDY.name not in [one.name for one in compat.after_import()]:
    tetrahedra.apply("cpu")
import torch
from threestudio.models.isosurface import MarchingTetrahedraHelper

helper = MarchingTetrahedraHelper(40, "load/tets/40_tets.npz")
radius = (helper.grid_vertices - 0.5).norm(dim=-1, keepdim=True)
mesh = helper(radius - 0.3, None)
a, b, c = mesh.v_pos[mesh.t_pos_idx].unbind(1)
print(float((torch.linalg.cross(a, b) * c).sum() / 6))
"""


@pytest.mark.upstream
def test_a_ball_inside_threestudio_faces_outwards(tmp_path):
    if not os.environ.get("THREESTUDIO_ROOT"):
        pytest.skip("THREESTUDIO_ROOT names no checkout of threestudio")
    command = [sys.executable, "-c", BALL, os.environ["THREESTUDIO_ROOT"]]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert float(done.stdout.split()[-1]) == pytest.approx(4 / 3 * np.pi * 0.3**3, rel=0.03)
