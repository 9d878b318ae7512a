"""``diff-gaussian-rasterizer``: pictures of ``gaussian-splatting``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from eeg_encoder.errors import InputError

from .gaussian_gsplat import choose_backend, rasterise_with_gsplat
from .gaussian_rasteriser import (
    Splats,
    half_extents,
    project,
    rasterise,
    rotation_matrices,
)
from .registry import register
from .renderer_base import Renderer


@register("diff-gaussian-rasterizer")
class GaussianRasterizer(Renderer):
    """Splatting of 3D Gaussians, by gsplat on CUDA where it is installed, else by torch.

    Name and fields are the extension threestudio-3dgs's. There, the material and the background are
    not used; here the background colours what the splats leave free, unless ``back_ground_color``
    is given. In training it is inverted when a number drawn from [0, 1) is above
    ``invert_bg_prob``.

    A field of our own: ``backend``, ``torch`` or ``gsplat``.
    """

    @dataclass
    class Config(Renderer.Config):
        debug: bool = False
        invert_bg_prob: float = 1.0
        back_ground_color: Any = None
        backend: str | None = None

    where = "diff-gaussian-rasterizer"

    def configure(self, geometry: Any, material: Any, background: Any) -> None:
        if not hasattr(geometry, "splats"):
            raise InputError(
                self.where, "geometry", type(geometry).__name__, "3D Gaussians: gaussian-splatting"
            )
        if self.cfg.backend is not None:
            choose_backend(self.cfg.backend, self.device)
        self._use(geometry, material, background)

    def forward(
        self,
        c2w: Tensor,
        fovy: Tensor,
        height: int,
        width: int,
        rays_d: Tensor,
        bg_color: Tensor | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Render pictures.

        Parameters
        ----------
        c2w
            OpenGL's camera-to-world matrices, (B, 4, 4).
        fovy
            Vertical field of view in radians, (B,).
        rays_d
            Directions of the pixels, for the background, (B, H, W, 3).
        bg_color
            Instead of the background's colour: (B, 3) or (B, H, W, 3).

        Returns
        -------
        dict
            ``comp_rgb``, ``comp_rgb_fg``, ``comp_rgb_bg``, ``opacity``, ``depth`` (distance to the
            camera), ``z_variance`` as (B, H, W, ·); in evaluation ``comp_normal``, of the splats'
            shortest axes; in training ``splats``.
        """
        splats, colours = self.geometry.splats()
        features = self._features(splats, colours, c2w[:, :3, 3])
        picture = self._rasterise(splats, features, c2w, fovy, height, width)
        opacity = picture[..., -1:]
        depth, square = picture[..., 3:4], picture[..., 4:5]
        background = self._background(rays_d, bg_color)
        out = {
            "comp_rgb_fg": picture[..., :3],
            "comp_rgb_bg": background,
            "comp_rgb": picture[..., :3] + background * (1 - opacity),
            "opacity": opacity,
            "depth": depth,
            "z_variance": (square - 2 * depth**2 + depth**2 * opacity).clamp(min=0),
        }
        if self.training:
            return {**out, "splats": splats}
        out["comp_normal"] = (F.normalize(picture[..., 5:8], dim=-1) + 1) / 2 * opacity
        return out

    def _features(self, splats: Splats, colours: Tensor, cameras: Tensor) -> Tensor:
        """Colour, distance and its square, normal of splats in pictures: (B, N, 5 or 8)."""
        towards = cameras[:, None] - splats.means
        distance = towards.norm(dim=-1, keepdim=True)
        parts = [colours.expand(len(cameras), -1, -1), distance, distance**2]
        if not self.training:
            shortest = splats.scales.argmin(dim=-1)[:, None, None].expand(-1, 3, 1)
            axis = rotation_matrices(splats.rotations).gather(2, shortest).squeeze(-1)
            parts.append(axis * torch.sign((axis * towards).sum(dim=-1, keepdim=True)))
        return torch.cat(parts, dim=-1)

    def _rasterise(
        self, splats: Splats, features: Tensor, c2w: Tensor, fovy: Tensor, height: int, width: int
    ) -> Tensor:
        if choose_backend(self.cfg.backend, features.device) == "gsplat":
            picture, means, radii = rasterise_with_gsplat(
                splats, features, c2w, fovy, height, width
            )
        else:
            projection = project(splats, c2w, fovy, height, width)
            picture = rasterise(projection, splats.opacities, features, height, width)
            means = projection.means
            radii = half_extents(projection, splats.opacities).amax(dim=-1)
        if self.training:
            self.geometry.watch(means, radii, height, width)
        return picture

    def _background(self, rays_d: Tensor, bg_color: Tensor | None) -> Tensor:
        colour = bg_color
        if colour is None and self.cfg.back_ground_color is not None:
            colour = rays_d.new_tensor(list(self.cfg.back_ground_color)).expand(len(rays_d), 3)
        if colour is None:
            colour = self.background(dirs=F.normalize(rays_d, dim=-1))
        elif colour.dim() == 2:
            colour = colour[:, None, None].expand(*rays_d.shape[:3], -1)
        inverts = self.training and bg_color is None and self.cfg.invert_bg_prob < 1
        if inverts and torch.rand(()) > self.cfg.invert_bg_prob:
            return 1 - colour
        return colour
