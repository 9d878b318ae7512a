"""Multi-resolution grid look-up in Triton: the backend of :mod:`.hash_grid` for a GPU.

A program handles a block of points at one level. Programs run level by level, so the part of the
table in use stays in the second-level cache. Outputs are written feature by feature, (L * F, N),
and handed out transposed; a matrix product takes them as they are. Gradients to the table are added
atomically, both features of an entry at once, and both ends of an edge along x at once where they
are neighbours in memory. At coarse levels a thread takes consecutive points and adds up those of
one cell before it writes: samples along a ray share cells.

Sums of a table's gradient come in no fixed order: two runs differ in the last bits.

:mod:`.hash_grid_reference` is the same arithmetic written for reading; tests hold them together.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .backends import WORD
from .hash_grid import GridLayout
from .hash_grid_kernels import gather_kernel, scatter_kernel, slope_kernel

WARP = 32
PAIR_BYTES = 16
UNROLLED = 4
"""Points of a run that the kernel has written out; longer runs are a loop over so many."""
VECTOR_ATOMICS_SINCE = (9, 0)


@dataclass(frozen=True)
class Tuning:
    """Launch settings; ``benchmarks/hash_grid.py --tune`` measures the alternatives.

    Attributes
    ----------
    gather_block, scatter_block, slope_block
        Points per program of the three kernels (per step of a run, where points are merged).
    gather_warps, scatter_warps, slope_warps
        Warps per program.
    wide_reads, wide_adds
        Whether neighbouring entries are read, or added to, as one word of 16 bytes.
    runs
        So many consecutive points are a thread's, which adds up those of one cell before it
        writes, at levels of at most so many cells along a side; from coarse to fine.
    """

    gather_block: int = 256
    gather_warps: int = 8
    scatter_block: int = 128
    scatter_warps: int = 4
    slope_block: int = 256
    slope_warps: int = 8
    wide_reads: bool = True
    wide_adds: bool = True
    runs: tuple[tuple[int, float], ...] = ((8, 160.0),)

    def __post_init__(self) -> None:
        for name in ("gather", "scatter", "slope"):
            if getattr(self, f"{name}_block") < WARP * getattr(self, f"{name}_warps"):
                raise ValueError(f"{name}_block: fewer points than threads would add some twice")
        if any(run % UNROLLED for run, _ in self.runs):
            raise ValueError(f"runs: lengths that {UNROLLED} divides, not {self.runs}")


TUNING = Tuning()


def encode(positions: Tensor, table: Tensor, layout: GridLayout) -> Tensor:
    """Look positions up; arguments and result as :func:`.hash_grid.encode`.

    The result is stored feature by feature: its strides are (1, N). A grid that is not linear or
    not of three dimensions goes to the torch backend.
    """
    if not layout.has_kernels:
        from . import hash_grid_torch

        output: Tensor = hash_grid_torch.encode(positions, table, layout)
        return output
    if len(positions) == 0:
        return positions.new_zeros(0, layout.n_output_dims, dtype=table.dtype)
    return _Encode.apply(positions, table, layout)  # type: ignore[no-any-return]


class _Encode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, positions: Tensor, table: Tensor, layout: GridLayout) -> Tensor:
        ctx.save_for_backward(positions, table)
        ctx.layout = layout
        return gather(positions, table, layout)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        positions, table = ctx.saved_tensors
        wants_positions, wants_table = ctx.needs_input_grad[:2]
        slope = total = None
        if wants_positions:
            slope = _PositionGradient.apply(positions, table, gradients[0], ctx.layout)
        if wants_table:
            total = _TableGradient.apply(positions, gradients[0], table.dtype, ctx.layout)
        return slope, total, None


class _TableGradient(torch.autograd.Function):
    """Sum over points of weight times output gradient: linear in the gradient."""

    @staticmethod
    def forward(
        ctx: Any, positions: Tensor, gradient: Tensor, dtype: torch.dtype, layout: GridLayout
    ) -> Tensor:
        ctx.save_for_backward(positions, gradient)
        ctx.layout = layout
        return scatter(positions, gradient, layout).to(dtype)

    @staticmethod
    def backward(ctx: Any, *seeds: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        positions, gradient = ctx.saved_tensors
        seed = seeds[0].contiguous()
        wants_positions, wants_gradient = ctx.needs_input_grad[:2]
        return (
            slope(positions, seed, gradient, ctx.layout) if wants_positions else None,
            gather(positions, seed, ctx.layout).to(gradient.dtype) if wants_gradient else None,
            None,
            None,
        )


class _PositionGradient(torch.autograd.Function):
    """Output gradients chained to the positions; its own derivatives are the second order."""

    @staticmethod
    def forward(
        ctx: Any, positions: Tensor, table: Tensor, gradient: Tensor, layout: GridLayout
    ) -> Tensor:
        ctx.save_for_backward(positions, table, gradient)
        ctx.layout = layout
        return slope(positions, table, gradient, layout)

    @staticmethod
    def backward(ctx: Any, *seeds: Tensor) -> tuple[Tensor | None, ...]:
        positions, table, gradient = ctx.saved_tensors
        wants_positions, wants_table, wants_gradient = ctx.needs_input_grad[:3]
        (along,), layout = seeds, ctx.layout
        bend = total = change = None
        if wants_positions:
            bend = slope(positions, table, gradient, layout, along)
        if wants_table:
            total = scatter(positions, gradient, layout, along).to(table.dtype)
        if wants_gradient:
            change = gather(positions, table, layout, along).to(gradient.dtype)
        return bend, total, change, None


def gather(
    positions: Tensor,
    table: Tensor,
    layout: GridLayout,
    along: Tensor | None = None,
    tuning: Tuning | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Interpolated features (N, L * F); with ``along`` (N, 3), their derivative along it.

    In the table's precision, or in ``out`` (L * F, N), in its own; a part of a longer list will do.
    """
    launch = _Launch(positions, table, layout)
    tuning = tuning or TUNING
    output = table.new_empty(layout.n_output_dims, len(positions)) if out is None else out
    block = tuning.gather_block
    gather_kernel[launch.grid(block)](
        *launch.points(along),
        launch.words,
        output,
        *launch.levels,
        len(positions),
        launch.pitch,
        output.stride(0),
        **launch.constants,
        DIRECTIONAL=along is not None,
        WIDE=tuning.wide_reads and launch.reads_pairs,
        BLOCK=block,
        num_warps=tuning.gather_warps,
    )
    return output.t()


