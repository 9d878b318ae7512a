"""Splats as pictures: beside sums written out pixel by pixel, and beside finite differences."""

from __future__ import annotations

import math
import sys
from types import SimpleNamespace

import pytest
import torch

from eeg_encoder.errors import InputError
from threestudio_eeg.builtin import gaussian_gsplat
from threestudio_eeg.builtin.cameras import c2w_from_angles, camera_batch
from threestudio_eeg.builtin.gaussian_density import level_at, level_on_lattice
from threestudio_eeg.builtin.gaussian_rasteriser import (
    BLUR,
    LEAST_ALPHA,
    MOST_ALPHA,
    Splats,
    project,
    rasterise,
    rotation_matrices,
)


def some_splats(n=40, seed=0, dtype=torch.float64, size=0.08):
    generator = torch.Generator().manual_seed(seed)
    return Splats(
        torch.randn(n, 3, generator=generator, dtype=dtype) * 0.25,
        (torch.rand(n, 3, generator=generator, dtype=dtype) + 0.3) * size,
        torch.nn.functional.normalize(torch.randn(n, 4, generator=generator, dtype=dtype), dim=-1),
        torch.rand(n, generator=generator, dtype=dtype) * 0.97 + 0.02,
    )


def cameras(dtype=torch.float64):
    c2w = c2w_from_angles(torch.tensor([15.0, -5]), torch.tensor([30.0, 200]), torch.ones(2) * 2)
    return c2w.to(dtype), torch.deg2rad(torch.tensor([40.0, 55])).to(dtype)


def features_of(splats, batch=2, channels=4):
    generator = torch.Generator().manual_seed(9)
    shape = (batch, len(splats.means), channels)
    return torch.rand(shape, generator=generator, dtype=splats.means.dtype)


def by_hand(splats, features, c2w, fovy, height, width):
    """Every pixel, every splat, one after the other, from the nearest to the farthest."""
    picture = torch.zeros(len(c2w), height, width, features.shape[-1] + 1, dtype=c2w.dtype)
    for view in range(len(c2w)):
        focal = 0.5 * height / math.tan(0.5 * float(fovy[view]))
        right, up, back, place = c2w[view, :3].unbind(1)
        seen = []
        for i, mean in enumerate(splats.means):
            offset = mean - place
            x, y, z = float(offset @ right), float(-offset @ up), float(-offset @ back)
            turn = rotation_matrices(splats.rotations[i])
            covariance = turn @ torch.diag(splats.scales[i] ** 2) @ turn.T
            frame = torch.stack((right, -up, -back))
            slope = torch.tensor(
                [[focal / z, 0, -focal * x / z**2], [0, focal / z, -focal * y / z**2]],
                dtype=c2w.dtype,
            )
            flat = slope @ frame @ covariance @ frame.T @ slope.T
            flat = flat + BLUR * torch.eye(2, dtype=c2w.dtype)
            place2d = [focal * x / z + width / 2, focal * y / z + height / 2]
            centre = torch.tensor(place2d, dtype=c2w.dtype)
            seen.append((z, i, centre, flat.inverse()))
        for row in range(height):
            for column in range(width):
                left = 1.0
                for _, i, centre, precision in sorted(seen, key=lambda entry: entry[0]):
                    d = torch.tensor([column + 0.5, row + 0.5], dtype=c2w.dtype) - centre
                    alpha = float(splats.opacities[i] * torch.exp(-0.5 * d @ precision @ d))
                    alpha = min(alpha, MOST_ALPHA)
                    if alpha < LEAST_ALPHA:
                        continue
                    picture[view, row, column, :-1] += left * alpha * features[view, i]
                    picture[view, row, column, -1] += left * alpha
                    left *= 1 - alpha
    return picture


def rasterised(splats, features, c2w, fovy, height, width):
    projection = project(splats, c2w, fovy, height, width)
    return rasterise(projection, splats.opacities, features, height, width)


@pytest.mark.parametrize(("height", "width"), [(11, 18), (8, 8)])
def test_pictures_are_those_of_the_sum_written_out(height, width):
    splats, (c2w, fovy) = some_splats(25), cameras()
    features = features_of(splats)
    expected = by_hand(splats, features, c2w, fovy, height, width)
    assert expected[..., -1].max() > 0.9
    torch.testing.assert_close(rasterised(splats, features, c2w, fovy, height, width), expected)


def test_groups_of_tiles_do_not_change_the_picture(monkeypatch):
    splats, (c2w, fovy) = some_splats(60), cameras()
    features = features_of(splats)
    whole = rasterised(splats, features, c2w, fovy, 24, 24)
    monkeypatch.setattr("threestudio_eeg.builtin.gaussian_rasteriser.GROUP_BUDGET", 1)
    torch.testing.assert_close(rasterised(splats, features, c2w, fovy, 24, 24), whole)


def test_gradients_are_those_of_finite_differences():
    splats, (c2w, fovy) = some_splats(5, seed=3, size=0.2), cameras()
    features = features_of(splats, channels=2)

    def picture(means, scales, rotations, opacities, values):
        return rasterised(Splats(means, scales, rotations, opacities), values, c2w, fovy, 6, 7)

    inputs = [v.clone().requires_grad_() for v in (*vars(splats).values(), features)]
    assert torch.autograd.gradcheck(picture, inputs, eps=1e-7, atol=1e-5)


