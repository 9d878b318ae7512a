"""``implicit-volume``: density and features of space, by a grid encoding and small networks."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from eeg_encoder.errors import InputError
from threestudio_eeg.neural_fields.backends import choose_backend
from threestudio_eeg.neural_fields.fused_field import Evaluation as FusedEvaluation
from threestudio_eeg.neural_fields.networks import (
    apart,
    evaluate_together,
    fused_field,
    get_activation,
    get_encoding,
    get_mlp,
)
from threestudio_eeg.neural_fields.recomputation import Evaluation, Fields
from threestudio_eeg.neural_fields.rows import take_rows

from .isosurface import ImplicitGeometry, contract_to_unit_box
from .normals import FINITE_DIFFERENCES, finite_difference_slope
from .registry import register

NORMAL_TYPES = (None, *FINITE_DIFFERENCES, "pred", "analytic")


@dataclass(frozen=True)
class _VolumeEvaluation:
    """A volume's :class:`Evaluation`: its networks', and what follows from them."""

    volume: ImplicitVolume
    points: Tensor
    raw: FusedEvaluation

    @property
    def values(self) -> Fields:
        return self._fields(self.raw.values)

    def at(self, places: Tensor) -> _VolumeEvaluation:
        return replace(self, points=take_rows(self.points, places), raw=self.raw.at(places))

    def differentiable(self, chunk: int) -> Fields:
        return self._fields(self.raw.differentiable(chunk))

    def _fields(self, out: Tensor) -> Fields:
        networks: tuple[Any, Any] = (self.volume.density_network, self.volume.feature_network)
        return self.volume._fields(*apart(out, *networks), self.points)


@register("implicit-volume")
class ImplicitVolume(ImplicitGeometry):
    """Density and features at points of a cube of half side ``radius``.

    The density is ``activation(network(encoding(x)) + bias(x))``; a blob as bias starts the object
    in the middle (DreamFusion, Magic3D).
    """

    @dataclass
    class Config(ImplicitGeometry.Config):
        isosurface_threshold: Any = 25.0

        n_input_dims: int = 3
        n_feature_dims: int = 3
        density_activation: str | None = "softplus"
        density_bias: Any = "blob_magic3d"
        density_blob_scale: float = 10.0
        density_blob_std: float = 0.5
        pos_encoding_config: dict = field(
            default_factory=lambda: {
                "otype": "HashGrid",
                "n_levels": 16,
                "n_features_per_level": 2,
                "log2_hashmap_size": 19,
                "base_resolution": 16,
                "per_level_scale": 1.447269237440378,
            }
        )
        mlp_network_config: dict = field(
            default_factory=lambda: {
                "otype": "VanillaMLP",
                "activation": "ReLU",
                "output_activation": "none",
                "n_neurons": 64,
                "n_hidden_layers": 1,
            }
        )
        normal_type: str | None = "finite_difference"
        finite_difference_normal_eps: float = 0.01
        anneal_density_blob_std_config: dict | None = None

    where = "implicit-volume"

    def configure(self, *args: Any, **kwargs: Any) -> None:
        super().configure()
        self._check_config()
        cfg = self.cfg
        self.encoding = get_encoding(cfg.n_input_dims, cfg.pos_encoding_config)
        width = self.encoding.n_output_dims
        make = partial(get_mlp, config=cfg.mlp_network_config, once=cfg.normal_type != "analytic")
        self.density_network = make(width, 1)
        if cfg.n_feature_dims > 0:
            self.feature_network = make(width, cfg.n_feature_dims)
        if cfg.normal_type == "pred":
            self.normal_network = make(width, 3)
        self.density_activation = get_activation(cfg.density_activation)
        self.density_blob_std: float = cfg.density_blob_std

    def _check_config(self) -> None:
        cfg, where = self.cfg, self.where
        if cfg.normal_type not in NORMAL_TYPES:
            expected = f"one of {', '.join(str(t or 'null') for t in NORMAL_TYPES)}"
            raise InputError(where, "normal_type", cfg.normal_type, expected)
        if cfg.normal_type == "analytic" and cfg.mlp_network_config.get("backend") == "triton":
            expected = "torch: analytic normals are differentiated twice"
            raise InputError(where, "mlp_network_config.backend", "triton", expected)
        bias = cfg.density_bias
        if isinstance(bias, str) and bias not in ("blob_magic3d", "blob_dreamfusion"):
            expected = "a number, blob_magic3d or blob_dreamfusion"
            raise InputError(where, "density_bias", bias, expected)

    def density_bias(self, points: Tensor) -> Tensor | float:
        """Bias of the raw density at points (N, 3) of the world: (N, 1), or a number."""
        cfg = self.cfg
        if not isinstance(cfg.density_bias, str):
            return float(cfg.density_bias)
        square = (points**2).sum(dim=-1, keepdim=True)
        if cfg.density_bias == "blob_dreamfusion":
            return cfg.density_blob_scale * torch.exp(-0.5 * square / self.density_blob_std**2)
        return cfg.density_blob_scale * (1 - torch.sqrt(square) / self.density_blob_std)

    def _encode(self, points: Tensor) -> Tensor:
        encoded: Tensor = self.encoding(contract_to_unit_box(points, self.bbox))
        return encoded

    def _density(self, points: Tensor, encoded: Tensor) -> Tensor:
        return self._activated(self.density_network(encoded), points)

    def _activated(self, raw: Tensor, points: Tensor) -> Tensor:
        return self.density_activation(raw + self.density_bias(points))

    def forward(self, points: Tensor, output_normal: bool = False) -> dict[str, Tensor]:
        """Evaluate the field.

        Parameters
        ----------
        points
            World positions, (..., 3).
        output_normal
            Whether to add ``normal`` and ``shading_normal``.

        Returns
        -------
        dict
            ``density`` (..., 1), ``features`` (..., n_feature_dims), and the normals (..., 3).
        """
        shape = points.shape[:-1]
        flat = points.reshape(-1, self.cfg.n_input_dims)
        if output_normal and self.cfg.normal_type == "analytic":
            output = self._forward_analytic(flat)
        else:
            output, encoded = self._forward_fields(flat)
            if output_normal and self.cfg.normal_type is not None:
                output["normal"] = self._normal(flat, output["density"], encoded)
        if "normal" in output:
            output["shading_normal"] = output["normal"]
        return {name: value.view(*shape, value.shape[-1]) for name, value in output.items()}

    def _forward_fields(self, points: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        encoded = self._encode(points)
        if self.cfg.n_feature_dims == 0:
            return {"density": self._density(points, encoded)}, encoded
        networks = (self.density_network, self.feature_network)
        return self._fields(*evaluate_together(*networks, encoded), points), encoded

    def _fields(self, raw: Tensor, features: Tensor, points: Tensor) -> dict[str, Tensor]:
        return {"density": self._activated(raw, points), "features": features}

    def evaluation(self, points: Tensor, chunk: int, keep: bool) -> Evaluation | None:
        """Density and features at world positions, where fused kernels can be grid and networks.

        Parameters
        ----------
        points
            Shape (N, 3).
        chunk
            Points at a time.
        keep
            Whether to keep the look-ups for the backward pass, two or four bytes a number.
        """
        if self.cfg.n_feature_dims == 0 or choose_backend(points) != "triton":
            return None
        field = fused_field(self.encoding, self.density_network, self.feature_network)
        if field is None:
            return None
        raw = field.evaluate(contract_to_unit_box(points, self.bbox), chunk, keep)
        return _VolumeEvaluation(self, points, raw)

    def _forward_analytic(self, points: Tensor) -> dict[str, Tensor]:
        keep_graph = torch.is_grad_enabled()
        with torch.enable_grad():
            points = points.detach().requires_grad_() if not points.requires_grad else points
            output, _ = self._forward_fields(points)
            density = output["density"]
            (slope,) = torch.autograd.grad(
                density, points, torch.ones_like(density), create_graph=keep_graph
            )
            output["normal"] = -F.normalize(slope, dim=-1)
        return output if keep_graph else {name: value.detach() for name, value in output.items()}

    def _normal(self, points: Tensor, density: Tensor, encoded: Tensor) -> Tensor:
        if self.cfg.normal_type == "pred":
            return F.normalize(self.normal_network(encoded), dim=-1)
        slope = finite_difference_slope(
            self.cfg.normal_type,
            self.forward_density,
            points,
            density,
            eps=self.cfg.finite_difference_normal_eps,
            radius=self.cfg.radius,
        )
        return -F.normalize(slope, dim=-1)

    def forward_density(self, points: Tensor) -> Tensor:
        """Density (..., 1) at world positions (..., 3)."""
        flat = points.reshape(-1, self.cfg.n_input_dims)
        return self._density(flat, self._encode(flat)).view(*points.shape[:-1], 1)

    def forward_level(self, points: Tensor) -> Tensor:
        """The density."""
        return self.forward_density(points)

    def export(self, points: Tensor, **kwargs: Any) -> dict[str, Tensor]:
        """Features at world positions, for texturing: ``features`` (..., n_feature_dims)."""
        if self.cfg.n_feature_dims == 0:
            return {}
        flat = points.reshape(-1, self.cfg.n_input_dims)
        features = self.feature_network(self._encode(flat))
        return {"features": features.view(*points.shape[:-1], features.shape[-1])}

    def update_step(self, epoch: int, global_step: int, on_load_weights: bool = False) -> None:
        """Follow the annealing of the blob and of the encoding."""
        self.encoding.update_step(epoch, global_step, on_load_weights)
        plan = self.cfg.anneal_density_blob_std_config
        if plan is not None and global_step >= plan["min_anneal_step"]:
            span = plan["max_anneal_step"] - plan["min_anneal_step"]
            passed = min((global_step - plan["min_anneal_step"]) / max(span, 1), 1.0)
            self.density_blob_std = (
                plan["start_val"] + (plan["end_val"] - plan["start_val"]) * passed
            )
