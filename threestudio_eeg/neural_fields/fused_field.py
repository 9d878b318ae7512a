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

        width, values = self.layout.n_output_dims, []
        dtype = PRECISIONS[self.precision]
        kept = points.new_empty(width, len(points), dtype=dtype) if keep else None
        for start in range(0, len(points), chunk):
            part = points[start : start + chunk]
            place = None if kept is None else kept[:, start : start + chunk]
            values.append(outputs(self.encoded(part, place), self.matrices, self.precision))
        n_outputs = self.matrices[-1].shape[0]
        found = torch.cat(values) if values else points.new_zeros(0, n_outputs)
        return Evaluation(self, points, found, kept)

    def encoded(self, points: Tensor, out: Tensor | None = None) -> Tensor:
        """The grid at points (N, 3), rounded as the perceptron rounds it: (N, L * F)."""
        from .hash_grid_triton import gather

        if out is None:
            size = (self.layout.n_output_dims, len(points))
            out = points.new_empty(size, dtype=PRECISIONS[self.precision])
        table = self.table.detach().view(self.layout.n_entries, self.layout.n_features)
        return gather(points, table, self.layout, out=out)


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
        out: Tensor = _Known.apply(self, chunk, self.field.table, *self.field.matrices)
        return out

    def encoded(self, turn: int, n_turns: int) -> Tensor:
        """The grid at the points of a turn, (n, L * F); see :func:`.recomputation.rows_of_turn`."""
        if self._kept is None:
            return self.field.encoded(rows_of_turn(self.points, turn, n_turns))
        places = self._places
        if places is None:
            places = torch.arange(len(self.points), device=self.points.device)
        return self._kept.index_select(1, rows_of_turn(places, turn, n_turns)).t()


class _Known(torch.autograd.Function):
    """An evaluation's values, and the gradient of table and matrices."""

    @staticmethod
    def forward(
        ctx: Any, evaluation: Evaluation, chunk: int, table: Tensor, *matrices: Tensor
    ) -> Tensor:
        ctx.evaluation, ctx.chunk = evaluation, chunk
        ctx.save_for_backward(table, *matrices)
        return evaluation.values.view_as(evaluation.values)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        from .hash_grid_triton import scatter
        from .small_mlp_triton import slopes

        table, *matrices = ctx.saved_tensors
        evaluation, layout = ctx.evaluation, ctx.evaluation.field.layout
        of_table = table.new_zeros(layout.n_entries, layout.n_features, dtype=torch.float32)
        of_matrices = [torch.zeros_like(matrix, dtype=torch.float32) for matrix in matrices]
        n_turns = -(-len(evaluation.points) // ctx.chunk)
        for turn in range(n_turns):
            change, shares = slopes(
                evaluation.encoded(turn, n_turns),
                matrices,
                rows_of_turn(gradients[0], turn, n_turns),
                evaluation.field.precision,
            )
            assert change is not None
            points = rows_of_turn(evaluation.points, turn, n_turns)
            scatter(points, change, layout, total=of_table)
            for total, share in zip(of_matrices, shares, strict=True):
                total += share
        found = (m.to(matrix.dtype) for m, matrix in zip(of_matrices, matrices, strict=True))
        return (None, None, of_table.view_as(table).to(table.dtype), *found)
