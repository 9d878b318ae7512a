"""Our encodings against NVIDIA's tiny-cuda-nn itself, on a GPU, where it is installed.

The same parameters, inputs and cotangents go through both; outputs and both gradients are compared
by the norm of their difference over the norm of theirs. In half precision tiny-cuda-nn sums in
halves, we in single precision; the tolerances are a few of half precision's steps, 2**-11. ``-s``
prints the differences.
"""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from threestudio_eeg.neural_fields import hash_grid
from threestudio_eeg.neural_fields import tinycudann as ours
from threestudio_eeg.neural_fields.encodings import Composite, Encoding, Grid

N_POINTS = 4096
FACE = 1e-3
HALF_STEP = 2**-11
TOLERANCE = {
    torch.float16: {"y": 4 * HALF_STEP, "params": 10 * HALF_STEP, "x": 10 * HALF_STEP},
    torch.float32: {"y": 3e-4, "params": 3e-4, "x": 6e-4},
}
"""Relative norms. In float32 a position times the finest level's 2,000 cells keeps four digits of
its place in a cell, and theirs and ours round it differently."""
SMALL_GRID = {"n_levels": 8, "n_features_per_level": 2, "base_resolution": 8}
CONFIGS: dict[str, tuple[int, dict[str, Any]]] = {
    "threestudio's hash grid": (
        3,
        {
            "otype": "HashGrid",
            "n_levels": 16,
            "n_features_per_level": 2,
            "log2_hashmap_size": 19,
            "base_resolution": 16,
            "per_level_scale": 1.447269237440378,
        },
    ),
    "tiled grid, smoothstep": (
        3,
        {
            **SMALL_GRID,
            "otype": "Grid",
            "type": "Tiled",
            "n_features_per_level": 4,
            "log2_hashmap_size": 15,
            "per_level_scale": 1.5,
            "interpolation": "Smoothstep",
        },
    ),
    "dense grid of two dimensions": (
        2,
        {**SMALL_GRID, "otype": "DenseGrid", "n_levels": 4, "per_level_scale": 2.0},
    ),
    "hash grid, harmonics, blobs, waves": (
        8,
        {
            "otype": "Composite",
            "nested": [
                {
                    **SMALL_GRID,
                    "otype": "HashGrid",
                    "n_dims_to_encode": 3,
                    "log2_hashmap_size": 12,
                    "per_level_scale": 1.6,
                },
                {"otype": "SphericalHarmonics", "n_dims_to_encode": 3, "degree": 4},
                {"otype": "OneBlob", "n_dims_to_encode": 1, "n_bins": 16},
                {"otype": "Frequency", "n_frequencies": 4},
            ],
        },
    ),
}
CASES = [
    pytest.param(name, dtype, backend, id=f"{name}, {str(dtype)[6:]}, {backend}")
    for name in CONFIGS
    for dtype in TOLERANCE
    for backend in ("torch", "triton")
]


@pytest.fixture(scope="module")
def theirs() -> Any:
    """The package of that name that is not ours."""
    try:
        package = importlib.import_module("tinycudann")
    except Exception as error:  # without a GPU it raises other things than ImportError
        pytest.skip(f"tinycudann cannot be imported ({type(error).__name__}: {error})")
    if package.__name__ != "tinycudann" or not hasattr(package.modules, "_C"):
        pytest.skip("tinycudann is not NVIDIA's")
    return package


def grids(encoding: Encoding, begin: int = 0) -> list[tuple[int, Grid]]:
    """The grids in an encoding, and which input each begins at."""
    if isinstance(encoding, Composite):
        return [pair for first, part in encoding.nested for pair in grids(part, begin + first)]
    return [(begin, encoding)] if isinstance(encoding, Grid) else []


def inputs(name: str, encoding: Encoding) -> Tensor:
    """Points off the faces of cells, where a rounding decides on the side of a derivative."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(4 * N_POINTS, CONFIGS[name][0], generator=generator)
    if encoding.n_input_dims == 8:  # harmonics are of directions
        x[:, 3:6] = F.normalize(x[:, 3:6] - 0.5, dim=1) / 2 + 0.5
    good = torch.ones(len(x), dtype=torch.bool)
    for begin, grid in grids(encoding):
        for level in grid.layout.levels:
            place = x[:, begin : begin + grid.n_input_dims].double() * level.scale + 0.5
            good &= ((place - place.round()).abs() > FACE).all(1)
    assert good.sum() > N_POINTS
    return x[good][:N_POINTS]


def both_gradients(module: Any, x: Tensor, cotangent: Tensor) -> dict[str, Tensor]:
    x = x.clone().requires_grad_()
    y = module(x)
    y.backward(cotangent.to(y.dtype))
    found = {"y": y.detach(), "x": x.grad}
    if module.params.numel():
        found["params"] = module.params.grad
    return {key: value.double() for key, value in found.items()}


def test_points_are_off_the_faces() -> None:
    for name, (dims, config) in CONFIGS.items():
        module = ours.Encoding(dims, config, device="cpu")
        assert inputs(name, module._encoding).shape == (N_POINTS, dims)


@pytest.mark.gpu
@pytest.mark.parametrize(("name", "dtype", "backend"), CASES)
def test_outputs_and_both_gradients(
    theirs: Any,
    name: str,
    dtype: torch.dtype,
    backend: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hash_grid, "choose_backend", lambda tensor, wanted=None: backend)
    dims, config = CONFIGS[name]
    mine = ours.Encoding(dims, config, dtype=dtype, device="cuda")
    real = theirs.Encoding(dims, config, dtype=dtype)
    assert real.n_output_dims == mine.n_output_dims
    assert real.params.shape == mine.params.shape
    generator = torch.Generator().manual_seed(1)
    table = torch.rand(mine.params.shape, generator=generator) * 2 - 1
    with torch.no_grad():
        mine.params.copy_(table)
        real.params.copy_(table)
    x = inputs(name, mine._encoding).cuda()
    cotangent = torch.randn(len(x), mine.n_output_dims, generator=generator).cuda()
    found, expected = (both_gradients(module, x, cotangent) for module in (mine, real))
    differences = {
        key: float((found[key] - expected[key]).norm() / expected[key].norm()) for key in found
    }
    print(f"\n{name}, {dtype}, {backend}: {differences}")
    for key, difference in differences.items():
        assert difference < TOLERANCE[dtype][key], (key, differences)
