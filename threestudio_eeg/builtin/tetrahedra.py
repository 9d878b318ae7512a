"""Tetrahedral grids, and the surface in them by marching tetrahedra."""

from __future__ import annotations

import itertools
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor, nn

from eeg_encoder.errors import InputError

Corner = tuple[int, int]

UNIT_CORNERS = list(itertools.product((0, 1), repeat=3))
KUHN_SLACK = 0.45
LEAST_GAP = 1e-6
"""Between the distances at the ends of an edge; the gradient of a crossing is bounded by it."""


def _even(order: tuple[int, ...]) -> bool:
    pairs = itertools.combinations(order, 2)
    return sum(first > second for first, second in pairs) % 2 == 0


def _triangles(inside: list[int], outside: list[int]) -> list[tuple[Corner, ...]]:
    """Triangles that part corners of a positively oriented tetrahedron, seen from outside.

    A triangle's corner lies on the edge from an inside to an outside corner of the tetrahedron.
    """
    if not inside or not outside:
        return []
    if len(inside) == 2:
        (a, b), (c, d) = inside, outside
        found: list[tuple[Corner, ...]] = [((a, c), (a, d), (b, d)), ((a, c), (b, d), (b, c))]
    elif len(inside) == 1:
        found = [tuple((inside[0], o) for o in outside)]
    else:
        found = [tuple((i, outside[0]) for i in reversed(inside))]
    order = (*inside, *outside) if len(inside) < 3 else (*outside, *inside)
    return found if _even(tuple(order)) else [triangle[::-1] for triangle in found]


def _table() -> tuple[Tensor, Tensor]:
    """By the sum of 1, 2, 4, 8 over the inside corners: edges (16, 2, 3, 2), counts (16,)."""
    edges, counts = torch.zeros(16, 2, 3, 2, dtype=torch.long), torch.zeros(16, dtype=torch.long)
    for code in range(16):
        inside = [i for i in range(4) if code >> i & 1]
        found = _triangles(inside, [i for i in range(4) if i not in inside])
        counts[code] = len(found)
        for i, triangle in enumerate(found):
            edges[code, i] = torch.tensor(triangle)
    return edges, counts


EDGES, COUNTS = _table()


class TetrahedralGrid(nn.Module):
    """Vertices (V, 3) in the unit cube, and how far each may move along an axis."""

    vertices: Tensor
    slack: float

    def tetrahedra(self, inside: Tensor) -> Tensor:
        """Tetrahedra (T, 4) among whose corners some are ``inside`` (V,) and some not."""
        raise NotImplementedError


class CubeGrid(TetrahedralGrid):
    """A lattice of ``n`` cubes a side, each cut into six tetrahedra around its diagonal (Kuhn).

    Neighbouring cubes meet in the same triangles. A vertex may move by 0.45 of a cube's side:
    less than half, so that no two change places along an axis.
    """

    corners: Tensor

    def __init__(self, n: int) -> None:
        super().__init__()
        self.n, self.slack = n, KUHN_SLACK / n
        unit = torch.linspace(0, 1, n + 1)
        lattice = torch.stack(torch.meshgrid(unit, unit, unit, indexing="ij"), dim=-1)
        self.register_buffer("vertices", lattice.view(-1, 3), persistent=False)
        self.register_buffer("corners", self._corners(), persistent=False)

    def _corners(self) -> Tensor:
        """Vertex numbers (6, 4) of the tetrahedra of the first cube, positively oriented."""
        stride = ((self.n + 1) ** 2, self.n + 1, 1)
        paths = []
        for order in itertools.permutations(range(3)):
            steps = list(itertools.accumulate((stride[axis] for axis in order), initial=0))
            if not _even(order):
                steps[1], steps[2] = steps[2], steps[1]
            paths.append(steps)
        return torch.tensor(paths)

    def tetrahedra(self, inside: Tensor) -> Tensor:
        n = self.n
        cube = inside.view(n + 1, n + 1, n + 1)
        parts = [cube[x : x + n, y : y + n, z : z + n] for x, y, z in UNIT_CORNERS]
        corners = torch.stack(parts)
        return self._in_cubes((corners.any(0) & ~corners.all(0)).nonzero())

    def all_tetrahedra(self) -> Tensor:
        """All of them, (6 n³, 4), positively oriented."""
        return self._in_cubes(torch.cartesian_prod(*[torch.arange(self.n)] * 3).view(-1, 3))

    def _in_cubes(self, cubes: Tensor) -> Tensor:
        """The tetrahedra of cubes (N, 3)."""
        x, y, z = cubes.unbind(1)
        first = (x * (self.n + 1) + y) * (self.n + 1) + z
        return (first[:, None, None] + self.corners).view(-1, 4)


