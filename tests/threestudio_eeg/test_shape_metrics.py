from __future__ import annotations

import numpy as np
import pytest
import trimesh

from eeg_encoder.errors import InputError
from threestudio_eeg.evaluation import shape


def asymmetric_object() -> trimesh.Trimesh:
    body = trimesh.creation.box(extents=(1.0, 0.6, 0.4))
    handle = trimesh.creation.box(extents=(0.2, 0.2, 0.8))
    handle.apply_translation((0.5, 0.2, 0.4))
    return trimesh.util.concatenate([body, handle])


@pytest.mark.parametrize("yaw", [0, 90, 180, 270])
def test_moved_scaled_and_turned_copy_is_the_same_shape(yaw: int) -> None:
    truth = asymmetric_object()
    moved = truth.copy()
    moved.vertices = shape.rotate_yaw(moved.vertices * 3.7, yaw) + (5.0, -2.0, 1.0)
    result = shape.compare_meshes(moved, truth, n_points=4000)
    assert result["chamfer"] < 0.01
    assert result["fscore"] == 1.0
    assert result["iou"] > 0.99
    assert (result["yaw"] + yaw) % 360 == 0


def test_yaw_matters_when_it_is_not_searched() -> None:
    truth = asymmetric_object()
    turned = truth.copy()
    turned.vertices = shape.rotate_yaw(turned.vertices, 180)
    fixed = shape.compare_meshes(turned, truth, yaws=(0,), n_points=4000)
    assert fixed["chamfer"] > 0.03
    assert fixed["iou"] < 0.9


def test_concentric_spheres_have_the_known_distance() -> None:
    small, large = (trimesh.creation.icosphere(5, radius) for radius in (1.0, 1.25))
    a, b = shape.sample_surface(small, 20_000, seed=0), shape.sample_surface(large, 20_000, seed=1)
    assert shape.chamfer_distance(a, b) == pytest.approx(0.25, abs=0.003)
    assert shape.f_score(a, b, threshold=0.24)["fscore"] == 0.0
    assert shape.f_score(a, b, threshold=0.27)["fscore"] == 1.0


def test_points_at_known_distances() -> None:
    a = np.array([[0.0, 0, 0], [1, 0, 0]])
    b = np.array([[0.0, 0, 0.1]])
    far = np.sqrt(1.01)
    assert shape.chamfer_distance(a, b) == pytest.approx(((0.1 + far) / 2 + 0.1) / 2)
    scores = shape.f_score(a, b, threshold=0.2)
    assert (scores["precision"], scores["recall"]) == (0.5, 1.0)
    assert scores["fscore"] == pytest.approx(2 / 3)


def test_comparison_is_symmetric() -> None:
    a, b = asymmetric_object(), trimesh.creation.cone(radius=0.5, height=1.0)
    forth, back = (
        shape.compare_meshes(a, b, n_points=8000),
        shape.compare_meshes(b, a, n_points=8000),
    )
    assert forth["chamfer"] == pytest.approx(back["chamfer"], rel=0.03)
    assert forth["precision"] == pytest.approx(back["recall"], abs=0.03)
    assert forth["iou"] == pytest.approx(back["iou"], abs=0.02)


def test_normalise_gives_a_centred_unit_diagonal_and_keeps_its_input() -> None:
    mesh = asymmetric_object()
    before = mesh.vertices.copy()
    for result in (shape.normalise(mesh).vertices, shape.normalise(mesh.vertices)):
        low, high = result.min(axis=0), result.max(axis=0)
        np.testing.assert_allclose(low + high, 0, atol=1e-12)
        assert np.linalg.norm(high - low) == pytest.approx(1)
    np.testing.assert_array_equal(mesh.vertices, before)


def test_voxels_give_the_volume_of_solids() -> None:
    ball = trimesh.creation.icosphere(4, 0.4)
    assert shape.voxelise(ball, 128).mean() == pytest.approx(4 / 3 * np.pi * 0.4**3, rel=0.05)
    # the faces of this box lie just inside voxel borders: every voxel is whole or empty
    box = trimesh.creation.box(extents=(0.499, 0.249, 0.749))
    assert shape.voxelise(box, 128).sum() == 64 * 32 * 96


def test_voxels_of_a_mesh_with_a_pinhole_and_flipped_faces_are_filled() -> None:
    ball = trimesh.creation.icosphere(4, 0.4)
    random = np.random.default_rng(0)
    faces = ball.faces.copy()
    flipped = random.random(len(faces)) < 0.3
    faces[flipped] = faces[flipped][:, ::-1]
    broken = trimesh.Trimesh(ball.vertices, faces[1:], process=False)
    assert not broken.is_watertight
    whole = shape.voxelise(ball, 32)
    assert (shape.voxelise(broken, 32) == whole).mean() > 0.999


