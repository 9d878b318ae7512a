"""Small perceptrons in Triton: the backend of :mod:`.small_mlp` for a GPU.

A program takes ``BLOCK`` points through all layers. The backward kernel computes the hidden layers
again from the input. Its programs walk over the blocks of points in turn with their share of the
weights' gradients in registers; the shares are added at the end, in a fixed order.

A block's output gradient is divided by its largest entry before it is rounded to half precision,
and what follows from it is multiplied again: a loss that is a mean over a picture has gradients of
1e-7 and less, where float16 ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

FORWARD_BLOCK, BLOCK = 128, 64
"""Points of a program, and of a program's turn in the backward kernel."""
WARPS, WARPS_OF_WIDE, WIDE = 4, 8, 128
"""Warps of a program, and of one whose hidden layers would not fit into the registers of four."""
PROGRAMS_PER_PROCESSOR = 2
INTERPRETED_PROGRAMS = 3
SMALLEST_SIDE = 16
"""Of a matrix in a product of Triton's."""

KINDS = {"float32": tl.float32, "float16": tl.float16, "bfloat16": tl.bfloat16}


def apply(x: Tensor, weights: list[Tensor], precision: str) -> Tensor:
    """Arguments and result as :func:`.small_mlp.small_mlp`."""
    if len(x) == 0:
        return x.new_zeros(0, weights[-1].shape[0], dtype=torch.float32)
    return _SmallMLP.apply(x, precision, *weights)  # type: ignore[no-any-return]


class _SmallMLP(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, precision: str, *weights: Tensor) -> Tensor:
        ctx.save_for_backward(x, *weights)
        ctx.precision = precision
        return outputs(x, weights, precision)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        x, *weights = ctx.saved_tensors
        wants_x, wants_weights = ctx.needs_input_grad[0], ctx.needs_input_grad[2:]
        of_x, totals = slopes(
            x, weights, gradients[0], ctx.precision, of_x=wants_x, of_weights=any(wants_weights)
        )
        found = (
            total.to(weight.dtype) if wanted else None
            for total, weight, wanted in zip(totals, weights, wants_weights, strict=True)
        )
        return (of_x.to(x.dtype) if wants_x else None, None, *found)


def outputs(x: Tensor, weights: Sequence[Tensor], precision: str) -> Tensor:
    """Values (N, O) at x (N, D), without their graph."""
    out = torch.empty(len(x), weights[-1].shape[0], device=x.device)
    _forward_kernel[(triton.cdiv(len(x), FORWARD_BLOCK),)](
        x,
        *_matrices(weights),
        out,
        *_sizes(x, weights),
        BLOCK=FORWARD_BLOCK,
        **_settings(x, weights, precision),
    )
    return out


def slopes(
    x: Tensor,
    weights: Sequence[Tensor],
    gradient: Tensor,
    precision: str,
    *,
    of_x: bool = True,
    of_weights: bool = True,
) -> tuple[Tensor, list[Tensor]]:
    """What the gradient (N, O) of the values is of x, (N, D), and of the weights.

    In single precision. What is not wanted is not computed: its tensors hold anything.
    """
    programs = min(triton.cdiv(len(x), BLOCK), _programs(x.device))
    change = torch.empty_strided(x.shape, _dense_strides(x), device=x.device)
    shares = [x.new_empty(programs, *w.shape, dtype=torch.float32) for w in weights]
    _backward_kernel[(programs,)](
        x,
        *_matrices(weights),
        gradient.contiguous().float(),
        change,
        *_matrices(shares),
        *_sizes(x, weights),
        change.stride(0),
        change.stride(1),
        OF_X=of_x,
        OF_WEIGHTS=of_weights,
        BLOCK=BLOCK,
        **_settings(x, weights, precision),
    )
    return change, [share.sum(0) for share in shares] if of_weights else shares


