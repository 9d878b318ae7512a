"""Grid look-ups in torch, quick on a CPU.

A look-up is a weighted sum over the corners of the cell that a position is in. Its derivatives of
any order are the same sum with other weights, or one of its two adjoints, so that three operations
carry everything: :func:`_gather`, :func:`_scatter` and :func:`_dot`. Corners are recomputed in the
backward pass instead of stored: memory grows with the points, not with points x levels x corners.
Second derivatives store them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .hash_grid import GridLayout

CPU_CHUNK = 1 << 13
CUDA_CHUNK = 1 << 18
UINT32 = (1 << 32) - 1


def encode(positions: Tensor, table: Tensor, layout: GridLayout) -> Tensor:
    """Look positions (N, D) up in a table (E, F): (N, L * F). See :func:`.hash_grid.encode`."""
    dtype = torch.promote_types(torch.promote_types(positions.dtype, table.dtype), torch.float32)
    output: Tensor = _Encode.apply(positions.to(dtype), table.to(dtype), layout)
    return output.to(table.dtype)


class _Buffers:
    """Memory for what belongs to corners, shared by the chunks of one call.

    Fresh pages cost more than the arithmetic on them.
    """

    def __init__(self, layout: GridLayout, n_points: int, dtype: torch.dtype, device: torch.device):
        count = layout.n_levels * n_points << layout.n_dims
        self._entries = torch.empty(count, dtype=torch.int32, device=device)
        self._weights = torch.empty(count, dtype=dtype, device=device)
        self._shares = torch.empty(count, dtype=dtype, device=device)

    def entries(self, shape: tuple[int, ...]) -> Tensor:
        return self._entries[: math.prod(shape)].view(shape)

    def weights(self, shape: tuple[int, ...]) -> Tensor:
        return self._weights[: math.prod(shape)].view(shape)

    def shares(self, shape: tuple[int, ...]) -> Tensor:
        return self._shares[: math.prod(shape)].view(shape)


@dataclass(frozen=True)
class _Constants:
    """A layout's numbers on one device, each (L, 1) but for the factors (D, L, 1)."""

    dense: slice
    hashed: slice
    scale: Tensor
    factors: Tensor
    offset: Tensor
    size: Tensor
    limit: Tensor


@lru_cache(maxsize=32)
@torch.inference_mode(False)
def _constants(layout: GridLayout, device: torch.device) -> _Constants:
    def column(values: list[Any], dtype: torch.dtype = torch.int32) -> Tensor:
        return torch.tensor(values, dtype=dtype, device=device)[..., None]

    levels = layout.levels
    dense, hashed = _kinds([level.hashed for level in levels])
    axes = zip(*(level.factors for level in levels), strict=True)
    return _Constants(
        dense,
        hashed,
        scale=column([level.scale for level in levels], torch.float64),
        factors=column([[_int32(factor) for factor in axis] for axis in axes]),
        offset=column([level.offset for level in levels]),
        size=column([level.size for level in levels]),
        limit=column([max(level.size - sum(level.factors), 0) for level in levels]),
    )


def _kinds(hashed: list[bool]) -> tuple[slice, slice]:
    """Where the dense and the hashed levels are; resolutions are monotone, so two parts do."""
    count = sum(hashed)
    if hashed[0]:
        return slice(count, len(hashed)), slice(0, count)
    return slice(0, len(hashed) - count), slice(len(hashed) - count, len(hashed))


def _int32(value: int) -> int:
    """The signed 32-bit number with the same bits: 32-bit products then wrap as in CUDA."""
    return value - (1 << 32) if value >= 1 << 31 else value


def _locate(
    x: Tensor, constants: _Constants, buffers: _Buffers | None = None
) -> tuple[Tensor, Tensor]:
    """Table rows of the corners (L, n, C) and places in the cell (D, L, n) of positions (n, D)."""
    place = x.t().contiguous()[:, None] * constants.scale.to(x.dtype) + 0.5
    cell = place.detach().floor()
    low = cell.int().mul_(constants.factors)
    ends = torch.stack((low, low + constants.factors))
    shape = (*low.shape[1:], 1 << len(low))
    entries = low.new_empty(shape) if buffers is None else buffers.entries(shape)
    _dense_entries(ends[:, :, constants.dense], constants, entries[constants.dense])
    _hashed_entries(ends[:, :, constants.hashed], constants, entries[constants.hashed])
    return entries, place - cell


