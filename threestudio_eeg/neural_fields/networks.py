"""Encodings and multilayer perceptrons by ``otype``, as threestudio's configs name them.

Parameter names are threestudio's, so that its checkpoints load: an encoding's table is
``encoding.encoding.params``, a network's weights are ``layers.{0,2,...}.weight`` or, where it is
tiny-cuda-nn's, ``network.params``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eeg_encoder.errors import InputError

from . import tinycudann
from .backends import BACKENDS, choose_backend
from .encodings import ENCODINGS
from .fused_field import FusedField
from .perceptron import NETWORKS
from .small_mlp import MAX_OUTPUT, PRECISIONS, WIDTHS, check_sizes, small_mlp

Activation = Callable[[Tensor], Tensor]
AUTO = "auto"
PROGRESSIVE = "ProgressiveBandHashGrid"
VANILLA = "VanillaMLP"


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

    def __init__(self, encoding: tinycudann.Encoding) -> None:
        super().__init__()
        self.encoding = encoding
        self.n_output_dims = encoding.n_output_dims

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

    def __init__(
        self,
        grid: tinycudann.Encoding,
        n_features: int,
        start_level: int,
        start_step: int,
        update_steps: int,
    ) -> None:
        super().__init__(grid)
        self.start_level, self.start_step = start_level, start_step
        self.update_steps = update_steps
        self.n_levels, self.n_features = grid.n_output_dims // n_features, n_features
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
    """Linear layers without bias, ReLU between them, an activation at the end.

    ``backend`` is ``torch`` or ``triton``: one kernel for all layers, :mod:`.small_mlp`, whose
    products are rounded to ``precision``; it cannot be differentiated twice. ``auto`` is the kernel
    on a GPU, if it can take these sizes, and torch elsewhere.
    """

    def __init__(
        self,
        n_input_dims: int,
        n_output_dims: int,
        n_neurons: int = 64,
        n_hidden_layers: int = 1,
        output_activation: str | None = None,
        backend: str = "torch",
        precision: str = "float32",
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
        self.backend, self.precision = backend, precision
        self._check_backend()

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, n_input_dims) to (N, n_output_dims), in single precision under autocast too."""
        with torch.autocast(x.device.type, enabled=False):
            if self._choice(x) == "triton":
                return self.output_activation(small_mlp(x, self._matrices(), self.precision))
            return self.output_activation(self.layers(x))

    def goes_with(self, other: nn.Module) -> bool:
        """Whether one fused kernel can be both: one hidden layer each, and not too many units."""
        if not isinstance(other, VanillaMLP):
            return False
        (first, *more), (second, *others) = self._matrices(), other._matrices()
        if {self._choice(first), other._choice(second)} != {"triton"}:
            return False
        outputs = len(more[-1]) + len(others[-1])
        return (
            self.precision == other.precision
            and len(more) == len(others) == 1
            and first.shape[1] == second.shape[1]
            and len(first) + len(second) in WIDTHS
            and outputs <= MAX_OUTPUT
        )

    def _matrices(self) -> list[Tensor]:
        return [layer.weight for layer in self.layers if isinstance(layer, nn.Linear)]

    def _choice(self, x: Tensor) -> str:
        return choose_backend(x, None if self.backend == AUTO else self.backend)

    def _check_backend(self) -> None:
        where = "mlp_network_config"
        for known, field in (((*BACKENDS, AUTO), "backend"), (PRECISIONS, "precision")):
            if getattr(self, field) not in known:
                expected = f"one of {', '.join(known)}"
                raise InputError(where, field, getattr(self, field), expected)
        if self.backend == "torch":
            return
        try:
            check_sizes([tuple(matrix.shape) for matrix in self._matrices()])
        except InputError:
            if self.backend == "triton":
                raise
            self.backend = "torch"


