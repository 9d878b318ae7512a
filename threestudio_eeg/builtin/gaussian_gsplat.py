"""3D Gaussians as pictures, by gsplat's CUDA kernels."""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor

from eeg_encoder.errors import InputError

from .gaussian_rasteriser import BLUR, NEAR, Splats, world_to_camera

BACKENDS = ("torch", "gsplat")
HINT = "torch, or gsplat on a CUDA device (pip install gsplat)"


def choose_backend(wanted: str | None, device: torch.device) -> str:
    """``wanted``, or without one gsplat where it can run, else torch.

    Raises
    ------
    InputError
        For an unknown backend, and for gsplat where it is not installed or there is no CUDA.
    """
    where, name = "diff-gaussian-rasterizer", "backend"
    if wanted is not None and wanted not in BACKENDS:
        raise InputError(where, name, wanted, " or ".join(BACKENDS))
    installed = importlib.util.find_spec("gsplat") is not None
    if wanted is None:
        return "gsplat" if installed and device.type == "cuda" else "torch"
    if wanted == "gsplat" and not installed:
        raise InputError(where, name, "gsplat, which is not installed", HINT)
    if wanted == "gsplat" and device.type != "cuda":
        raise InputError(where, name, f"gsplat, which is for CUDA, on a {device.type}", HINT)
    return wanted or "torch"


def rasterise_with_gsplat(
    splats: Splats, features: Tensor, c2w: Tensor, fovy: Tensor, height: int, width: int
) -> tuple[Tensor, Tensor, Tensor]:
    """As :func:`.gaussian_rasteriser.rasterise`, from the world.

    Returns
    -------
    tuple
        The picture (B, H, W, C + 1), the means in pixels (B, N, 2), which carry gradients, and the
        radii in pixels (B, N), zero for what is not seen.
    """
    from gsplat import rasterization

    colours, alphas, meta = rasterization(
        splats.means,
        splats.rotations,
        splats.scales,
        splats.opacities,
        features,
        viewmats(c2w),
        intrinsics(fovy, height, width),
        width,
        height,
        near_plane=NEAR,
        eps2d=BLUR,
        packed=False,
    )
    radii = meta["radii"]
    radii = radii.amax(-1) if radii.dim() == 3 else radii
    return torch.cat((colours, alphas), dim=-1), meta["means2d"], radii.float()


def viewmats(c2w: Tensor) -> Tensor:
    """World-to-camera matrices (B, 4, 4) with x right, y down, z forward, of OpenGL's poses."""
    rotation, centre = world_to_camera(c2w)
    matrix = torch.eye(4).to(c2w).repeat(len(c2w), 1, 1)
    matrix[:, :3, :3] = rotation
    matrix[:, :3, 3:] = -rotation @ centre[..., None]
    return matrix


def intrinsics(fovy: Tensor, height: int, width: int) -> Tensor:
    """Camera matrices (B, 3, 3) in pixels, of square pixels and a centred axis."""
    matrix = torch.eye(3).to(fovy).repeat(len(fovy), 1, 1)
    matrix[:, 0, 0] = matrix[:, 1, 1] = 0.5 * height / torch.tan(0.5 * fovy)
    matrix[:, 0, 2], matrix[:, 1, 2] = width / 2, height / 2
    return matrix
