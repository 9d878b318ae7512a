import numpy as np
import pytest
import torch
import trimesh

from eeg_encoder.errors import InputError

from .toy_parts import ToyBackground, ToyGeometry, ToyMaterial

from threestudio_eeg.builtin.exporter import MeshExporter  # isort: skip
from threestudio_eeg.builtin.saving import SaverMixin  # isort: skip


def exporter(geometry=None, **cfg):
    return MeshExporter(
        cfg,
        geometry=ToyGeometry(geometry or {}),
        material=ToyMaterial({}),
        background=ToyBackground({}),
    )


def written(tmp_path, fmt):
    saver = SaverMixin()
    saver.set_save_dir(tmp_path)
    (output,) = exporter(fmt=fmt)()
    return trimesh.load_mesh(saver.save_mesh(output.save_name, output.mesh), process=False)


@pytest.mark.parametrize("fmt", ["obj", "obj-mtl", "ply", "glb"])
def test_a_mesh_survives_the_file(tmp_path, fmt):
    mesh = written(tmp_path, fmt)
    assert mesh.vertices.shape == (8, 3)
    assert mesh.faces.shape == (12, 3)
    assert mesh.is_watertight
    assert mesh.volume == pytest.approx(1.0)
    world = mesh.vertices[:, [2, 0, 1]] if fmt == "glb" else mesh.vertices
    assert np.ptp(world, axis=0) == pytest.approx([2.0, 1.0, 0.5])
    assert np.array_equal(mesh.visual.vertex_colors[:, :3], (world > 0) * 255)


def test_an_empty_surface_is_an_error_with_a_remedy():
    with pytest.raises(InputError, match="isosurface_threshold: found an empty surface"):
        exporter({"empty": True})()


def test_an_unknown_format_is_named():
    with pytest.raises(InputError, match="fmt: found stl"):
        exporter(fmt="stl")


def test_films_have_even_sides_and_all_frames(tmp_path):
    import imageio.v3 as imageio

    from threestudio_eeg.builtin.saving import save_film

    frames = [np.full((15, 21, 3), 20 * i, np.uint8) for i in range(7)]
    film = imageio.imread(save_film(tmp_path / "film.mp4", frames), plugin="pyav")
    assert film.shape == (7, 16, 22, 3)
    assert abs(film.mean(axis=(1, 2, 3)) - 20 * np.arange(7)).max() < 5
    with pytest.raises(InputError, match="frames: found none"):
        save_film(tmp_path / "none.mp4", [])
    assert [path.name for path in tmp_path.iterdir()] == ["film.mp4"]


def test_picture_rows_read_back(tmp_path):
    import imageio.v3 as imageio

    from threestudio_eeg.builtin.saving import save_picture_row

    red = torch.zeros(4, 5, 3)
    red[..., 0] = 1
    row = [red, (torch.zeros(4, 5, 1), (-1, 1))]
    pixels = imageio.imread(save_picture_row(tmp_path / "row.png", row))
    assert pixels.shape == (4, 10, 3)
    assert pixels[0, 0].tolist() == [255, 0, 0]
    assert pixels[0, 9].tolist() == [128, 128, 128]