def scatter(
    positions: Tensor,
    gradient: Tensor,
    layout: GridLayout,
    along: Tensor | None = None,
    tuning: Tuning | None = None,
    total: Tensor | None = None,
) -> Tensor:
    """Sums (E, F) over points of weight times gradient (N, L * F), in single precision or more.

    With ``along`` (N, 3) the weights are replaced by their derivatives in that direction. What is
    found is added to ``total``, where there is one.
    """
    if total is None:
        total = gradient.new_zeros(
            layout.n_entries, layout.n_features, dtype=_sum_type(positions, gradient)
        )
    launch = _Launch(positions, total, layout)
    tuning = tuning or TUNING
    for run, first, count in _by_run(layout, () if along is not None else tuning.runs):
        block = tuning.scatter_block
        scatter_kernel[launch.grid(block * run, count)](
            *launch.points(along),
            gradient,
            total,
            *launch.levels,
            len(positions),
            launch.pitch,
            gradient.stride(0),
            gradient.stride(1),
            first,
            **launch.constants,
            DIRECTIONAL=along is not None,
            VECTOR=launch.vector_atomics,
            WIDE=tuning.wide_adds and launch.adds_pairs,
            RUN=run,
            BLOCK=block,
            num_warps=tuning.scatter_warps,
        )
    return total


def _by_run(
    layout: GridLayout, runs: tuple[tuple[int, float], ...]
) -> Iterator[tuple[int, int, int]]:
    """Levels of one length of runs: that length, the first of them, and how many there are."""
    first = 0
    for run, scale in (*runs, (1, math.inf)):
        end = sum(level.scale <= scale for level in layout.levels)
        if end > first:
            yield run, first, end - first
            first = end


def slope(
    positions: Tensor,
    table: Tensor,
    gradient: Tensor,
    layout: GridLayout,
    along: Tensor | None = None,
    tuning: Tuning | None = None,
) -> Tensor:
    """Gradient (N, L * F) chained to the positions, (N, 3).

    With ``along`` (N, 3): the derivative of the product of that with ``along``.
    """
    launch = _Launch(positions, table, layout)
    tuning = tuning or TUNING
    total = torch.zeros(3, launch.pitch, device=positions.device, dtype=launch.dtype)
    block = tuning.slope_block
    slope_kernel[launch.grid(block)](
        *launch.points(along),
        launch.words,
        gradient,
        total,
        *launch.levels,
        len(positions),
        launch.pitch,
        gradient.stride(0),
        gradient.stride(1),
        **launch.constants,
        DIRECTIONAL=along is not None,
        WIDE=tuning.wide_reads and launch.reads_pairs,
        BLOCK=block,
        num_warps=tuning.slope_warps,
    )
    return total[:, : len(positions)].t().to(positions.dtype)


