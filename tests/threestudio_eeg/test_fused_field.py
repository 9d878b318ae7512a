"""A grid and its perceptron as one function: against the two one after the other."""

from __future__ import annotations

import math

import pytest
import torch

from threestudio_eeg.builtin.registry import find
from threestudio_eeg.neural_fields.fused_field import FusedField
from threestudio_eeg.neural_fields.hash_grid import encode, make_layout
from threestudio_eeg.neural_fields.recomputation import recomputed
from threestudio_eeg.neural_fields.small_mlp import small_mlp

from .kernels import DEVICE, run_in_interpreter, runs_kernels

LAYOUT = make_layout(3, 4, 2, 8, 4, 1.6)
GRID = {"n_levels": 4, "n_features_per_level": 2, "log2_hashmap_size": 8, "base_resolution": 4}
FUSED = {
    "otype": "VanillaMLP",
    "n_neurons": 16,
    "n_hidden_layers": 1,
    "backend": "triton",
    "precision": "float16",
}


def test_in_the_interpreter():
    run_in_interpreter(__file__)


def random(*shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


@pytest.fixture
def points():
    return torch.rand(300, 3, generator=torch.Generator().manual_seed(0)).to(DEVICE)


@pytest.fixture
def parameters():
    width = LAYOUT.n_output_dims
    table = random(LAYOUT.n_entries * LAYOUT.n_features, seed=1)
    matrices = random(16, width, seed=2) / math.sqrt(width), random(4, 16, seed=3) / 4
    return [tensor.requires_grad_() for tensor in (table, *matrices)]


def one_after_the_other(points, table, *matrices, precision):
    grid = table.view(LAYOUT.n_entries, LAYOUT.n_features)
    return small_mlp(encode(points, grid, LAYOUT, "triton"), matrices, precision)


def assert_same(found, expected, tolerance=1e-3):
    """By default as near as half precision is: gradients are rounded by blocks of a chunk."""
    for ours, theirs in zip(found, expected, strict=True):
        ours, theirs = ours.detach(), theirs.detach()
        assert float((ours - theirs).norm()) <= tolerance * float(theirs.norm())


@runs_kernels
@pytest.mark.parametrize("precision", ["float16", "float32"])
@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("chunk", [128, 5000])
def test_values_and_gradients(points, parameters, precision, keep, chunk):
    field = FusedField(LAYOUT, parameters[0], parameters[1:], precision)
    evaluation = field.evaluate(points, 256, keep)
    out = one_after_the_other(points, *parameters, precision=precision)
    weights = random(*out.shape, seed=4)
    assert_same([evaluation.values], [out], 1e-6)
    found = torch.autograd.grad((evaluation.differentiable(chunk) * weights).sum(), parameters)
    expected = torch.autograd.grad((out * weights).sum(), parameters)
    assert_same(found, expected, 1e-3 if precision == "float16" else 1e-5)


@runs_kernels
@pytest.mark.parametrize("keep", [True, False])
def test_of_a_part_of_the_points(points, parameters, keep):
    places = torch.arange(0, 300, 2, device=DEVICE)
    again = torch.arange(1, 140, device=DEVICE)
    field = FusedField(LAYOUT, parameters[0], parameters[1:], "float16")
    part = field.evaluate(points, 256, keep).at(places).at(again)
    chosen = points[places][again]
    assert torch.equal(part.points, chosen)
    out = one_after_the_other(chosen, *parameters, precision="float16")
    assert_same([part.values], [out], 1e-6)
    found = torch.autograd.grad(part.differentiable(64).square().sum(), parameters)
    assert_same(found, torch.autograd.grad(out.square().sum(), parameters))


@runs_kernels
def test_what_is_kept_is_autograds_to_free(points, parameters):
    field = FusedField(LAYOUT, parameters[0], parameters[1:], "float16")
    evaluation, saved = field.evaluate(points, 256), []
    pack = lambda tensor: saved.append(tensor.data_ptr()) or tensor  # noqa: E731
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        evaluation.differentiable(128)
    assert {evaluation.points.data_ptr(), evaluation._kept.data_ptr()} <= set(saved)


@runs_kernels
def test_small_gradients_survive_half_precision(points, parameters):
    field = FusedField(LAYOUT, parameters[0], parameters[1:], "float16")
    evaluation = field.evaluate(points, 1000)
    large, small = (
        torch.autograd.grad(evaluation.differentiable(1000).sum() * size, parameters)
        for size in (1.0, 1e-9)
    )
    assert_same([part * 1e9 for part in small], large)


@runs_kernels
@pytest.mark.parametrize("otype", ["HashGrid", "ProgressiveBandHashGrid"])
def test_a_volume_says_the_same_by_either_way(points, otype, monkeypatch):
    monkeypatch.setattr("threestudio_eeg.builtin.geometry.choose_backend", lambda x: "triton")
    torch.manual_seed(0)
    steps = {"start_level": 2, "start_step": 0, "update_steps": 100}
    config = {"pos_encoding_config": {"otype": otype, **GRID, **steps}, "mlp_network_config": FUSED}
    volume = find("implicit-volume")({**config, "normal_type": None}).to(DEVICE)
    with torch.no_grad():
        volume.encoding.encoding.encoding.params.mul_(1e4)
    world = points * 2 - 1
    trained = list(volume.parameters())

    def gradient(fields):
        loss = sum(value.square().sum() for value in fields.values())
        return torch.autograd.grad(loss, trained)

    expected = recomputed(volume, world, trained, 10_000)
    evaluation = volume.evaluation(world, 256, True)
    assert torch.equal(evaluation.points, world)
    assert_same(evaluation.values.values(), expected.values())
    assert_same(gradient(evaluation.differentiable(300)), gradient(expected))


def test_what_has_no_kernels_is_left_to_autograd(points):
    plain = {**FUSED, "backend": "torch"}
    volume = find("implicit-volume")({"mlp_network_config": plain, "normal_type": None})
    assert volume.to(DEVICE).evaluation(points, 256, True) is None
