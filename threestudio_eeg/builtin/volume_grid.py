"""``volume-grid``: density and features on a dense lattice."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eeg_encoder.errors import InputError
from threestudio_eeg.neural_fields.networks import get_activation

from .config import C
from .isosurface import ImplicitGeometry, contract_to_unit_box
from .normals import FINITE_DIFFERENCES, finite_difference_slope
from .registry import register

NORMAL_STEP = 1e-3
EVERY, DENSITY, FEATURES = slice(None), slice(1), slice(1, None)
NORMAL_TYPES = (None, "pred", *FINITE_DIFFERENCES)


@register("volume-grid")
class VolumeGrid(ImplicitGeometry):
    """Density and features by trilinear interpolation of one grid, without any network.

    The grid's axes are z, y, x, and its cells' centres carry the values, as in threestudio, whose
    weights fit. ``density_bias: blob`` starts with a ball.

    A field of our own: ``smoothing``, the standard deviation in cells, a number or a schedule, of
    the Gaussian that the grid is smoothed with before it is read. Neighbours then move together, so
    that noisy gradients make no noisy shape; a falling one goes from coarse to fine.
    """

    @dataclass
    class Config(ImplicitGeometry.Config):
        grid_size: tuple[int, int, int] = (100, 100, 100)
        n_feature_dims: int = 3
        density_activation: str | None = "softplus"
        density_bias: Any = "blob"
        density_blob_scale: float = 5.0
        density_blob_std: float = 0.5
        normal_type: str | None = "finite_difference"
        isosurface_threshold: Any = "auto"
        smoothing: Any = 0.0

    where = "volume-grid"

    def configure(self, *args: Any, **kwargs: Any) -> None:
        super().configure()
        cfg = self.cfg
        self._check_config()
        size = tuple(cfg.grid_size)
        self.grid = nn.Parameter(torch.zeros(1, 1 + cfg.n_feature_dims, *size))
        if cfg.density_bias == "blob":
            self.register_buffer("density_scale", torch.tensor(0.0))
        else:
            self.density_scale = nn.Parameter(torch.tensor(0.0))
        if cfg.normal_type == "pred":
            self.normal_grid = nn.Parameter(torch.zeros(1, 3, *size))
        self.density_activation = get_activation(cfg.density_activation)
        self.smoothing = float(C(cfg.smoothing, 0, 0))
        self._known: dict[str, tuple[Any, Tensor]] = {}

    def _check_config(self) -> None:
        cfg = self.cfg
        if cfg.normal_type not in NORMAL_TYPES:
            expected = f"one of {', '.join(str(t or 'null') for t in NORMAL_TYPES)}"
            raise InputError(self.where, "normal_type", cfg.normal_type, expected)
        if isinstance(cfg.density_bias, str) and cfg.density_bias != "blob":
            raise InputError(self.where, "density_bias", cfg.density_bias, "a number or blob")
        if len(cfg.grid_size) != 3 or min(cfg.grid_size) < 1:
            raise InputError(self.where, "grid_size", cfg.grid_size, "three positive whole numbers")

    def density_bias(self, points: Tensor) -> Tensor | float:
        """Bias of the raw density at points (..., 3) of the world: (..., 1), or a number."""
        cfg = self.cfg
        if cfg.density_bias != "blob":
            return float(cfg.density_bias)
        distance = points.detach().norm(dim=-1, keepdim=True)
        return cfg.density_blob_scale * (1 - distance / cfg.density_blob_std)

    def _look_up(self, points: Tensor, name: str, channels: slice = EVERY) -> Tensor:
        """Values (..., C) of a grid, by the parameter's name, at world positions (..., 3)."""
        place = contract_to_unit_box(points, self.bbox) * 2 - 1
        grid = self._read(name, channels)
        values = F.grid_sample(grid, place.reshape(1, 1, 1, -1, 3), align_corners=False)
        return values.reshape(grid.shape[1], -1).T.reshape(*points.shape[:-1], grid.shape[1])

    def _read(self, name: str, channels: slice) -> Tensor:
        """Channels of a grid as they are read: smoothed once for all look-ups of a step.

        What is kept has no graph; a look-up that needs a gradient gets a node of its own.
        """
        grid: Tensor = getattr(self, name)
        if self.smoothing <= 0:
            return grid[:, channels]
        state = (grid.data_ptr(), grid._version, self.smoothing, torch.is_inference_mode_enabled())
        kept, values = self._known.get(name, (None, grid))
        if kept != state:
            with torch.no_grad():
                values = smoothed(grid, self.smoothing)
            self._known[name] = state, values
        return _Smoothed.apply(grid[:, channels], values[:, channels], self.smoothing)

    def _density(self, points: Tensor, raw: Tensor) -> Tensor:
        return self.density_activation(raw * self.density_scale.exp() + self.density_bias(points))

    def forward(self, points: Tensor, output_normal: bool = False) -> dict[str, Tensor]:
        """``density`` (..., 1), ``features`` (..., F) at world positions (..., 3), and normals."""
        values = self._look_up(points, "grid")
        output = {"density": self._density(points, values[..., :1]), "features": values[..., 1:]}
        if output_normal and self.cfg.normal_type is not None:
            output["normal"] = output["shading_normal"] = self._normal(points, output["density"])
        return output

    def _normal(self, points: Tensor, density: Tensor) -> Tensor:
        kind = self.cfg.normal_type
        if kind == "pred":
            return F.normalize(self._look_up(points, "normal_grid"), dim=-1)
        slope = finite_difference_slope(
            kind, self.forward_density, points, density, eps=NORMAL_STEP, radius=self.cfg.radius
        )
        return -F.normalize(slope, dim=-1)

    def forward_density(self, points: Tensor) -> Tensor:
        """Density (..., 1) at world positions (..., 3)."""
        return self._density(points, self._look_up(points, "grid", DENSITY))

    def forward_level(self, points: Tensor) -> Tensor:
        """The density."""
        return self.forward_density(points)

    def export(self, points: Tensor, **kwargs: Any) -> dict[str, Tensor]:
        """Features at world positions, for texturing: ``features`` (..., n_feature_dims)."""
        if self.cfg.n_feature_dims == 0:
            return {}
        return {"features": self._look_up(points, "grid", FEATURES)}

    def update_step(self, epoch: int, global_step: int, on_load_weights: bool = False) -> None:
        """Follow the smoothing's schedule."""
        self._known.clear()
        self.smoothing = float(C(self.cfg.smoothing, epoch, global_step))