def _matrices(tensors: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """First, middle and last; without a second hidden layer the middle one is not looked at."""
    first, middle, last = tensors[0], tensors[len(tensors) // 2], tensors[-1]
    return first.contiguous(), middle.contiguous(), last.contiguous()


def _sizes(x: Tensor, weights: Sequence[Tensor]) -> tuple[int, ...]:
    return len(x), x.shape[1], weights[-1].shape[0], x.stride(0), x.stride(1)


def _settings(x: Tensor, weights: Sequence[Tensor], precision: str) -> dict[str, Any]:
    rounded = precision == "float32" and torch.backends.cuda.matmul.allow_tf32
    return {
        "D": max(triton.next_power_of_2(x.shape[1]), SMALLEST_SIDE),
        "H": weights[0].shape[0],
        "O": max(triton.next_power_of_2(weights[-1].shape[0]), SMALLEST_SIDE),
        "DEEP": len(weights) == 3,
        "KIND": KINDS[precision],
        "PRECISION": "tf32" if rounded else "ieee",
        "num_warps": WARPS_OF_WIDE if len(weights[0]) >= WIDE else WARPS,
    }


def _dense_strides(x: Tensor) -> tuple[int, int]:
    """Feature by feature where the input is so, else point by point."""
    by_feature = x.stride(0) == 1 and x.stride(1) >= len(x)
    return (1, len(x)) if by_feature else (x.shape[1], 1)


def _programs(device: torch.device) -> int:
    if device.type != "cuda":
        return INTERPRETED_PROGRAMS
    processors = torch.cuda.get_device_properties(device).multi_processor_count
    return int(PROGRAMS_PER_PROCESSOR * processors)


@triton.jit
def _matrix(pointer, rows, columns, R: tl.constexpr, C: tl.constexpr, KIND: tl.constexpr):
    """A row-major matrix, padded with zeros to (R, C)."""
    row, column = tl.arange(0, R)[:, None], tl.arange(0, C)[None, :]
    inside = (row < rows) & (column < columns)
    return tl.load(pointer + row * columns + column, mask=inside, other=0.0).to(KIND)


@triton.jit
def _store_share(pointer, share, rows, columns, R: tl.constexpr, C: tl.constexpr):
    """This program's part of a matrix's gradient."""
    row, column = tl.arange(0, R)[:, None], tl.arange(0, C)[None, :]
    inside = (row < rows) & (column < columns)
    place = tl.program_id(0) * rows * columns + row * columns + column
    tl.store(pointer + place, share, mask=inside)


@triton.jit
def _layer(x, weight, KIND: tl.constexpr, PRECISION: tl.constexpr):
    """ReLU of x (B, I) times the transposed weight (O, I)."""
    out = tl.dot(x, tl.trans(weight), input_precision=PRECISION)
    return tl.maximum(out, 0.0).to(KIND)


@triton.jit
def _forward_kernel(
    x, w_first, w_middle, w_last, out, n, d, o, stride_n, stride_d,
    D: tl.constexpr, H: tl.constexpr, O: tl.constexpr, DEEP: tl.constexpr,
    BLOCK: tl.constexpr, KIND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    first, last = _matrix(w_first, H, d, H, D, KIND), _matrix(w_last, o, H, O, H, KIND)
    point = (tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)[:, None]
    column, output = tl.arange(0, D)[None, :], tl.arange(0, O)[None, :]
    inside = (point < n) & (column < d)
    place = point * stride_n + column.to(tl.int64) * stride_d
    inputs = tl.load(x + place, mask=inside, other=0.0).to(KIND)
    hidden = _layer(inputs, first, KIND, PRECISION)
    if DEEP:
        hidden = _layer(hidden, _matrix(w_middle, H, H, H, H, KIND), KIND, PRECISION)
    result = tl.dot(hidden, tl.trans(last), input_precision=PRECISION)
    tl.store(out + point * o + output, result, mask=(point < n) & (output < o))


@triton.jit
def _backward_kernel(
    x, w_first, w_middle, w_last, gradient, of_x, of_first, of_middle, of_last,
    n, d, o, stride_n, stride_d, of_x_stride_n, of_x_stride_d,
    OF_X: tl.constexpr, OF_WEIGHTS: tl.constexpr,
    D: tl.constexpr, H: tl.constexpr, O: tl.constexpr, DEEP: tl.constexpr,
    BLOCK: tl.constexpr, KIND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    first, last = _matrix(w_first, H, d, H, D, KIND), _matrix(w_last, o, H, O, H, KIND)
    column, output = tl.arange(0, D)[None, :], tl.arange(0, O)[None, :]
    total_first = tl.zeros([H, D], tl.float32)
    total_last = tl.zeros([O, H], tl.float32)
    if DEEP:
        middle = _matrix(w_middle, H, H, H, H, KIND)
        total_middle = tl.zeros([H, H], tl.float32)
    block = tl.program_id(0)
    while block * BLOCK < n:
        point = (block * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)[:, None]
        inside = (point < n) & (column < d)
        inputs = tl.load(x + point * stride_n + column * stride_d, mask=inside, other=0.0)
        inputs = inputs.to(KIND)
        seen = (point < n) & (output < o)
        slope = tl.load(gradient + point * o + output, mask=seen, other=0.0)
        largest = tl.max(tl.max(tl.abs(slope), axis=1), axis=0)
        scale = tl.where(largest > 0, largest, 1.0)
        slope = (slope / scale).to(KIND)

        hidden = _layer(inputs, first, KIND, PRECISION)
        if DEEP:
            behind = _layer(hidden, middle, KIND, PRECISION)
            if OF_WEIGHTS:
                part = tl.dot(tl.trans(slope), behind, input_precision=PRECISION)
                total_last += part * scale
            back = tl.dot(slope, last, input_precision=PRECISION)
            slope_middle = tl.where(behind > 0, back, 0.0).to(KIND)
            if OF_WEIGHTS:
                part = tl.dot(tl.trans(slope_middle), hidden, input_precision=PRECISION)
                total_middle += part * scale
            back = tl.dot(slope_middle, middle, input_precision=PRECISION)
        else:
            if OF_WEIGHTS:
                part = tl.dot(tl.trans(slope), hidden, input_precision=PRECISION)
                total_last += part * scale
            back = tl.dot(slope, last, input_precision=PRECISION)
        slope_first = tl.where(hidden > 0, back, 0.0).to(KIND)
        if OF_WEIGHTS:
            part = tl.dot(tl.trans(slope_first), inputs, input_precision=PRECISION)
            total_first += part * scale
        if OF_X:
            change = tl.dot(slope_first, first, input_precision=PRECISION) * scale
            place = of_x + point * of_x_stride_n + column * of_x_stride_d
            tl.store(place, change, mask=inside)
        block += tl.num_programs(0)
    if OF_WEIGHTS:
        _store_share(of_first, total_first, H, d, H, D)
        _store_share(of_last, total_last, o, H, O, H)
        if DEEP:
            _store_share(of_middle, total_middle, H, H, H, H)
