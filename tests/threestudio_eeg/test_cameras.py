"""Cameras: frames, rays against matrices, ranges, and the same camera for the same step."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch.nn import functional as F

from eeg_encoder.errors import InputError
from threestudio_eeg.builtin.cameras import c2w_from_angles
from threestudio_eeg.builtin.registry import find

CALM = {"camera_perturb": 0.0, "center_perturb": 0.0, "up_perturb": 0.0}
TRAIN_KEYS = {
    "rays_o",
    "rays_d",
    "mvp_mtx",
    "camera_positions",
    "c2w",
    "light_positions",
    "elevation",
    "azimuth",
    "camera_distances",
    "height",
    "width",
    "fovy",
    "proj_mtx",
}


def module(**cfg):
    data = find("random-camera-datamodule")(cfg)
    data.setup()
    return data


def training_batch(step=0, **cfg):
    return module(**cfg).train_dataset.batch(step)


def test_batch_has_the_keys_and_shapes_of_threestudio():
    batch = training_batch(batch_size=3, height=8, width=12)
    assert set(batch) == TRAIN_KEYS
    assert batch["rays_d"].shape == (3, 8, 12, 3)
    assert batch["mvp_mtx"].shape == (3, 4, 4)
    assert batch["elevation"].shape == (3,)
    assert (batch["height"], batch["width"]) == (8, 12)
    assert batch["fovy"].max() < math.pi / 2


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_frames_are_right_handed(n):
    rotation = training_batch(batch_size=n)["c2w"][:, :3, :3]
    torch.testing.assert_close(torch.linalg.det(rotation), torch.ones(n))
    identity = torch.eye(3).expand(n, 3, 3)
    torch.testing.assert_close(rotation @ rotation.transpose(1, 2), identity, atol=1e-5, rtol=0)


def test_front_looks_from_plus_x():
    c2w = c2w_from_angles(torch.zeros(2), torch.tensor([0.0, 90.0]), torch.full((2,), 2.0))
    expected = [[0, 0, 1, 2], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]]
    torch.testing.assert_close(c2w[0], torch.tensor(expected).float())
    torch.testing.assert_close(c2w[1, :3, 3], torch.tensor([0.0, 2.0, 0.0]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("elevation", [-90.0, 90.0])
def test_camera_above_and_below(elevation):
    full = torch.ones(1)
    c2w = c2w_from_angles(elevation * full, 0 * full, full)
    assert torch.linalg.det(c2w[0, :3, :3]) == pytest.approx(1)


def test_cube_falls_on_the_rays_that_point_at_it():
    """A corner's place in the picture by the matrix, and by the rays, agree to a pixel's part."""
    batch = training_batch(batch_size=4, height=64, width=96, camera_distance_range=[2.0, 2.5])
    corners = torch.cartesian_prod(*[torch.tensor([-0.3, 0.3])] * 3)
    homogeneous = torch.cat((corners, torch.ones(8, 1)), dim=1)
    clip = torch.einsum("bij,nj->bni", batch["mvp_mtx"], homogeneous)
    ndc = clip[..., :2] / clip[..., 3:]
    column, row = (ndc[..., 0] + 1) / 2 * 96 - 0.5, (ndc[..., 1] + 1) / 2 * 64 - 0.5
    to_corner = F.normalize(corners - batch["camera_positions"][:, None], dim=-1)
    likeness = torch.einsum("bhwi,bni->bnhw", batch["rays_d"], to_corner)
    best = likeness.flatten(2).argmax(-1)
    seen = (column > 0) & (column < 95) & (row > 0) & (row < 63)
    assert seen.sum() > 8
    assert (column - best % 96)[seen].abs().max() < 0.75
    assert (row - best.div(96, rounding_mode="floor"))[seen].abs().max() < 0.75


def test_depth_in_clip_space():
    batch = training_batch(camera_distance_range=[2.0, 2.0], **CALM)
    clip = batch["mvp_mtx"][0] @ torch.tensor([0.0, 0.0, 0.0, 1.0])
    assert float(clip[3]) == pytest.approx(2, abs=1e-5)


def test_ranges_are_kept():
    data = module(
        batch_size=8,
        elevation_range=[-10, 45],
        azimuth_range=[-180, 180],
        camera_distance_range=[1.9, 2.1],
        fovy_range=[40, 40],
        **CALM,
    ).train_dataset
    batches = [data.batch(step) for step in range(60)]
    elevation = torch.cat([b["elevation"] for b in batches])
    assert elevation.min() >= -10.001
    assert elevation.max() <= 45.001
    assert elevation.min() < -8
    assert elevation.max() > 43
    distances = torch.cat([b["camera_positions"].norm(dim=-1) for b in batches])
    assert distances.min() >= 1.899
    assert distances.max() <= 2.101
    for batch in batches:
        assert torch.equal(((batch["azimuth"] + 180) / 45).long(), torch.arange(8))
        torch.testing.assert_close(batch["fovy"], torch.full((8,), math.radians(40)))


def test_a_step_has_its_camera_whatever_went_before():
    torch.manual_seed(5)
    data = module(batch_size=2)
    stream = list(itertools.islice(data.train_dataloader(), 4))
    torch.rand(100)
    torch.manual_seed(5)
    again = module(batch_size=2)
    again.train_dataset.update_step(0, 3)
    resumed = next(iter(again.train_dataloader()))
    assert all(
        torch.equal(torch.as_tensor(resumed[name]), torch.as_tensor(stream[3][name]))
        for name in TRAIN_KEYS
    )
    assert not torch.equal(stream[2]["c2w"], stream[3]["c2w"])
    torch.manual_seed(6)
    assert not torch.equal(module(batch_size=2).train_dataset.batch(3)["c2w"], stream[3]["c2w"])


def test_loaders_leave_the_global_generator_alone():
    data = module(height=4, width=4, eval_height=4, eval_width=4)
    before = torch.get_rng_state()
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
        next(iter(loader))
    assert torch.equal(before, torch.get_rng_state())


def test_resolution_stages():
    cfg = {"height": [8, 16], "width": [8, 16], "batch_size": [4, 2]}
    data = module(**cfg, resolution_milestones=[10]).train_dataset
    assert data.batch(9)["rays_d"].shape == (4, 8, 8, 3)
    assert data.batch(10)["rays_d"].shape == (2, 16, 16, 3)
    with pytest.raises(InputError, match="height"):
        module(**cfg)


def test_angles_open_progressively():
    data = module(progressive_until=99, elevation_range=[-10, 90]).train_dataset
    assert data.angle_ranges(0) == ((15, 15), (0, 0))
    elevation, azimuth = data.angle_ranges(50)
    assert elevation == pytest.approx((2.5, 52.5))
    assert azimuth == pytest.approx((-90, 90))
    assert data.angle_ranges(100) == ((-10, 90), (-180, 180))
    assert module().train_dataset.angle_ranges(0) == ((-10, 90), (-180, 180))


@pytest.mark.parametrize("strategy", ["dreamfusion", "magic3d"])
def test_lights(strategy):
    batch = training_batch(batch_size=64, light_sample_strategy=strategy, height=2, width=2)
    distances = batch["light_positions"].norm(dim=-1)
    assert distances.min() >= 0.799
    assert distances.max() <= 1.501
    if strategy == "magic3d":
        cosine = F.cosine_similarity(batch["light_positions"], batch["camera_positions"], dim=-1)
        assert cosine.min() >= 0.499


@pytest.mark.parametrize("n", [1, 3, 4])
def test_evaluation_views(n):
    small = {"eval_height": 4, "eval_width": 6, "eval_batch_size": 2}
    data = module(n_val_views=n, n_test_views=n, **small)
    batches = list(data.val_dataloader())
    assert torch.cat([b["index"] for b in batches]).tolist() == list(range(n))
    azimuth = torch.cat([b["azimuth"] for b in batches])
    torch.testing.assert_close(azimuth, torch.arange(n) * 360.0 / n)
    assert set(batches[0]) == TRAIN_KEYS | {"index"}
    assert (batches[0]["height"], batches[0]["width"]) == (4, 6)
    last = torch.cat([b["azimuth"] for b in data.test_dataloader()])[-1]
    assert float(last) == (360 if n > 1 else 0)


def test_unknown_light_strategy():
    with pytest.raises(InputError, match="light_sample_strategy"):
        module(light_sample_strategy="sun")
