"""Group normalisation in Triton, for pictures with channels innermost; a SiLU behind it or none.

A program takes ``ROWS`` pixels of one picture with all their channels. Sums over a picture are two
steps: a program adds up its pixels channel by channel, another the programs' sums of a group. What
is left is a line a channel: ``act(x * slope + shift)`` forward, ``dx = dz * slope + x * across +
offset`` backward, dz being the gradient before the activation, computed again from x. Three
kernels each way, whatever is added to the pictures first.
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
MOST_STEPS, ENOUGH_PROGRAMS = 8, 264
"""Steps of a program that adds up: more of them only where there are programs for every core."""
WARPS = 8
SUMMED = 2048
"""Numbers of programs' sums that are added at a time."""


def group_norm(
    x: Tensor,
    groups: int,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    added: Tensor | None = None,
    activate: bool = True,
) -> Tensor:
    """Arguments and result as :func:`.group_norm.reference`; the weights get no gradient."""
    result: Tensor = _GroupNorm.apply(x, groups, weight, bias, eps, added, activate)
    return result


class _GroupNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        groups: int,
        weight: Tensor,
        bias: Tensor,
        eps: float,
        added: Tensor | None,
        activate: bool,
    ) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        added = None if added is None else added.contiguous()
        n, channels = x.shape[:2]
        partial = _sums(x, None, None, None, activate)
        of_groups = torch.empty(2, n, groups, device=x.device)
        of_channels = torch.empty(3, n, channels, device=x.device)
        outputs = (of_groups, of_channels)
        _by_group(_lines_kernel, x, partial, added, groups, weight, bias, *outputs, eps=eps)
        ctx.save_for_backward(x, weight, of_groups, of_channels, added)
        ctx.activate, ctx.groups = activate, groups
        return _apply(_forward_kernel, x, of_channels[0], of_channels[1], activate=activate)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, of_groups, of_channels, added = ctx.saved_tensors
        gradient = gradients[0].contiguous(memory_format=torch.channels_last)
        slope, shift = of_channels[0], of_channels[1]
        partial = _sums(x, gradient, slope, shift, ctx.activate)
        lines = torch.empty(3, *slope.shape, device=x.device)
        known = (weight, of_groups, of_channels)
        _by_group(_slopes_kernel, x, partial, added, ctx.groups, *known, lines)
        channels = (slope, shift, lines[0], lines[1])
        of_x = _apply(_backward_kernel, x, *channels, gradient=gradient, activate=ctx.activate)
        of_added = lines[2].to(added.dtype) if ctx.needs_input_grad[5] else None
        return of_x, None, None, None, None, of_added, None


