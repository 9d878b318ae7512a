"""What implicit geometries share: a box, and its surface by marching cubes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eeg_encoder.errors import InputError
from threestudio_eeg.occlusion import occlusion

from .base import BaseModule

ISOSURFACE_METHODS = ("mt", "mc-cpu")
QUERY_CHUNK = 1 << 18
COARSE_TO_FINE_MARGIN = 0.1
AUTO_THRESHOLD_FLOOR = 1e-5


@dataclass
class Mesh:
    """Triangles: ``v_pos`` (V, 3) in the world, ``t_pos_idx`` (T, 3), counter-clockwise outside."""

    v_pos: Tensor
    t_pos_idx: Tensor


def contract_to_unit_box(points: Tensor, bbox: Tensor) -> Tensor:
    """Map the box (2, 3) to [0, 1]."""
    return (points - bbox[0]) / (bbox[1] - bbox[0])


class ImplicitGeometry(BaseModule):
    """A field in a cube of half side ``radius``; its surface is where a level crosses a threshold.

    Subclasses give :meth:`forward_level`, larger inside.
    """

    @dataclass
    class Config(BaseModule.Config):
        radius: float = 1.0
        isosurface: bool = True
        isosurface_method: str = "mt"
        isosurface_resolution: int = 128
        isosurface_threshold: Any = None
        isosurface_chunk: int = 0
        isosurface_coarse_to_fine: bool = True
        isosurface_deformable_grid: bool = False
        isosurface_remove_outliers: bool = True
        isosurface_outlier_n_faces_threshold: Any = 0.01

    bbox: Tensor
    surface_occlusion: float | None = None
    """Where the surface is, if not at ``isosurface_threshold``: ``occlusion-mesh-exporter``."""
    surface_level: float | None = None
    _lattice: tuple[Tensor, Tensor] | None = None
    level_sign = 1
    """What a config's threshold is multiplied with to be a level."""
    where = "geometry"

    def configure(self, *args: Any, **kwargs: Any) -> None:
        self._check_isosurface()
        r = self.cfg.radius
        self.register_buffer("bbox", torch.tensor([[-r, -r, -r], [r, r, r]], dtype=torch.float32))

    def _check_isosurface(self) -> None:
        cfg = self.cfg
        if cfg.isosurface_method not in ISOSURFACE_METHODS:
            expected = f"one of {', '.join(ISOSURFACE_METHODS)}"
            raise InputError(self.where, "isosurface_method", cfg.isosurface_method, expected)
        if cfg.isosurface_deformable_grid:
            raise InputError(self.where, "isosurface_deformable_grid", True, "false on this host")
        threshold = cfg.isosurface_threshold
        if isinstance(threshold, str) and threshold != "auto":
            raise InputError(self.where, "isosurface_threshold", threshold, "a number or auto")

    def forward_level(self, points: Tensor) -> Tensor:
        """Value (..., 1) at world positions (..., 3), larger inside; crosses the threshold at the
        surface."""
        raise NotImplementedError

    @torch.no_grad()
    def isosurface(self) -> Mesh:
        """Surface where the level crosses ``isosurface_threshold``, by marching cubes.

        ``mt`` is answered by marching cubes too: this host keeps no tetrahedra.

        Raises
        ------
        InputError
            When nothing crosses the threshold, or isosurfaces are switched off.
        """
        if not self.cfg.isosurface:
            raise InputError(self.where, "isosurface", False, "true, to extract a mesh")
        mesh = self._isosurface(self.bbox)
        if self.cfg.isosurface_coarse_to_fine:
            low, high = mesh.v_pos.amin(0), mesh.v_pos.amax(0)
            margin = (high - low) * COARSE_TO_FINE_MARGIN
            box = torch.stack((low - margin, high + margin))
            mesh = self._isosurface(box.clamp(-self.cfg.radius, self.cfg.radius))
        if self.cfg.isosurface_remove_outliers:
            mesh = remove_small_components(mesh, self.cfg.isosurface_outlier_n_faces_threshold)
        return mesh

    def _isosurface(self, box: Tensor) -> Mesh:
        level = self._level_on_lattice(box)
        self._lattice = None
        if self.surface_occlusion is not None:
            level = occlusion(level, _spacing(box, len(level)))
            self._lattice = box, level
        threshold = self.surface_level = self._threshold(level)
        low, high = float(level.min()), float(level.max())
        if not low <= high:
            raise InputError(self.where, "field", "NaN", "finite values")
        if high <= threshold:
            raise self._empty(threshold, low, high)
        vertices, faces = marching_cubes(level.cpu().numpy(), threshold)
        v_pos = torch.from_numpy(vertices).to(box) * (box[1] - box[0]) + box[0]
        return Mesh(v_pos, torch.from_numpy(faces).to(box.device))

    @torch.no_grad()
    def solid(self, points: Tensor) -> Tensor:
        """Which world positions (P, 3) are inside the surface that :meth:`isosurface` gave last."""
        if self.surface_level is None:
            self.isosurface()
        threshold = self.surface_level
        assert threshold is not None
        if self._lattice is not None:
            box, values = self._lattice
            return at_points(values, contract_to_unit_box(points, box)) > threshold
        chunk = self.cfg.isosurface_chunk or QUERY_CHUNK
        level = torch.cat([self.forward_level(part).squeeze(-1) for part in points.split(chunk)])
        inside_box = ((points >= self.bbox[0]) & (points <= self.bbox[1])).all(-1)
        return (level > threshold) & inside_box

    def _threshold(self, level: Tensor) -> float:
        if self.surface_occlusion is not None:
            return self.surface_occlusion
        if self.cfg.isosurface_threshold != "auto":
            return float(self.cfg.isosurface_threshold)
        above = level[level > AUTO_THRESHOLD_FLOOR]
        return float(above.mean()) if len(above) else AUTO_THRESHOLD_FLOOR

    def _empty(self, threshold: float, low: float, high: float) -> InputError:
        """Say that no level is above the threshold, and which threshold would not be empty."""
        sign, side = self.level_sign, "below" if self.level_sign > 0 else "above"
        ends = sorted((sign * low, sign * high))
        found = f"{sign * threshold:g}, with values from {ends[0]:.4g} to {ends[1]:.4g}"
        between = f"for instance {sign * (low + high) / 2:.4g}; " if high > low else ""
        expected = f"{side} {sign * high:.4g} ({between}this isosurface is empty)"
        by_threshold = self.surface_occlusion is None
        name = "isosurface_threshold" if by_threshold else "system.exporter.occlusion"
        return InputError(self.where, name, found, expected)

    def _level_on_lattice(self, box: Tensor) -> Tensor:
        """Values of :meth:`forward_level` (n, n, n) on a lattice over ``box``."""
        n = self.cfg.isosurface_resolution
        unit = torch.linspace(0, 1, n, device=box.device)
        lattice = torch.stack(torch.meshgrid(unit, unit, unit, indexing="ij"), dim=-1).view(-1, 3)
        points = lattice * (box[1] - box[0]) + box[0]
        chunk = self.cfg.isosurface_chunk or QUERY_CHUNK
        values = [self.forward_level(part) for part in points.split(chunk)]
        return torch.cat(values).view(n, n, n)