def _dense_entries(ends: Tensor, constants: _Constants, out: Tensor) -> None:
    """Sum over the axes. Few points have a corner outside of their level: these are wrapped."""
    if out.numel() == 0:
        return
    levels = constants.dense
    offset, size = constants.offset[levels], constants.size[levels]
    lowest = ends[0].sum(dim=0, dtype=torch.int32)
    ends[:, 0] += offset
    _over_corners(torch.add, ends, out)
    outside = ((lowest < 0) | (lowest >= constants.limit[levels])).nonzero(as_tuple=True)
    index = (out[outside].long() - offset[outside[0]]) & UINT32
    out[outside] = (index % size[outside[0]] + offset[outside[0]]).int()


def _hashed_entries(ends: Tensor, constants: _Constants, out: Tensor) -> None:
    """Exclusive or over the axes; a hashed level's size is a power of two."""
    if out.numel() == 0:
        return
    levels = constants.hashed
    _over_corners(torch.bitwise_xor, ends & (constants.size[levels] - 1), out)
    out += constants.offset[levels, None]


def _over_corners(
    combine: Callable[..., Tensor], ends: Tensor, out: Tensor | None = None
) -> Tensor:
    """Combine what belongs to both ends of each axis (2, D, L, n) at all corners: (L, n, C).

    Bit d of a corner's number is its end of axis d.
    """
    n_dims = ends.shape[1]
    outer = ends[:, -1]
    for axis in range(n_dims - 2, 0, -1):
        outer = combine(outer[:, None], ends[:, axis]).flatten(0, 1)
    pairs = [(outer[corner >> 1], ends[corner & 1, 0]) for corner in range(1 << n_dims)]
    if ends.requires_grad:
        return torch.stack([combine(*pair) for pair in pairs], dim=-1)
    if out is None:
        out = ends.new_empty(*ends.shape[2:], len(pairs))
    for corner, pair in enumerate(pairs):
        combine(*pair, out=out[..., corner])
    return out


def _weights(fraction: Tensor, interpolation: str) -> Tensor:
    """Weights of both ends of each axis: (D, L, n) to (2, D, L, n)."""
    if interpolation == "smoothstep":
        fraction = fraction * fraction * (3 - 2 * fraction)
    elif interpolation == "nearest":
        fraction = 0 * fraction
    return torch.stack((1 - fraction, fraction))


def _slopes(fraction: Tensor, interpolation: str) -> Tensor:
    """Derivatives of :func:`_weights` by the place in the cell."""
    if interpolation == "smoothstep":
        slope = 6 * fraction * (1 - fraction)
    elif interpolation == "nearest":
        slope = torch.zeros_like(fraction)
    else:
        slope = torch.ones_like(fraction)
    return torch.stack((-slope, slope))


def _gather(weights: Tensor, table: Tensor, entries: Tensor) -> Tensor:
    """Weighted sums of table rows over the corners: (L, n, C), (E, F) to (L, n, F)."""
    n_levels, n_points, n_corners = entries.shape
    if n_points == 0:
        return table.new_empty(n_levels, 0, table.shape[1])
    rows, shares = entries.view(-1, n_corners), weights.view(-1, n_corners)
    sums = F.embedding_bag(rows, table, per_sample_weights=shares, mode="sum")
    return sums.view(n_levels, n_points, -1)


def _scatter(
    weights: Tensor, gradient: Tensor, entries: Tensor, total: Tensor, share: Tensor | None = None
) -> Tensor:
    """Adjoint of :func:`_gather` in the table: adds (L, n, C) x (L, n, F) to ``total`` (E, F)."""
    flat = entries.view(-1)
    for feature in range(total.shape[1]):
        share = torch.mul(weights, gradient[..., feature, None], out=share)
        total[:, feature].index_add_(0, flat, share.view(-1))
    return total


def _dot(table: Tensor, gradient: Tensor, entries: Tensor) -> Tensor:
    """Adjoint of :func:`_gather` in the weights: table rows times (L, n, F), (L, n, C)."""
    flat = entries.view(-1)
    planes = (table[:, feature].index_select(0, flat) for feature in range(table.shape[1]))
    products = (
        plane.view_as(entries) * gradient[..., feature, None]
        for feature, plane in enumerate(planes)
    )
    return sum(products, start=gradient.new_zeros(()))


class _Encode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, table: Tensor, layout: GridLayout) -> Tensor:
        ctx.save_for_backward(x, table)
        ctx.layout = layout
        constants = _constants(layout, x.device)
        output = table.new_empty(len(x), layout.n_levels, layout.n_features)
        buffers = _Buffers(layout, _chunk(x), x.dtype, x.device)
        for rows in _chunks(x):
            entries, fraction = _locate(x[rows], constants, buffers)
            ends = _weights(fraction, layout.interpolation)
            weights = _over_corners(torch.mul, ends, buffers.weights(entries.shape))
            output[rows] = _gather(weights, table, entries).transpose(0, 1)
        return output.view(len(x), layout.n_output_dims)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, table = ctx.saved_tensors
        first_order = _again if torch.is_grad_enabled() else _first_order
        return (*first_order(x, table, gradients[0], ctx.layout, ctx.needs_input_grad[:2]), None)


