"""``nerf-volume-renderer``: marching through an occupancy grid, and compositing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from eeg_encoder.errors import InputError
from threestudio_eeg.neural_fields.marching import (
    OccupancyGrid,
    Samples,
    accumulate,
    march,
    render_weights,
    visible,
)

from .base import BaseModule
from .registry import register

GRID_RESOLUTION = 32
ALPHA_THRESHOLD = 0.01
NORMAL_PERTURBATION = 1e-2
CUBE_DIAGONAL = 1.732


@dataclass
class _Parts:
    """The system's own modules: kept outside the renderer's registered children."""

    geometry: Any
    material: Any
    background: Any


@register("nerf-volume-renderer")
class NeRFVolumeRenderer(BaseModule):
    """Volume rendering of a geometry, a material and a background.

    Intervals have the fixed length ``1.732 * 2 * radius / num_samples_per_ray``. Training shifts
    them at random when ``randomized``; evaluation does not.
    """

    @dataclass
    class Config(BaseModule.Config):
        radius: float = 1.0
        num_samples_per_ray: int = 512
        eval_chunk_size: int = 160000
        randomized: bool = True
        near_plane: float = 0.0
        far_plane: float = 1e10
        return_comp_normal: bool = False
        return_normal_perturb: bool = False
        estimator: str = "occgrid"
        grid_prune: bool = True
        prune_alpha_threshold: bool = True
        proposal_network_config: dict | None = None
        prop_optimizer_config: dict | None = None
        prop_scheduler_config: dict | None = None
        num_samples_per_ray_proposal: int = 64
        num_samples_per_ray_importance: int = 64

    bbox: Tensor

    def configure(self, geometry: Any, material: Any, background: Any) -> None:
        if self.cfg.estimator != "occgrid":
            expected = "occgrid, the only one of the embedded host"
            raise InputError("nerf-volume-renderer", "estimator", self.cfg.estimator, expected)
        r = self.cfg.radius
        self.register_buffer("bbox", torch.tensor([[-r, -r, -r], [r, r, r]], dtype=torch.float32))
        self._parts = _Parts(geometry, material, background)
        self.estimator = OccupancyGrid(self.bbox, GRID_RESOLUTION)
        if not self.cfg.grid_prune:
            self.estimator.fill()
        self.render_step_size = CUBE_DIAGONAL * 2 * r / self.cfg.num_samples_per_ray
        self._updated_at = -1

    @property
    def geometry(self) -> Any:
        return self._parts.geometry

    @property
    def material(self) -> Any:
        return self._parts.material

    @property
    def background(self) -> Any:
        return self._parts.background

    @property
    def randomized(self) -> bool:
        return self.training and self.cfg.randomized

    def forward(
        self,
        rays_o: Tensor,
        rays_d: Tensor,
        light_positions: Tensor,
        bg_color: Tensor | None = None,
        **kwargs: Any,
    ) -> dict[str, Tensor]:
        """Render pictures.

        Parameters
        ----------
        rays_o, rays_d
            Origins and unit directions, (B, H, W, 3).
        light_positions
            One point light per picture, (B, 3).
        bg_color
            Instead of the background's colour: (B, C) or (B, H, W, C).
        **kwargs
            Handed to the material.

        Returns
        -------
        dict
            ``comp_rgb``, ``comp_rgb_fg``, ``comp_rgb_bg``, ``opacity``, ``depth``, ``z_variance``
            as (B, H, W, ·), ``comp_normal`` where there are normals (in evaluation, or on demand);
            in training also the packed samples: ``weights``, ``t_points``, ``t_intervals``
            (N, 1), ``t_dirs``, ``points`` (N, 3), ``ray_indices`` (N,), and what the geometry gave.
        """
        shape = rays_o.shape[:3]
        batch, height, width = shape
        flat_o, flat_d = rays_o.reshape(-1, 3), rays_d.reshape(-1, 3)
        light = light_positions[:, None].expand(-1, height * width, -1).reshape(-1, 3)
        images: list[dict[str, Tensor]] = []
        packed: dict[str, Tensor] = {}
        for rows in self._ray_chunks(len(flat_o)):
            image, packed = self._render_rays(flat_o[rows], flat_d[rows], light[rows], kwargs)
            images.append(image)
        out = {
            name: torch.cat([image[name] for image in images]).view(*shape, -1)
            for name in images[0]
        }
        out["comp_rgb_bg"] = self.background(dirs=rays_d)
        if bg_color is None:
            bg_color = out["comp_rgb_bg"]
        elif bg_color.dim() == 2:
            bg_color = bg_color[:, None, None].expand(batch, height, width, -1)
        out["comp_rgb"] = out["comp_rgb_fg"] + bg_color * (1 - out["opacity"])
        return {**out, **packed} if self.training else out

    def _ray_chunks(self, n_rays: int) -> Iterator[slice]:
        """All rays at once in training; in evaluation, about ``eval_chunk_size`` samples."""
        size = n_rays
        if not self.training:
            size = max(self.cfg.eval_chunk_size // self.cfg.num_samples_per_ray, 1)
        return (slice(start, start + size) for start in range(0, n_rays, max(size, 1)))

    def _render_rays(
        self, rays_o: Tensor, rays_d: Tensor, light: Tensor, kwargs: dict[str, Any]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Composite flat rays (R, 3): per-ray images (R, ·) and the packed samples."""
        n_rays = len(rays_o)
        samples = self._sample(rays_o, rays_d)
        index = samples.ray_indices
        positions, directions = samples.positions(rays_o, rays_d), rays_d.index_select(0, index)
        fields = self.geometry(positions, output_normal=self.material.requires_normal)
        colour = self.material(
            viewdirs=directions,
            positions=positions,
            light_positions=light.index_select(0, index),
            **fields,
            **kwargs,
        )
        weights, _, _ = render_weights(fields["density"].squeeze(-1), samples, n_rays)
        t_points = samples.t_middles[:, None]
        depth = accumulate(weights, t_points, index, n_rays)
        spread = (t_points - depth.index_select(0, index)) ** 2
        image = {
            "comp_rgb_fg": accumulate(weights, colour, index, n_rays),
            "opacity": accumulate(weights, None, index, n_rays),
            "depth": depth,
            "z_variance": accumulate(weights, spread, index, n_rays),
        }
        if "normal" in fields and (not self.training or self.cfg.return_comp_normal):
            image["comp_normal"] = _normal_picture(weights, fields["normal"], image, samples)
        packed = {
            "weights": weights[:, None],
            "t_points": t_points,
            "t_intervals": (samples.t_ends - samples.t_starts)[:, None],
            "t_dirs": directions,
            "ray_indices": index,
            "points": positions,
            **fields,
        }
        if self.training and "normal" in fields and self.cfg.return_normal_perturb:
            packed["normal_perturb"] = self._perturbed_normals(positions)
        return image, packed

    @torch.no_grad()
    def _sample(self, rays_o: Tensor, rays_d: Tensor) -> Samples:
        cfg = self.cfg
        samples = march(
            rays_o,
            rays_d,
            self.estimator,
            self.render_step_size,
            near=cfg.near_plane,
            far=cfg.far_plane,
            jitter=self.randomized,
        )
        if not (cfg.grid_prune and cfg.prune_alpha_threshold):
            return samples
        density = self.geometry.forward_density(samples.positions(rays_o, rays_d)).squeeze(-1)
        threshold = self.estimator.occs.mean().clamp(max=ALPHA_THRESHOLD)
        return samples.select(visible(density, samples, len(rays_o), threshold))

    def _perturbed_normals(self, positions: Tensor) -> Tensor:
        moved = positions + torch.randn_like(positions) * NORMAL_PERTURBATION
        normals: Tensor = self.geometry(moved, output_normal=True)["normal"]
        return normals

    def _step_opacity(self, points: Tensor) -> Tensor:
        density: Tensor = self.geometry.forward_density(points)
        return density.squeeze(-1) * self.render_step_size

    def update_step(self, epoch: int, global_step: int, on_load_weights: bool = False) -> None:
        """Look at the occupancy again, once per training step at most."""
        stale = global_step != self._updated_at
        if self.cfg.grid_prune and self.training and stale and not on_load_weights:
            self._updated_at = global_step
            self.estimator.update(global_step, self._step_opacity)


def _normal_picture(
    weights: Tensor, normals: Tensor, image: dict[str, Tensor], samples: Samples
) -> Tensor:
    """Mean normal of each ray as a colour in [0, 1], black where the ray is empty: (R, 3)."""
    opacity = image["opacity"]
    mean = F.normalize(accumulate(weights, normals, samples.ray_indices, len(opacity)), dim=-1)
    return (mean + 1) / 2 * opacity
