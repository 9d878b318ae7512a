"""Multi-resolution hash grid in tiny-cuda-nn's memory layout, in plain torch.

Tables written here load into tiny-cuda-nn's ``HashGrid`` and back. The fast path recomputes corner
indices in the backward pass instead of storing them, so memory grows with the points, not with
points x levels x corners. :func:`interpolate_reference` is the same thing written for reading.

Source: T. Müller et al., Instant Neural Graphics Primitives, SIGGRAPH 2022, section 3.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

PRIMES = (1, 2654435761, 805459861)
N_CORNERS = 8
CPU_CHUNK = 4096
CUDA_CHUNK = 1 << 20


@dataclass(frozen=True)
class Level:
    """One resolution of the grid.

    Attributes
    ----------
    scale
        Cells along a side: a position in [0, 1] becomes ``x * scale + 0.5`` in cells.
    resolution
        Vertices along a side.
    size, offset
        Number of table entries of this level, and where they begin.
    hashed
        Whether vertices share entries by hashing.
    """

    scale: float
    resolution: int
    size: int
    offset: int
    hashed: bool


def make_levels(
    n_levels: int, base_resolution: int, per_level_scale: float, log2_hashmap_size: int
) -> list[Level]:
    """Sizes and offsets of all levels, by tiny-cuda-nn's rules (single precision throughout)."""
    growth = np.log2(np.float32(per_level_scale))
    levels, offset = [], 0
    for index in range(n_levels):
        scale = np.exp2(np.float32(index) * growth) * np.float32(base_resolution) - np.float32(1)
        resolution = int(np.ceil(scale)) + 1
        rounded = -(-(resolution**3) // 8) * 8
        size = min(rounded, 1 << log2_hashmap_size)
        levels.append(Level(float(scale), resolution, size, offset, resolution**3 > size))
        offset += size
    return levels


def interpolate_reference(x: Tensor, table: Tensor, levels: list[Level]) -> Tensor:
    """Trilinear look-up, level by level and corner by corner.

    Parameters
    ----------
    x
        Positions in [0, 1], shape (N, 3); outside, the border value is taken.
    table
        Entries of all levels, shape (E, F).

    Returns
    -------
    Tensor
        Shape (N, n_levels * F), level-major.
    """
    outputs = []
    for level in levels:
        position = x.clamp(0, 1) * level.scale + 0.5
        cell = position.detach().floor()
        fraction = position - cell
        cell = cell.long()
        total = x.new_zeros(len(x), table.shape[1])
        for corner in range(N_CORNERS):
            bits = torch.tensor([corner & 1, corner >> 1 & 1, corner >> 2], device=x.device)
            weight = torch.where(bits.bool(), fraction, 1 - fraction).prod(dim=-1, keepdim=True)
            total = total + weight * table[_entry_reference(cell + bits, level)]
        outputs.append(total)
    return torch.cat(outputs, dim=-1)


def _entry_reference(vertex: Tensor, level: Level) -> Tensor:
    """Table row of each vertex (N, 3) of one level."""
    x, y, z = vertex.unbind(-1)
    if level.hashed:
        index = (x * PRIMES[0]) ^ (y * PRIMES[1]) ^ (z * PRIMES[2])
    else:
        index = x + y * level.resolution + z * level.resolution**2
    return index % level.size + level.offset


def _int32(value: int) -> int:
    """The signed 32-bit number with the same bits: 32-bit products then wrap as in CUDA."""
    return value - (1 << 32) if value >= 1 << 31 else value


class _Layout:
    """The levels as tensors on one device, in the order in which the fast path reads them."""

    def __init__(self, levels: list[Level], device: torch.device) -> None:
        def column(values: list[Any], dtype: torch.dtype, width: int = 1) -> Tensor:
            return torch.tensor(values, dtype=dtype, device=device).view(len(values), width, 1)

        self.levels = levels
        self.n_dense = sum(not level.hashed for level in levels)
        dense, hashed = levels[: self.n_dense], levels[self.n_dense :]
        if any(not level.hashed for level in hashed):
            raise ValueError("levels must grow: a dense level follows a hashed one")
        self.n_entries = levels[-1].offset + levels[-1].size
        self.scale = column([level.scale for level in levels], torch.float64)
        strides = [[1, level.resolution, level.resolution**2] for level in dense]
        primes = [[_int32(prime) for prime in PRIMES] for _ in hashed]
        self.stride = column(strides + primes, torch.int32, 3)
        self.size = column([level.size for level in dense], torch.int32)
        self.mask = hashed[0].size - 1 if hashed else 0
        self.offset = column([level.offset for level in hashed], torch.int32)
        self.dense_offset = column([level.offset for level in dense], torch.int32)

    def locate(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Entries (2, 2, 2, L, n), z y x, and fractions (L, 3, n) of positions (n, 3)."""
        position = x.clamp(0, 1).t() * self.scale.to(x.dtype) + 0.5
        cell = position.floor()
        fraction = position.sub_(cell)
        low = cell.int() * self.stride
        both = torch.stack((low, low + self.stride))
        dense, hashed = both[:, : self.n_dense], both[:, self.n_dense :]
        entries = low.new_empty(2, 2, 2, len(self.levels), len(x))
        if self.n_dense:
            xs, ys, zs = dense.unbind(2)
            index = zs[:, None, None] + (ys[:, None] + xs)
            index -= self.size[:, 0] * (index >= self.size[:, 0])
            entries[..., : self.n_dense, :] = index.add_(self.dense_offset[:, 0])
        if self.n_dense < len(self.levels):
            xs, ys, zs = hashed.unbind(2)
            index = zs[:, None, None] ^ (ys[:, None] ^ xs)
            torch.add(
                index.bitwise_and_(self.mask),
                self.offset[:, 0],
                out=entries[..., self.n_dense :, :],
            )
        return entries, fraction


def _axis_weights(fraction: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Linear weights of both ends along x, y and z: three tensors (2, L, n)."""
    xs, ys, zs = torch.stack((1 - fraction, fraction)).unbind(2)
    return xs, ys, zs


def _corner_weights(fraction: Tensor) -> Tensor:
    """Trilinear weights of the corners (2, 2, 2, L, n), z y x."""
    xs, ys, zs = _axis_weights(fraction)
    return zs[:, None, None] * (ys[:, None] * xs)


def _chunks(x: Tensor) -> Iterator[slice]:
    step = CUDA_CHUNK if x.is_cuda else CPU_CHUNK
    return (slice(start, start + step) for start in range(0, len(x), step))


def _interpolate(x: Tensor, table: Tensor, layout: _Layout) -> Tensor:
    n_levels, n_features = len(layout.levels), table.shape[1]
    output = table.new_empty(len(x), n_levels, n_features)
    for rows in _chunks(x):
        entries, fraction = layout.locate(x[rows])
        weights = _corner_weights(fraction).to(table.dtype)
        bags = F.embedding_bag(
            entries.view(N_CORNERS, -1).t().contiguous(),
            table,
            per_sample_weights=weights.view(N_CORNERS, -1).t().contiguous(),
            mode="sum",
        )
        output[rows] = bags.view(n_levels, -1, n_features).transpose(0, 1)
    return output.view(len(x), n_levels * n_features)


def _table_gradient(x: Tensor, gradient: Tensor, layout: _Layout) -> Tensor:
    """Scatter output gradients (N, L, F) to the entries: (E, F)."""
    n_features = gradient.shape[-1]
    total = gradient.new_zeros(n_features, layout.n_entries)
    for rows in _chunks(x):
        entries, fraction = layout.locate(x[rows])
        weights = _corner_weights(fraction).to(gradient.dtype)
        for feature in range(n_features):
            share = weights * gradient[rows, :, feature].t()
            total[feature].index_add_(0, entries.view(-1), share.view(-1))
    return total.t().contiguous()


def _position_gradient(x: Tensor, table: Tensor, gradient: Tensor, layout: _Layout) -> Tensor:
    """Chain output gradients (N, L, F) to the positions: (N, 3)."""
    output = torch.zeros_like(x)
    for rows in _chunks(x):
        entries, fraction = layout.locate(x[rows])
        corner = torch.zeros_like(entries, dtype=x.dtype)
        for feature in range(table.shape[1]):
            values = table[:, feature].index_select(0, entries.view(-1)).view_as(corner)
            corner += values * gradient[rows, :, feature].t()
        xs, ys, zs = _axis_weights(fraction)
        along_z = (corner * zs[:, None, None]).sum(0)
        slope = torch.stack(
            (
                ((along_z[:, 1] - along_z[:, 0]) * ys).sum(0),
                ((along_z[1] - along_z[0]) * xs).sum(0),
                ((corner[1] - corner[0]) * (ys[:, None] * xs)).sum((0, 1)),
            ),
            dim=1,
        )
        output[rows] = (slope * layout.scale.to(x.dtype)).sum(0).t()
    return output * ((x >= 0) & (x <= 1))


class _Interpolate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, table: Tensor, layout: _Layout) -> Tensor:
        ctx.save_for_backward(x, table)
        ctx.layout = layout
        return _interpolate(x, table, layout)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (gradient,) = gradients
        x, table = ctx.saved_tensors
        wants_x, wants_table = ctx.needs_input_grad[:2]
        if torch.is_grad_enabled():
            return (*_differentiable_backward(ctx, x, table, gradient), None)
        per_level = gradient.reshape(len(x), len(ctx.layout.levels), table.shape[1])
        return (
            _position_gradient(x, table, per_level, ctx.layout) if wants_x else None,
            _table_gradient(x, per_level, ctx.layout) if wants_table else None,
            None,
        )


def _differentiable_backward(
    ctx: Any, x: Tensor, table: Tensor, gradient: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """First derivatives that can be differentiated again (normals inside a loss)."""
    wanted = [t for t, wants in zip((x, table), ctx.needs_input_grad, strict=False) if wants]
    output = interpolate_reference(x, table, ctx.layout.levels)
    found = iter(torch.autograd.grad(output, wanted, gradient, create_graph=True))
    wants_x, wants_table = ctx.needs_input_grad[:2]
    return (next(found) if wants_x else None, next(found) if wants_table else None)


class HashGrid(nn.Module):
    """Hash-grid encoding of 3D positions.

    Parameters
    ----------
    n_levels, n_features_per_level, log2_hashmap_size, base_resolution, per_level_scale
        tiny-cuda-nn's fields of the same names.

    Attributes
    ----------
    params
        All tables, flat, level-major, then entry, then feature: tiny-cuda-nn's own order.
    n_output_dims
        ``n_levels * n_features_per_level``.
    """

    def __init__(
        self,
        n_levels: int = 16,
        n_features_per_level: int = 2,
        log2_hashmap_size: int = 19,
        base_resolution: int = 16,
        per_level_scale: float = 1.447269237440378,
    ) -> None:
        super().__init__()
        self.levels = make_levels(n_levels, base_resolution, per_level_scale, log2_hashmap_size)
        self.n_levels = n_levels
        self.n_features_per_level = n_features_per_level
        self.n_input_dims = 3
        self.n_output_dims = n_levels * n_features_per_level
        self.n_entries = self.levels[-1].offset + self.levels[-1].size
        params = torch.empty(self.n_entries * n_features_per_level)
        self.params = nn.Parameter(params.uniform_(-1e-4, 1e-4))
        self._layouts: dict[torch.device, _Layout] = {}

    def forward(self, x: Tensor) -> Tensor:
        """Encode positions in [0, 1], shape (N, 3), to (N, n_output_dims)."""
        table = self.params.view(self.n_entries, self.n_features_per_level)
        if x.device not in self._layouts:
            self._layouts[x.device] = _Layout(self.levels, x.device)
        dtype = torch.promote_types(x.dtype, table.dtype)
        output: Tensor = _Interpolate.apply(x.to(dtype), table, self._layouts[x.device])
        return output
