"""Grid look-ups against tiny-cuda-nn's outputs, a scalar program, and the readable reference."""

from __future__ import annotations

import json
import math
from itertools import product

import numpy as np
import pytest
import torch

from eeg_encoder.errors import InputError
from tests.threestudio_eeg.golden import golden_file
from threestudio_eeg.neural_fields import hash_grid_reference, hash_grid_torch
from threestudio_eeg.neural_fields.hash_grid import encode, make_layout

GROWING = {"n_levels": 4, "log2_hashmap_size": 7, "base_resolution": 3, "per_level_scale": 1.6}
LAYOUTS = {
    "3d": make_layout(3, **GROWING),
    "2d, 1 feature": make_layout(2, n_features=1, **{**GROWING, "log2_hashmap_size": 5}),
    "4d, 4 features": make_layout(4, n_features=4, **{**GROWING, "base_resolution": 2}),
    "8 features": make_layout(3, n_features=8, **GROWING),
    "shrinking": make_layout(3, 4, 2, 7, 12, 0.6),
    "all hashed": make_layout(3, 2, 2, 4, 8, 1.5),
    "dense": make_layout(3, kind="dense", **GROWING),
    "tiled": make_layout(3, kind="tiled", **GROWING),
    "smoothstep": make_layout(3, interpolation="smoothstep", **GROWING),
    "nearest": make_layout(3, interpolation="nearest", **GROWING),
}
LAYOUT_NAMES = list(LAYOUTS)


