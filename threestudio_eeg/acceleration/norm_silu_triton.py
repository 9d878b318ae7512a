"""Group normalisation and SiLU in Triton, for pictures with channels innermost.

A program takes ``ROWS`` pixels of one picture with all their channels. Sums over a picture are two
steps: a program adds up its pixels channel by channel, torch the programs' sums. What is left is a
line a channel: ``silu(x * slope + shift)`` forward, ``dx = dz * slope + x * across + offset``
backward, dz being the gradient before the SiLU, computed again from x.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

ELEMENTS = 4096
"""Numbers a program takes in a step."""
STEPS = 8
"""Steps of a program that adds up."""
WARPS = 8


def norm_silu(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Arguments and result as :func:`.norm_silu.reference`; the weights get no gradient."""
    result: Tensor = _NormSiLU.apply(x, groups, weight, bias, eps)
    return result


class _NormSiLU(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float
    ) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        n, channels, height, width = x.shape
        total, squares = _sums(x, x, None, None)
        count = height * width * channels // groups
        mean = _over_groups(total, groups) / count
        variance = (_over_groups(squares, groups) / count - mean.square()).clamp(min=0)
        scale = torch.rsqrt(variance + eps)
        slope = _of_channels(scale, channels) * weight.float()
        shift = bias.float() - _of_channels(mean, channels) * slope
        ctx.save_for_backward(x, weight, mean, scale, slope, shift)
        return _apply(_forward_kernel, x, slope.contiguous(), shift.contiguous())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:
        x, weight, mean, scale, slope, shift = ctx.saved_tensors
        gradient = gradients[0].contiguous(memory_format=torch.channels_last)
        n, channels, height, width = x.shape
        groups = mean.shape[1]
        count = height * width * channels // groups
        plain, times_x = _sums(x, gradient, slope, shift)
        # over a group: means of the gradient at the normalised values, and of it times them
        plain = _over_groups(plain * weight.float(), groups) / count
        times_x = _over_groups(times_x * weight.float(), groups) / count
        along = (times_x - mean * plain) * scale
        across = _of_channels(-scale * scale * along, channels)
        offset = _of_channels(scale * (scale * mean * along - plain), channels)
        lines = (slope, shift, across.contiguous(), offset.contiguous())
        return _apply(_backward_kernel, x, *lines, gradient=gradient), None, None, None, None


def _over_groups(values: Tensor, groups: int) -> Tensor:
    """Sums (B, G) of channels' values (B, C)."""
    return values.view(len(values), groups, -1).sum(-1)


def _of_channels(values: Tensor, channels: int) -> Tensor:
    """Groups' values (B, G) at their channels, (B, C)."""
    return values.repeat_interleave(channels // values.shape[1], dim=1)


def _rows(channels: int) -> int:
    return max(ELEMENTS // triton.next_power_of_2(channels), 1)


def _sums(
    x: Tensor, gradient: Tensor, slope: Tensor | None, shift: Tensor | None
) -> tuple[Tensor, Tensor]:
    """By picture and channel (B, C): sums of x and its square; or of dz and dz times x."""
    n, channels, height, width = x.shape
    pixels, rows = height * width, _rows(channels)
    programs = triton.cdiv(pixels, rows * STEPS)
    partial = torch.empty(2, n, programs, channels, device=x.device, dtype=torch.float32)
    _sums_kernel[(programs, n)](
        x,
        gradient,
        x if slope is None else slope,
        x if shift is None else shift,
        partial,
        pixels,
        channels,
        n * programs * channels,
        OF_GRADIENT=slope is not None,
        ROWS=rows,
        C=triton.next_power_of_2(channels),
        STEPS=STEPS,
        num_warps=WARPS,
    )
    total = partial.sum(2)
    return total[0], total[1]


def _apply(kernel: Any, x: Tensor, *lines: Tensor, gradient: Tensor | None = None) -> Tensor:
    n, channels, height, width = x.shape
    pixels, rows = height * width, _rows(channels)
    out = torch.empty_like(x, memory_format=torch.channels_last)
    inputs = (x,) if gradient is None else (x, gradient)
    kernel[(triton.cdiv(pixels, rows), n)](
        *inputs,
        *lines,
        out,
        pixels,
        channels,
        ROWS=rows,
        C=triton.next_power_of_2(channels),
        num_warps=WARPS,
    )
    return out


@triton.jit
def _tile(step, pixels, channels, ROWS: tl.constexpr, C: tl.constexpr):
    """Places of a step's pixels and channels in memory, and which there are."""
    row = (step * ROWS + tl.arange(0, ROWS))[:, None]
    column = tl.arange(0, C)[None, :]
    inside = (row < pixels) & (column < channels)
    picture = tl.program_id(1).to(tl.int64) * pixels * channels
    return picture + row * channels + column, inside


@triton.jit
def _line(values, channels, C: tl.constexpr):
    """A picture's values by channel, (1, C)."""
    column = tl.arange(0, C)
    place = values + tl.program_id(1) * channels + column
    return tl.load(place, mask=column < channels, other=0.0)[None, :]


@triton.jit
def _before_silu(gradient, z):
    """The gradient of silu(z), (ROWS, C), chained to z."""
    on = 1 / (1 + tl.exp(-z))
    return gradient * on * (1 + z * (1 - on))


@triton.jit
def _sums_kernel(
    x, gradient, slope, shift, partial, pixels, channels, stride,
    OF_GRADIENT: tl.constexpr, ROWS: tl.constexpr, C: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    first = tl.zeros([C], tl.float32)
    second = tl.zeros([C], tl.float32)
    for step in range(STEPS):
        place, inside = _tile(tl.program_id(0) * STEPS + step, pixels, channels, ROWS, C)
        value = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
        if OF_GRADIENT:
            given = tl.load(gradient + place, mask=inside, other=0.0).to(tl.float32)
            z = value * _line(slope, channels, C) + _line(shift, channels, C)
            first_part = _before_silu(given, z)
        else:
            first_part = value
        first += tl.sum(first_part, axis=0)
        second += tl.sum(first_part * value, axis=0)
    column = tl.arange(0, C)
    program = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
    place = partial + program * channels + column
    tl.store(place, first, mask=column < channels)
    tl.store(place + stride, second, mask=column < channels)


@triton.jit
def _forward_kernel(
    x, slope, shift, out, pixels, channels, ROWS: tl.constexpr, C: tl.constexpr
):  # fmt: skip
    place, inside = _tile(tl.program_id(0), pixels, channels, ROWS, C)
    value = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    z = value * _line(slope, channels, C) + _line(shift, channels, C)
    tl.store(out + place, z / (1 + tl.exp(-z)), mask=inside)


@triton.jit
def _backward_kernel(
    x, gradient, slope, shift, across, offset, out, pixels, channels,
    ROWS: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    place, inside = _tile(tl.program_id(0), pixels, channels, ROWS, C)
    value = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    given = tl.load(gradient + place, mask=inside, other=0.0).to(tl.float32)
    line = _line(slope, channels, C)
    dz = _before_silu(given, value * line + _line(shift, channels, C))
    change = dz * line + value * _line(across, channels, C) + _line(offset, channels, C)
    tl.store(out + place, change, mask=inside)
