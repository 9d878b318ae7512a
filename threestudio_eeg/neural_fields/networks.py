"""Encodings and multilayer perceptrons by ``otype``, as threestudio's configs name them.

Parameter names are threestudio's, so that its checkpoints load: an encoding's table is
``encoding.encoding.params``, a network's weights are ``layers.{0,2,...}.weight``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eeg_encoder.errors import InputError

from .hash_grid import HashGrid

Activation = Callable[[Tensor], Tensor]
GRID_FIELDS = (
    "n_levels",
    "n_features_per_level",
    "log2_hashmap_size",
    "base_resolution",
    "per_level_scale",
)
MAX_SH_DEGREE = 4


class _TruncatedExp(torch.autograd.Function):
    """exp whose gradient is capped at exp(15), so that one dense point cannot blow up a step."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.exp(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return gradients[0] * torch.exp(x.clamp(max=15))


ACTIVATIONS: dict[str, Activation] = {
    "none": lambda x: x,
    "exp": torch.exp,
    "shifted_exp": lambda x: torch.exp(x - 1),
    "trunc_exp": _TruncatedExp.apply,
    "shifted_trunc_exp": lambda x: _TruncatedExp.apply(x - 1),
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "relu": F.relu,
    "softplus": F.softplus,
    "shifted_softplus": lambda x: F.softplus(x - 1),
    "scale_-11_01": lambda x: x * 0.5 + 0.5,
}