def _rows(channels: int) -> int:
    return max(ELEMENTS // triton.next_power_of_2(channels), 1)


def _sums(
    x: Tensor,
    gradient: Tensor | None,
    slope: Tensor | None,
    shift: Tensor | None,
    activate: bool,
) -> Tensor:
    """By picture, program and channel, (2, B, P, C): sums of x, x^2; or of dz and dz times x."""
    n, channels, height, width = x.shape
    pixels, rows = height * width, _rows(channels)
    tiles = triton.cdiv(pixels, rows)
    steps = min(1 << max((tiles * n // ENOUGH_PROGRAMS).bit_length() - 1, 0), MOST_STEPS)
    programs = triton.cdiv(tiles, steps)
    partial = torch.empty(2, n, programs, channels, device=x.device)
    _sums_kernel[(programs, n)](
        x,
        x if gradient is None else gradient,
        x if slope is None else slope,
        x if shift is None else shift,
        partial,
        pixels,
        channels,
        n * programs * channels,
        OF_GRADIENT=gradient is not None,
        ACTIVATE=activate,
        ROWS=rows,
        C=triton.next_power_of_2(channels),
        STEPS=steps,
        num_warps=WARPS,
    )
    return partial


def _by_group(
    kernel: Any,
    x: Tensor,
    partial: Tensor,
    added: Tensor | None,
    groups: int,
    *tensors: Tensor,
    **more: float,
) -> None:
    """Run a kernel that takes a group of a picture's channels, and what the programs summed."""
    n, channels, height, width = x.shape
    group = channels // groups
    side = triton.next_power_of_2(group)
    kernel[(groups, n)](
        partial,
        x if added is None else added,
        *tensors,
        height * width,
        channels,
        partial.shape[2],
        **more,
        ADDED=added is not None,
        GROUP=group,
        WIDTH=side,
        SUMMED=max(SUMMED // side, 1),
        num_warps=4,
    )


def _apply(
    kernel: Any, x: Tensor, *lines: Tensor, activate: bool, gradient: Tensor | None = None
) -> Tensor:
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
        ACTIVATE=activate,
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
def _before(gradient, z, ACTIVATE: tl.constexpr):
    """The gradient of the activation of z, (ROWS, C), chained to z."""
    if ACTIVATE:
        on = 1 / (1 + tl.exp(-z))
        gradient = gradient * on * (1 + z * (1 - on))
    return gradient


@triton.jit
def _sums_kernel(
    x, gradient, slope, shift, partial, pixels, channels, stride,
    OF_GRADIENT: tl.constexpr, ACTIVATE: tl.constexpr,
    ROWS: tl.constexpr, C: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    first = tl.zeros([ROWS, C], tl.float32)
    second = tl.zeros([ROWS, C], tl.float32)
    for step in range(STEPS):
        place, inside = _tile(tl.program_id(0) * STEPS + step, pixels, channels, ROWS, C)
        value = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
        if OF_GRADIENT:
            given = tl.load(gradient + place, mask=inside, other=0.0).to(tl.float32)
            z = value * _line(slope, channels, C) + _line(shift, channels, C)
            part = _before(given, z, ACTIVATE)
        else:
            part = value
        first += part
        second += part * value
    column = tl.arange(0, C)
    program = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
    place = partial + program * channels + column
    tl.store(place, tl.sum(first, axis=0), mask=column < channels)
    tl.store(place + stride, tl.sum(second, axis=0), mask=column < channels)


@triton.jit
def _totals(
    partial, channels, programs,
    GROUP: tl.constexpr, WIDTH: tl.constexpr, SUMMED: tl.constexpr,
):  # fmt: skip
    """Both sums of a group's channels over all programs, (WIDTH,), and the channels' numbers."""
    within = tl.arange(0, WIDTH)
    channel = tl.program_id(0) * GROUP + within
    stride = tl.num_programs(1) * programs * channels
    first = tl.zeros([WIDTH], tl.float32)
    second = tl.zeros([WIDTH], tl.float32)
    for start in range(0, programs, SUMMED):
        program = start + tl.arange(0, SUMMED)[:, None]
        inside = (program < programs) & (within < GROUP)[None, :]
        place = partial + (tl.program_id(1) * programs + program) * channels + channel[None, :]
        first += tl.sum(tl.load(place, mask=inside, other=0.0), axis=0)
        second += tl.sum(tl.load(place + stride, mask=inside, other=0.0), axis=0)
    return first, second, channel, within < GROUP


@triton.jit
def _lines_kernel(
    partial, added, weight, bias, of_groups, of_channels, pixels, channels, programs, eps,
    ADDED: tl.constexpr, GROUP: tl.constexpr, WIDTH: tl.constexpr, SUMMED: tl.constexpr,
):  # fmt: skip
    total, squares, channel, inside = _totals(partial, channels, programs, GROUP, WIDTH, SUMMED)
    place = tl.program_id(1) * channels + channel
    plus = tl.zeros([WIDTH], tl.float32)
    if ADDED:
        plus = tl.load(added + place, mask=inside, other=0.0).to(tl.float32)
        squares += plus * (2 * total + pixels * plus)
        total += pixels * plus
    count = pixels * GROUP
    mean = tl.sum(total, axis=0) / count
    variance = tl.sum(squares, axis=0) / count - mean * mean
    scale = 1 / tl.sqrt(tl.maximum(variance, 0.0) + eps)
    slope = tl.load(weight + channel, mask=inside, other=0.0).to(tl.float32) * scale
    shift = tl.load(bias + channel, mask=inside, other=0.0).to(tl.float32) + (plus - mean) * slope
    stride = tl.num_programs(1) * channels
    tl.store(of_channels + place, slope, mask=inside)
    tl.store(of_channels + stride + place, shift, mask=inside)
    tl.store(of_channels + 2 * stride + place, total, mask=inside)
    group = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
    tl.store(of_groups + group, mean)
    tl.store(of_groups + tl.num_programs(0) * tl.num_programs(1) + group, scale)


@triton.jit
def _slopes_kernel(
    partial, added, weight, of_groups, of_channels, lines, pixels, channels, programs,
    ADDED: tl.constexpr, GROUP: tl.constexpr, WIDTH: tl.constexpr, SUMMED: tl.constexpr,
):  # fmt: skip
    plain, times_x, channel, inside = _totals(partial, channels, programs, GROUP, WIDTH, SUMMED)
    place = tl.program_id(1) * channels + channel
    plus = tl.zeros([WIDTH], tl.float32)
    if ADDED:
        plus = tl.load(added + place, mask=inside, other=0.0).to(tl.float32)
        times_x += plus * plain
    group = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
    mean = tl.load(of_groups + group)
    scale = tl.load(of_groups + tl.num_programs(0) * tl.num_programs(1) + group)
    # over the group: means of the gradient at the normalised values, and of it times them
    factor = tl.load(weight + channel, mask=inside, other=0.0).to(tl.float32)
    count = pixels * GROUP
    mean_plain = tl.sum(plain * factor, axis=0) / count
    mean_times = tl.sum(times_x * factor, axis=0) / count
    along = (mean_times - mean * mean_plain) * scale
    across = -scale * scale * along
    offset = scale * (scale * mean * along - mean_plain)
    stride = tl.num_programs(1) * channels
    tl.store(lines + place, tl.zeros_like(plus) + across, mask=inside)
    tl.store(lines + stride + place, offset + plus * across, mask=inside)
    total = tl.load(of_channels + 2 * stride + place, mask=inside, other=0.0)
    of_added = factor * scale * plain + across * total + pixels * offset
    tl.store(lines + 2 * stride + place, of_added, mask=inside)


@triton.jit
def _forward_kernel(
    x, slope, shift, out, pixels, channels,
    ACTIVATE: tl.constexpr, ROWS: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    place, inside = _tile(tl.program_id(0), pixels, channels, ROWS, C)
    value = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    z = value * _line(slope, channels, C) + _line(shift, channels, C)
    if ACTIVATE:
        z = z / (1 + tl.exp(-z))
    tl.store(out + place, z, mask=inside)


@triton.jit
def _backward_kernel(
    x, gradient, slope, shift, across, offset, out, pixels, channels,
    ACTIVATE: tl.constexpr, ROWS: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    place, inside = _tile(tl.program_id(0), pixels, channels, ROWS, C)
    value = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    given = tl.load(gradient + place, mask=inside, other=0.0).to(tl.float32)
    line = _line(slope, channels, C)
    dz = _before(given, value * line + _line(shift, channels, C), ACTIVATE)
    change = dz * line + value * _line(across, channels, C) + _line(offset, channels, C)
    tl.store(out + place, change, mask=inside)