def _sum_type(*tensors: Tensor) -> torch.dtype:
    """Double precision where anything is double, else single."""
    double = any(tensor.dtype == torch.float64 for tensor in tensors)
    return torch.float64 if double else torch.float32


class _Launch:
    """What all three kernels are started with: points by axis, table words, levels, constants."""

    def __init__(self, positions: Tensor, table: Tensor, layout: GridLayout) -> None:
        self.layout = layout
        self.dtype = _sum_type(positions, table)
        self.n_points = len(positions)
        self.pitch = triton.cdiv(self.n_points, WORD) * WORD
        self.positions = self._by_axis(positions)
        self.levels = _level_tensors(layout, positions.device, self.dtype)
        unit = 2 if layout.n_features % 2 == 0 else 1
        self.n_units = layout.n_features // unit
        self.words, pack = _as_words(table.contiguous(), unit)
        self.vector_atomics = unit == 2 and self.dtype == torch.float32 and _adds_vectors(positions)
        pairs_align = layout.n_features == 2 and _pairs_align(layout)
        self.reads_pairs = pairs_align and pack == 32 and _reads_vectors(positions)
        self.adds_pairs = pairs_align and self.vector_atomics
        self.constants: dict[str, Any] = {
            "N_UNITS": self.n_units,
            "UNIT": unit,
            "PACK": pack,
            "HALF": tl.bfloat16 if table.dtype == torch.bfloat16 else tl.float16,
            "COMPUTE": tl.float64 if self.dtype == torch.float64 else tl.float32,
        }

    def _by_axis(self, points: Tensor) -> Tensor:
        """Points (N, 3) as (3, pitch): every axis begins at an aligned address."""
        padded = torch.empty(3, self.pitch, device=points.device, dtype=self.dtype)
        padded[:, : self.n_points] = points.t()
        return padded

    def points(self, along: Tensor | None) -> tuple[Tensor, Tensor]:
        """Positions and directions by axis; without directions, the positions again."""
        return self.positions, self.positions if along is None else self._by_axis(along)

    def grid(self, points_per_program: int, n_levels: int | None = None) -> tuple[int, int]:
        """Blocks of points run first, so that one level is finished before the next."""
        levels = self.layout.n_levels if n_levels is None else n_levels
        return triton.cdiv(self.n_points, points_per_program), levels * self.n_units


@lru_cache(maxsize=64)
def _level_tensors(
    layout: GridLayout, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Scales (L,), and by level: three factors, size, 2**32 over size, offset, hashed (L, 7)."""
    scales = torch.tensor([level.scale for level in layout.levels], dtype=dtype, device=device)
    rows = [
        [*level.factors, level.size, (1 << 32) // level.size, level.offset, int(level.hashed)]
        for level in layout.levels
    ]
    numbers = torch.tensor(rows, dtype=torch.int64, device=device)
    return scales, numbers


def _as_words(table: Tensor, unit: int) -> tuple[Tensor, int]:
    """The table as words of ``unit`` features where such words exist, and the bits of a feature.

    A table that is part of another tensor may begin anywhere; the words begin at a pair's address.
    """
    words = {torch.float32: torch.int64, torch.float16: torch.int32, torch.bfloat16: torch.int32}
    if unit == 1 or table.dtype not in words:
        return table, 0
    word = words[table.dtype]
    if table.data_ptr() % PAIR_BYTES:
        table = table.clone()
    return table.view(-1).view(word), 8 * table.element_size()


def _pairs_align(layout: GridLayout) -> bool:
    """Whether entries 0 and 1, 2 and 3, ... of every level are there, and at aligned addresses.

    Hashed and dense levels have an even number of entries; tiled ones of an odd resolution do not.
    """
    return all(level.size % 2 == 0 and level.offset % 2 == 0 for level in layout.levels)


def _reads_vectors(tensor: Tensor) -> bool:
    """Whether the kernels run where they may be written in the GPU's own instructions."""
    return tensor.is_cuda


def _adds_vectors(tensor: Tensor) -> bool:
    """Whether the GPU has atomic additions of several numbers at once."""
    return (
        tensor.is_cuda and torch.cuda.get_device_capability(tensor.device) >= VECTOR_ATOMICS_SINCE
    )