def evaluate_together(one: nn.Module, other: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Both networks' outputs at x (N, D): in one kernel where they are fused, else one by one.

    The one kernel is a network with the hidden units of both, each connected to its own outputs. So
    x is read once, and its gradient written once.
    """
    pair = _as_one(one, other)
    if pair is None:
        return one(x), other(x)
    with torch.autocast(x.device.type, enabled=False):
        return apart(small_mlp(x, _joined(*pair), pair[0].precision), *pair)


def apart(out: Tensor, one: VanillaMLP, other: VanillaMLP) -> tuple[Tensor, Tensor]:
    """Outputs (N, O) of the two networks as one, given to each, through its activation."""
    part, part_other = out.split([len(net._matrices()[-1]) for net in (one, other)], dim=1)
    return one.output_activation(part), other.output_activation(part_other)


def _as_one(one: nn.Module, other: nn.Module) -> tuple[VanillaMLP, VanillaMLP] | None:
    """Both networks, where one fused kernel can be both."""
    if isinstance(one, VanillaMLP) and isinstance(other, VanillaMLP) and one.goes_with(other):
        return one, other
    return None


def _joined(one: VanillaMLP, other: VanillaMLP) -> list[Tensor]:
    """Matrices of a network with the hidden units of both."""
    (first, last), (first_other, last_other) = one._matrices(), other._matrices()
    return [torch.cat((first, first_other)), torch.block_diag(last, last_other)]


def fused_field(encoding: CompositeEncoding, one: nn.Module, other: nn.Module) -> FusedField | None:
    """The networks behind the encoding as one function, where the fused kernels can be both."""
    codec = encoding.encoding.encoding
    layout = None if encoding.include_xyz or codec.dtype != torch.float32 else codec.layout
    pair = _as_one(one, other)
    if layout is None or not layout.has_kernels or pair is None:
        return None
    with torch.enable_grad(), torch.autocast(codec.params.device.type, enabled=False):
        first, last = _joined(*pair)
        if isinstance(encoding.encoding, ProgressiveBandHashGrid):
            first = first * encoding.encoding.mask
    return FusedField(layout, codec.params, [first, last], pair[0].precision)


class FlatMLP(nn.Module):
    """tiny-cuda-nn's perceptron, its output in single precision."""

    def __init__(self, n_input_dims: int, n_output_dims: int, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.network = tinycudann.Network(
            n_input_dims, n_output_dims, config, seed=None, dtype=torch.float32, device="cpu"
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, n_input_dims) to (N, n_output_dims)."""
        output: Tensor = self.network(x)
        return output


def get_encoding(n_input_dims: int, config: Mapping[str, Any]) -> CompositeEncoding:
    """Build the encoding that ``config["otype"]`` names: tiny-cuda-nn's, or a progressive grid.

    Raises
    ------
    InputError
        When the name is unknown or a size is out of range.
    """
    encoding: _Encoding
    if config.get("otype") == PROGRESSIVE:
        schedule = (config["start_level"], config["start_step"], config["update_steps"])
        grid = _codec(n_input_dims, {**config, "otype": "HashGrid"})
        n_features = config.get("n_features_per_level", 2)
        encoding = ProgressiveBandHashGrid(grid, n_features, *schedule)
    else:
        if config.get("otype") not in ENCODINGS:
            expected = f"one of {', '.join((*ENCODINGS, PROGRESSIVE))}"
            raise InputError("encoding config", "otype", config.get("otype"), expected)
        encoding = _Encoding(_codec(n_input_dims, config))
    return CompositeEncoding(encoding, n_input_dims, bool(config.get("include_xyz", False)))


def _codec(n_input_dims: int, config: Mapping[str, Any]) -> tinycudann.Encoding:
    return tinycudann.Encoding(n_input_dims, config, None, torch.float32, device="cpu")


def get_mlp(
    n_input_dims: int, n_output_dims: int, config: Mapping[str, Any], *, once: bool = True
) -> VanillaMLP | FlatMLP:
    """Build the network that ``config["otype"]`` names: ``VanillaMLP``, or tiny-cuda-nn's.

    ``once`` says that it is differentiated once at most; else the backend ``auto`` is torch.

    Raises
    ------
    InputError
        When the name or the hidden activation is unknown.
    """
    otype = config.get("otype")
    if otype in NETWORKS:
        return FlatMLP(n_input_dims, n_output_dims, config)
    if otype != VANILLA:
        expected = f"one of {', '.join((VANILLA, *NETWORKS))}"
        raise InputError("mlp_network_config", "otype", otype, expected)
    activation = config.get("activation", "ReLU")
    if activation != "ReLU":
        raise InputError("mlp_network_config", "activation", activation, "ReLU")
    backend = config.get("backend", "torch")
    return VanillaMLP(
        n_input_dims,
        n_output_dims,
        config.get("n_neurons", 64),
        config.get("n_hidden_layers", 1),
        config.get("output_activation"),
        "torch" if backend == AUTO and not once else backend,
        config.get("precision", "float32"),
    )