def _chunk(x: Tensor) -> int:
    return min(len(x), CUDA_CHUNK if x.is_cuda else CPU_CHUNK)


def _chunks(x: Tensor) -> Iterator[slice]:
    step = max(_chunk(x), 1)
    return (slice(start, start + step) for start in range(0, len(x), step))


Gradients = tuple[Tensor | None, Tensor | None]


def _first_order(
    x: Tensor, table: Tensor, gradient: Tensor, layout: GridLayout, wanted: tuple[bool, bool]
) -> Gradients:
    """Gradients of positions and table from those of the output (N, L * F)."""
    constants = _constants(layout, x.device)
    per_level = gradient.reshape(len(x), layout.n_levels, layout.n_features)
    by_x = torch.zeros_like(x) if wanted[0] else None
    by_table = torch.zeros_like(table) if wanted[1] else None
    buffers = _Buffers(layout, _chunk(x), x.dtype, x.device)
    for rows in _chunks(x):
        entries, fraction = _locate(x[rows], constants, buffers)
        weights, products = buffers.weights(entries.shape), buffers.shares(entries.shape)
        ends = _weights(fraction, layout.interpolation)
        share = per_level[rows].transpose(0, 1).contiguous()
        if by_table is not None:
            _over_corners(torch.mul, ends, weights)
            _scatter(weights, share, entries, by_table, products)
        if by_x is not None:
            slopes = _slopes(fraction, layout.interpolation) * constants.scale.to(x.dtype)
            for axis in range(layout.n_dims):
                along = ends.clone()
                along[:, axis] = slopes[:, axis]
                slope = _gather(_over_corners(torch.mul, along, weights), table, entries)
                by_x[rows, axis] = (slope * share).sum(dim=(0, 2))
    return by_x, by_table


def _again(
    x: Tensor, table: Tensor, gradient: Tensor, layout: GridLayout, wanted: tuple[bool, bool]
) -> Gradients:
    """The same as :func:`_first_order`, to be differentiated again (normals inside a loss)."""
    entries, fraction = _locate(x, _constants(layout, x.device))
    weights = _over_corners(torch.mul, _weights(fraction, layout.interpolation))
    output = _Gather.apply(weights, table, entries).transpose(0, 1).reshape(gradient.shape)
    inputs = [tensor for tensor, wants in zip((x, table), wanted, strict=True) if wants]
    found = iter(torch.autograd.grad(output, inputs, gradient, create_graph=True))
    by_x, by_table = (next(found) if wants else None for wants in wanted)
    return by_x, by_table


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weights: Tensor, table: Tensor, entries: Tensor) -> Tensor:
        ctx.save_for_backward(weights, table, entries)
        return _gather(weights, table, entries)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        weights, table, entries = ctx.saved_tensors
        by_weights, by_table, _ = ctx.needs_input_grad
        return (
            _Dot.apply(table, gradients[0], entries) if by_weights else None,
            _Scatter.apply(weights, gradients[0], entries, len(table)) if by_table else None,
            None,
        )


class _Scatter(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, weights: Tensor, gradient: Tensor, entries: Tensor, n_entries: int
    ) -> Tensor:
        ctx.save_for_backward(weights, gradient, entries)
        total = gradient.new_zeros(n_entries, gradient.shape[-1])
        return _scatter(weights, gradient, entries, total)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        weights, gradient, entries = ctx.saved_tensors
        by_weights, by_gradient, _, _ = ctx.needs_input_grad
        return (
            _Dot.apply(gradients[0], gradient, entries) if by_weights else None,
            _Gather.apply(weights, gradients[0], entries) if by_gradient else None,
            None,
            None,
        )


class _Dot(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor, gradient: Tensor, entries: Tensor) -> Tensor:
        ctx.save_for_backward(table, gradient, entries)
        return _dot(table, gradient, entries)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        table, gradient, entries = ctx.saved_tensors
        by_table, by_gradient, _ = ctx.needs_input_grad
        return (
            _Scatter.apply(gradients[0], gradient, entries, len(table)) if by_table else None,
            _Gather.apply(gradients[0], table, entries) if by_gradient else None,
            None,
        )