class FileGrid(TetrahedralGrid):
    """A grid from an npz file with ``vertices`` (V, 3) in [0, 1] and ``indices`` (T, 4).

    threestudio's files ``load/tets/*_tets.npz`` are such; as there, a vertex may move by one over
    the resolution.

    Raises
    ------
    InputError
        When the file is missing or holds something else.
    """

    indices: Tensor

    def __init__(self, path: str | Path, n: int) -> None:
        super().__init__()
        self.slack = 1 / n
        vertices, indices = _read_grid(path)
        self.register_buffer("vertices", vertices, persistent=False)
        self.register_buffer("indices", _positive(vertices, indices), persistent=False)

    def tetrahedra(self, inside: Tensor) -> Tensor:
        corners = inside[self.indices]
        return self.indices[corners.any(1) & ~corners.all(1)]


def _read_grid(path: str | Path) -> tuple[Tensor, Tensor]:
    expected = "an npz file with vertices (V, 3) in [0, 1] and indices (T, 4)"
    if not Path(path).is_file():
        raise InputError(path, "file", "no such file", expected)
    try:
        with np.load(path, allow_pickle=False) as arrays:
            vertices = np.asarray(arrays["vertices"], dtype=np.float32)
            indices = np.asarray(arrays["indices"], dtype=np.int64)
    except (OSError, ValueError, KeyError, BadZipFile) as error:
        raise InputError(path, "file", str(error).splitlines()[0], expected) from error
    shapes_fit = vertices.ndim == 2 and vertices.shape[1] == 3 and indices.ndim == 2
    if not (shapes_fit and indices.shape[1] == 4):
        raise InputError(path, "shapes", f"{vertices.shape}, {indices.shape}", expected)
    in_range = indices.min() >= 0 and indices.max() < len(vertices)
    if not (in_range and vertices.min() >= -1e-4 and vertices.max() <= 1 + 1e-4):
        raise InputError(path, "values", "outside of their range", expected)
    return torch.from_numpy(vertices), torch.from_numpy(indices)


def _positive(vertices: Tensor, indices: Tensor) -> Tensor:
    a, b, c, d = vertices[indices].unbind(1)
    volume = (torch.cross(b - a, c - a, dim=-1) * (d - a)).sum(-1, keepdim=True)
    return torch.where(volume < 0, indices[:, [0, 2, 1, 3]], indices)


def marching_tetrahedra(
    grid: TetrahedralGrid, vertices: Tensor, sdf: Tensor
) -> tuple[Tensor, Tensor]:
    """Surface where a signed distance crosses zero; linear along the tetrahedra's edges.

    Parameters
    ----------
    grid
        Says which vertices make tetrahedra.
    vertices
        Where its vertices are, (V, 3).
    sdf
        (V,), negative inside.

    Returns
    -------
    tuple
        Vertices (N, 3), which carry gradients to ``vertices`` and ``sdf``, and triangles (T, 3),
        counter-clockwise from outside.
    """
    inside = sdf.detach() < 0
    tetrahedra = grid.tetrahedra(inside)
    weights = torch.tensor([1, 2, 4, 8], device=sdf.device)
    code = (inside[tetrahedra] * weights).sum(-1)
    edges, counts = EDGES.to(sdf.device)[code], COUNTS.to(sdf.device)[code]
    corners = tetrahedra.gather(1, edges.view(len(code), -1)).view(-1, 2, 3, 2)
    real = torch.arange(2, device=sdf.device) < counts[:, None]
    ends = corners[real].view(-1, 2)
    key = ends.amin(-1) * len(vertices) + ends.amax(-1)
    crossed, index = key.unique(return_inverse=True)
    low, high = crossed // len(vertices), crossed % len(vertices)
    gap = sdf[low] - sdf[high]
    share = (sdf[low] / torch.where(gap.abs() < LEAST_GAP, gap.sign() * LEAST_GAP, gap))[:, None]
    return torch.lerp(vertices[low], vertices[high], share), index.view(-1, 3)
