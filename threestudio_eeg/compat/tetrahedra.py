"""The tetrahedral grids of threestudio's ``load/tets/``, which an installed package has not.

Its geometry ``tetrahedra-sdf-grid``, and the surface of every implicit geometry by its default
``isosurface_method: mt``, read a grid from there by resolution.
"""

from __future__ import annotations

import functools
import importlib
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from . import patching
from .remedy import Remedy

ISOSURFACE = "threestudio.models.isosurface"
RESOLUTIONS = (32, 64, 128)


def reason(device: str) -> str | None:
    file = getattr(sys.modules.get("threestudio"), "__file__", None)
    if file is None:
        return None
    folder = Path(file).parents[1] / "load" / "tets"
    absent = [n for n in RESOLUTIONS if not zipfile.is_zipfile(folder / f"{n}_tets.npz")]
    if not absent:
        return None
    return f"load/tets has no grid of {', '.join(map(str, absent))}"


def apply(device: str) -> None:
    helper = importlib.import_module(ISOSURFACE).MarchingTetrahedraHelper
    patching.set_attribute(helper, "__init__", _with_a_grid(helper.__init__))


def _with_a_grid(make: Any) -> Any:
    """A file that is there is read; for another one, a grid is made."""

    @functools.wraps(make)
    def wrapped(self: Any, resolution: int, tets_path: str) -> None:
        if zipfile.is_zipfile(tets_path):
            make(self, resolution, tets_path)
            return
        with tempfile.TemporaryDirectory(prefix="threestudio-eeg-") as folder:
            make(self, resolution, str(write_grid(resolution, Path(folder) / "tets.npz")))
        self.tets_path = tets_path

    return wrapped


def write_grid(resolution: int, path: Path) -> Path:
    """Write cubes cut into tetrahedra, half as many a side as the resolution says.

    That is how many vertices threestudio's own files have. A vertex may move by one over the
    resolution, so no two can change places.
    """
    from ..builtin.tetrahedra import CubeGrid

    grid = CubeGrid(max(resolution // 2, 1))
    np.savez(path, vertices=grid.vertices.numpy(), indices=grid.all_tetrahedra().numpy())
    return path


REMEDY = Remedy(
    name="tetrahedra",
    stands_in_for="Files in load/tets that are not there: grids of as many vertices, made when "
    "they are asked for.",
    reason=reason,
    apply=apply,
    hint="a checkout of threestudio with load/tets",
    after_import=True,
)
