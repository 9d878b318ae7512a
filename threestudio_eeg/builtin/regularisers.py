"""Penalties on a render that keep distillation from clouds, floaters and inside-out surfaces.

Each takes the renderer's output and returns a scalar. A system adds ``loss_<name>`` times
``C(lambda_<name>)`` for those with a positive weight.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
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

    Over rays with an opacity above 0.5, whatever the others hold; zero when there are none, where
    threestudio's mean of nothing is NaN.
    """
    if "z_variance" not in out:
        expected = "0 with a mesh, which has no thickness"
        raise InputError("system.loss", "lambda_z_variance", "a render without one", expected)
    solid = out["opacity"] > 0.5
    return torch.where(solid, out["z_variance"], 0.0).sum() / solid.sum().clamp(min=1)


def eikonal(out: dict[str, Any]) -> Tensor:
    """Keep a signed distance's slope at one: mean of ``(|slope| - 1)^2`` (Gropp et al. 2020)."""
    if "sdf_grad" not in out:
        raise InputError(
            "system.loss", "lambda_eikonal", "a geometry without slopes", "implicit-sdf"
        )
    return (out["sdf_grad"].norm(dim=-1) - 1).square().mean()


def normal_consistency(out: dict[str, Any]) -> Tensor:
    """Penalise bends of a mesh: one minus the cosine of the normals at edges' ends."""
    loss: Tensor = _mesh(out, "normal_consistency").normal_consistency()
    return loss


def laplacian_smoothness(out: dict[str, Any]) -> Tensor:
    """Penalise a mesh's vertices far from the mean of their neighbours."""
    loss: Tensor = _mesh(out, "laplacian_smoothness").laplacian()
    return loss


def _mesh(out: dict[str, Any], name: str) -> Any:
    if "mesh" not in out:
        found = "a render without a mesh"
        raise InputError("system.loss", f"lambda_{name}", found, "tetrahedra-sdf-grid")
    return out["mesh"]


def position(out: dict[str, Any]) -> Tensor:
    """Pull splats to the middle: mean distance from the origin (threestudio-3dgs)."""
    loss: Tensor = _splats(out, "position").means.norm(dim=-1).mean()
    return loss


def opacity(out: dict[str, Any]) -> Tensor:
    """Penalise opaque splats by their size: sum of ``|scales| opacity`` (threestudio-3dgs)."""
    splats = _splats(out, "opacity")
    loss: Tensor = (splats.scales.norm(dim=-1).detach() * splats.opacities).sum()
    return loss


def scales(out: dict[str, Any]) -> Tensor:
    """Penalise large splats: sum of their scales (threestudio-3dgs)."""
    loss: Tensor = _splats(out, "scales").scales.sum()
    return loss


def _splats(out: dict[str, Any], name: str) -> Any:
    if "splats" not in out:
        found = "a render without splats"
        raise InputError("system.loss", f"lambda_{name}", found, "gaussian-splatting")
    return out["splats"]


def tv_loss(out: dict[str, Any]) -> Tensor:
    """Penalise rough pictures: twice the mean square of steps between pixels."""
    return _total_variation(out["comp_rgb"])


def depth_tv_loss(out: dict[str, Any]) -> Tensor:
    """Penalise rough depth: twice the mean square of steps between pixels."""
    return _total_variation(out["depth"])


def _total_variation(picture: Tensor) -> Tensor:
    down, across = picture.diff(dim=1), picture.diff(dim=2)
    return 2 * (down.square().mean() + across.square().mean())


REGULARISERS: dict[str, Callable[[dict[str, Any]], Tensor]] = {
    "orient": orient,
    "sparsity": sparsity,
    "opaque": opaque,
    "z_variance": z_variance,
    "eikonal": eikonal,
    "normal_consistency": normal_consistency,
    "laplacian_smoothness": laplacian_smoothness,
    "position": position,
    "opacity": opacity,
    "scales": scales,
    "tv_loss": tv_loss,
    "depth_tv_loss": depth_tv_loss,
}
