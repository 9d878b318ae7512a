"""Distance between two shapes: Chamfer, F-score and IoU after normalising size and yaw.

Meshes are z-up with their front towards +x. Two shapes are compared after `normalise`: the
centre of the bounding box at the origin, and the diagonal of the bounding box of length one. All
distances below are therefore fractions of that diagonal.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import trimesh
from scipy import ndimage
from scipy.spatial import cKDTree

from eeg_encoder.errors import InputError

THRESHOLD = 0.05
"""F-score threshold, as a fraction of the diagonal of the bounding box."""

MESH_FORMATS = (".obj", ".ply", ".glb")

WORLD_FROM_GLTF = np.array([[0, 0, 1, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]], dtype=float)
"""glTF (y up, front +z) to world (z up, front +x): takes back the exporter's rotation."""


def load_mesh(path: str | Path) -> trimesh.Trimesh:
    """Read an ``.obj``, ``.ply`` or ``.glb`` file as one mesh in world axes, vertex colours kept.

    World: z up, front +x. glTF has y up and its front along +z, so ``.glb`` vertices are turned by
    :data:`WORLD_FROM_GLTF`: (x, y, z) becomes (z, x, y). The other two formats hold world axes.

    Raises
    ------
    InputError
        When the file is missing, of another format, unreadable, or holds no triangle.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in MESH_FORMATS:
        raise InputError(path, "format", suffix or "no suffix", " or ".join(MESH_FORMATS))
    if not path.is_file():
        raise InputError(path, "file", "nothing", "a mesh file")
    try:
        mesh = trimesh.load(path, force="mesh", process=False)
    except Exception as error:
        raise InputError(path, "content", error, f"a readable {suffix} mesh") from error
    if not isinstance(mesh, trimesh.Trimesh) or len(mesh.faces) == 0:
        raise InputError(path, "faces", 0, "at least one triangle")
    if not np.isfinite(mesh.vertices).all():
        raise InputError(path, "vertices", "NaN or infinity", "finite coordinates")
    if suffix == ".glb":
        mesh.apply_transform(WORLD_FROM_GLTF)
    return mesh


def main_components(mesh: trimesh.Trimesh, share: float = 0.05) -> trimesh.Trimesh:
    """Return the connected parts of ``mesh`` with at least ``share`` of the largest one's surface:
    the object without crumbs, but with a sail that does not touch its mast.

    Vertices at the same place are joined first, so that seams do not cut the object.
    """
    joined = mesh.copy()
    joined.merge_vertices()
    parts = joined.split(only_watertight=False)
    if len(parts) == 0:
        return joined
    least = share * max(part.area for part in parts)
    kept: Any = trimesh.util.concatenate([part for part in parts if part.area >= least])
    return kept


def sample_surface(mesh: trimesh.Trimesh, n_points: int, *, seed: int) -> np.ndarray:
    """Draw ``n_points`` points, uniform in area, from the surface: (n_points, 3) float64.

    Raises
    ------
    InputError
        When the mesh has no area.
    """
    areas = np.asarray(mesh.area_faces, dtype=np.float64)
    total = areas.sum()
    if len(areas) == 0 or not total > 0:
        raise InputError("mesh", "surface area", float(total), "above 0")
    random = np.random.default_rng(seed)
    chosen = random.choice(len(areas), size=n_points, p=areas / total)
    u, v = random.random((2, n_points, 1))
    outside = u + v > 1
    u, v = np.where(outside, 1 - u, u), np.where(outside, 1 - v, v)
    a, b, c = np.moveaxis(np.asarray(mesh.triangles)[chosen], 1, 0)
    return a + u * (b - a) + v * (c - a)


def normalise(shape: Any) -> Any:
    """Move the centre of the bounding box to the origin and scale its diagonal to one.

    Parameters
    ----------
    shape
        A ``trimesh.Trimesh``, or points (N, 3). The same kind comes back; the input is not
        changed.

    Raises
    ------
    InputError
        When the bounding box is empty or not finite.
    """
    if isinstance(shape, trimesh.Trimesh):
        used = shape.vertices[np.unique(shape.faces)]
        centre, diagonal = _box(used)
        mesh = shape.copy()
        mesh.vertices = (mesh.vertices - centre) / diagonal
        return mesh
    points = np.asarray(shape, dtype=np.float64)
    centre, diagonal = _box(points)
    return (points - centre) / diagonal


def _box(points: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the centre (3,) and the length of the diagonal of a bounding box."""
    if len(points) == 0:
        raise InputError("shape", "points", 0, "at least two")
    low, high = points.min(axis=0), points.max(axis=0)
    diagonal = float(np.linalg.norm(high - low))
    if not np.isfinite(diagonal) or diagonal == 0:
        raise InputError("shape", "diagonal of the bounding box", diagonal, "finite and above 0")
    return (low + high) / 2, diagonal