def at_points(lattice: Tensor, unit: Tensor) -> Tensor:
    """Values (P,) of a lattice (X, Y, Z) at places (P, 3) in [0, 1], zero outside."""
    place = (unit * 2 - 1).flip(-1).view(1, 1, 1, -1, 3)
    return torch.nn.functional.grid_sample(lattice[None, None], place, align_corners=True).view(-1)


def _spacing(box: Tensor, n: int) -> list[float]:
    """Way between neighbours along each axis of a lattice of ``n`` points a side."""
    return [float(side) / (n - 1) for side in box[1] - box[0]]


def marching_cubes(volume: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Closed surface of ``volume > level``: vertices (V, 3) in [0, 1], triangles (T, 3).

    The surface is closed at the border of the lattice: outside counts as empty.
    """
    from skimage.measure import marching_cubes as extract

    outside = min(float(volume.min()), level - 1.0)
    padded = np.pad(volume.astype(np.float32), 1, constant_values=outside)
    vertices, faces, _, _ = extract(padded, level, gradient_direction="ascent")
    unit = (vertices - 1) / (np.array(volume.shape) - 1)
    return unit.clip(0, 1).astype(np.float32), faces.astype(np.int64)


def remove_small_components(mesh: Mesh, threshold: float | int) -> Mesh:
    """Drop connected components with few triangles.

    Parameters
    ----------
    threshold
        Smallest number of triangles kept; a float is a fraction of the largest component's number
        (1.0 keeps the largest alone).
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    faces = mesh.t_pos_idx.cpu().numpy()
    n_vertices = len(mesh.v_pos)
    rows, columns = faces.reshape(-1), np.roll(faces, 1, axis=1).reshape(-1)
    graph = coo_matrix((np.ones(len(rows)), (rows, columns)), shape=(n_vertices, n_vertices))
    _, component = connected_components(graph, directed=False)
    sizes = np.bincount(component[faces[:, 0]])
    least = int(sizes.max() * threshold) if isinstance(threshold, float) else threshold
    kept_faces = faces[sizes[component[faces[:, 0]]] >= min(least, sizes.max())]
    kept, renumbered = np.unique(kept_faces, return_inverse=True)
    device = mesh.v_pos.device
    index = torch.from_numpy(renumbered.reshape(-1, 3)).to(device)
    return Mesh(mesh.v_pos[torch.from_numpy(kept).to(device)], index)
