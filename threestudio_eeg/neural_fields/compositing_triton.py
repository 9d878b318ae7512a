"""Compositing along rays in Triton: the backend of :mod:`.compositing` for a GPU.

A row of threads walks along its ray, ``CHUNK`` samples at a time. Sums are carried from chunk to
chunk in registers, so results do not depend on the other rays and come in a fixed order.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .rows_triton import take_rows

RAYS = 4
CHUNK = 32
WARPS = 4


def weights(depth: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Weights, transmittance and alpha of samples, each (N,).

    Parameters
    ----------
    depth
        Density times length of each sample, (N,).
    offsets
        Where each ray's samples begin, and the length of the list, (R + 1,).
    """
    result: tuple[Tensor, Tensor, Tensor] = _Weights.apply(depth, offsets)
    return result


class _Weights(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, depth: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        depth = depth.contiguous()
        weight, transmittance, alpha = (torch.empty_like(depth) for _ in range(3))
        n_rays = len(offsets) - 1
        _weights_kernel[(triton.cdiv(n_rays, RAYS),)](
            depth,
            offsets,
            weight,
            transmittance,
            alpha,
            n_rays,
            RAYS=RAYS,
            CHUNK=CHUNK,
            num_warps=WARPS,
        )
        ctx.save_for_backward(depth, transmittance, offsets)
        ctx.set_materialize_grads(False)
        return weight, transmittance, alpha

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor, None]:
        depth, transmittance, offsets = ctx.saved_tensors
        total = torch.empty_like(depth)
        given = [g if g is None else g.contiguous() for g in gradients]
        n_rays = len(offsets) - 1
        _weights_backward_kernel[(triton.cdiv(n_rays, RAYS),)](
            depth,
            transmittance,
            offsets,
            *(depth if g is None else g for g in given),
            total,
            n_rays,
            OF_WEIGHT=given[0] is not None,
            OF_TRANSMITTANCE=given[1] is not None,
            OF_ALPHA=given[2] is not None,
            RAYS=RAYS,
            CHUNK=CHUNK,
            num_warps=WARPS,
        )
        return total, None


def weighted_sum(
    weight: Tensor, values: Tensor | None, ray_indices: Tensor, offsets: Tensor
) -> Tensor:
    """Weighted sums along rays, (R, C); arguments as :func:`.compositing.accumulate`."""
    result: Tensor = _WeightedSum.apply(weight, values, ray_indices, offsets)
    return result


class _WeightedSum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, values: Tensor | None, ray_indices: Tensor, offsets: Tensor
    ) -> Tensor:
        weight = weight.contiguous()
        ctx.save_for_backward(weight, values, ray_indices)
        return _sum_along(weight, values, offsets)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        weight, values, ray_indices = ctx.saved_tensors
        wants_weight, wants_values = ctx.needs_input_grad[:2]
        per_sample = take_rows(gradients[0], ray_indices)
        of_weight = of_values = None
        if wants_weight:
            product = per_sample if values is None else per_sample * values
            of_weight = product.sum(-1).to(weight.dtype)
        if wants_values:
            of_values = (per_sample * weight[:, None]).to(values.dtype)
        return of_weight, of_values, None, None


def _sum_along(weight: Tensor | None, values: Tensor | None, offsets: Tensor) -> Tensor:
    """Sums along rays of the product of what is given of weights (N,) and values (N, C): (R, C)."""
    given = [tensor for tensor in (weight, values) if tensor is not None]
    dtype = torch.promote_types(given[0].dtype, given[-1].dtype)
    n_rays, width = len(offsets) - 1, 1 if values is None else values.shape[1]
    total = torch.empty(n_rays, width, device=offsets.device, dtype=dtype)
    _sum_kernel[(triton.cdiv(n_rays, RAYS), width)](
        given[0],
        given[-1],
        offsets,
        total,
        n_rays,
        0 if values is None else values.stride(0),
        0 if values is None else values.stride(1),
        width,
        HAS_WEIGHT=weight is not None,
        HAS_VALUES=values is not None,
        RAYS=RAYS,
        CHUNK=CHUNK,
        num_warps=WARPS,
    )
    return total


def spread(values: Tensor, ray_indices: Tensor, offsets: Tensor) -> Tensor:
    """Each ray's values (R, C) at its samples, (N, C)."""
    result: Tensor = _Spread.apply(values, ray_indices, offsets)
    return result


