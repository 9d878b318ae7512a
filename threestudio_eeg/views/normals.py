"""Normals of what is seen, from depth alone: for representations that render none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..evaluation.views import camera_batch


def normals_of_depth(views: Mapping[str, Any]) -> Tensor:
    """Normals (V, H, W, 3) of rendered views in world axes, as colours ``(n + 1) / 2``.

    Each pixel is put at its depth; the normal is the cross product of the differences to the
    neighbours on both sides, or on one where the other is empty. Multiplied by the opacity, black
    where there is no surface or no neighbour, as rendered normals are.
    """
    points, solid = _surface(views)
    along_x, has_x = _slope(points, solid, dim=2)
    along_y, has_y = _slope(points, solid, dim=1)
    normal = F.normalize(torch.linalg.cross(along_y, along_x, dim=-1), dim=-1)
    return (normal + 1) / 2 * views["opacity"] * (has_x & has_y & solid)


def _surface(views: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Points (V, H, W, 3) in the world, and where there are any (V, H, W, 1)."""
    depth = views["depth"]
    batch = camera_batch(views["cameras"], size=depth.shape[1], device="cpu")
    return batch["rays_o"] + depth * batch["rays_d"], depth > 0


def _slope(points: Tensor, solid: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Difference (V, H, W, 3) towards higher pixels, and where there is one."""
    step = points.narrow(dim, 1, points.shape[dim] - 1) - points.narrow(
        dim, 0, points.shape[dim] - 1
    )
    count = solid.shape[dim] - 1
    valid = solid.narrow(dim, 1, count) & solid.narrow(dim, 0, count)
    step = step * valid
    ahead, behind = _padded(step, dim, end=True), _padded(step, dim, end=False)
    has_ahead, has_behind = _padded(valid, dim, end=True), _padded(valid, dim, end=False)
    return ahead + behind, has_ahead | has_behind


def _padded(values: Tensor, dim: int, *, end: bool) -> Tensor:
    empty = torch.zeros_like(values.narrow(dim, 0, 1))
    return torch.cat([values, empty] if end else [empty, values], dim=dim)
