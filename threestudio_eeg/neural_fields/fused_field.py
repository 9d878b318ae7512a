"""A grid and the perceptron behind it as one function of their parameters, on a GPU.

Autograd would keep every look-up, the way of its gradient, and one sum of a table for every chunk
of points. Here the values are known when they are differentiated, as they decided what samples are
worth shading. Kept beside them are the look-ups, rounded as the perceptron rounds them, or nothing:
then they are made again. The gradient goes from the perceptron's kernel straight to the table's,
and all chunks add to one table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .backends import WORD
from .encodings import next_multiple
from .hash_grid import GridLayout
from .recomputation import rows_of_turn
from .rows import take_rows
from .small_mlp import PRECISIONS


@dataclass(frozen=True)
class FusedField:
    """A linear grid in three dimensions and a perceptron of :mod:`.small_mlp`.

    Attributes
    ----------
    layout
        Of the grid.
    table
        Its parameters, of any shape.
    matrices
        The perceptron's, as :func:`.small_mlp.reference` takes them.
    precision
        A key of :data:`.small_mlp.PRECISIONS`.
    """

    layout: GridLayout
    table: Tensor
    matrices: Sequence[Tensor]
    precision: str

    @torch.no_grad()
    def evaluate(self, points: Tensor, chunk: int, keep: bool = True) -> Evaluation:
        """Look at points (N, 3) in [0, 1], ``chunk`` at a time; ``keep`` the grid's part of it."""
        from .small_mlp_triton import outputs

        kept, values = self._room(len(points), points.device) if keep else None, []
        for start in range(0, len(points), chunk):
            part = points[start : start + chunk]
            place = None if kept is None else kept[:, start : start + chunk]
            values.append(outputs(self.encoded(part, place), self.matrices, self.precision))
        n_outputs = self.matrices[-1].shape[0]
        found = torch.cat(values) if values else points.new_zeros(0, n_outputs)
        return Evaluation(self, points, found, kept)

    def encoded(self, points: Tensor, out: Tensor | None = None) -> Tensor:
        """The grid at points (N, 3), rounded as the perceptron rounds it: (N, L * F).

        ``out`` is where to, (L * F, N).
        """
        from .hash_grid_triton import gather

        out = self._room(len(points), points.device) if out is None else out
        table = self.table.detach().view(self.layout.n_entries, self.layout.n_features)
        return gather(points, table, self.layout, out=out)

    def _room(self, n: int, device: torch.device) -> Tensor:
        """For the grid at n points, (L * F, n): each of its rows begins where words do."""
        size = (self.layout.n_output_dims, next_multiple(n, WORD))
        return torch.empty(size, dtype=PRECISIONS[self.precision], device=device)[:, :n]


@dataclass(frozen=True)
class Evaluation:
    """A field's values at points, and on demand their gradient.

    Attributes
    ----------
    points, values
        Shapes (N, 3) and (N, O).
    """

    field: FusedField
    points: Tensor
    values: Tensor
    _kept: Tensor | None
    _places: Tensor | None = None

    def at(self, places: Tensor) -> Evaluation:
        """The same at ascending ``places`` of the list."""
        below = places if self._places is None else take_rows(self._places, places)
        points, values = take_rows(self.points, places), take_rows(self.values, places)
        return replace(self, points=points, values=values, _places=below)

    def differentiable(self, chunk: int) -> Tensor:
        """The values (N, O) as a function of table and matrices; ``chunk`` points at a time."""
        places = self._places
        if places is None and self._kept is not None:
            places = torch.arange(len(self.points), device=self.points.device)
        field, known = self.field, (self.values, self.points, self._kept, places)
        out: Tensor = _Known.apply(field, chunk, *known, field.table, *field.matrices)
        return out


class _Known(torch.autograd.Function):
    """Known values, and the gradient of table and matrices."""

    @staticmethod
    def forward(
        ctx: Any,
        field: FusedField,
        chunk: int,
        values: Tensor,
        points: Tensor,
        kept: Tensor | None,
        places: Tensor | None,
        table: Tensor,
        *matrices: Tensor,
    ) -> Tensor:
        ctx.field, ctx.chunk = field, chunk
        ctx.save_for_backward(points, kept, places, table, *matrices)
        return values.view_as(values)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        from .hash_grid_triton import scatter
        from .small_mlp_triton import slopes

        points, kept, places, table, *matrices = ctx.saved_tensors
        field, layout = ctx.field, ctx.field.layout
        of_table = table.new_zeros(layout.n_entries, layout.n_features, dtype=torch.float32)
        of_matrices = [torch.zeros_like(matrix, dtype=torch.float32) for matrix in matrices]
        n_turns = -(-len(points) // ctx.chunk)
        for turn in range(n_turns):
            here = rows_of_turn(points, turn, n_turns)
            if kept is None:
                encoded = field.encoded(here)
            else:
                encoded = kept.index_select(1, rows_of_turn(places, turn, n_turns)).t()
            gradient = rows_of_turn(gradients[0], turn, n_turns)
            change, shares = slopes(encoded, matrices, gradient, field.precision)
            scatter(here, change, layout, total=of_table)
            for total, share in zip(of_matrices, shares, strict=True):
                total += share
        found = (m.to(matrix.dtype) for m, matrix in zip(of_matrices, matrices, strict=True))
        return (*(None,) * 6, of_table.view_as(table).to(table.dtype), *found)