class _Spread(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, ray_indices: Tensor, offsets: Tensor) -> Tensor:
        ctx.save_for_backward(offsets)
        return take_rows(values, ray_indices)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (offsets,) = ctx.saved_tensors
        return _sum_along(None, gradients[0], offsets), None, None


@triton.jit
def _span(offsets, n_rays, RAYS: tl.constexpr):
    """First and last place of the rays of this program, (RAYS, 1), and the longest ray's length."""
    ray = tl.program_id(0) * RAYS + tl.arange(0, RAYS)
    there = ray < n_rays
    begin = tl.load(offsets + ray, mask=there, other=0)
    end = tl.load(offsets + ray + 1, mask=there, other=0)
    longest = tl.max(end - begin, axis=0).to(tl.int32)
    return begin[:, None], end[:, None], longest


@triton.jit
def _weights_kernel(
    depth, offsets, weight, transmittance, alpha, n_rays, RAYS: tl.constexpr, CHUNK: tl.constexpr
):
    begin, end, longest = _span(offsets, n_rays, RAYS)
    column = tl.arange(0, CHUNK)[None, :]
    front = tl.zeros([RAYS, 1], depth.dtype.element_ty)
    k = 0
    while k < longest:
        at = begin + k + column
        inside = at < end
        here = tl.load(depth + at, mask=inside, other=0.0)
        reached = tl.cumsum(here, axis=1)
        passed = tl.exp(-(front + (reached - here)))
        opaque = 1.0 - tl.exp(-here)
        opaque = tl.where(here < 1e-3, here * (1.0 - here * (0.5 - here / 6)), opaque)
        tl.store(weight + at, passed * opaque, mask=inside)
        tl.store(transmittance + at, passed, mask=inside)
        tl.store(alpha + at, opaque, mask=inside)
        front += tl.sum(here, axis=1)[:, None]
        k += CHUNK


@triton.jit
def _weights_backward_kernel(
    depth, transmittance, offsets, of_weight, of_transmittance, of_alpha, total, n_rays,
    OF_WEIGHT: tl.constexpr, OF_TRANSMITTANCE: tl.constexpr, OF_ALPHA: tl.constexpr,
    RAYS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """From the far end of each ray: a sample dims all that lies behind it."""
    begin, end, longest = _span(offsets, n_rays, RAYS)
    column = tl.arange(0, CHUNK)[None, :]
    behind = tl.zeros([RAYS, 1], depth.dtype.element_ty)
    k = 0
    while k < longest:
        at = end - 1 - k - column
        inside = at >= begin
        here = tl.load(depth + at, mask=inside, other=0.0)
        passed = tl.load(transmittance + at, mask=inside, other=0.0)
        left = tl.exp(-here)
        own = tl.zeros([RAYS, CHUNK], depth.dtype.element_ty)
        dimmed = tl.zeros([RAYS, CHUNK], depth.dtype.element_ty)
        if OF_WEIGHT:
            g = tl.load(of_weight + at, mask=inside, other=0.0)
            own += g * passed * left
            dimmed += g * passed * (1.0 - left)
        if OF_TRANSMITTANCE:
            dimmed += tl.load(of_transmittance + at, mask=inside, other=0.0) * passed
        if OF_ALPHA:
            own += tl.load(of_alpha + at, mask=inside, other=0.0) * left
        later = tl.cumsum(dimmed, axis=1) - dimmed
        tl.store(total + at, own - (behind + later), mask=inside)
        behind += tl.sum(dimmed, axis=1)[:, None]
        k += CHUNK


@triton.jit
def _sum_kernel(
    weight, values, offsets, total, n_rays, stride_n, stride_c, width,
    HAS_WEIGHT: tl.constexpr, HAS_VALUES: tl.constexpr, RAYS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    begin, end, longest = _span(offsets, n_rays, RAYS)
    channel = tl.program_id(1)
    column = tl.arange(0, CHUNK)[None, :]
    share = tl.zeros([RAYS, CHUNK], total.dtype.element_ty)
    k = 0
    while k < longest:
        at = begin + k + column
        inside = at < end
        if HAS_VALUES:
            part = tl.load(values + at * stride_n + channel * stride_c, mask=inside, other=0.0)
            if HAS_WEIGHT:
                part = part * tl.load(weight + at, mask=inside, other=0.0)
        else:
            part = tl.load(weight + at, mask=inside, other=0.0)
        share += part
        k += CHUNK
    ray = tl.program_id(0) * RAYS + tl.arange(0, RAYS)
    tl.store(total + ray * width + channel, tl.sum(share, axis=1), mask=ray < n_rays)
