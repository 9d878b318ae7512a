"""Slopes of a scalar field by finite differences."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

FINITE_DIFFERENCES = ("finite_difference", "finite_difference_laplacian")


def finite_difference_slope(
    kind: str,
    field: Callable[[Tensor], Tensor],
    points: Tensor,
    value: Tensor,
    *,
    eps: float,
    radius: float,
) -> Tensor:
    """Slope (..., 3) of ``field`` at points (..., 3).

    Parameters
    ----------
    kind
        ``finite_difference``: forward differences; ``finite_difference_laplacian``: central ones.
    field
        Maps (..., 3) to (..., 1).
    value
        The field at the points, (..., 1).
    eps
        Step, world units. Neighbours are kept in the cube of half side ``radius``.
    """
    offsets = eps * torch.eye(3, device=points.device, dtype=points.dtype)

    def beside(shift: Tensor) -> Tensor:
        return field((points[..., None, :] + shift).clamp(-radius, radius)).squeeze(-1)

    if kind == "finite_difference_laplacian":
        return 0.5 * (beside(offsets) - beside(-offsets)) / eps
    return (beside(offsets) - value) / eps
