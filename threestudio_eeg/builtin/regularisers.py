"""Penalties on a render that keep distillation from clouds, floaters and inside-out surfaces.

Each takes the renderer's output and returns a scalar. A system adds ``loss_<name>`` times
``C(lambda_<name>)`` for those with a positive weight.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from eeg_encoder.errors import InputError


def orient(out: dict[str, Any]) -> Tensor:
    """Penalise normals that face away from the camera (Ref-NeRF, Verbin et al. 2022, eq. 11).

    Sum of ``weights * max(0, normal . direction)^2`` over samples, per ray that hits something.
    """
    if "normal" not in out:
        raise InputError(
            "system.loss", "lambda_orient", "a render without normals", "geometry.normal_type set"
        )
    facing_away = (out["normal"] * out["t_dirs"]).sum(dim=-1, keepdim=True).clamp(min=0)
    hits = (out["opacity"] > 0).sum().clamp(min=1)
    return (out["weights"].detach() * facing_away**2).sum() / hits


def sparsity(out: dict[str, Any]) -> Tensor:
    """Penalise filled pictures: mean of ``sqrt(opacity^2 + 0.01)`` (DreamFusion, 2022)."""
    return (out["opacity"] ** 2 + 0.01).sqrt().mean()


def opaque(out: dict[str, Any]) -> Tensor:
    """Penalise half-transparent pixels: mean entropy of the opacity, in nats."""
    opacity = out["opacity"].clamp(1e-3, 1 - 1e-3)
    return -(opacity * opacity.log() + (1 - opacity) * (1 - opacity).log()).mean()


def z_variance(out: dict[str, Any]) -> Tensor:
    """Penalise thick surfaces: mean variance of depth along rays (HiFA, Zhu et al. 2023).

    Over rays with an opacity above 0.5; zero when there are none.
    """
    solid = (out["opacity"] > 0.5).to(out["z_variance"])
    return (out["z_variance"] * solid).sum() / solid.sum().clamp(min=1)


def eikonal(out: dict[str, Any]) -> Tensor:
    """Keep a signed distance's slope at one: mean of ``(|slope| - 1)^2`` (Gropp et al. 2020)."""
    if "sdf_grad" not in out:
        raise InputError(
            "system.loss", "lambda_eikonal", "a geometry without slopes", "implicit-sdf"
        )
    return (out["sdf_grad"].norm(dim=-1) - 1).square().mean()


REGULARISERS: dict[str, Callable[[dict[str, Any]], Tensor]] = {
    "orient": orient,
    "sparsity": sparsity,
    "opaque": opaque,
    "z_variance": z_variance,
    "eikonal": eikonal,
}
