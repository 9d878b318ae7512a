"""tiny-cuda-nn's Python interface in torch and Triton: what ``import tinycudann`` gives without it.

Names, fields, defaults and the layout of ``params`` are tiny-cuda-nn's, so that configurations and
checkpoints work in both. It differs in that it works on a CPU, in single precision; that all second
derivatives exist; that initial parameters are other random numbers of the same distribution; and in
the keywords ``device`` and, for networks, ``dtype``.
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from eeg_encoder.errors import InputError

from .encodings import Encoding as _Encoding
from .encodings import Grid, Identity, make_encoding
from .hash_grid import GridLayout
from .perceptron import ALIGNMENT, make_perceptron

DEFAULT_SEED = 1337
LOSS_SCALES = {torch.float16: 128.0, torch.float32: 1.0}

__all__ = [
    "Encoding",
    "Module",
    "Network",
    "NetworkWithInputEncoding",
    "free_temporary_memory",
    "preferred_precision",
    "supports_jit_fusion",
]


def preferred_precision() -> torch.dtype:
    """Half precision where there is a GPU, single precision elsewhere."""
    return torch.float16 if torch.cuda.is_available() else torch.float32


def supports_jit_fusion() -> bool:
    """False: nothing here is compiled into one kernel."""
    return False


def free_temporary_memory() -> None:
    """Give memory that no tensor holds back to the GPU."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * ctx.scale, None


def _scale_gradient(x: Tensor, scale: float) -> Tensor:
    if scale == 1.0 or not x.requires_grad:
        return x
    scaled: Tensor = _ScaleGradient.apply(x, scale)
    return scaled


class Module(nn.Module):
    """Flat single-precision parameters, and a function of inputs and parameters.

    Attributes
    ----------
    params
        All parameters, one flat vector.
    dtype
        Precision in which parameters are used, and of the output.
    seed
        Seed of the initial parameters.
    loss_scale
        Factor of gradients on their way through half precision.
    """

    n_input_dims: int
    n_output_dims: int

    def __init__(
        self,
        initial_params: Tensor,
        seed: int | None,
        dtype: torch.dtype | None,
        device: torch.device | str | None,
    ) -> None:
        super().__init__()
        self.seed = seed
        self.dtype = preferred_precision() if dtype is None else dtype
        if self.dtype not in LOSS_SCALES:
            expected = "torch.float16 or torch.float32"
            raise InputError(type(self).__name__, "dtype", self.dtype, expected)
        self.loss_scale = LOSS_SCALES[self.dtype]
        self.jit_fusion = False
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.params = nn.Parameter(initial_params.to(device))

    def _evaluate(self, x: Tensor, params: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, n_input_dims) to (N, n_output_dims), in ``dtype``."""
        if x.device != self.params.device:
            warnings.warn(f"input on {x.device}, parameters on {self.params.device}", stacklevel=2)
            x = x.to(self.params.device)
        with torch.autocast(x.device.type, enabled=False):
            x = _scale_gradient(x.float(), 1 / self.loss_scale)
            params = _scale_gradient(self.params, 1 / self.loss_scale).to(self.dtype)
            return _scale_gradient(self._evaluate(x, params), self.loss_scale)

    def extra_repr(self) -> str:
        """Widths, seed and precision."""
        return (
            f"n_input_dims={self.n_input_dims}, n_output_dims={self.n_output_dims}, "
            f"seed={self.seed}, dtype={self.dtype}"
        )


class Encoding(Module):
    """An encoding by itself; its output is not padded.

    Parameters
    ----------
    n_input_dims
        Width of the input.
    encoding_config
        ``otype`` and the encoding's fields.
    seed
        Seed of the initial parameters; with ``None``, torch's global generator draws them.
    dtype
        ``torch.float16`` or ``torch.float32``; by default :func:`preferred_precision`.
    device
        Where the parameters are; by default on the GPU where there is one.

    Raises
    ------
    InputError
        When ``otype`` is unknown or a field is out of range.
    """

    def __init__(
        self,
        n_input_dims: int,
        encoding_config: Mapping[str, Any],
        seed: int | None = DEFAULT_SEED,
        dtype: torch.dtype | None = None,
        *,
        device: torch.device | str | None = None,
    ) -> None:
        encoding = make_encoding(n_input_dims, encoding_config)
        super().__init__(encoding.initial_params(_generator(seed)), seed, dtype, device)
        self.n_input_dims = n_input_dims
        self.n_output_dims = encoding.n_output_dims
        self.encoding_config = encoding_config
        self._encoding = encoding

    @property
    def layout(self) -> GridLayout | None:
        """Of the grid, where it is one."""
        return self._encoding.layout if isinstance(self._encoding, Grid) else None

    def _evaluate(self, x: Tensor, params: Tensor) -> Tensor:
        return self._encoding(x, params)


class _EncodingAndNetwork(Module):
    """A perceptron behind an encoding; the perceptron's parameters come first."""

    def __init__(
        self,
        encoding: _Encoding,
        n_output_dims: int,
        network_config: Mapping[str, Any],
        seed: int | None,
        dtype: torch.dtype | None,
        device: torch.device | str | None,
    ) -> None:
        encoding.align(ALIGNMENT)
        network = make_perceptron(encoding.n_output_dims, n_output_dims, network_config)
        generator = _generator(seed)
        params = [part.initial_params(generator) for part in (network, encoding)]
        super().__init__(torch.cat(params), seed, dtype, device)
        self.n_input_dims = encoding.n_input_dims
        self.n_output_dims = n_output_dims
        self.network_config = network_config
        self._encoding, self._network = encoding, network

    def _evaluate(self, x: Tensor, params: Tensor) -> Tensor:
        weights, table = params.split((self._network.n_params, self._encoding.n_params))
        return self._network(self._encoding(x, table), weights)


class NetworkWithInputEncoding(_EncodingAndNetwork):
    """A perceptron behind an encoding, whose output is padded to a multiple of 16.

    Parameters
    ----------
    n_input_dims, n_output_dims
        Widths of input and output.
    encoding_config, network_config
        ``otype`` and the fields of both.
    seed, dtype, device
        As :class:`Encoding` has them.

    Raises
    ------
    InputError
        When an ``otype`` is unknown or a field is out of range.
    """

    def __init__(
        self,
        n_input_dims: int,
        n_output_dims: int,
        encoding_config: Mapping[str, Any],
        network_config: Mapping[str, Any],
        seed: int | None = DEFAULT_SEED,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        encoding = make_encoding(n_input_dims, encoding_config)
        super().__init__(encoding, n_output_dims, network_config, seed, dtype, device)
        self.encoding_config = encoding_config


class Network(_EncodingAndNetwork):
    """A perceptron; its input is padded with ones to a multiple of 16.

    Parameters
    ----------
    n_input_dims, n_output_dims
        Widths of input and output.
    network_config
        ``otype`` and the perceptron's fields.
    seed, dtype, device
        As :class:`Encoding` has them.

    Raises
    ------
    InputError
        When ``otype`` is unknown or a field is out of range.
    """

    def __init__(
        self,
        n_input_dims: int,
        n_output_dims: int,
        network_config: Mapping[str, Any],
        seed: int | None = DEFAULT_SEED,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        encoding = Identity(n_input_dims)
        super().__init__(encoding, n_output_dims, network_config, seed, dtype, device)


def _generator(seed: int | None) -> torch.Generator | None:
    return None if seed is None else torch.Generator().manual_seed(seed)
