from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from eeg_encoder.errors import InputError
from threestudio_eeg.evaluation import views


class BallSystem(torch.nn.Module):
    """Renders a ball of radius 0.5 by its closed form, over a grey background."""

    def forward(self, batch: dict) -> dict:
        origin, direction = batch["rays_o"], batch["rays_d"]
        along = -(origin * direction).sum(-1, keepdim=True)
        miss = (origin + along * direction).norm(dim=-1, keepdim=True)
        opacity = (miss < 0.5).float() * 0.8
        distance = along - (0.25 - miss**2).clamp_min(0).sqrt()
        hit = origin + distance * direction
        colour = (hit + 0.5).clamp(0, 1)
        return {
            "comp_rgb": colour * opacity + 0.5 * (1 - opacity),
            "comp_rgb_fg": colour * opacity,
            "opacity": opacity,
            "depth": distance * opacity,
        }


@pytest.fixture(scope="module")
def ball() -> dict:
    return views.render_views(BallSystem(), n_views=4, elevation=0, distance=2.0, size=33)


def test_first_camera_is_on_the_front_axis_and_azimuth_turns_towards_y() -> None:
    poses = [camera["c2w"] for camera in views.orbit(4, elevation=0, distance=2.0)]
    np.testing.assert_allclose(poses[0][:3, 3], [2, 0, 0], atol=1e-12)
    np.testing.assert_allclose(poses[1][:3, 3], [0, 2, 0], atol=1e-12)
    for pose in poses:
        assert np.linalg.det(pose[:3, :3]) == pytest.approx(1)
        np.testing.assert_allclose(pose[:3, 2], pose[:3, 3] / 2, atol=1e-12)
        assert pose[2, 1] == pytest.approx(1)


def test_rays_and_projection_agree() -> None:
    cameras = views.orbit(3, elevation=25, distance=2.0, fovy_deg=40)
    batch = views.camera_batch(cameras, size=8, device="cpu")
    points = batch["rays_o"] + 1.7 * batch["rays_d"]
    homogeneous = torch.cat([points, torch.ones_like(points[..., :1])], dim=-1)
    clip = torch.einsum("bij,bhwj->bhwi", batch["mvp_mtx"], homogeneous)
    screen = clip[..., :2] / clip[..., 3:]
    centres = (torch.arange(8) + 0.5) / 4 - 1
    torch.testing.assert_close(screen[..., 0], centres.expand(3, 8, 8), atol=1e-4, rtol=0)
    torch.testing.assert_close(screen[..., 1], centres[:, None].expand(3, 8, 8), atol=1e-4, rtol=0)


def test_render_views_undoes_opacity(ball: dict) -> None:
    middle = 16
    assert ball["rgb"].shape == (4, 33, 33, 3)
    assert ball["opacity"][0, middle, middle, 0] == pytest.approx(0.8)
    assert ball["depth"][0, middle, middle, 0] == pytest.approx(1.5, abs=1e-4)
    assert ball["depth"][0, 0, 0, 0] == 0
    # the pole towards each camera: +x, +y, -x, -y
    torch.testing.assert_close(ball["rgb"][0, middle, middle], torch.tensor([1, 0.5, 0.5]))
    torch.testing.assert_close(ball["rgb"][1, middle, middle], torch.tensor([0.5, 1, 0.5]))
    assert ball["normal"] is None


def test_render_views_restores_training_mode() -> None:
    system = BallSystem().train()
    views.render_views(system, n_views=1, size=4)
    assert system.training


def test_saved_views_read_back(tmp_path, ball: dict) -> None:
    paths = views.save_views(tmp_path / "views", **ball)
    assert [path.name for path in paths] == ["000.png", "001.png", "002.png", "003.png"]
    picture = np.asarray(Image.open(paths[1]))
    assert picture.shape == (33, 33, 4)
    assert picture[16, 16].tolist() == [128, 255, 128, 204]
    depth = views.load_depth(tmp_path / "views" / "001_depth.png")
    np.testing.assert_allclose(depth, ball["depth"][1, :, :, 0].numpy(), atol=1e-4)
    cameras = json.loads((tmp_path / "views" / "cameras.json").read_text())
    assert len(cameras["views"]) == 4
    np.testing.assert_allclose(cameras["views"][2]["c2w"], ball["cameras"][2]["c2w"])
    nerf = json.loads((tmp_path / "views" / "transforms.json").read_text())
    assert nerf["camera_angle_x"] == pytest.approx(np.radians(40))
    assert len(nerf["frames"]) == 4
    assert (tmp_path / "views" / nerf["frames"][3]["file_path"]).is_file()


def test_depth_lifts_pixels_onto_the_ball(tmp_path, ball: dict) -> None:
    views.save_views(tmp_path, **ball)
    depth = torch.as_tensor(views.load_depth(tmp_path / "000_depth.png"), dtype=torch.float32)
    batch = views.camera_batch(ball["cameras"][:1], size=33, device="cpu")
    points = (batch["rays_o"] + depth[None, ..., None] * batch["rays_d"])[0][depth > 0]
    torch.testing.assert_close(
        points.norm(dim=-1), torch.full((len(points),), 0.5), atol=1e-3, rtol=0
    )


def test_wrong_shapes_and_nan_are_refused(tmp_path, ball: dict) -> None:
    with pytest.raises(InputError, match="opacity"):
        views.save_views(tmp_path / "a", **{**ball, "opacity": ball["opacity"][:2]})
    with pytest.raises(InputError, match="NaN"):
        views.save_views(tmp_path / "b", **{**ball, "depth": ball["depth"] * float("nan")})
    assert not (tmp_path / "a").exists()
    assert not (tmp_path / "b").exists()


def test_contact_sheet_places_pictures_in_rows() -> None:
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    sheet = views.contact_sheet([Image.new("RGB", (64, 64), c) for c in colours], 2)
    assert sheet.size == (2 + 2 * 66, 2 + 2 * 66)
    assert [sheet.getpixel(at) for at in ((34, 34), (100, 34), (34, 100))] == colours
    assert sheet.getpixel((100, 100)) == (255, 255, 255)


def test_contact_sheet_labels_and_transparency() -> None:
    clear = np.zeros((32, 48, 4))
    labelled = views.contact_sheet([clear], 1, ["a very long label that does not fit"], cell=96)
    picture = np.asarray(labelled)
    assert (picture[:96] == 255).all()
    assert (picture[100:] < 128).any()
    with pytest.raises(InputError, match="labels"):
        views.contact_sheet([clear], 1, ["one", "two"])


def test_a_file_that_is_no_picture_is_named(tmp_path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match="broken.png"):
        views.open_picture(tmp_path / "broken.png")