def get_activation(name: str | None) -> Activation:
    """Activation by threestudio's name; ``None`` is the identity.

    Raises
    ------
    InputError
        When the name is unknown.
    """
    key = "none" if name is None else name.lower()
    if key not in ACTIVATIONS:
        raise InputError("config", "activation", name, f"one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[key]


class _Encoding(nn.Module):
    """Holds a codec under the attribute ``encoding``, as threestudio's wrapper does."""

    def __init__(self, encoding: nn.Module, n_output_dims: int) -> None:
        super().__init__()
        self.encoding = encoding
        self.n_output_dims = n_output_dims

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.encoding(x)
        return output

    def update_step(self, epoch: int, global_step: int, on_load_weights: bool = False) -> None:
        """Nothing here depends on the step."""


class ProgressiveBandHashGrid(_Encoding):
    """Hash grid whose levels are switched on one after the other.

    Parameters
    ----------
    start_level, start_step, update_steps
        Levels open at first; step at which the count starts; steps per further level.
    """

    mask: Tensor

    def __init__(self, grid: HashGrid, start_level: int, start_step: int, update_steps: int):
        super().__init__(grid, grid.n_output_dims)
        self.start_level, self.start_step = start_level, start_step
        self.update_steps = update_steps
        self.n_levels, self.n_features = grid.n_levels, grid.n_features_per_level
        self.register_buffer("mask", torch.zeros(grid.n_output_dims), persistent=False)
        self.update_step(0, 0)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.encoding(x)
        return output * self.mask

    def update_step(self, epoch: int, global_step: int, on_load_weights: bool = False) -> None:
        """Open the levels that belong to ``global_step``."""
        opened = max(global_step - self.start_step, 0) // self.update_steps
        level = min(self.start_level + opened, self.n_levels)
        self.mask.zero_()
        self.mask[: level * self.n_features] = 1


class SphericalHarmonics(nn.Module):
    """Real spherical harmonics of directions given in [0, 1], in tiny-cuda-nn's order and signs.

    Parameters
    ----------
    degree
        Number of bands, 1 to 4; the output has ``degree ** 2`` numbers.
    """

    def __init__(self, degree: int = 4) -> None:
        super().__init__()
        if not 1 <= degree <= MAX_SH_DEGREE:
            raise InputError("config", "degree", degree, f"1 to {MAX_SH_DEGREE}")
        self.degree = degree
        self.n_output_dims = degree**2
        self.params = nn.Parameter(torch.empty(0))

    def forward(self, directions: Tensor) -> Tensor:
        """Encode (N, 3) in [0, 1], meaning [-1, 1], to (N, degree ** 2)."""
        x, y, z = (directions * 2 - 1).unbind(-1)
        xx, yy, zz = x * x, y * y, z * z
        bands = [torch.full_like(x, 0.28209479177387814)]
        if self.degree > 1:
            bands += [-0.4886025119029199 * y, 0.4886025119029199 * z, -0.4886025119029199 * x]
        if self.degree > 2:
            bands += [
                1.0925484305920792 * x * y,
                -1.0925484305920792 * y * z,
                0.94617469575756 * zz - 0.31539156525252,
                -1.0925484305920792 * x * z,
                0.5462742152960396 * (xx - yy),
            ]
        if self.degree > 3:
            bands += [
                0.5900435899266435 * y * (yy - 3 * xx),
                2.890611442640554 * x * y * z,
                0.4570457994644657 * y * (1 - 5 * zz),
                0.3731763325901154 * z * (5 * zz - 3),
                0.4570457994644657 * x * (1 - 5 * zz),
                1.445305721320277 * z * (xx - yy),
                0.5900435899266435 * x * (3 * yy - xx),
            ]
        return torch.stack(bands, dim=-1)


class Frequency(nn.Module):
    """Sines and cosines of ``2**k * pi * x``, ordered by dimension, frequency, (sin, cos)."""

    frequencies: Tensor

    def __init__(self, n_input_dims: int, n_frequencies: int = 12) -> None:
        super().__init__()
        self.n_output_dims = n_input_dims * n_frequencies * 2
        self.params = nn.Parameter(torch.empty(0))
        scale = 2.0 ** torch.arange(n_frequencies) * math.pi
        self.register_buffer("frequencies", scale, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Encode (N, D) to (N, D * n_frequencies * 2)."""
        angle = x[..., None] * self.frequencies
        return torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(-3)


class CompositeEncoding(nn.Module):
    """An encoding, with the position itself in front when ``include_xyz``."""

    def __init__(
        self,
        encoding: _Encoding,
        n_input_dims: int,
        include_xyz: bool = False,
        xyz_scale: float = 2.0,
        xyz_offset: float = -1.0,
    ) -> None:
        super().__init__()
        self.encoding = encoding
        self.include_xyz, self.xyz_scale, self.xyz_offset = include_xyz, xyz_scale, xyz_offset
        self.n_input_dims = n_input_dims
        self.n_output_dims = encoding.n_output_dims + (n_input_dims if include_xyz else 0)

    def forward(self, x: Tensor) -> Tensor:
        """Encode (N, n_input_dims) in [0, 1] to (N, n_output_dims)."""
        encoded: Tensor = self.encoding(x)
        if not self.include_xyz:
            return encoded
        return torch.cat((x * self.xyz_scale + self.xyz_offset, encoded), dim=-1)

    def update_step(self, epoch: int, global_step: int, on_load_weights: bool = False) -> None:
        """Pass the step on to the encoding."""
        self.encoding.update_step(epoch, global_step, on_load_weights)


class VanillaMLP(nn.Module):
    """Linear layers without bias, ReLU between them, an activation at the end."""

    def __init__(
        self,
        n_input_dims: int,
        n_output_dims: int,
        n_neurons: int = 64,
        n_hidden_layers: int = 1,
        output_activation: str | None = None,
    ) -> None:
        super().__init__()
        if n_hidden_layers < 1:
            raise InputError("mlp_network_config", "n_hidden_layers", n_hidden_layers, "1 or more")
        widths = [n_input_dims] + [n_neurons] * n_hidden_layers
        layers: list[nn.Module] = []
        for inner, outer in zip(widths, widths[1:], strict=False):
            layers += [nn.Linear(inner, outer, bias=False), nn.ReLU(inplace=True)]
        layers.append(nn.Linear(widths[-1], n_output_dims, bias=False))
        self.layers = nn.Sequential(*layers)
        self.output_activation = get_activation(output_activation)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, n_input_dims) to (N, n_output_dims), in single precision under autocast too."""
        with torch.autocast(x.device.type, enabled=False):
            return self.output_activation(self.layers(x))


def _hash_grid(n_input_dims: int, config: Mapping[str, Any]) -> HashGrid:
    if n_input_dims != 3:
        raise InputError("pos_encoding_config", "n_input_dims", n_input_dims, "3 for a HashGrid")
    return HashGrid(**{key: config[key] for key in GRID_FIELDS if key in config})


def _plain_hash_grid(n_input_dims: int, config: Mapping[str, Any]) -> _Encoding:
    grid = _hash_grid(n_input_dims, config)
    return _Encoding(grid, grid.n_output_dims)


def _progressive_hash_grid(n_input_dims: int, config: Mapping[str, Any]) -> _Encoding:
    schedule = (config["start_level"], config["start_step"], config["update_steps"])
    return ProgressiveBandHashGrid(_hash_grid(n_input_dims, config), *schedule)


def _spherical_harmonics(n_input_dims: int, config: Mapping[str, Any]) -> _Encoding:
    codec = SphericalHarmonics(config.get("degree", 4))
    return _Encoding(codec, codec.n_output_dims)


def _frequency(n_input_dims: int, config: Mapping[str, Any]) -> _Encoding:
    codec = Frequency(n_input_dims, config.get("n_frequencies", 12))
    return _Encoding(codec, codec.n_output_dims)


ENCODINGS: dict[str, Callable[[int, Mapping[str, Any]], _Encoding]] = {
    "HashGrid": _plain_hash_grid,
    "ProgressiveBandHashGrid": _progressive_hash_grid,
    "SphericalHarmonics": _spherical_harmonics,
    "Frequency": _frequency,
}
MLPS = ("VanillaMLP", "FullyFusedMLP", "CutlassMLP")


def get_encoding(n_input_dims: int, config: Mapping[str, Any]) -> CompositeEncoding:
    """Build the encoding that ``config["otype"]`` names.

    Raises
    ------
    InputError
        When the name is unknown or a size is out of range.
    """
    otype = config.get("otype")
    if otype not in ENCODINGS:
        expected = f"one of {', '.join(ENCODINGS)}"
        raise InputError("encoding config", "otype", otype, expected)
    encoding = ENCODINGS[otype](n_input_dims, config)
    return CompositeEncoding(encoding, n_input_dims, bool(config.get("include_xyz", False)))


def get_mlp(n_input_dims: int, n_output_dims: int, config: Mapping[str, Any]) -> VanillaMLP:
    """Build the network that ``config["otype"]`` names; all names give the same torch network.

    Raises
    ------
    InputError
        When the name or the hidden activation is unknown.
    """
    otype = config.get("otype")
    if otype not in MLPS:
        raise InputError("mlp_network_config", "otype", otype, f"one of {', '.join(MLPS)}")
    activation = config.get("activation", "ReLU")
    if activation != "ReLU":
        raise InputError("mlp_network_config", "activation", activation, "ReLU")
    return VanillaMLP(
        n_input_dims,
        n_output_dims,
        config.get("n_neurons", 64),
        config.get("n_hidden_layers", 1),
        config.get("output_activation"),
    )