def rotate_yaw(points: np.ndarray, degrees: float) -> np.ndarray:
    """Turn points (N, 3) about z by ``degrees``, from +x towards +y."""
    # sines and cosines of right angles are rounded: a box stays aligned with its axes
    cosine, sine = np.round([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))], 15)
    return points @ np.array([[cosine, sine, 0], [-sine, cosine, 0], [0, 0, 1.0]])


def nearest_distances(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distances from each point of ``a`` (N, 3) to ``b`` (M, 3), and back: (N,), (M,)."""
    return cKDTree(b).query(a)[0], cKDTree(a).query(b)[0]


def chamfer_distance(a: np.ndarray, b: np.ndarray) -> float:
    r"""Chamfer distance of two point sets, in their unit, not squared.

    .. math:: \tfrac12 \Big(\tfrac1{|A|}\sum_{a \in A} \min_{b \in B} \lVert a-b\rVert +
              \tfrac1{|B|}\sum_{b \in B} \min_{a \in A} \lVert a-b\rVert\Big)
    """
    forth, back = nearest_distances(a, b)
    return float((forth.mean() + back.mean()) / 2)


def f_score(
    predicted: np.ndarray, truth: np.ndarray, *, threshold: float = THRESHOLD
) -> dict[str, float]:
    """Precision, recall and their harmonic mean at a distance threshold.

    Precision is the share of predicted points nearer than ``threshold`` to the truth, recall the
    share of true points nearer than ``threshold`` to the prediction.

    References
    ----------
    Tatarchenko et al., "What do single-view 3D reconstruction networks learn?", CVPR 2019. They
    use 1 % of the side of the reconstruction volume. An object made from a category and a colour
    is not aligned that finely, so the default here is 5 % of the diagonal.
    """
    return _scores(*nearest_distances(predicted, truth), threshold)


def _scores(forth: np.ndarray, back: np.ndarray, threshold: float) -> dict[str, float]:
    precision, recall = float((forth < threshold).mean()), float((back < threshold).mean())
    both = precision + recall
    score = 2 * precision * recall / both if both > 0 else 0.0
    return {"fscore": score, "precision": precision, "recall": recall}


def voxelise(mesh: trimesh.Trimesh, resolution: int = 64, *, extent: float = 1.0) -> np.ndarray:
    """Solid occupancy of a mesh: (R, R, R) bool over the cube of side ``extent`` at the origin.

    Every voxel in which a grid line through voxel centres (along x, y or z) meets a triangle is
    surface. No path of face neighbours goes through such a surface, so everything that cannot be
    reached from the border of the grid is inside. This needs no watertight mesh, no orientation
    and no library of ray queries; cavities are filled. An opening wider than a voxel leaves a
    shell. Surface voxels count as solid, which thickens every shape by half a voxel on average.
    """
    triangles = (np.asarray(mesh.triangles) / extent + 0.5) * resolution - 0.5
    surface = np.zeros((resolution,) * 3, dtype=bool)
    for axis in range(3):
        order = [axis, (axis + 1) % 3, (axis + 2) % 3]
        crossed = _crossings(triangles[:, :, order], resolution)
        cells = np.empty_like(crossed)
        cells[:, order] = crossed
        surface[tuple(cells.T)] = True
    return ndimage.binary_fill_holes(surface)


def _crossings(triangles: np.ndarray, resolution: int, chunk: int = 2_000_000) -> np.ndarray:
    """Voxels (M, 3) where grid lines along the first axis meet triangles (N, 3, 3)."""
    low = np.clip(np.ceil(triangles[:, :, 1:].min(axis=1) - 1e-9), 0, resolution).astype(int)
    high = np.clip(np.floor(triangles[:, :, 1:].max(axis=1) + 1e-9), -1, resolution - 1).astype(int)
    size = np.maximum(high - low + 1, 0)
    lines = size[:, 0] * size[:, 1]
    found = []
    for batch in np.array_split(np.arange(len(triangles)), max(1, int(lines.sum() // chunk) + 1)):
        which = np.repeat(batch, lines[batch])
        first = np.cumsum(lines[batch]) - lines[batch]
        offset = np.arange(len(which)) - np.repeat(first, lines[batch])
        width = size[which, 1]
        line = low[which] + np.stack([offset // width, offset % width], axis=1)
        found.append(_meet(triangles[which], line, resolution))
    return np.concatenate(found)


def _meet(triangles: np.ndarray, line: np.ndarray, resolution: int) -> np.ndarray:
    """Voxels (M, 3) where the line at ``line`` (N, 2) meets triangle (N, 3, 3), edges included."""
    a, b, c = triangles[:, 0, 1:], triangles[:, 1, 1:], triangles[:, 2, 1:]
    area = _cross(b - a, c - a)
    flat = np.abs(area) < 1e-12
    safe = np.where(flat, 1.0, area)
    weight_b = _cross(line - a, c - a) / safe
    weight_c = _cross(b - a, line - a) / safe
    weight_a = 1 - weight_b - weight_c
    hit = ~flat & (np.minimum(np.minimum(weight_a, weight_b), weight_c) >= -1e-9)
    heights = triangles[:, :, 0]
    height = weight_a * heights[:, 0] + weight_b * heights[:, 1] + weight_c * heights[:, 2]
    cell = np.rint(height)
    hit &= (cell >= 0) & (cell < resolution)
    return np.concatenate([cell[hit, None], line[hit]], axis=1).astype(int)


def _cross(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return u[:, 0] * v[:, 1] - u[:, 1] * v[:, 0]


def solid_iou(a: trimesh.Trimesh, b: trimesh.Trimesh, *, resolution: int = 64) -> float:
    """Intersection over union of two solids inside the unit cube at the origin."""
    first, second = voxelise(a, resolution), voxelise(b, resolution)
    union = np.logical_or(first, second).sum()
    return float(np.logical_and(first, second).sum() / union) if union else 0.0


def compare_meshes(
    predicted: trimesh.Trimesh,
    truth: trimesh.Trimesh,
    *,
    yaws: Sequence[float] = (0, 90, 180, 270),
    n_points: int = 20_000,
    seed: int = 0,
    threshold: float = THRESHOLD,
    resolution: int = 64,
) -> dict[str, float]:
    """Compare two shapes after normalising both, at the yaw with the least Chamfer distance.

    Parameters
    ----------
    predicted, truth
        z-up meshes. Neither needs to be watertight.
    yaws
        Turns of the prediction about z to try, degrees. Pass ``(0,)`` for objects whose front is
        known to be right.
    n_points
        Points on each surface. The distance of a shape to itself is then about half the mean
        spacing of the points, not zero.
    seed
        Seed of the points. The two surfaces get different ones.
    threshold
        For the F-score, as a fraction of the diagonal.
    resolution
        Voxels along each side of the unit cube, for the IoU.

    Returns
    -------
    dict
        ``chamfer`` (see `chamfer_distance`; fraction of the diagonal), ``fscore``,
        ``precision``, ``recall`` (see `f_score`), ``iou`` (see `voxelise`), ``yaw`` (degrees
        by which the prediction was turned).
    """
    if len(yaws) == 0:
        raise InputError("compare_meshes", "yaws", "none", "at least one angle in degrees")
    predicted, truth = normalise(predicted), normalise(truth)
    points = sample_surface(predicted, n_points, seed=seed)
    target = sample_surface(truth, n_points, seed=seed + 1)
    tree = cKDTree(target)
    tried = []
    for yaw in yaws:
        turned = rotate_yaw(points, yaw)
        forth, back = tree.query(turned)[0], cKDTree(turned).query(target)[0]
        tried.append((float((forth.mean() + back.mean()) / 2), float(yaw), forth, back))
    chamfer, yaw, forth, back = min(tried, key=lambda entry: entry[0])
    predicted.vertices = rotate_yaw(predicted.vertices, yaw)
    scores = _scores(forth, back, threshold)
    iou = solid_iou(predicted, truth, resolution=resolution)
    return {"chamfer": chamfer, **scores, "iou": iou, "yaw": yaw}


def view_agreement(embeddings: Any) -> float:
    """Mean cosine between the embeddings (V, P) of every two different views of one object.

    Raises
    ------
    InputError
        When there are fewer than two views or an embedding has length zero.
    """
    if hasattr(embeddings, "detach"):
        embeddings = embeddings.detach().cpu().numpy()
    vectors = np.asarray(embeddings, dtype=np.float64)
    if vectors.ndim != 2 or len(vectors) < 2:
        raise InputError("view_agreement", "shape", vectors.shape, "(2 or more views, width)")
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not (lengths > 0).all():
        raise InputError("view_agreement", "length of an embedding", 0, "above 0")
    units = vectors / lengths
    n = len(units)
    return float((np.square(units.sum(axis=0)).sum() - n) / (n * (n - 1)))
