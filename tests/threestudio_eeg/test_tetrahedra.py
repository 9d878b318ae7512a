"""Marching tetrahedra: closed, outward, exact where the field is linear, with gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import trimesh

from eeg_encoder.errors import InputError
from threestudio_eeg.builtin.surface_mesh import SurfaceMesh
from threestudio_eeg.builtin.tetrahedra import COUNTS, CubeGrid, FileGrid, marching_tetrahedra


def saved(path, grid, **changes):
    inside = torch.arange(len(grid.vertices)) % 2 == 0
    indices = grid.tetrahedra(inside)
    content = {"vertices": grid.vertices.numpy(), "indices": indices.numpy(), **changes}
    np.savez(path, **content)
    return path


def sphere(vertices, radius=0.3, centre=0.5):
    return (vertices - centre).norm(dim=-1) - radius


@pytest.mark.parametrize("n", [8, 15])
def test_a_ball_is_closed_and_has_its_volume(n):
    grid = CubeGrid(n)
    v_pos, faces = marching_tetrahedra(grid, grid.vertices, sphere(grid.vertices))
    mesh = trimesh.Trimesh(v_pos.numpy(), faces.numpy(), process=False)
    assert mesh.is_watertight
    assert mesh.is_winding_consistent
    assert mesh.volume == pytest.approx(4 / 3 * np.pi * 0.3**3, rel=8 / n**2)
    assert mesh.euler_number == 2


def test_random_signs_make_closed_surfaces():
    """All sixteen cases, with neighbours of any kind; the border is outside."""
    grid, generator = CubeGrid(5), torch.Generator().manual_seed(0)
    sdf = torch.rand(6, 6, 6, generator=generator) + 0.1
    flip = torch.rand(4, 4, 4, generator=generator) < 0.5
    sdf[1:5, 1:5, 1:5] *= 1 - 2 * flip
    v_pos, faces = marching_tetrahedra(grid, grid.vertices, sdf.view(-1))
    mesh = trimesh.Trimesh(v_pos.numpy(), faces.numpy(), process=False)
    assert mesh.is_watertight
    assert mesh.is_winding_consistent
    assert mesh.volume > 0


def test_a_plane_is_exact():
    grid = CubeGrid(6)
    normal = torch.tensor([0.48, 0.6, 0.64])
    v_pos, faces = marching_tetrahedra(grid, grid.vertices, grid.vertices @ normal - 0.7)
    torch.testing.assert_close(v_pos @ normal, torch.full((len(v_pos),), 0.7))
    a, b, c = v_pos[faces].unbind(1)
    face = torch.cross(b - a, c - a, dim=-1)
    assert (face @ normal >= -1e-7).all()
    assert (face @ normal).sum() > 0.5


def test_each_case_has_its_number_of_triangles():
    assert COUNTS.tolist() == [0, 1, 1, 2, 1, 2, 2, 1, 1, 2, 2, 1, 2, 1, 1, 0]


def test_gradients_are_those_of_finite_differences():
    grid = CubeGrid(3)
    sdf = sphere(grid.vertices.double(), 0.31)

    def moment(values, vertices):
        v_pos, _ = marching_tetrahedra(grid, vertices, values)
        return (v_pos**3).sum()

    inputs = (sdf.clone().requires_grad_(), grid.vertices.double().clone().requires_grad_())
    assert torch.autograd.gradcheck(moment, inputs)
    assert torch.autograd.grad(moment(*inputs), inputs[0])[0].abs().max() > 0


@pytest.mark.parametrize("size", [0.0, 1e-30])
def test_gradients_of_degenerate_triangles_are_bounded(size):
    """Distances of zero give triangles of no area; a square of 1e19 and more overflows in Adam."""
    grid = CubeGrid(12)
    vertices = grid.vertices.clone().requires_grad_()
    distance = sphere(grid.vertices)
    torch.manual_seed(0)
    vanishing = (distance.abs() < 0.08) & (torch.rand(len(distance)) < 0.3)
    distance[vanishing] = torch.randn(int(vanishing.sum())) * size
    distance.requires_grad_()
    mesh = SurfaceMesh(*marching_tetrahedra(grid, vertices, distance))
    (mesh.normal_consistency() + mesh.laplacian()).backward()
    for gradient in (distance.grad, vertices.grad):
        assert 0 < gradient.abs().max() < 1e15


def test_a_grid_file_of_mixed_orientation_gives_the_same_surface(tmp_path):
    grid = CubeGrid(6)
    path = saved(tmp_path / "6_tets.npz", grid)
    with np.load(path) as arrays:
        indices = arrays["indices"].copy()
    indices[::3] = indices[::3, [1, 0, 2, 3]]
    other = FileGrid(saved(path, grid, indices=indices), 6)
    assert len(other.indices) == 6 * 6**3
    results = [marching_tetrahedra(g, g.vertices, sphere(g.vertices)) for g in (grid, other)]
    meshes = [trimesh.Trimesh(v.numpy(), f.numpy(), process=False) for v, f in results]
    assert meshes[1].is_watertight
    assert meshes[1].volume == pytest.approx(meshes[0].volume, rel=1e-6)
    assert meshes[1].volume > 0
    assert other.slack == pytest.approx(1 / 6)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"indices": np.zeros((3, 3), int)}, "shapes"),
        ({"indices": np.full((3, 4), 10**6)}, "values"),
        ({"vertices": np.full((216, 3), 2.0)}, "values"),
        ({"vertices": np.array([None])}, "file"),
    ],
)
def test_bad_grid_files_are_named(tmp_path, changes, words):
    path = saved(tmp_path / "bad.npz", CubeGrid(5), **changes)
    with pytest.raises(InputError, match=f"bad.npz: {words}"):
        FileGrid(path, 5)


def test_a_grid_file_that_is_not_there_or_broken(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        FileGrid(tmp_path / "none.npz", 5)
    (tmp_path / "cut.npz").write_bytes(b"PK\x03\x04")
    with pytest.raises(InputError, match="cut.npz: file"):
        FileGrid(tmp_path / "cut.npz", 5)
