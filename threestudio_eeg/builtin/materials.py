"""Materials: from the geometry's features to colour."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from eeg_encoder.errors import InputError
from threestudio_eeg.neural_fields.networks import get_activation, get_mlp

from .base import BaseModule
from .registry import register


@register("no-material")
class NoMaterial(BaseModule):
    """Features are colours, through an activation and perhaps a network."""

    @dataclass
    class Config(BaseModule.Config):
        n_output_dims: int = 3
        color_activation: str = "sigmoid"
        input_feature_dims: int | None = None
        mlp_network_config: dict | None = None
        requires_normal: bool = False

    def configure(self, *args: Any, **kwargs: Any) -> None:
        cfg = self.cfg
        self.activation = get_activation(cfg.color_activation)
        self.requires_normal: bool = cfg.requires_normal
        self.use_network = cfg.input_feature_dims is not None and cfg.mlp_network_config is not None
        if self.use_network:
            self.network = get_mlp(
                cfg.input_feature_dims, cfg.n_output_dims, cfg.mlp_network_config
            )

    def forward(self, features: Tensor, **kwargs: Any) -> Tensor:
        """Colour (..., n_output_dims) of features (..., F)."""
        n_output = self.cfg.n_output_dims
        if self.use_network:
            flat = self.network(features.reshape(-1, features.shape[-1]))
            return self.activation(flat).view(*features.shape[:-1], n_output)
        if features.shape[-1] != n_output:
            expected = f"n_output_dims = {n_output}, or a network"
            raise InputError("no-material", "features", features.shape[-1], expected)
        return self.activation(features)

    def export(self, features: Tensor, **kwargs: Any) -> dict[str, Tensor]:
        """``albedo`` (..., 3), clipped to [0, 1]."""
        return {"albedo": self(features)[..., :3].clamp(0, 1)}


@register("diffuse-with-point-light-material")
class DiffuseWithPointLightMaterial(BaseModule):
    """Lambertian shading under one point light, or the albedo alone, or white clay.

    In training the shading is drawn anew for each call, once for the whole batch (DreamFusion).
    """

    @dataclass
    class Config(BaseModule.Config):
        ambient_light_color: tuple[float, float, float] = (0.1, 0.1, 0.1)
        diffuse_light_color: tuple[float, float, float] = (0.9, 0.9, 0.9)
        ambient_only_steps: int = 1000
        diffuse_prob: float = 0.75
        textureless_prob: float = 0.5
        albedo_activation: str = "sigmoid"
        soft_shading: bool = False
        ambient_only_on_test: bool = False

    ambient_light_color: Tensor
    diffuse_light_color: Tensor

    def configure(self, *args: Any, **kwargs: Any) -> None:
        self.requires_normal = True
        self.activation = get_activation(self.cfg.albedo_activation)
        for name in ("ambient_light_color", "diffuse_light_color"):
            value = torch.tensor(list(self.cfg[name]), dtype=torch.float32)
            self.register_buffer(name, value)
        self.ambient_only = False

    def forward(
        self,
        features: Tensor,
        positions: Tensor,
        shading_normal: Tensor,
        light_positions: Tensor,
        ambient_ratio: float | None = None,
        shading: str | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Colour (..., 3).

        Parameters
        ----------
        features
            Albedo before its activation, (..., >= 3).
        positions, shading_normal, light_positions
            World vectors, (..., 3).
        ambient_ratio
            Share of ambient light; the rest is diffuse.
        shading
            ``albedo``, ``diffuse`` or ``textureless``; drawn when not given.
        """
        albedo = self.activation(features[..., :3])
        shading = shading or self._choose_shading()
        if shading == "albedo":
            return albedo
        ambient, diffuse = self._light_colours(ambient_ratio)
        to_light = F.normalize(light_positions - positions, dim=-1)
        cosine = (shading_normal * to_light).sum(-1, keepdim=True).clamp(min=0)
        light = cosine * diffuse + ambient
        if shading == "textureless":
            return light + albedo * 0
        if shading == "diffuse":
            return albedo * light.clamp(0, 1)
        raise InputError("material", "shading", shading, "albedo, diffuse or textureless")

    def _light_colours(self, ambient_ratio: float | None) -> tuple[Tensor, Tensor]:
        ambient, diffuse = self.ambient_light_color, self.diffuse_light_color
        if ambient_ratio is None and self.training and self.cfg.soft_shading:
            ambient_ratio = 1 - _draw()
        if ambient_ratio is None:
            return ambient, diffuse
        return (
            torch.full_like(ambient, ambient_ratio),
            torch.full_like(diffuse, 1 - ambient_ratio),
        )

    def _choose_shading(self) -> str:
        if not self.training:
            flat = self.ambient_only or self.cfg.ambient_only_on_test
            return "albedo" if flat else "diffuse"
        if self.ambient_only or _draw() > self.cfg.diffuse_prob:
            return "albedo"
        return "textureless" if _draw() < self.cfg.textureless_prob else "diffuse"

    def export(self, features: Tensor, **kwargs: Any) -> dict[str, Tensor]:
        """``albedo`` (..., 3), clipped to [0, 1]."""
        return {"albedo": self.activation(features[..., :3]).clamp(0, 1)}

    def update_step(self, epoch: int, global_step: int, on_load_weights: bool = False) -> None:
        """Show the albedo alone for the first ``ambient_only_steps``."""
        self.ambient_only = global_step < self.cfg.ambient_only_steps


def _draw() -> float:
    return float(torch.rand(()))
