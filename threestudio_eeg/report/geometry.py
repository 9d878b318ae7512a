"""Meshes packed for the page's viewer."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import trimesh

MAX_FACES = 60_000
CREASE_DEGREES = 40.0


def cluster_vertices(mesh: trimesh.Trimesh, max_faces: int = MAX_FACES) -> trimesh.Trimesh:
    """Coarsen a mesh until it has at most ``max_faces`` triangles, by merging vertices on a grid.

    Each cell of the grid keeps the mean place and the mean colour of its vertices; triangles
    that fall into fewer than three cells go. The grid gets coarser until the mesh fits.
    A mesh that already fits comes back as it is.

    References
    ----------
    Rossignac and Borrel, "Multi-resolution 3D approximations for rendering complex scenes", 1993.
    """
    if len(mesh.faces) <= max_faces:
        return mesh
    cells = 256
    while True:
        coarse = _cluster(mesh, cells)
        if len(coarse.faces) <= max_faces or cells <= 8:
            return coarse
        cells = int(cells * min(0.95, 0.98 * np.sqrt(max_faces / len(coarse.faces))))


def _cluster(mesh: trimesh.Trimesh, cells: int) -> trimesh.Trimesh:
    low, high = mesh.bounds
    side = (high - low).max() / cells
    keys = np.floor((mesh.vertices - low) / side).astype(np.int64)
    code = (keys[:, 0] * (cells + 1) + keys[:, 1]) * (cells + 1) + keys[:, 2]
    _, first, group = np.unique(code, return_index=True, return_inverse=True)
    group = group.reshape(-1)
    count = np.bincount(group)[:, None]

    def mean(values: np.ndarray) -> np.ndarray:
        columns = [np.bincount(group, weights=column) for column in values.T]
        return np.stack(columns, axis=1) / count

    faces = group[mesh.faces]
    a, b, c = faces.T
    faces = faces[(a != b) & (b != c) & (c != a)]
    _, kept = np.unique(np.sort(faces, axis=1), axis=0, return_index=True)
    colours = np.rint(mean(vertex_colours(mesh).astype(np.float64))).astype(np.uint8)
    return trimesh.Trimesh(
        mean(np.asarray(mesh.vertices)),
        faces[np.sort(kept)],
        vertex_colors=np.concatenate([colours, np.full((len(first), 1), 255, np.uint8)], axis=1),
        process=False,
    )


def vertex_colours(mesh: trimesh.Trimesh) -> np.ndarray:
    """Colours (V, 3) uint8 of a mesh's vertices; textures and face colours are converted."""
    visual: Any = mesh.visual
    if visual is None or visual.kind is None:
        return np.full((len(mesh.vertices), 3), 178, np.uint8)
    if visual.kind == "texture":
        visual = visual.to_color()
    return np.asarray(visual.vertex_colors)[:, :3].astype(np.uint8)


def split_creases(mesh: trimesh.Trimesh, degrees: float = CREASE_DEGREES) -> dict[str, np.ndarray]:
    """Give every corner the mean normal of the faces around it that bend less than ``degrees``.

    Corners that then agree share one vertex again, so smooth parts stay small and boxes keep
    their edges.

    Returns
    -------
    dict
        ``positions`` (V, 3) float, ``normals`` (V, 3) unit, ``colours`` (V, 3) uint8, ``faces``
        (F, 3).
    """
    faces = np.asarray(mesh.faces)
    _, place = np.unique(np.round(mesh.vertices, 7), axis=0, return_inverse=True)
    normals = _corner_normals(place.reshape(-1)[faces], np.asarray(mesh.triangles), degrees)
    packed = np.rint(normals * 127).astype(np.int64)
    key = np.concatenate([faces.reshape(-1, 1), packed], axis=1)
    _, first, corner = np.unique(key, axis=0, return_index=True, return_inverse=True)
    source = faces.reshape(-1)[first]
    return {
        "positions": np.asarray(mesh.vertices)[source],
        "normals": normals[first],
        "colours": vertex_colours(mesh)[source],
        "faces": corner.reshape(-1, 3),
    }


def _corner_normals(places: np.ndarray, triangles: np.ndarray, degrees: float) -> np.ndarray:
    """Normals (3F, 3) of corners; ``places`` (F, 3) says which corners are at the same place."""
    weighted = np.cross(
        triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0]
    )  # as long as twice the area
    unit = weighted / np.maximum(np.linalg.norm(weighted, axis=1, keepdims=True), 1e-20)
    flat = places.reshape(-1)
    order = np.argsort(flat, kind="stable")
    face = order // 3
    starts = np.searchsorted(flat[order], flat[order], side="left")
    ends = np.searchsorted(flat[order], flat[order], side="right")
    total = np.zeros((len(order), 3))
    cosine = np.cos(np.radians(degrees))
    for step in range(int((ends - starts).max())):
        other = starts + step
        inside = other < ends
        mine, theirs = face[inside], face[other[inside]]
        near = (unit[mine] * unit[theirs]).sum(axis=1) >= cosine
        total[np.flatnonzero(inside)[near]] += weighted[theirs[near]]
    lengths = np.linalg.norm(total, axis=1, keepdims=True)
    result = np.empty_like(total)
    result[order] = np.where(lengths > 0, total / np.maximum(lengths, 1e-20), unit[face])
    return result


def pack_mesh(mesh: trimesh.Trimesh, *, max_faces: int = MAX_FACES) -> dict[str, Any]:
    """Pack a z-up mesh as base64 typed arrays, centred, its bounding sphere of radius one.

    Returns
    -------
    dict
        ``position`` (uint16 x 4 a vertex, 0..65535 over [-1, 1], the fourth unused), ``normal``
        (int8 x 4), ``colour`` (uint8 x 4), ``index`` (uint32): base64 of little-endian arrays.
        ``floor`` is the lowest z after scaling; ``vertices``, ``faces``, ``original_faces``
        are counts.
    """
    coarse = cluster_vertices(mesh, max_faces)
    parts = split_creases(coarse)
    positions = parts["positions"]
    low, high = positions.min(axis=0), positions.max(axis=0)
    centred = positions - (low + high) / 2
    centred /= max(float(np.linalg.norm(centred, axis=1).max()), 1e-12)
    return {
        "position": _encode(_four((centred + 1) / 2 * 65535, "<u2")),
        "normal": _encode(_four(parts["normals"] * 127, "i1")),
        "colour": _encode(_four(parts["colours"], "u1")),
        "index": _encode(parts["faces"].astype("<u4")),
        "floor": round(float(centred[:, 2].min()), 4),
        "vertices": len(positions),
        "faces": len(parts["faces"]),
        "original_faces": len(mesh.faces),
    }


def _four(values: np.ndarray, dtype: str) -> np.ndarray:
    """Round (V, 3) values and pad each row to four, as graphics cards like their vertices."""
    padded = np.zeros((len(values), 4), dtype=dtype)
    padded[:, :3] = np.rint(values)
    return padded


def _encode(array: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode("ascii")
