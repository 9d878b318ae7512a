"""Triton kernels of :mod:`.pointwise`: what would be several passes over memory in one."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK, WARPS = 1024, 4


def add_biased(a: Tensor, b: Tensor, bias: Tensor) -> Tensor:
    """Arguments and result as :func:`.pointwise.add_biased_reference`, channels innermost.

    The bias gets no gradient.
    """
    result: Tensor = _AddBiased.apply(a, b, bias)
    return result


def geglu(x: Tensor) -> Tensor:
    """Arguments and result as :func:`.pointwise.geglu_reference`."""
    result: Tensor = _GEGLU.apply(x)
    return result


class _AddBiased(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, bias: Tensor) -> Tensor:
        a = a.contiguous(memory_format=torch.channels_last)
        b = b.contiguous(memory_format=torch.channels_last)
        out = torch.empty_like(a)
        size = a.numel()
        _add_biased_kernel[(triton.cdiv(size, BLOCK),)](
            a, b, bias, out, size, a.shape[1], BLOCK=BLOCK, num_warps=WARPS
        )
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        return gradients[0], gradients[0], None


class _GEGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.contiguous()
        width = x.shape[-1] // 2
        out = x.new_empty(*x.shape[:-1], width)
        _geglu_kernel[(triton.cdiv(out.numel(), BLOCK),)](
            x, out, out.numel(), width, BLOCK=BLOCK, num_warps=WARPS
        )
        ctx.save_for_backward(x)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        gradient, of_x = gradients[0].contiguous(), torch.empty_like(x)
        _geglu_backward_kernel[(triton.cdiv(gradient.numel(), BLOCK),)](
            x, gradient, of_x, gradient.numel(), x.shape[-1] // 2, BLOCK=BLOCK, num_warps=WARPS
        )
        return of_x


@triton.jit
def _add_biased_kernel(a, b, bias, out, size, channels, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = i < size
    total = tl.load(a + i, mask=inside, other=0.0).to(tl.float32)
    total += tl.load(b + i, mask=inside, other=0.0).to(tl.float32)
    total += tl.load(bias + i % channels, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + i, total, mask=inside)


@triton.jit
def _halves(x, i, inside, width):
    """Where the halves of these outputs lie, and their values."""
    place = i // width * (2 * width) + i % width
    first = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(x + place + width, mask=inside, other=0.0).to(tl.float32)
    return place, first, second


@triton.jit
def _geglu_kernel(x, out, size, width, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = i < size
    place, a, b = _halves(x, i, inside, width)
    below = 0.5 * (1 + tl.erf(b * 0.7071067811865476))
    tl.store(out + i, a * b * below, mask=inside)


@triton.jit
def _geglu_backward_kernel(x, gradient, of_x, size, width, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = i < size
    place, a, b = _halves(x, i, inside, width)
    given = tl.load(gradient + i, mask=inside, other=0.0).to(tl.float32)
    below = 0.5 * (1 + tl.erf(b * 0.7071067811865476))
    density = 0.3989422804014327 * tl.exp(-0.5 * b * b)
    tl.store(of_x + place, given * b * below, mask=inside)
    tl.store(of_x + place + width, given * a * (below + b * density), mask=inside)
