"""``neus-volume-renderer``: volume rendering of a signed distance field."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from eeg_encoder.errors import InputError
from threestudio_eeg.neural_fields.compositing import EARLY_STOP, exclusive_sum
from threestudio_eeg.neural_fields.marching import Samples
from threestudio_eeg.neural_fields.recomputation import Fields
from threestudio_eeg.neural_fields.rows import take_rows

from .registry import register
from .renderer import VolumeRenderer

CDF_FLOOR = 1e-5
MAX_ALPHA = 1 - 1e-6
VOLSDF_MAX_SHARPNESS = 80.0


class LearnedVariance(nn.Module):
    """The surface's sharpness, one over the standard deviation: ``exp(10 v)`` of a parameter."""

    def __init__(self, initial: float) -> None:
        super().__init__()
        self._inv_std = nn.Parameter(torch.tensor(initial))

    @property
    def inv_std(self) -> Tensor:
        return torch.exp(self._inv_std * 10.0)


def volsdf_density(sdf: Tensor, inv_std: Tensor) -> Tensor:
    """Density of a signed distance (VolSDF, Yariv et al. 2021, eq. 2–3).

    ``Ψ(-d) / β`` with the Laplace distribution's cumulative Ψ and ``β = 1 / inv_std``.
    """
    sharpness = inv_std.clamp(0.0, VOLSDF_MAX_SHARPNESS)
    return sharpness * (0.5 + 0.5 * sdf.sign() * torch.expm1(-sdf.abs() * sharpness))


def neus_alpha(sdf: Tensor, slope_along_ray: Tensor, dt: Tensor, inv_std: Tensor) -> Tensor:
    """Opacity of an interval of length ``dt`` around a sample (NeuS, Wang et al. 2021, eq. 13).

    The distances at its ends are extrapolated with the slope along the ray (not positive).
    """
    half = slope_along_ray * dt * 0.5
    before = torch.sigmoid((sdf - half) * inv_std)
    after = torch.sigmoid((sdf + half) * inv_std)
    return ((before - after + CDF_FLOOR) / (before + CDF_FLOOR)).clamp(0.0, 1.0)


def transmittance(alpha: Tensor, samples: Samples, n_rays: int) -> Tensor:
    """Product of ``1 - alpha`` of what lies in front of each sample on its ray, (N,)."""
    depth = -torch.log1p(-alpha.clamp(max=MAX_ALPHA))
    return torch.exp(-exclusive_sum(depth, samples.ray_indices, n_rays))


@register("neus-volume-renderer")
class NeuSVolumeRenderer(VolumeRenderer):
    """Rendering of a geometry that gives ``sdf`` and ``normal`` (NeuS), or VolSDF's density of it.

    ``cos_anneal_end_steps``: over so many steps the slope along a ray goes from a softened one to
    the normal's own.
    """

    @dataclass
    class Config(VolumeRenderer.Config):
        learned_variance_init: float = 0.3
        cos_anneal_end_steps: int = 0
        use_volsdf: bool = False

    where = "neus-volume-renderer"
    needs_normals = True

    def configure(self, geometry: Any, material: Any, background: Any) -> None:
        if not hasattr(geometry, "forward_sdf"):
            expected = "a signed distance field, such as implicit-sdf"
            raise InputError(self.where, "geometry", type(geometry).__name__, expected)
        super().configure(geometry, material, background)
        self.variance = LearnedVariance(self.cfg.learned_variance_init)
        self.cos_anneal_ratio = 1.0

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """As :meth:`.VolumeRenderer.forward`, and ``inv_std``, the surface's sharpness."""
        return {**super().forward(*args, **kwargs), "inv_std": self.variance.inv_std}

    def weights(self, fields: dict[str, Tensor], samples: Samples, rays_d: Tensor) -> Tensor:
        directions = take_rows(rays_d, samples.ray_indices)
        alpha = self._alpha(fields["sdf"], fields["normal"], directions, samples).squeeze(-1)
        return alpha * transmittance(alpha, samples, len(rays_d))

    def _alpha(self, sdf: Tensor, normal: Tensor, directions: Tensor, samples: Samples) -> Tensor:
        dt = (samples.t_ends - samples.t_starts)[:, None]
        if self.cfg.use_volsdf:
            return (dt * volsdf_density(sdf, self.variance.inv_std)).clamp(0.0, 1.0)
        slope = (directions * normal).sum(dim=-1, keepdim=True)
        softened = (0.5 - 0.5 * slope).relu()
        slope = -torch.lerp(softened, (-slope).relu(), self.cos_anneal_ratio)
        return neus_alpha(sdf, slope, dt, self.variance.inv_std)

    def visible(
        self,
        samples: Samples,
        positions: Tensor,
        n_rays: int,
        threshold: Tensor,
        known: Fields | None = None,
    ) -> Tensor:
        alpha = self.step_opacity(positions)
        return (alpha >= threshold) & (transmittance(alpha, samples, n_rays) >= EARLY_STOP)

    def step_opacity(self, points: Tensor) -> Tensor:
        sdf = self.geometry.forward_sdf(points).squeeze(-1)
        step = torch.as_tensor(self.render_step_size, device=sdf.device)
        if self.cfg.use_volsdf:
            return (step * volsdf_density(sdf, self.variance.inv_std)).clamp(0.0, 1.0)
        return neus_alpha(sdf, -torch.ones_like(sdf), step, self.variance.inv_std)

    def update_step(self, epoch: int, global_step: int, on_load_weights: bool = False) -> None:
        """Follow the slope's annealing and the occupancy."""
        end = self.cfg.cos_anneal_end_steps
        self.cos_anneal_ratio = min(1.0, global_step / end) if end else 1.0
        super().update_step(epoch, global_step, on_load_weights)
