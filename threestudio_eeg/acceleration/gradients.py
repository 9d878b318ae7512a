"""Losses whose gradients were computed with them, as autograd and any optimiser expect losses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def flat_gradient(
    loss: Tensor, variables: Sequence[Tensor], scale: float = 1.0, keep_graph: bool = False
) -> Tensor:
    """Gradient of ``loss`` with respect to ``variables``, one after the other in one float vector.

    ``scale`` multiplies the loss on the way back and is divided out at the end: small gradients
    survive the half precision in between. ``keep_graph`` where another loss shares the graph.
    """
    scaled = torch.full_like(loss, scale)
    pieces = torch.autograd.grad(
        loss, variables, scaled, retain_graph=keep_graph, materialize_grads=True
    )
    flat = torch.cat([piece.float().flatten() for piece in pieces])
    return flat if scale == 1.0 else flat / scale


def with_gradient(loss: Tensor, gradient: Tensor, variables: Sequence[Tensor]) -> Tensor:
    """Return ``loss`` with a graph: its backward pass hands out ``gradient``.

    Parameters
    ----------
    loss
        Scalar.
    gradient
        Flat, as :func:`flat_gradient` returns it. Both are copied.
    variables
        What the gradient belongs to.
    """
    return _WithGradient.apply(loss, gradient, *variables)


class _WithGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, loss: Tensor, gradient: Tensor, *variables: Tensor) -> Tensor:
        ctx.save_for_backward(gradient.clone())
        ctx.likes = [(v.shape, v.numel(), v.dtype) for v in variables]
        return loss.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        pieces = (gradient * upstream).split([numel for _, numel, _ in ctx.likes])
        shaped = (
            piece.view(shape).to(dtype)
            for piece, (shape, _, dtype) in zip(pieces, ctx.likes, strict=True)
        )
        return None, None, *shaped
