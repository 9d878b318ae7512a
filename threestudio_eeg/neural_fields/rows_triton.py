"""Rows by number in Triton: the backend of :mod:`.rows` for a GPU."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

ELEMENTS = 2048
"""Numbers of a program."""


def take_rows(tensor: Tensor, places: Tensor) -> Tensor:
    """Arguments and result as :func:`.rows.take_rows`."""
    out = torch.empty(len(places), *tensor.shape[1:], dtype=tensor.dtype, device=tensor.device)
    if out.numel() == 0:
        return out
    rows = tensor.reshape(len(tensor), -1)
    width = rows.shape[1]
    side = triton.next_power_of_2(width)
    block = max(ELEMENTS // side, 1)
    _take_kernel[(triton.cdiv(len(places), block),)](
        rows,
        places.contiguous(),
        out,
        len(places),
        width,
        rows.stride(0),
        rows.stride(1),
        SIDE=side,
        BLOCK=block,
    )
    return out


@triton.jit
def _take_kernel(
    rows, places, out, n, width, stride_n, stride_c, SIDE: tl.constexpr, BLOCK: tl.constexpr
):
    number = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    column = tl.arange(0, SIDE)[None, :]
    place = tl.load(places + number, mask=number < n, other=0).to(tl.int64)
    inside = (number < n)[:, None] & (column < width)
    value = tl.load(rows + place[:, None] * stride_n + column * stride_c, mask=inside)
    tl.store(out + number[:, None] * width + column, value, mask=inside)
