"""libigl's renamed functions, and libigl altogether."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np

from . import patching
from .absent import complain, why_absent
from .remedy import Remedy

HINT = "pip install libigl"
NAMES = ("fast_winding_number_for_meshes", "point_mesh_squared_distance", "read_obj")
NEW_NAMES = {
    "fast_winding_number_for_meshes": "fast_winding_number",
    "point_mesh_squared_distance": "point_mesh_squared_distance",
    "read_obj": "readOBJ",
}


def reason(device: str) -> str | None:
    absent = why_absent("igl")
    if absent:
        return absent
    gone = [name for name in NAMES if not hasattr(importlib.import_module("igl"), name)]
    return f"this libigl has no {', '.join(gone)}" if gone else None


def apply(device: str) -> None:
    if why_absent("igl"):
        contents = {name: _complaint(name) for name in NAMES}
        patching.add_module("igl", patching.new_module("igl", **contents))
        return
    igl = importlib.import_module("igl")
    for old, new in NEW_NAMES.items():
        patching.set_attribute(igl, old, _with_casts(old, getattr(igl, new)))


def _complaint(name: str) -> Callable[..., Any]:
    def function(*args: Any, **kwargs: Any) -> Any:
        complain("igl", name, HINT)

    return function


def _with_casts(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """libigl's new binding takes float64 and int64 only, and paths as text."""
    if name == "read_obj":

        def read_obj(path: Any, dtype: Any = float) -> Any:
            return function(str(path))

        return read_obj

    def on_meshes(*arrays: Any) -> Any:
        return function(*(_cast(array) for array in arrays))

    return on_meshes


def _cast(array: Any) -> Any:
    array = np.asarray(array)
    return array.astype(np.int64 if np.issubdtype(array.dtype, np.integer) else np.float64)


REMEDY = Remedy(
    name="igl",
    stands_in_for="libigl's functions under their names before 2.6, which also took single "
    "precision: the renamed ones. Without libigl, errors on use.",
    reason=reason,
    apply=apply,
    hint=HINT,
)