def test_a_hollow_ball_counts_as_solid() -> None:
    outer, inner = trimesh.creation.icosphere(3, 0.4), trimesh.creation.icosphere(3, 0.2)
    inner.invert()
    hollow = trimesh.util.concatenate([outer, inner])
    assert (shape.voxelise(hollow, 48) == shape.voxelise(outer, 48)).all()


def test_main_components_drops_floaters() -> None:
    ball = trimesh.creation.icosphere(3, 0.4)
    crumb = trimesh.creation.icosphere(2, 0.05)
    crumb.apply_translation((2, 0, 0))
    kept = shape.main_components(trimesh.util.concatenate([crumb, ball]))
    assert len(kept.faces) == len(ball.faces)
    assert kept.bounds[1, 0] < 1


def test_main_components_keeps_a_sail_that_floats() -> None:
    hull = trimesh.creation.icosphere(3, 0.4)
    places = {0.02: (2, 0, 0), 0.04: (0, 2, 0), 0.06: (0, 0, 2), 0.5: (-2, 0, 0)}
    parts = []
    for share, place in places.items():
        part = trimesh.creation.icosphere(3, 0.4 * share**0.5)
        part.apply_translation(place)
        parts.append(part)
    kept = shape.main_components(trimesh.util.concatenate([*parts, hull]))
    assert len(kept.faces) == 3 * len(hull.faces)
    assert kept.area == pytest.approx(1.56 * hull.area, rel=1e-6)
    assert kept.bounds[1, 2] > 2
    assert kept.bounds[0, 0] < -2
    assert kept.bounds[1, 0] < 1
    assert kept.bounds[1, 1] < 1


def test_main_components_are_not_cut_by_seams() -> None:
    box = trimesh.creation.box()
    box.unmerge_vertices()
    assert shape.main_components(box).area == pytest.approx(box.area)
    assert len(box.vertices) == 36


@pytest.mark.parametrize("suffix", ["obj", "ply", "glb"])
def test_files_come_back_z_up_with_colours(tmp_path, suffix: str) -> None:
    mesh = asymmetric_object()
    mesh.visual.vertex_colors = np.tile([200, 40, 10, 255], (len(mesh.vertices), 1))
    stored = mesh.copy()
    if suffix == "glb":
        x, y, z = mesh.vertices.T
        stored.vertices = np.stack([y, z, x], axis=1)
    path = tmp_path / f"object.{suffix}"
    stored.export(path)
    read = shape.load_mesh(path)
    np.testing.assert_allclose(read.bounds, mesh.bounds, atol=1e-5)
    assert np.abs(read.visual.vertex_colors[:, :3].astype(int) - [200, 40, 10]).max() <= 1


def test_reading_takes_back_the_exporter_s_rotation() -> None:
    from threestudio_eeg.builtin.exporter import GLTF_FROM_WORLD

    np.testing.assert_array_equal(shape.WORLD_FROM_GLTF @ GLTF_FROM_WORLD, np.eye(4))
    assert np.linalg.det(GLTF_FROM_WORLD) == pytest.approx(1.0)


def test_bad_files_and_shapes_are_named(tmp_path) -> None:
    with pytest.raises(InputError, match="found nothing"):
        shape.load_mesh(tmp_path / "none.obj")
    with pytest.raises(InputError, match="format"):
        shape.load_mesh(tmp_path / "object.stl")
    (tmp_path / "cut.glb").write_bytes(b"glTF\x02\x00")
    with pytest.raises(InputError, match="readable .glb"):
        shape.load_mesh(tmp_path / "cut.glb")
    with pytest.raises(InputError, match="diagonal"):
        shape.normalise(np.zeros((5, 3)))


def test_view_agreement_is_the_mean_pairwise_cosine() -> None:
    views = np.random.default_rng(0).normal(size=(5, 7))
    units = views / np.linalg.norm(views, axis=1, keepdims=True)
    pairs = [units[i] @ units[j] for i in range(5) for j in range(5) if i != j]
    assert shape.view_agreement(views) == pytest.approx(np.mean(pairs))
    assert shape.view_agreement(np.tile(views[:1], (3, 1))) == pytest.approx(1)
    with pytest.raises(InputError):
        shape.view_agreement(views[:1])
