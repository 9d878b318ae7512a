"""Marching through an occupancy grid, and compositing; ``nerf-volume-renderer``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from eeg_encoder.errors import InputError
from threestudio_eeg.neural_fields.compositing import (
    accumulate,
    render_weights,
    spread,
    visible,
)
from threestudio_eeg.neural_fields.marching import Samples, march
from threestudio_eeg.neural_fields.occupancy import OccupancyGrid
from threestudio_eeg.neural_fields.recomputation import (
    RECOMPUTED_CHUNK,
    RECOMPUTED_FROM,
    Evaluation,
    Fields,
    Recomputable,
    evaluate,
    recomputed,
)
from threestudio_eeg.neural_fields.rows import take_rows

from .config import C
from .registry import register
from .renderer_base import Renderer

GRID_RESOLUTION = 32
ALPHA_THRESHOLD = 0.01
NORMAL_PERTURBATION = 1e-2
MIN_OPACITY = 1e-5
SOLID = 0.5
"""Opacity from which a ray has a surface, for the variance of its depth."""
CUBE_DIAGONAL = 1.732
DENSITY_CHUNK = 1 << 21


class VolumeRenderer(Renderer):
    """Volume rendering of a geometry, a material and a background.

    Intervals have the fixed length ``1.732 * 2 * radius / num_samples_per_ray``. Training shifts
    them at random when ``randomized``; evaluation does not. Subclasses say how opaque a sample is.

    Fields that threestudio does not have: ``num_samples_per_ray`` may be a schedule, and
    ``train_chunk_size`` is the number of samples whose field's graph is held at a time in training,
    where it is computed again in the backward pass (0: all are held; by default, a million where
    a render has more than four). ``max_samples``, which may be a
    schedule too, fixes the length of the list of samples, so that no step waits for the device;
    what does not fit is left out and counted in ``overflow``. ``backend`` is ``torch`` or
    ``triton``.
    """

    @dataclass
    class Config(Renderer.Config):
        radius: float = 1.0
        num_samples_per_ray: Any = 512
        eval_chunk_size: int = 160000
        randomized: bool = True
        near_plane: float = 0.0
        far_plane: float = 1e10
        estimator: str = "occgrid"
        grid_prune: bool = True
        prune_alpha_threshold: bool = True
        num_samples_per_ray_importance: int = 64
        train_chunk_size: int | None = None
        max_samples: Any = 0
        backend: str | None = None

    bbox: Tensor
    where = "volume renderer"
    needs_normals = False
    returns_normals = False

    def configure(self, geometry: Any, material: Any, background: Any) -> None:
        if self.cfg.estimator != "occgrid":
            expected = "occgrid, the only one of the embedded host"
            raise InputError(self.where, "estimator", self.cfg.estimator, expected)
        r = self.cfg.radius
        self.register_buffer("bbox", torch.tensor([[-r, -r, -r], [r, r, r]], dtype=torch.float32))
        self._use(geometry, material, background)
        self.estimator = OccupancyGrid(self.bbox, GRID_RESOLUTION)
        if not self.cfg.grid_prune:
            self.estimator.fill()
        self._updated_at = -1
        self._follow_schedules(0, 0)

    def _follow_schedules(self, epoch: int, global_step: int) -> None:
        cfg = self.cfg
        self.samples_per_ray = max(int(C(cfg.num_samples_per_ray, epoch, global_step)), 1)
        self.render_step_size = CUBE_DIAGONAL * 2 * cfg.radius / self.samples_per_ray
        self.capacity = int(C(cfg.max_samples, epoch, global_step)) or None

    @property
    def randomized(self) -> bool:
        return self.training and self.cfg.randomized

    def weights(self, fields: dict[str, Tensor], samples: Samples, rays_d: Tensor) -> Tensor:
        """Compositing weights (N,) of packed samples on rays with directions (R, 3)."""
        raise NotImplementedError

    def visible(
        self,
        samples: Samples,
        positions: Tensor,
        n_rays: int,
        threshold: Tensor,
        known: Fields | None = None,
    ) -> Tensor:
        """Which samples at positions (N, 3) are worth shading, (N,).

        ``known`` is what the geometry says at the positions, where it was asked.
        """
        raise NotImplementedError

    def step_opacity(self, points: Tensor) -> Tensor:
        """How opaque one step at points (N, 3) is, for the occupancy grid: (N,)."""
        raise NotImplementedError

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
            size = max(self.cfg.eval_chunk_size // self.samples_per_ray, 1)
        return (slice(start, start + size) for start in range(0, n_rays, max(size, 1)))

    def _render_rays(
        self, rays_o: Tensor, rays_d: Tensor, light: Tensor, kwargs: dict[str, Any]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Composite flat rays (R, 3): per-ray images (R, ·) and the packed samples."""
        n_rays = len(rays_o)
        normals = self.needs_normals or self.material.requires_normal
        samples, known = self._sample(rays_o, rays_d, normals)
        index = samples.ray_indices
        positions = samples.positions(rays_o, rays_d) if known is None else known.points
        directions = take_rows(rays_d, index)
        fields = self._fields(positions, normals, known)
        colour = self.material(
            viewdirs=directions,
            positions=positions,
            light_positions=take_rows(light, index),
            **fields,
            **kwargs,
        )
        weights = self.weights(fields, samples, rays_d)
        t_points = samples.t_middles[:, None]
        image = {
            "comp_rgb_fg": self._accumulate(weights, colour, samples, n_rays),
            "opacity": self._accumulate(weights, None, samples, n_rays),
            "depth": self._accumulate(weights, t_points, samples, n_rays),
        }
        image["z_variance"] = self._depth_variance(weights, t_points, image, samples)
        if "normal" in fields and (not self.training or self.returns_normals):
            image["comp_normal"] = self._normal_picture(weights, fields["normal"], image, samples)
        packed = {
            "weights": weights[:, None],
            "t_points": t_points,
            "t_intervals": (samples.t_ends - samples.t_starts)[:, None],
            "t_dirs": directions,
            "ray_indices": index,
            "points": positions,
            **fields,
        }
        if samples.overflow is not None:
            packed["overflow"] = samples.overflow
        return image, packed

    def _fields(self, positions: Tensor, normals: bool, known: Evaluation | None) -> Fields:
        """What the geometry says at the samples; where many, the graph is made in backward."""
        if known is not None:
            return known.differentiable(self.cfg.train_chunk_size or RECOMPUTED_CHUNK)
        chunk = self._recomputed_chunk(len(positions))
        if chunk is None:
            fields: Fields = self.geometry(positions, output_normal=normals)
            return fields
        parameters = list(self.geometry.parameters())
        return recomputed(self._field(normals), positions, parameters, chunk)

    def _evaluation(self, positions: Tensor) -> Evaluation | None:
        """The field's values, where they can be differentiated without its graph being kept.

        Or where nothing is: what is worth shading needs no second look.
        """
        if self._makes_graph:
            size = self.cfg.train_chunk_size
            if not self.training or size == 0:
                return None
            own = getattr(self.geometry, "evaluation", None)
            known: Evaluation | None = None
            if own is not None:
                known = own(positions, DENSITY_CHUNK, keep=size is None)
            if known is not None or self._recomputed_chunk(len(positions)) is None:
                return known
        field, parameters = self._field(False), list(self.geometry.parameters())
        return Recomputable(field, positions, parameters, evaluate(field, positions, DENSITY_CHUNK))

    def _field(self, normals: bool) -> Callable[[Tensor], Fields]:
        return partial(self.geometry, output_normal=normals)

    def _recomputed_chunk(self, n_samples: int) -> int | None:
        """Samples whose graph is made at a time in the backward pass; None: it is kept."""
        if not (self.training and self._makes_graph):
            return None
        size = self.cfg.train_chunk_size
        if size is None:
            return RECOMPUTED_CHUNK if n_samples >= RECOMPUTED_FROM else None
        return size if 0 < size < n_samples else None

    def _accumulate(
        self, weights: Tensor, values: Tensor | None, samples: Samples, n_rays: int
    ) -> Tensor:
        return accumulate(weights, values, samples, n_rays, self.cfg.backend)

    def _depth_variance(
        self, weights: Tensor, t_points: Tensor, image: dict[str, Tensor], samples: Samples
    ) -> Tensor:
        """Variance of the depth where each ray is absorbed, 0 where most of it is not: (R, 1)."""
        opacity = image["opacity"]
        absorbed = opacity.clamp(min=MIN_OPACITY)
        mean = spread(image["depth"] / absorbed, samples, self.cfg.backend)
        total = self._accumulate(weights, (t_points - mean) ** 2, samples, len(opacity))
        return total / absorbed * (opacity > SOLID)

    def _normal_picture(
        self, weights: Tensor, normals: Tensor, image: dict[str, Tensor], samples: Samples
    ) -> Tensor:
        """Mean normal of each ray as a colour in [0, 1], black where the ray is empty: (R, 3)."""
        opacity = image["opacity"]
        total = self._accumulate(weights, normals, samples, len(opacity))
        return (F.normalize(total, dim=-1) + 1) / 2 * opacity

    def _sample(
        self, rays_o: Tensor, rays_d: Tensor, normals: bool
    ) -> tuple[Samples, Evaluation | None]:
        """Samples worth shading, and what the geometry says there when that was found out."""
        self._makes_graph = torch.is_grad_enabled()
        with torch.no_grad():
            samples = self._march(rays_o, rays_d)
            if not (self.cfg.grid_prune and self.cfg.prune_alpha_threshold):
                return samples, None
            return self._prune(samples, rays_o, rays_d, normals)

    def _march(self, rays_o: Tensor, rays_d: Tensor) -> Samples:
        cfg = self.cfg
        return march(
            rays_o,
            rays_d,
            self.estimator,
            self.render_step_size,
            near=cfg.near_plane,
            far=cfg.far_plane,
            jitter=self.randomized,
            capacity=self.capacity if self.training else None,
            backend=cfg.backend,
        )

    def _prune(
        self, samples: Samples, rays_o: Tensor, rays_d: Tensor, normals: bool
    ) -> tuple[Samples, Evaluation | None]:
        """Leave out what is thin or hidden.

        Where the field's graph is not kept, its values are computed here, once for all.
        """
        threshold = self.estimator.occs.mean().clamp(max=ALPHA_THRESHOLD)
        positions, n_rays = samples.positions(rays_o, rays_d), len(rays_o)
        fixed_length = samples.overflow is not None
        known = None if normals or fixed_length else self._evaluation(positions)
        values = None if known is None else known.values
        seen = self.visible(samples, positions, n_rays, threshold, values)
        if fixed_length:
            return samples.select(seen, self.capacity, n_rays), None
        places = seen.nonzero().view(-1)
        if len(places) == len(samples):
            return samples, known
        return samples.at(places), None if known is None else known.at(places)

    def update_step(self, epoch: int, global_step: int, on_load_weights: bool = False) -> None:
        """Look at the occupancy again, once per training step at most."""
        self._follow_schedules(epoch, global_step)
        stale = global_step != self._updated_at
        if self.cfg.grid_prune and self.training and stale and not on_load_weights:
            self._updated_at = global_step
            self.estimator.update(global_step, self.step_opacity)


