"""The hash grid against tiny-cuda-nn's own outputs, and against its readable reference."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from threestudio_eeg.neural_fields.hash_grid import HashGrid, interpolate_reference

GOLDEN = Path("golden") / "tcnn_hash_grid.npz"


def golden_file() -> Path:
    sibling = Path(__file__).resolve().parents[3] / "shared" / "data"
    path = Path(os.environ.get("THREESTUDIO_EEG_DATA", sibling)) / GOLDEN
    if not path.is_file():
        pytest.skip("the golden values of tiny-cuda-nn are not here")
    return path


def small_grid(dtype: torch.dtype = torch.float32) -> HashGrid:
    """Two dense and two hashed levels."""
    grid = HashGrid(4, 2, 8, 3, 1.6).to(dtype)
    with torch.no_grad():
        grid.params.normal_(generator=torch.Generator().manual_seed(0))
    return grid


def table_of(grid: HashGrid) -> torch.Tensor:
    return grid.params.view(grid.n_entries, grid.n_features_per_level)


def test_outputs_of_tiny_cuda_nn():
    golden = np.load(golden_file(), allow_pickle=False)
    grid = HashGrid(**json.loads(str(golden["config"])))
    assert grid.params.numel() == int(golden["n_params"])
    with torch.no_grad():
        grid.params.copy_(torch.linspace(-1, 1, grid.params.numel()))
        y = grid(torch.from_numpy(golden["x"]))
    np.testing.assert_allclose(y.numpy(), golden["y"], atol=6e-5)


def test_sizes():
    assert HashGrid(16, 2, 19, 16, 1.447269237440378).params.numel() == 12_599_920
    assert HashGrid(16, 2, 19, 16, 2 ** (7 / 15)).n_entries == 6_098_120


def test_small_grid_has_both_kinds_of_level():
    assert [level.hashed for level in small_grid().levels] == [False, False, True, True]


@pytest.mark.parametrize("n_points", [0, 1, 5000])
def test_fast_path_equals_reference_with_gradients(n_points):
    grid = small_grid(torch.float64)
    x = torch.rand(n_points, 3, dtype=torch.float64) * 1.2 - 0.1
    seed = torch.randn(n_points, grid.n_output_dims, dtype=torch.float64)
    found = []
    for look_up in (grid, lambda x: interpolate_reference(x, table_of(grid), grid.levels)):
        x = x.detach().requires_grad_()
        y = look_up(x)
        found.append((y, *torch.autograd.grad(y, (x, grid.params), seed)))
    for fast, slow in zip(*found, strict=True):
        torch.testing.assert_close(fast, slow)


def test_corners_of_the_cube_are_inside_the_table():
    grid = small_grid()
    x = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 3)
    torch.testing.assert_close(grid(x), interpolate_reference(x, table_of(grid), grid.levels))


def test_gradcheck_first_and_second_order():
    grid = small_grid(torch.float64)
    x = torch.rand(5, 3, dtype=torch.float64, requires_grad=True)

    def look_up(x, params):
        return torch.func.functional_call(grid, {"params": params}, (x,))

    inputs = (x, grid.params.detach().requires_grad_())
    assert torch.autograd.gradcheck(look_up, inputs)
    assert torch.autograd.gradgradcheck(look_up, inputs, fast_mode=True)


@pytest.mark.gpu
def test_cuda_equals_cpu():
    grid = small_grid()
    x = torch.rand(1000, 3)
    expected = grid(x)
    torch.testing.assert_close(grid.cuda()(x.cuda()).cpu(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("table_log2", "hashed"), [(12, False), (4, True)])
def test_levels_of_one_kind_only(table_log2, hashed):
    grid = HashGrid(2, 2, table_log2, 8, 1.5)
    assert {level.hashed for level in grid.levels} == {hashed}
    x = torch.rand(50, 3, generator=torch.Generator().manual_seed(0))
    y = grid(x)
    y.sum().backward()
    torch.testing.assert_close(y, interpolate_reference(x, table_of(grid), grid.levels))
    assert float(grid.params.grad.sum()) == pytest.approx(50 * 2 * 2, rel=1e-4)
