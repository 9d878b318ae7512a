"""A field's values with nothing kept for the backward pass but the points.

What autograd keeps of an encoding and its networks is hundreds of bytes a point, of the values
themselves a few dozen. Here the backward pass evaluates the field again, a chunk of points at a
time, as T. Chen et al. do for layers (Training Deep Nets with Sublinear Memory Cost, 2016). Values
that are known already, such as those which decided what samples are worth shading, are taken as
they are: then the field is evaluated no more often than without recomputation.

Chunks take turns along the list of points, a piece at a time. Samples of neighbouring rays are
neighbours in the list, and add to the same few entries of a table: in one chunk they would wait
for each other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .backends import WORD
from .rows import take_rows

Fields = dict[str, Tensor]
Field = Callable[[Tensor], Fields]

RECOMPUTED_FROM, RECOMPUTED_CHUNK = 1 << 22, 1 << 20
"""Number of samples from which a training render keeps no graph of its field, and how many are
computed again at a time: 4 M samples of the default field keep some 4 GB."""

PIECE = 256
"""Neighbouring points that stay together in a chunk: a few dozen on a ray share cells."""


class Evaluation(Protocol):
    """Values of a field at points of the world, which can still be differentiated."""

    @property
    def points(self) -> Tensor:
        """Shape (N, 3)."""

    @property
    def values(self) -> Fields:
        """Without gradient, each (N, ...)."""

    def at(self, places: Tensor) -> Evaluation:
        """The same at ascending ``places`` of the list."""

    def differentiable(self, chunk: int) -> Fields:
        """The values as a function of the field's parameters, ``chunk`` points at a time."""


@dataclass(frozen=True)
class Recomputable:
    """An :class:`Evaluation` of any field: its graph is made again in the backward pass."""

    field: Field
    points: Tensor
    parameters: Sequence[Tensor]
    values: Fields

    def at(self, places: Tensor) -> Recomputable:
        """The same at ascending ``places`` of the list."""
        values = {name: take_rows(value, places) for name, value in self.values.items()}
        return replace(self, points=take_rows(self.points, places), values=values)

    def differentiable(self, chunk: int) -> Fields:
        """The values as a function of the parameters: :func:`recomputed`."""
        return recomputed(self.field, self.points, self.parameters, chunk, self.values)


def evaluate(field: Field, points: Tensor, chunk: int) -> Fields:
    """Values of a field at points (N, D), at most ``chunk`` at a time: each (N, ...)."""
    parts = [field(part) for part in points.split(chunk)]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def recomputed(
    field: Field,
    points: Tensor,
    parameters: Sequence[Tensor],
    chunk: int,
    known: Fields | None = None,
) -> Fields:
    """Values of a field, differentiable once in its parameters.

    Parameters
    ----------
    field
        Maps points (n, D) to tensors (n, ...) by name. Called again in the backward pass, so it
        must not depend on anything but the points and the parameters, nor draw random numbers.
    points
        Shape (N, D). They get no gradient.
    parameters
        What the values are differentiated by.
    chunk
        Points that are evaluated with their graph at a time, at most.
    known
        The values at these points, when they are known already.

    Returns
    -------
    dict
        Tensors (N, ...) by name.
    """
    with torch.no_grad():
        values = evaluate(field, points, chunk) if known is None else known
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    found = _Recomputed.apply(
        field, chunk, list(values), points, len(values), *values.values(), *trained
    )
    return dict(zip(values, found, strict=True))


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        field: Field,
        chunk: int,
        names: list[str],
        points: Tensor,
        n_values: int,
        *tensors: Tensor,
    ) -> tuple[Tensor, ...]:
        values, parameters = tensors[:n_values], tensors[n_values:]
        ctx.save_for_backward(points, *parameters)
        ctx.field, ctx.chunk, ctx.names = field, chunk, names
        ctx.autocast = _autocast(points.device.type)
        ctx.set_materialize_grads(False)
        return tuple(value.detach() for value in values)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
        points, *parameters = ctx.saved_tensors
        given = {
            name: gradient
            for name, gradient in zip(ctx.names, gradients, strict=True)
            if gradient is not None
        }
        totals: list[Tensor | None] = [None] * len(parameters)
        n_turns = -(-len(points) // ctx.chunk) if given else 0
        for turn in range(n_turns):
            with torch.enable_grad(), ctx.autocast():
                values = ctx.field(rows_of_turn(points, turn, n_turns))
            here = {
                name: rows_of_turn(gradient, turn, n_turns)
                for name, gradient in given.items()
                if values[name].requires_grad
            }
            found = torch.autograd.grad(
                [values[name] for name in here],
                parameters,
                list(here.values()),
                allow_unused=True,
            )
            totals = [_add(total, part) for total, part in zip(totals, found, strict=True)]
        return (None,) * (5 + len(ctx.names)) + tuple(totals)


def rows_of_turn(tensor: Tensor, turn: int, n_turns: int) -> Tensor:
    """Every ``n_turns``-th piece of a tensor (N, ...), from number ``turn`` on.

    What is left at the end is shared out, a few rows at a time, so that all turns but the last
    have a number of rows that kernels read whole words of. Together they have every row once.
    """
    if n_turns == 1:
        return tensor
    if len(tensor) < WORD * n_turns:
        return tensor.tensor_split(n_turns)[turn]
    n_pieces = len(tensor) // (PIECE * n_turns)
    end = n_pieces * n_turns * PIECE
    shared, more = divmod((len(tensor) - end) // WORD, n_turns)
    begin = end + WORD * (turn * shared + min(turn, more))
    stop = begin + WORD * (shared + (turn < more))
    left = tensor[begin:] if turn == n_turns - 1 else tensor[begin:stop]
    pieces = tensor[:end].reshape(n_pieces, n_turns, PIECE, *tensor.shape[1:])[:, turn]
    return torch.cat([pieces.flatten(0, 1), left])


def _add(total: Tensor | None, part: Tensor | None) -> Tensor | None:
    """Sum of gradients, in the memory of the first."""
    if total is None or part is None:
        return part if total is None else total
    return total.add_(part)


def _autocast(device_type: str) -> Callable[[], AbstractContextManager[None]]:
    """The present autocast setting, to be entered again in the backward pass."""
    enabled = torch.is_autocast_enabled(device_type)
    dtype = torch.get_autocast_dtype(device_type)
    return lambda: torch.autocast(device_type, dtype=dtype, enabled=enabled)