@register("nerf-volume-renderer")
class NeRFVolumeRenderer(VolumeRenderer):
    """Rendering of a density: ``alpha = 1 - exp(-density dt)`` (NeRF)."""

    @dataclass
    class Config(VolumeRenderer.Config):
        return_comp_normal: bool = False
        return_normal_perturb: bool = False
        proposal_network_config: dict | None = None
        prop_optimizer_config: dict | None = None
        prop_scheduler_config: dict | None = None
        num_samples_per_ray_proposal: int = 64

    where = "nerf-volume-renderer"

    @property
    def returns_normals(self) -> bool:  # type: ignore[override]
        return self.cfg.return_comp_normal

    def weights(self, fields: dict[str, Tensor], samples: Samples, rays_d: Tensor) -> Tensor:
        density = fields["density"].squeeze(-1)
        return render_weights(density, samples, len(rays_d), self.cfg.backend)[0]

    def visible(
        self,
        samples: Samples,
        positions: Tensor,
        n_rays: int,
        threshold: Tensor,
        known: Fields | None = None,
    ) -> Tensor:
        if known is not None:
            density = known["density"]
        else:
            parts = positions.split(DENSITY_CHUNK)
            density = torch.cat([self.geometry.forward_density(part) for part in parts])
        return visible(density.squeeze(-1), samples, n_rays, threshold, self.cfg.backend)

    def step_opacity(self, points: Tensor) -> Tensor:
        density: Tensor = self.geometry.forward_density(points)
        return density.squeeze(-1) * self.render_step_size

    def _render_rays(
        self, rays_o: Tensor, rays_d: Tensor, light: Tensor, kwargs: dict[str, Any]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        image, packed = super()._render_rays(rays_o, rays_d, light, kwargs)
        if self.training and "normal" in packed and self.cfg.return_normal_perturb:
            moved = packed["points"] + torch.randn_like(packed["points"]) * NORMAL_PERTURBATION
            packed["normal_perturb"] = self.geometry(moved, output_normal=True)["normal"]
        return image, packed
