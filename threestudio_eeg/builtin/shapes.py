"""Signed distances of the shapes that geometries can start from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from eeg_encoder.errors import InputError


def distance_from(name: str, params: Any, where: str, field: str) -> Callable[[Tensor], Tensor]:
    """Distance from a named shape, (N, 3) to (N, 1); an ellipsoid's is a pseudo-distance.

    Parameters
    ----------
    name, params
        ``sphere`` with a radius, or ``ellipsoid`` with three half axes.
    where, field
        What an error calls the config and its field.

    Raises
    ------
    InputError
        For anything else.
    """
    if name == "sphere" and isinstance(params, int | float):
        return lambda points: points.norm(dim=-1, keepdim=True) - float(params)
    if name == "ellipsoid" and params is not None and len(params) == 3:
        return lambda points: (
            (points / points.new_tensor(list(params))).norm(dim=-1, keepdim=True) - 1.0
        )
    expected = "sphere with a radius, or ellipsoid with three half axes"
    raise InputError(where, field, f"{name} {params}", expected)
