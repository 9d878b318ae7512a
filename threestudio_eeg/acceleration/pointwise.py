"""Sums of three, and gated linear units: the torch code, and the same on a GPU."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def add_biased_reference(a: Tensor, b: Tensor, bias: Tensor) -> Tensor:
    """``a + b + bias`` of pictures (B, C, H, W), ``bias`` (C,)."""
    return a + b + bias[:, None, None]


def add_biased(a: Tensor, b: Tensor, bias: Tensor) -> Tensor:
    """:func:`add_biased_reference` in one Triton kernel; the bias gets no gradient."""
    from . import pointwise_triton

    return pointwise_triton.add_biased(a, b, bias)


def geglu_reference(x: Tensor) -> Tensor:
    """``a gelu(b)`` of x (..., 2D), its halves being a and b: (..., D).

    N. Shazeer, GLU Variants Improve Transformer, 2020, equation 6.
    """
    a, b = x.chunk(2, dim=-1)
    return a * F.gelu(b)


def geglu(x: Tensor) -> Tensor:
    """:func:`geglu_reference` in one Triton kernel."""
    from . import pointwise_triton

    return pointwise_triton.geglu(x)