def smoothed(grid: Tensor, std: float, transposed: bool = False) -> Tensor:
    """A grid (1, C, D, H, W) under a Gaussian of so many cells; at the rim, of what is inside.

    ``transposed``: the same of a gradient, from what is smoothed to the grid.
    """
    if std <= 0:
        return grid
    weights = {n: _gaussian(n, std, grid.device).to(grid.dtype) for n in set(grid.shape[2:])}
    z, y, x = (weights[n].T if transposed else weights[n] for n in grid.shape[2:])
    with torch.autocast(grid.device.type, enabled=False):
        mixed = y @ (grid @ x.T)
        return (z @ mixed.flatten(-2)).view(grid.shape)


def _gaussian(n: int, std: float, device: torch.device) -> Tensor:
    """Weights (n, n): row i is how much each cell counts at cell i; rows sum to one."""
    cells = torch.arange(n, device=device, dtype=torch.float32)
    weights = torch.exp(-0.5 * ((cells[:, None] - cells) / std) ** 2)
    return weights / weights.sum(dim=1, keepdim=True)


class _Smoothed(torch.autograd.Function):
    """Values that are known already, with the gradient of the smoothing that they came from."""

    @staticmethod
    def forward(ctx: Any, grid: Tensor, values: Tensor, std: float) -> Tensor:
        ctx.std = std
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return smoothed(gradient, ctx.std, transposed=True), None, None
