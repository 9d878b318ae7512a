"""Rows by number."""

from __future__ import annotations

import pytest
import torch

from threestudio_eeg.neural_fields.rows import take_rows

from .kernels import DEVICE, run_in_interpreter, runs_kernels


def test_in_the_interpreter():
    run_in_interpreter(__file__)


@runs_kernels
@pytest.mark.parametrize("shape", [(1000,), (1000, 3), (1000, 4), (1000, 2, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int64])
@pytest.mark.parametrize("count", [0, 1, 777, 3000])
def test_kernel_equals_index_select(shape, dtype, count):
    seed = torch.Generator().manual_seed(0)
    tensor = (torch.randn(shape, generator=seed) * 100).to(dtype).to(DEVICE)
    places = torch.randint(1000, (count,), generator=seed).to(DEVICE)
    assert torch.equal(take_rows(tensor, places, "triton"), tensor.index_select(0, places))


@runs_kernels
def test_of_a_tensor_that_is_no_block():
    one = torch.arange(3.0, device=DEVICE).expand(50, 3)
    columns = torch.randn(3, 50, device=DEVICE).t()
    places = torch.arange(0, 50, 7, device=DEVICE)
    for tensor in (one, columns):
        assert torch.equal(take_rows(tensor, places, "triton"), tensor.index_select(0, places))


def test_rows_can_be_differentiated():
    tensor = torch.randn(5, 3, requires_grad=True)
    places = torch.tensor([0, 2, 2])
    take_rows(tensor, places).sum().backward()
    assert tensor.grad.sum(1).tolist() == [3, 0, 6, 0, 0]