def random_table(layout, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(layout.n_entries, layout.n_features, generator=generator, dtype=dtype)


def random_points(n_points, layout, dtype=torch.float64):
    """Points of the unit cube, its border, and a little beyond."""
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(n_points, layout.n_dims, generator=generator, dtype=dtype) * 1.4 - 0.2
    x[: n_points // 4] = x[: n_points // 4].round()
    return x


def scalar_look_up(x, table, n_levels, base, growth, log2_size, n_features):
    """tiny-cuda-nn's look-up of one point in a hash grid, with plain integers."""
    primes, output, begin = (1, 2654435761, 805459861), [], 0
    for level in range(n_levels):
        scale = base * growth**level - 1
        side = math.ceil(scale) + 1
        vertices = side ** len(x)
        size = min(math.ceil(vertices / 8) * 8, 2**log2_size)
        place = [v * scale + 0.5 for v in x]
        total = [0.0] * n_features
        for corner in product((0, 1), repeat=len(x)):
            weight, index = 1.0, 0
            for axis, (p, bit) in enumerate(zip(place, corner, strict=True)):
                cell = math.floor(p) + bit
                weight *= p - math.floor(p) if bit else 1 - (p - math.floor(p))
                if vertices > size:
                    index ^= cell * primes[axis] % 2**32
                else:
                    index += cell * side**axis
            row = begin + index % 2**32 % size
            total = [t + weight * table[row][f] for f, t in enumerate(total)]
        output += total
        begin += size
    return output, begin


def test_outputs_of_tiny_cuda_nn():
    golden = np.load(golden_file("tcnn_hash_grid.npz"), allow_pickle=False)
    config = json.loads(str(golden["config"]))
    layout = make_layout(3, n_features=config.pop("n_features_per_level"), **config)
    table = torch.linspace(-1, 1, int(golden["n_params"])).view(layout.n_entries, -1)
    y = encode(torch.from_numpy(golden["x"]), table, layout)
    np.testing.assert_allclose(y.numpy(), golden["y"], atol=6e-5)


def test_sizes():
    assert make_layout(3, 16, 2, 19, 16, 1.447269237440378).n_entries * 2 == 12_599_920
    assert make_layout(3, 16, 2, 19, 16, 2 ** (7 / 15)).n_entries == 6_098_120


def test_layouts_have_all_kinds_of_levels():
    kinds = {name: {level.hashed for level in layout.levels} for name, layout in LAYOUTS.items()}
    both = {False, True}
    assert kinds["3d"] == kinds["2d, 1 feature"] == kinds["4d, 4 features"] == both
    assert kinds["shrinking"] == both
    assert kinds["all hashed"] == {True}
    assert kinds["dense"] == kinds["tiled"] == {False}


@pytest.mark.parametrize("n_dims", [2, 3])
@pytest.mark.parametrize("backend", [hash_grid_torch, hash_grid_reference])
def test_scalar_program(n_dims, backend):
    layout = make_layout(n_dims, 6, 2, 7, 2, 1.5)
    assert {level.hashed for level in layout.levels} == {False, True}
    table, x = random_table(layout), random_points(40, layout)
    rows = table.tolist()
    expected = [scalar_look_up(p, rows, 6, 2, 1.5, 7, 2) for p in x.tolist()]
    assert {end for _, end in expected} == {layout.n_entries}
    found = backend.encode(x, table, layout)
    values = torch.tensor([value for value, _ in expected], dtype=torch.float64)
    torch.testing.assert_close(found, values, rtol=0, atol=1e-5)


def test_sizes_of_tiled_and_dense_levels():
    tiled, dense = LAYOUTS["tiled"], LAYOUTS["dense"]
    assert {level.size for level in tiled.levels} == {3**3}
    assert [level.resolution for level in dense.levels] == [3, 5, 8, 13]
    assert [level.size for level in dense.levels] == [32, 128, 512, 2200]


def test_unhashed_level_of_too_many_vertices_has_one_entry():
    """tiny-cuda-nn's indices have 32 bits: in three dimensions, 1625 vertices a side."""
    layout = make_layout(3, 3, 1, base_resolution=16, per_level_scale=10.15, kind="tiled")
    assert [level.resolution for level in layout.levels] == [16, 163, 1649]
    assert layout.levels[1].factors == (1, 163, 163**2)
    assert layout.levels[2].factors == (0, 0, 0)


@pytest.mark.parametrize("name", LAYOUT_NAMES)
@pytest.mark.parametrize("n_points", [0, 1, 700])
def test_equals_reference_with_gradients(name, n_points, monkeypatch):
    monkeypatch.setattr(hash_grid_torch, "CPU_CHUNK", 256)
    layout = LAYOUTS[name]
    x = random_points(n_points, layout).requires_grad_()
    table = random_table(layout).requires_grad_()
    cotangent = torch.randn(n_points, layout.n_output_dims, dtype=torch.float64)
    fast, slow = (
        (y, *torch.autograd.grad(y, (x, table), cotangent))
        for y in (
            backend.encode(x, table, layout) for backend in (hash_grid_torch, hash_grid_reference)
        )
    )
    for found, expected in zip(fast, slow, strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", LAYOUT_NAMES)
def test_second_derivatives_equal_the_references(name):
    layout = LAYOUTS[name]
    x = random_points(60, layout).requires_grad_()
    table = random_table(layout).requires_grad_()
    shape = (60, layout.n_output_dims)
    cotangent = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    along_x, along_table = torch.randn_like(x), torch.randn_like(table)
    results = []
    for backend in (hash_grid_torch, hash_grid_reference):
        y = backend.encode(x, table, layout)
        by_x, by_table = torch.autograd.grad(y, (x, table), cotangent, create_graph=True)
        inner = (by_x * along_x).sum() + (by_table * along_table).sum()
        inputs = (x, table, cotangent)
        second = torch.autograd.grad(inner, inputs, allow_unused=True, materialize_grads=True)
        results.append((by_x, by_table, *second))
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", ["3d", "smoothstep", "2d, 1 feature"])
def test_gradcheck_first_and_second_order(name):
    layout = LAYOUTS[name]
    table = random_table(layout).requires_grad_()
    x = torch.rand(4, layout.n_dims, dtype=torch.float64, requires_grad=True)

    def look_up(x, table):
        return encode(x, table, layout)

    assert torch.autograd.gradcheck(lambda x: look_up(x, table.detach()), x)
    assert torch.autograd.gradcheck(look_up, (x, table), fast_mode=True)
    assert torch.autograd.gradgradcheck(look_up, (x, table), fast_mode=True)


def test_only_what_is_wanted_gets_a_gradient():
    layout = LAYOUTS["3d"]
    x, table = random_points(5, layout), random_table(layout)
    for wanted in (x, table):
        wanted.requires_grad_()
        encode(x, table, layout).sum().backward()
        assert wanted.grad is not None
        wanted.requires_grad_(False)
    assert not encode(x, table, layout).requires_grad


@pytest.mark.parametrize("points", [torch.float32, torch.float64])
@pytest.mark.parametrize("table", [torch.float16, torch.float32])
def test_output_has_the_tables_precision(points, table):
    layout = LAYOUTS["3d"]
    x, values = random_points(100, layout, points), random_table(layout).to(table)
    values.requires_grad_()
    y = encode(x, values, layout)
    assert y.dtype == table
    exact = encode(x.double(), values.detach().double(), layout)
    tolerance = 2e-3 if table == torch.float16 else 2e-5
    torch.testing.assert_close(y.double(), exact, rtol=0, atol=tolerance)
    y.sum().backward()
    assert values.grad.dtype == table


def test_gradients_are_the_same_bits_again():
    layout = LAYOUTS["3d"]
    x, table = random_points(3000, layout, torch.float32), random_table(layout, torch.float32)
    table.requires_grad_()
    first, again = (torch.autograd.grad(encode(x, table, layout).sum(), table)[0] for _ in range(2))
    assert torch.equal(first, again)


def test_first_use_in_inference_mode_does_not_spoil_training():
    layout = make_layout(3, **{**GROWING, "base_resolution": 4})
    x, table = random_points(5, layout).requires_grad_(), random_table(layout).requires_grad_()
    with torch.inference_mode():
        encode(x, table, layout)
    (slope,) = torch.autograd.grad(encode(x, table, layout).sum(), x, create_graph=True)
    slope.square().sum().backward()
    assert table.grad.isfinite().all()


def test_backend_by_name():
    layout = LAYOUTS["3d"]
    x, table = random_points(10, layout), random_table(layout)
    assert torch.equal(encode(x, table, layout, "torch"), encode(x, table, layout))
    with pytest.raises(InputError, match="backend"):
        encode(x, table, layout, "cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("name", LAYOUT_NAMES)
def test_cuda_equals_cpu(name):
    layout = LAYOUTS[name]
    x, table = random_points(1000, layout, torch.float32), random_table(layout, torch.float32)
    expected = encode(x, table, layout)
    for backend in ("torch", "triton"):
        found = encode(x.cuda(), table.cuda(), layout, backend)
        torch.testing.assert_close(found.cpu(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("n_input_dims", {"n_dims": 5}),
        ("n_features_per_level", {"n_features": 3}),
        ("n_levels", {"n_levels": 0}),
        ("n_levels", {"kind": "dense", "per_level_scale": 4.0}),
        ("log2_hashmap_size", {"log2_hashmap_size": 32}),
        ("base_resolution", {"base_resolution": 0}),
        ("per_level_scale", {"per_level_scale": 0.0}),
        ("per_level_scale", {"per_level_scale": math.nan}),
        ("type", {"kind": "sparse"}),
        ("interpolation", {"interpolation": "cubic"}),
    ],
)
def test_bad_fields(field, change):
    with pytest.raises(InputError, match=rf"grid: {field}"):
        make_layout(**change)
