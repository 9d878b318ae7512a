from __future__ import annotations

import socket
import sys

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from eeg_encoder.errors import InputError
from threestudio_eeg.cli import app
from threestudio_eeg.evaluation.views import camera_to_world
from threestudio_eeg.viewer.fields import camera_pose, picture_of
from threestudio_eeg.viewer.server import check_port, load_viser


def quaternion(rotation: np.ndarray) -> np.ndarray:
    from scipy.spatial.transform import Rotation

    x, y, z, w = Rotation.from_matrix(rotation).as_quat()
    return np.array([w, x, y, z])


@pytest.mark.parametrize(("elevation", "azimuth"), [(15, 0), (-20, 130), (60, 270)])
def test_pose_of_the_browsers_camera_is_that_of_the_same_orbit(elevation, azimuth) -> None:
    pose = camera_to_world(elevation, azimuth, 2.0)
    opencv = pose[:3, :3] * np.array([1.0, -1.0, -1.0])
    found = camera_pose(3 * quaternion(opencv), pose[:3, 3])
    np.testing.assert_allclose(found, pose, atol=1e-12)


def test_depth_is_bright_where_near_and_black_where_nothing_is() -> None:
    depth = torch.tensor([[0.0, 1.0], [2.0, 3.0]])[None, :, :, None]
    shade = picture_of({"depth": depth}, "depth")[..., 0].astype(int)
    assert shade[0, 0] == 0
    assert shade[0, 1] > shade[1, 0] > shade[1, 1] > 0


def test_what_a_renderer_does_not_give_is_said() -> None:
    with pytest.raises(InputError, match="colour or depth"):
        picture_of({"normal": None}, "normal")
    with pytest.raises(InputError, match="colour, normal, depth"):
        picture_of({}, "heat")


def test_a_port_in_use_is_refused() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"port: found {port}"):
            check_port("127.0.0.1", port)
    check_port("127.0.0.1", port)


def test_without_viser_the_extra_is_named(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "viser", None)
    with pytest.raises(InputError, match=r"threestudio-eeg\[viewer\]"):
        load_viser()


@pytest.mark.parametrize("command", ["view", "report"])
def test_an_unknown_run_is_one_line(tmp_path, command: str) -> None:
    done = CliRunner().invoke(app, [command, str(tmp_path / "absent")])
    assert done.exit_code == 2
    assert "expected a trial folder" in done.stderr
