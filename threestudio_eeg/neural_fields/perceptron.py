"""Multilayer perceptrons on a flat parameter vector, in tiny-cuda-nn's layout.

No biases. The matrices follow each other from first to last layer, each row-major and (outputs,
inputs). Inputs and outputs are padded to a multiple of 16: what the padding of an input holds is up
to the encoding in front, and padded outputs are cut off.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from eeg_encoder.errors import InputError

from .encoding_config import Config, choice, integer
from .encodings import next_multiple

Activation = Callable[[Tensor], Tensor]
ALIGNMENT = 16
FUSED_WIDTHS = (16, 32, 64, 128)
SHARPNESS = 10.0
LEAK = 0.01
SIREN_FREQUENCY = 30.0
NETWORKS = {
    "FullyFusedMLP": "FullyFusedMLP",
    "MegakernelMLP": "FullyFusedMLP",
    "CutlassMLP": "CutlassMLP",
    "MLP": "CutlassMLP",
}


def _squareplus(x: Tensor) -> Tensor:
    sharp = x * SHARPNESS
    return (sharp + torch.sqrt(sharp * sharp + 4)) / (2 * SHARPNESS)


ACTIVATIONS: dict[str, Activation] = {
    "None": lambda x: x,
    "ReLU": F.relu,
    "LeakyReLU": lambda x: F.leaky_relu(x, LEAK),
    "SiLU": F.silu,
    "Exponential": torch.exp,
    "Sine": torch.sin,
    "Sigmoid": torch.sigmoid,
    "Squareplus": _squareplus,
    "Softplus": lambda x: F.softplus(x, beta=SHARPNESS),
    "Tanh": torch.tanh,
}


@dataclass(frozen=True)
class Perceptron:
    """A network without its parameters.

    Attributes
    ----------
    n_input_dims
        Width of the input, a multiple of 16.
    n_output_dims
        Width of the output.
    n_neurons, n_hidden_layers
        Width and number of hidden layers; without hidden layers, one matrix.
    activation, output_activation
        tiny-cuda-nn's names.
    """

    n_input_dims: int
    n_output_dims: int
    n_neurons: int
    n_hidden_layers: int
    activation: str
    output_activation: str

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """Shapes of the matrices, (outputs, inputs)."""
        widths = [self.n_input_dims] + [self.n_neurons] * self.n_hidden_layers
        widths.append(next_multiple(self.n_output_dims, ALIGNMENT))
        return list(zip(widths[1:], widths, strict=False))

    @property
    def n_params(self) -> int:
        """Length of the flat parameter vector."""
        return sum(rows * columns for rows, columns in self.shapes)

    def initial_params(self, generator: torch.Generator | None = None) -> Tensor:
        """Xavier's uniform weights, SIREN's where the activation is a sine."""
        parts = []
        for layer, (rows, columns) in enumerate(self.shapes):
            bound = math.sqrt(6 / (rows + columns))
            if self.activation == "Sine":
                bound = SIREN_FREQUENCY / columns if layer == 0 else math.sqrt(6 / columns)
            weights = torch.empty(rows * columns)
            parts.append(weights.uniform_(-bound, bound, generator=generator))
        return torch.cat(parts)

    def weights(self, params: Tensor) -> list[Tensor]:
        """The matrices as views of the parameters."""
        shapes = self.shapes
        parts = params.split([rows * columns for rows, columns in shapes])
        return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]

    def __call__(self, x: Tensor, params: Tensor) -> Tensor:
        """Map (N, n_input_dims) to (N, n_output_dims), in the parameters' precision."""
        *hidden, last = self.weights(params)
        for weight in hidden:
            x = ACTIVATIONS[self.activation](F.linear(x, weight))
        output = ACTIVATIONS[self.output_activation](F.linear(x, last))
        return output[:, : self.n_output_dims]


def make_perceptron(n_input_dims: int, n_output_dims: int, config: Config) -> Perceptron:
    """Build the network that ``config`` describes.

    Raises
    ------
    InputError
        When a name is unknown or a field is out of range.
    """
    otype = NETWORKS[choice("network", config, "otype", "MLP", NETWORKS)]
    fused = otype == "FullyFusedMLP"
    n_neurons = integer(otype, config, "n_neurons", 128)
    if fused and n_neurons not in FUSED_WIDTHS:
        expected = f"one of {', '.join(map(str, FUSED_WIDTHS))}, or otype CutlassMLP"
        raise InputError(otype, "n_neurons", n_neurons, expected)
    return Perceptron(
        n_input_dims,
        n_output_dims,
        n_neurons,
        integer(otype, config, "n_hidden_layers", 5, least=1 if fused else 0),
        choice(otype, config, "activation", "ReLU", ACTIVATIONS),
        choice(otype, config, "output_activation", "None", ACTIVATIONS),
    )
