"""pysdf, whose PyPI package has to be compiled and downloads Eigen while it builds."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import patching
from .absent import complain, why_absent
from .remedy import Remedy

HINT = "pip install libigl (or pysdf, which needs a compiler)"


class SDF:
    """Signed distance to a triangle mesh, positive inside, as ``pysdf.SDF`` gives it.

    Parameters
    ----------
    vertices
        (V, 3).
    faces
        (F, 3).

    Notes
    -----
    The size is the distance to the nearest triangle; inside is where the winding number exceeds a
    half, so small holes do no harm (Barill et al., Fast Winding Numbers, SIGGRAPH 2018). Both are
    libigl's.
    """

    def __init__(self, vertices: ArrayLike, faces: ArrayLike) -> None:
        if why_absent("igl") is not None:
            complain("pysdf", "SDF", HINT)
        self.vertices = np.asarray(vertices, dtype=np.float64)
        self.faces = np.asarray(faces, dtype=np.int64)

    def __call__(self, points: ArrayLike) -> NDArray[np.float32]:
        """Signed distances (N,) of points (N, 3)."""
        import igl

        where = np.ascontiguousarray(points, dtype=np.float64)
        squared = igl.point_mesh_squared_distance(where, self.vertices, self.faces)[0]
        inside = _winding_number(igl)(self.vertices, self.faces, where) > 0.5
        return (np.sqrt(squared) * np.where(inside, 1, -1)).astype(np.float32)


def _winding_number(igl: Any) -> Any:
    new = getattr(igl, "fast_winding_number", None)
    return new if new is not None else igl.fast_winding_number_for_meshes


def reason(device: str) -> str | None:
    return why_absent("pysdf")


def apply(device: str) -> None:
    patching.add_module("pysdf", patching.new_module("pysdf", SDF=SDF))


REMEDY = Remedy(
    name="pysdf",
    stands_in_for="pysdf's signed distance to a mesh, for shape_init=mesh:PATH: libigl's.",
    reason=reason,
    apply=apply,
    hint="pip install pysdf (it needs a compiler and the network)",
)