def test_a_splat_is_where_the_ray_of_its_pixel_passes():
    c2w, fovy = cameras(torch.float32)
    batch = camera_batch(c2w, fovy, 20, 30)
    row, column = 4, 21
    means = (batch["rays_o"] + 1.7 * batch["rays_d"])[:, row, column]
    splats = Splats(means, torch.full((2, 3), 0.01), torch.eye(4)[:2], torch.ones(2))
    place = project(splats, c2w, fovy, 20, 30).means
    for view in range(2):
        assert place[view, view].tolist() == pytest.approx([column + 0.5, row + 0.5], abs=1e-3)


def test_nothing_to_see_is_an_empty_picture():
    c2w, fovy = cameras()
    behind = some_splats(6)
    behind.means = c2w[:1, :3, 3] * 2 + behind.means * 0.1
    c2w, fovy = c2w[:1], fovy[:1]
    features = features_of(behind, 1)
    assert not rasterised(behind, features, c2w, fovy, 8, 8).any()
    faint = some_splats(6)
    faint.opacities = torch.full_like(faint.opacities, LEAST_ALPHA / 2)
    assert not rasterised(faint, features, c2w, fovy, 8, 8).any()


def test_the_sum_on_a_lattice_is_the_sum_at_its_points():
    splats = some_splats(20, dtype=torch.float32)
    box = torch.tensor([[-0.7, -0.6, -0.5], [0.7, 0.6, 0.5]])
    n = 12
    unit = torch.linspace(0, 1, n)
    lattice = torch.stack(torch.meshgrid(unit, unit, unit, indexing="ij"), -1).view(-1, 3)
    at_points = level_at(splats, lattice * (box[1] - box[0]) + box[0]).view(n, n, n)
    on_lattice = level_on_lattice(splats, box, n)
    assert (at_points - on_lattice).abs().max() < 20 * math.exp(-4.5)
    centre = splats.means[3:4]
    by_hand = sum(
        float(o)
        * math.exp(-0.5 * float((((centre[0] - m) @ rotation_matrices(q)) / s).square().sum()))
        for m, s, q, o in zip(*vars(splats).values(), strict=True)
    )
    assert level_at(splats, centre).item() == pytest.approx(by_hand, rel=1e-5)


def gsplat_by_hand(means, quats, scales, opacities, colors, viewmats, Ks, width, height, **kw):
    """gsplat's documented interface over the sums written out: OpenCV cameras, pixels."""
    assert kw["packed"] is False
    assert kw["eps2d"] == BLUR
    pose = viewmats.inverse()
    c2w = pose * torch.tensor([1.0, -1, -1, 1], dtype=pose.dtype)
    fovy = 2 * torch.atan(0.5 * height / Ks[:, 1, 1])
    assert Ks[:, :2, 2].tolist() == [[width / 2, height / 2]] * len(Ks)
    picture = by_hand(Splats(means, scales, quats, opacities), colors, c2w, fovy, height, width)
    points = torch.einsum(
        "bij,nj->bni", viewmats, torch.cat((means, torch.ones_like(means[:, :1])), -1)
    )
    flat = torch.einsum("bij,bnj->bni", Ks, points[..., :3])
    means2d = flat[..., :2] / flat[..., 2:]
    radii = torch.ones(*means2d.shape, dtype=torch.int32)
    return picture[..., :-1], picture[..., -1:], {"means2d": means2d, "radii": radii}


def test_gsplat_is_asked_for_the_same_picture(monkeypatch):
    monkeypatch.setitem(sys.modules, "gsplat", SimpleNamespace(rasterization=gsplat_by_hand))
    splats, (c2w, fovy) = some_splats(12), cameras()
    features = features_of(splats)
    picture, means, radii = gaussian_gsplat.rasterise_with_gsplat(splats, features, c2w, fovy, 8, 9)
    ours = rasterised(splats, features, c2w, fovy, 8, 9)
    torch.testing.assert_close(picture, ours, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(means, project(splats, c2w, fovy, 8, 9).means, atol=1e-4, rtol=0)
    assert radii.shape == means.shape[:2]


@pytest.mark.parametrize(
    ("wanted", "words"),
    [("gsplat", "gsplat, which is (not installed|for CUDA)"), ("triton", "backend: found triton")],
)
def test_a_backend_that_cannot_run_is_named(wanted, words):
    with pytest.raises(InputError, match=words):
        gaussian_gsplat.choose_backend(wanted, torch.device("cpu"))
    assert gaussian_gsplat.choose_backend(None, torch.device("cpu")) == "torch"


@pytest.mark.gpu
def test_gsplat_renders_as_torch_does():
    pytest.importorskip("gsplat")
    splats = some_splats(500, dtype=torch.float32)
    splats = Splats(*(v.cuda().requires_grad_() for v in vars(splats).values()))
    c2w, fovy = (v.cuda() for v in cameras(torch.float32))
    features = features_of(splats).cuda()
    ours = rasterised(splats, features, c2w, fovy, 64, 64)
    theirs, _, _ = gaussian_gsplat.rasterise_with_gsplat(splats, features, c2w, fovy, 64, 64)
    torch.testing.assert_close(ours, theirs, atol=2e-3, rtol=0)
    target = torch.rand_like(ours)
    gradients = [
        torch.autograd.grad((p - target).square().sum(), splats.means)[0] for p in (ours, theirs)
    ]
    assert torch.nn.functional.cosine_similarity(*(g.flatten() for g in gradients), dim=0) > 0.99
