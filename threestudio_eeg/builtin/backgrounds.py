"""Backgrounds: the colour behind the object, by viewing direction."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from threestudio_eeg.neural_fields.networks import get_activation, get_encoding, get_mlp

from .base import BaseModule
from .registry import register


def flatten_some(colour: Tensor, probability: float) -> Tensor:
    """Replace whole pictures of (B, ..., C) by one uniform random colour each.

    The replaced ones keep a gradient of zero, so that the parameters behind stay in the graph.
    """
    spread = (len(colour),) + (1,) * (colour.dim() - 2)
    flat = torch.rand(*spread, colour.shape[-1]).to(colour)
    chosen = torch.rand(*spread, 1).to(colour.device) < probability
    return torch.where(chosen, colour * 0 + flat, colour)


@register("solid-color-background")
class SolidColorBackground(BaseModule):
    """One colour, fixed or learned."""

    @dataclass
    class Config(BaseModule.Config):
        n_output_dims: int = 3
        color: Any = (1.0, 1.0, 1.0)
        learned: bool = False
        random_aug: bool = False
        random_aug_prob: float = 0.5

    env_color: Tensor

    def configure(self, *args: Any, **kwargs: Any) -> None:
        colour = torch.tensor(list(self.cfg.color), dtype=torch.float32)
        if self.cfg.learned:
            self.env_color = nn.Parameter(colour)
        else:
            self.register_buffer("env_color", colour)

    def forward(self, dirs: Tensor) -> Tensor:
        """Colour (B, ..., n_output_dims) for directions (B, ..., 3)."""
        colour = self.env_color.expand(*dirs.shape[:-1], self.cfg.n_output_dims)
        if self.training and self.cfg.random_aug:
            colour = flatten_some(colour, self.cfg.random_aug_prob)
        return colour


@register("neural-environment-map-background")
class NeuralEnvironmentMapBackground(BaseModule):
    """A small network over spherical harmonics of the direction."""

    @dataclass
    class Config(BaseModule.Config):
        n_output_dims: int = 3
        color_activation: str = "sigmoid"
        dir_encoding_config: dict = field(
            default_factory=lambda: {"otype": "SphericalHarmonics", "degree": 3}
        )
        mlp_network_config: dict = field(
            default_factory=lambda: {
                "otype": "VanillaMLP",
                "activation": "ReLU",
                "n_neurons": 16,
                "n_hidden_layers": 2,
            }
        )
        random_aug: bool = False
        random_aug_prob: float = 0.5
        eval_color: Any = None

    def configure(self, *args: Any, **kwargs: Any) -> None:
        cfg = self.cfg
        self.encoding = get_encoding(3, cfg.dir_encoding_config)
        self.network = get_mlp(
            self.encoding.n_output_dims, cfg.n_output_dims, cfg.mlp_network_config
        )
        self.activation = get_activation(cfg.color_activation)

    def forward(self, dirs: Tensor) -> Tensor:
        """Colour (B, ..., n_output_dims) for unit directions (B, ..., 3)."""
        cfg = self.cfg
        shape = (*dirs.shape[:-1], cfg.n_output_dims)
        if not self.training and cfg.eval_color is not None:
            return torch.tensor(list(cfg.eval_color)).to(dirs).expand(shape)
        encoded = self.encoding((dirs.reshape(-1, 3) + 1) / 2)
        colour = self.activation(self.network(encoded)).view(shape)
        if self.training and cfg.random_aug:
            colour = flatten_some(colour, cfg.random_aug_prob)
        return colour

    def update_step(self, epoch: int, global_step: int, on_load_weights: bool = False) -> None:
        """Follow the encoding's own schedule."""
        self.encoding.update_step(epoch, global_step, on_load_weights)
