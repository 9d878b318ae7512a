"""Multi-resolution grids in tiny-cuda-nn's memory layout: the layout, and the way to a backend.

A table written here loads into tiny-cuda-nn's ``HashGrid`` and back. The look-up itself is in
:mod:`.hash_grid_torch`, fast on a CPU, in :mod:`.hash_grid_triton`, fast on a GPU, and once more,
written for reading, in :mod:`.hash_grid_reference`.

References
----------
T. Müller, A. Evans, C. Schied, A. Keller, Instant Neural Graphics Primitives with a
Multiresolution Hash Encoding, SIGGRAPH 2022, section 3.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from importlib import import_module

import numpy as np
from torch import Tensor

from eeg_encoder.errors import InputError

from .backends import choose_backend

PRIMES = (1, 2654435761, 805459861, 3674653429)
DIMS = (2, 3, 4)
FEATURES = (1, 2, 4, 8)
TYPES = ("hash", "dense", "tiled")
INTERPOLATIONS = ("linear", "smoothstep", "nearest")
ENTRY_ALIGNMENT = 8
MAX_LEVELS = 128
MAX_LEVEL_SIZE = (1 << 32) // 2 - 1
MAX_TABLE_SIZE = 1 << 31
INITIAL_RANGE = 1e-4


@dataclass(frozen=True)
class GridLevel:
    """One resolution of a grid.

    Attributes
    ----------
    scale
        Cells along a side: a position in [0, 1] is at ``x * scale + 0.5`` in cells.
    resolution
        Vertices along a side.
    size, offset
        Number of table entries of this level, and where they begin.
    hashed
        Whether vertices share entries by hashing.
    factors
        One unsigned 32-bit number per axis. The entry of the vertex (i, j, ...) is
        ``offset + (i * factors[0] + j * factors[1] + ...) mod 2**32 mod size``, with exclusive or
        in the place of the sum where the level is hashed.
    """

    scale: float
    resolution: int
    size: int
    offset: int
    hashed: bool
    factors: tuple[int, ...]


@dataclass(frozen=True)
class GridLayout:
    """All there is to know about a grid but its values.

    Attributes
    ----------
    n_dims
        Dimensions of a position: 2, 3 or 4.
    n_features
        Numbers per entry: 1, 2, 4 or 8.
    levels
        From coarse to fine.
    interpolation
        ``linear``, ``smoothstep`` or ``nearest``.
    """

    n_dims: int
    n_features: int
    levels: tuple[GridLevel, ...]
    interpolation: str = "linear"

    @property
    def n_levels(self) -> int:
        """Number of resolutions."""
        return len(self.levels)

    @property
    def n_entries(self) -> int:
        """Rows of the table."""
        return self.levels[-1].offset + self.levels[-1].size

    @property
    def n_output_dims(self) -> int:
        """Width of the output: ``n_levels * n_features``, level-major."""
        return self.n_levels * self.n_features

    @property
    def has_kernels(self) -> bool:
        """Whether the Triton kernels are for such a grid."""
        sizes_divide = all(level.size > 1 for level in self.levels)
        return self.n_dims == 3 and self.interpolation == "linear" and sizes_divide


def make_layout(
    n_dims: int = 3,
    n_levels: int = 16,
    n_features: int = 2,
    log2_hashmap_size: int = 19,
    base_resolution: int = 16,
    per_level_scale: float = 2.0,
    kind: str = "hash",
    interpolation: str = "linear",
) -> GridLayout:
    """Sizes and offsets of all levels, by tiny-cuda-nn's rules (single precision throughout).

    Parameters
    ----------
    kind
        ``hash``: a level that does not fit into ``2**log2_hashmap_size`` entries is hashed.
        ``dense``: every vertex has an entry. ``tiled``: the coarsest level's entries are repeated.

    Raises
    ------
    InputError
        When a number is out of range or a name unknown.
    """
    _check("n_input_dims", n_dims, DIMS)
    _check("n_features_per_level", n_features, FEATURES)
    _check("type", kind, TYPES)
    _check("interpolation", interpolation, INTERPOLATIONS)
    _check("n_levels", n_levels, range(1, MAX_LEVELS + 1))
    _check("log2_hashmap_size", log2_hashmap_size, range(32))
    if base_resolution < 1:
        raise InputError("grid", "base_resolution", base_resolution, "1 or more")
    if not (math.isfinite(per_level_scale) and per_level_scale > 0):
        raise InputError("grid", "per_level_scale", per_level_scale, "a positive number")

    growth = np.log2(np.float32(per_level_scale))
    most = {"hash": 1 << log2_hashmap_size, "tiled": base_resolution**n_dims}.get(kind)
    levels: list[GridLevel] = []
    offset = 0
    for index in range(n_levels):
        scale = np.exp2(np.float32(index) * growth) * np.float32(base_resolution) - np.float32(1)
        resolution = int(np.ceil(scale)) + 1
        vertices = resolution**n_dims
        aligned = -(-min(vertices, MAX_LEVEL_SIZE) // ENTRY_ALIGNMENT) * ENTRY_ALIGNMENT
        size = aligned if most is None else min(aligned, most)
        hashed = kind == "hash" and vertices > size
        factors = _factors(n_dims, resolution, hashed)
        levels.append(GridLevel(float(scale), resolution, size, offset, hashed, factors))
        offset += size
    if offset * n_features >= MAX_TABLE_SIZE:
        found = f"{offset} entries of {n_features} numbers at {resolution} vertices a side"
        raise InputError("grid", "n_levels", found, f"fewer than {MAX_TABLE_SIZE} numbers")
    return GridLayout(n_dims, n_features, tuple(levels), interpolation)


def _check(field: str, found: object, allowed: tuple[object, ...] | range) -> None:
    if found not in allowed:
        choice = isinstance(allowed, tuple)
        expected = (
            f"one of {', '.join(map(str, allowed))}" if choice else f"{allowed[0]} to {allowed[-1]}"
        )
        raise InputError("grid", field, found, expected)


def _factors(n_dims: int, resolution: int, hashed: bool) -> tuple[int, ...]:
    """Factors of the axes; tiny-cuda-nn's index of an unhashed level of 2**32 vertices is 0."""
    if hashed:
        return PRIMES[:n_dims]
    if resolution**n_dims >= 1 << 32:
        return (0,) * n_dims
    return tuple(resolution**axis for axis in range(n_dims))


def encode(
    positions: Tensor, table: Tensor, layout: GridLayout, backend: str | None = None
) -> Tensor:
    """Look positions up in a grid; differentiable twice, in the positions and in the table.

    Parameters
    ----------
    positions
        Shape (N, layout.n_dims), single or double precision, [0, 1] along each axis. Outside,
        indices wrap around as in tiny-cuda-nn.
    table
        Shape (layout.n_entries, layout.n_features), half, single or double precision.
    backend
        ``torch`` or ``triton``; by default :func:`.backends.choose_backend`.

    Returns
    -------
    Tensor
        Shape (N, layout.n_output_dims), level-major, in the table's precision.

    Raises
    ------
    InputError
        When the backend is unknown.
    """
    module = import_module(f".hash_grid_{choose_backend(positions, backend)}", __package__)
    output: Tensor = module.encode(positions, table, layout)
    return output
