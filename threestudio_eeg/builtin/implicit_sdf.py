"""``implicit-sdf``: a signed distance field, by a grid encoding and small networks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from eeg_encoder.errors import InputError
from threestudio_eeg.neural_fields.networks import get_encoding, get_mlp

from .geometry import ImplicitVolume
from .isosurface import ImplicitGeometry, contract_to_unit_box
from .normals import FINITE_DIFFERENCES, finite_difference_slope
from .registry import register
from .shapes import distance_from

NORMAL_TYPES = ("pred", "analytic", *FINITE_DIFFERENCES)
SHAPES = ("ellipsoid", "sphere")
INIT_STEPS = 1000
INIT_POINTS = 10_000
INIT_RATE = 1e-3


@register("implicit-sdf")
class ImplicitSDF(ImplicitGeometry):
    """Signed distance (negative inside) and features in a cube of half side ``radius``.

    The distance is ``network(encoding(x)) + bias(x)``; ``sdf_bias: sphere`` or ``ellipsoid`` starts
    with that shape at once, ``shape_init`` trains the network to it first.
    """

    @dataclass
    class Config(ImplicitGeometry.Config):
        isosurface_threshold: Any = 0.0
        isosurface_remove_outliers: bool = False
        n_input_dims: int = 3
        n_feature_dims: int = 3
        pos_encoding_config: dict = field(
            default_factory=lambda: ImplicitVolume.Config().pos_encoding_config
        )
        mlp_network_config: dict = field(
            default_factory=lambda: ImplicitVolume.Config().mlp_network_config
        )
        normal_type: str | None = "finite_difference"
        finite_difference_normal_eps: Any = 0.01
        shape_init: str | None = None
        shape_init_params: Any = None
        shape_init_mesh_up: str = "+z"
        shape_init_mesh_front: str = "+x"
        force_shape_init: bool = False
        sdf_bias: Any = 0.0
        sdf_bias_params: Any = None

    level_sign = -1
    where = "implicit-sdf"

    def configure(self, *args: Any, **kwargs: Any) -> None:
        super().configure()
        cfg = self.cfg
        self._check_config()
        self._bias = self._make_bias()
        self.encoding = get_encoding(cfg.n_input_dims, cfg.pos_encoding_config)
        width = self.encoding.n_output_dims
        make = partial(get_mlp, config=cfg.mlp_network_config, once=False)
        self.sdf_network = make(width, 1)
        if cfg.n_feature_dims > 0:
            self.feature_network = make(width, cfg.n_feature_dims)
        if cfg.normal_type == "pred":
            self.normal_network = make(width, 3)
        self.finite_difference_normal_eps = self._eps(0)

    def _check_config(self) -> None:
        cfg = self.cfg
        if cfg.normal_type not in NORMAL_TYPES:
            expected = f"one of {', '.join(NORMAL_TYPES)}"
            raise InputError(self.where, "normal_type", cfg.normal_type, expected)
        eps = cfg.finite_difference_normal_eps
        if isinstance(eps, str):
            if eps != "progressive":
                expected = "a number or progressive"
                raise InputError(self.where, "finite_difference_normal_eps", eps, expected)
            otype = cfg.pos_encoding_config.get("otype")
            if otype != "ProgressiveBandHashGrid":
                expected = "ProgressiveBandHashGrid, with finite_difference_normal_eps: progressive"
                raise InputError(self.where, "pos_encoding_config.otype", otype, expected)
        if cfg.shape_init is not None and cfg.shape_init not in SHAPES:
            expected = f"null, {' or '.join(SHAPES)} (a mesh: run it on upstream threestudio)"
            raise InputError(self.where, "shape_init", cfg.shape_init, expected)

    def _make_bias(self) -> Callable[[Tensor], Tensor] | float:
        bias = self.cfg.sdf_bias
        if not isinstance(bias, str):
            return float(bias)
        return distance_from(bias, self.cfg.sdf_bias_params, self.where, "sdf_bias")

    def initialize_shape(self) -> None:
        """Train the distance to ``shape_init``, unless weights were loaded."""
        cfg = self.cfg
        if cfg.shape_init is None or (cfg.weights is not None and not cfg.force_shape_init):
            return
        from rich.progress import track

        shape = distance_from(cfg.shape_init, cfg.shape_init_params, self.where, "shape_init")
        optimizer = torch.optim.Adam(self.parameters(), lr=INIT_RATE)
        for _ in track(range(INIT_STEPS), description=f"shape: {cfg.shape_init}", transient=True):
            points = torch.rand(INIT_POINTS, 3, device=self.bbox.device) * 2 - 1
            loss = F.mse_loss(self.forward_sdf(points), shape(points))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    def _encode(self, points: Tensor) -> Tensor:
        flat = contract_to_unit_box(points, self.bbox).reshape(-1, self.cfg.n_input_dims)
        encoded: Tensor = self.encoding(flat)
        return encoded.view(*points.shape[:-1], encoded.shape[-1])

    def _sdf(self, points: Tensor, encoded: Tensor) -> Tensor:
        bias = self._bias if isinstance(self._bias, float) else self._bias(points)
        return self._each(self.sdf_network, encoded) + bias

    @staticmethod
    def _each(network: Any, encoded: Tensor) -> Tensor:
        value = network(encoded.reshape(-1, encoded.shape[-1]))
        return value.view(*encoded.shape[:-1], value.shape[-1])

    def forward(self, points: Tensor, output_normal: bool = False) -> dict[str, Tensor]:
        """Evaluate the field at world positions (..., 3).

        Returns
        -------
        dict
            ``sdf`` (..., 1), ``features`` (..., F); with ``output_normal`` also ``sdf_grad``,
            ``normal`` and ``shading_normal`` (..., 3), pointing outwards.
        """
        if output_normal and self.cfg.normal_type == "analytic":
            return self._forward_analytic(points)
        output, encoded = self._forward_fields(points)
        if output_normal:
            output.update(self._normals(points, output["sdf"], encoded))
        return output

    def _forward_fields(self, points: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        encoded = self._encode(points)
        output = {"sdf": self._sdf(points, encoded)}
        if self.cfg.n_feature_dims > 0:
            output["features"] = self._each(self.feature_network, encoded)
        return output, encoded

    def _forward_analytic(self, points: Tensor) -> dict[str, Tensor]:
        keep_graph = torch.is_grad_enabled()
        with torch.enable_grad():
            points = points if points.requires_grad else points.detach().requires_grad_()
            output, _ = self._forward_fields(points)
            sdf = output["sdf"]
            (slope,) = torch.autograd.grad(
                sdf, points, torch.ones_like(sdf), create_graph=keep_graph
            )
        output.update(_with_normal(slope))
        return output if keep_graph else {name: value.detach() for name, value in output.items()}

    def _normals(self, points: Tensor, sdf: Tensor, encoded: Tensor) -> dict[str, Tensor]:
        kind = self.cfg.normal_type
        if kind == "pred":
            return _with_normal(F.normalize(self._each(self.normal_network, encoded), dim=-1))
        slope = finite_difference_slope(
            kind,
            self.forward_sdf,
            points,
            sdf,
            eps=self.finite_difference_normal_eps,
            radius=self.cfg.radius,
        )
        return _with_normal(slope)

    def forward_sdf(self, points: Tensor) -> Tensor:
        """Signed distance (..., 1) at world positions (..., 3)."""
        return self._sdf(points, self._encode(points))

    def forward_level(self, points: Tensor) -> Tensor:
        """The distance with its sign turned: positive inside."""
        return -self.forward_sdf(points)

    def _threshold(self, level: Tensor) -> float:
        if self.cfg.isosurface_threshold == "auto":
            raise InputError(self.where, "isosurface_threshold", "auto", "a signed distance")
        return -float(self.cfg.isosurface_threshold)

    def export(self, points: Tensor, **kwargs: Any) -> dict[str, Tensor]:
        """Features at world positions, for texturing: ``features`` (..., n_feature_dims)."""
        if self.cfg.n_feature_dims == 0:
            return {}
        return {"features": self._each(self.feature_network, self._encode(points))}

    def _eps(self, global_step: int) -> float:
        """Step of the finite differences; progressive: a cell of the finest active level
        (Neuralangelo, Li et al. 2023)."""
        eps = self.cfg.finite_difference_normal_eps
        if not isinstance(eps, str):
            return float(eps)
        grid = self.cfg.pos_encoding_config
        passed = max(global_step - grid["start_step"], 0) // grid["update_steps"]
        level = min(grid["start_level"] + passed, grid["n_levels"])
        resolution = grid["base_resolution"] * grid["per_level_scale"] ** (level - 1)
        return 2 * self.cfg.radius / resolution

    def update_step(self, epoch: int, global_step: int, on_load_weights: bool = False) -> None:
        """Follow the encoding's levels and the step of the finite differences."""
        self.encoding.update_step(epoch, global_step, on_load_weights)
        self.finite_difference_normal_eps = self._eps(global_step)


def _with_normal(slope: Tensor) -> dict[str, Tensor]:
    normal = F.normalize(slope, dim=-1)
    return {"sdf_grad": slope, "normal": normal, "shading_normal": normal}
