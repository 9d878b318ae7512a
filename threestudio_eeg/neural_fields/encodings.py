"""tiny-cuda-nn's encodings, as functions of inputs and a flat parameter vector.

An encoding maps (N, n_input_dims) to (N, n_output_dims). Its output may be padded, so that what
follows is aligned: with ones behind, but for grids, which pad with zeros, and for spherical
harmonics, which pad in front. Arithmetic is in the inputs' precision, at least single; the output
is in the parameters' precision, also where there are none.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from eeg_encoder.errors import InputError

from . import hash_grid
from .encoding_config import Config, choice, integer, number
from .hash_grid import INITIAL_RANGE, GridLayout, make_layout

MAX_SH_DEGREE = 8
SH_INPUT_DIMS = 3
DENSE_FINEST = 256.0
REDUCTIONS = ("Concatenation", "Sum", "Product")


class Encoding:
    """An encoding without its parameters.

    Attributes
    ----------
    n_input_dims, n_output_dims
        Widths; the latter with the padding.
    n_params
        Length of the flat parameter vector.
    alignment
        What the first of its outputs must be aligned to.
    """

    padding_value = 1.0
    padding_in_front = False

    def __init__(
        self, n_input_dims: int, n_encoded_dims: int, n_params: int = 0, alignment: int = 1
    ) -> None:
        self.n_input_dims = n_input_dims
        self.n_encoded_dims = n_encoded_dims
        self.n_params = n_params
        self.alignment = alignment
        self.n_padding = 0

    @property
    def n_output_dims(self) -> int:
        """Width of the output, padding included."""
        return self.n_encoded_dims + self.n_padding

    def pad_to(self, width: int) -> None:
        """Make the output ``width`` numbers wide."""
        if width < self.n_encoded_dims:
            raise ValueError(f"{self.n_encoded_dims} outputs do not fit into {width}")
        self.n_padding = width - self.n_encoded_dims

    def align(self, alignment: int) -> None:
        """Pad the output to a multiple of ``alignment`` and of the encoding's own."""
        self.pad_to(next_multiple(self.n_output_dims, math.lcm(alignment, self.alignment)))

    def initial_params(self, generator: torch.Generator | None = None) -> Tensor:
        """Fresh parameters, (n_params,)."""
        return torch.empty(self.n_params)

    def __call__(self, x: Tensor, params: Tensor) -> Tensor:
        """Encode (N, n_input_dims) to (N, n_output_dims)."""
        if x.ndim != 2 or x.shape[1] != self.n_input_dims:
            where = type(self).__name__
            raise InputError(where, "input", tuple(x.shape), f"(N, {self.n_input_dims})")
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        encoded = self.encode(x, params).to(params.dtype)
        if self.n_padding == 0:
            return encoded
        sides = (self.n_padding, 0) if self.padding_in_front else (0, self.n_padding)
        return F.pad(encoded, sides, value=self.padding_value)

    def encode(self, x: Tensor, params: Tensor) -> Tensor:
        """Encode without padding: (N, n_input_dims) to (N, n_encoded_dims)."""
        raise NotImplementedError


def next_multiple(value: int, factor: int) -> int:
    """The smallest multiple of ``factor`` that is no less than ``value``."""
    return -(-value // factor) * factor


class Grid(Encoding):
    """Features of a multi-resolution grid; positions in [0, 1]."""

    padding_value = 0.0

    def __init__(self, layout: GridLayout) -> None:
        n_params = layout.n_entries * layout.n_features
        super().__init__(layout.n_dims, layout.n_output_dims, n_params, layout.n_features)
        self.layout = layout

    @classmethod
    def from_config(cls, n_input_dims: int, config: Config) -> Grid:
        """Read tiny-cuda-nn's fields of ``Grid``, ``HashGrid``, ``DenseGrid`` and ``TiledGrid``."""
        where = str(config["otype"])
        _refuse_unsupported(where, config)
        default = {"tiledgrid": "tiled", "densegrid": "dense"}.get(where.lower(), "hash")
        names = (*hash_grid.TYPES, "tile")
        kind = {"tile": "tiled"}.get(found := choice(where, config, "type", default, names), found)
        n_features = integer(where, config, "n_features_per_level", 2)
        n_levels = _n_levels(where, config, n_features)
        base = integer(where, config, "base_resolution", 16)
        growth = 2.0 if kind != "dense" or n_levels == 1 else _dense_growth(base, n_levels)
        return cls(
            make_layout(
                n_input_dims,
                n_levels,
                n_features,
                integer(where, config, "log2_hashmap_size", 19, least=0),
                base,
                number(where, config, "per_level_scale", growth),
                kind,
                choice(where, config, "interpolation", "linear", hash_grid.INTERPOLATIONS),
            )
        )

    def initial_params(self, generator: torch.Generator | None = None) -> Tensor:
        """Uniform in ±1e-4."""
        params = torch.empty(self.n_params)
        return params.uniform_(-INITIAL_RANGE, INITIAL_RANGE, generator=generator)

    def encode(self, x: Tensor, params: Tensor) -> Tensor:
        """Look positions up."""
        table = params.view(self.layout.n_entries, self.layout.n_features)
        return hash_grid.encode(x, table, self.layout)


def _refuse_unsupported(where: str, config: Config) -> None:
    choice(where, config, "hash", "CoherentPrime", ("CoherentPrime",))
    for field in ("stochastic_interpolation", "fixed_point_pos"):
        if config.get(field):
            raise InputError(where, field, config[field], "false")


def _n_levels(where: str, config: Config, n_features: int) -> int:
    for field in ("n_features", "n_grid_features"):
        if field in config:
            total = integer(where, config, field, 0)
            if "n_levels" in config:
                raise InputError(where, "n_levels", config["n_levels"], f"none beside {field}")
            if total % n_features:
                raise InputError(where, field, total, f"a multiple of {n_features}")
            return total // n_features
    return integer(where, config, "n_levels", 16)


def _dense_growth(base_resolution: int, n_levels: int) -> float:
    """Growth from ``base_resolution`` to 256, in single precision as tiny-cuda-nn has it."""
    ratio = np.log(np.float32(DENSE_FINEST) / np.float32(base_resolution))
    return float(np.exp(ratio / np.float32(n_levels - 1)))


class Frequency(Encoding):
    """Sines and cosines of ``2**k pi x``, ordered by dimension, frequency, (sin, cos)."""

    def __init__(self, n_input_dims: int, n_frequencies: int) -> None:
        super().__init__(n_input_dims, n_input_dims * n_frequencies * 2)
        self.n_frequencies = n_frequencies

    @classmethod
    def from_config(cls, n_input_dims: int, config: Config) -> Frequency:
        """Read ``n_frequencies``."""
        return cls(n_input_dims, integer("Frequency", config, "n_frequencies", 12))

    def encode(self, x: Tensor, params: Tensor) -> Tensor:
        """The angles' sines and cosines."""
        powers = torch.arange(self.n_frequencies, device=x.device, dtype=x.dtype).exp2()
        angle = x[..., None] * powers * math.pi
        return torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(1)


class TriangleWave(Encoding):
    """Triangle waves of period ``2**(1 - k)``, shifted by a quarter each, in [-1, 1]."""

    def __init__(self, n_input_dims: int, n_frequencies: int) -> None:
        super().__init__(n_input_dims, n_input_dims * n_frequencies)
        self.n_frequencies = n_frequencies

    @classmethod
    def from_config(cls, n_input_dims: int, config: Config) -> TriangleWave:
        """Read ``n_frequencies``."""
        return cls(n_input_dims, integer("TriangleWave", config, "n_frequencies", 12))

    def encode(self, x: Tensor, params: Tensor) -> Tensor:
        """``4 |frac(2**(k-1) x + k/4) - 1/2| - 1``, ordered by dimension, frequency."""
        k = torch.arange(self.n_frequencies, device=x.device, dtype=x.dtype)
        value = x[..., None] * (k - 1).exp2() + k / 4
        return ((value - value.detach().floor() - 0.5).abs() * 4 - 1).flatten(1)


class Identity(Encoding):
    """``scale x + offset``."""

    def __init__(self, n_input_dims: int, scale: float = 1.0, offset: float = 0.0) -> None:
        super().__init__(n_input_dims, n_input_dims)
        self.scale, self.offset = scale, offset

    @classmethod
    def from_config(cls, n_input_dims: int, config: Config) -> Identity:
        """Read ``scale`` and ``offset``."""
        scale = number("Identity", config, "scale", 1.0)
        return cls(n_input_dims, scale, number("Identity", config, "offset", 0.0))

    def encode(self, x: Tensor, params: Tensor) -> Tensor:
        """Scale and shift."""
        return x * self.scale + self.offset


class OneBlob(Encoding):
    """Integrals over ``n_bins`` bins of [0, 1] of a quartic kernel around the input.

    The kernel is ``15/16 n (1 - (n t)**2)**2``; what leaves [0, 1] at one end enters at the other.
    """

    def __init__(self, n_input_dims: int, n_bins: int) -> None:
        super().__init__(n_input_dims, n_input_dims * n_bins)
        self.n_bins = n_bins

    @classmethod
    def from_config(cls, n_input_dims: int, config: Config) -> OneBlob:
        """Read ``n_bins``, a power of two."""
        n_bins = integer("OneBlob", config, "n_bins", 16)
        if n_bins & (n_bins - 1):
            raise InputError("OneBlob", "n_bins", n_bins, "a power of two")
        return cls(n_input_dims, n_bins)

    def encode(self, x: Tensor, params: Tensor) -> Tensor:
        """Differences of the kernel's integral at the bins' borders, ordered by dimension, bin."""
        border = torch.arange(self.n_bins, device=x.device, dtype=x.dtype) / self.n_bins
        distance = border - x[..., None]
        left = torch.stack([self._integral(distance + turn) for turn in (0, -1, 1)]).sum(dim=0)
        right = torch.cat((left[..., 1:], left[..., :1] + 1), dim=-1)
        return (right - left).flatten(1)

    def _integral(self, t: Tensor) -> Tensor:
        """Integral of the kernel up to ``t``."""
        u = (t * self.n_bins).clamp(-1, 1)
        square = u * u
        return 15 / 16 * u * (1 - 2 / 3 * square + 1 / 5 * square * square) + 0.5


class SphericalHarmonics(Encoding):
    """Real spherical harmonics of a direction d, given as ``(d + 1) / 2``.

    ``degree`` bands; (l, m) is at ``l * l + l + m``. With Condon and Shortley's sign, as
    polynomials in x, y and z that hold for unit vectors.
    """

    padding_in_front = True

    def __init__(self, degree: int) -> None:
        super().__init__(SH_INPUT_DIMS, degree**2)
        self.degree = degree

    @classmethod
    def from_config(cls, n_input_dims: int, config: Config) -> SphericalHarmonics:
        """Read ``degree``, 1 to 8."""
        if n_input_dims != SH_INPUT_DIMS:
            raise InputError("SphericalHarmonics", "n_input_dims", n_input_dims, SH_INPUT_DIMS)
        degree = integer("SphericalHarmonics", config, "degree", 4)
        if degree > MAX_SH_DEGREE:
            raise InputError("SphericalHarmonics", "degree", degree, f"1 to {MAX_SH_DEGREE}")
        return cls(degree)

    def encode(self, x: Tensor, params: Tensor) -> Tensor:
        """``K_lm d^m/dz^m P_l(z)`` times the real or imaginary part of ``(x + iy)**m``."""
        x, y, z = (x * 2 - 1).unbind(-1)
        bands: dict[tuple[int, int], Tensor] = {}
        cosine, sine = torch.ones_like(x), torch.zeros_like(x)
        for m in range(self.degree):
            for band in range(m, self.degree):
                along_z = _polynomial(_legendre_coefficients(band, m), z)
                bands[band, m] = along_z * cosine
                bands[band, -m] = along_z * (sine if m else cosine)
            cosine, sine = x * cosine - y * sine, x * sine + y * cosine
        return torch.stack([bands[key] for key in sorted(bands)], dim=-1)


@lru_cache(maxsize=MAX_SH_DEGREE**2)
def _legendre_coefficients(band: int, m: int) -> tuple[float, ...]:
    """Coefficients in z, constant first, of the m-th derivative of P_l, normalised."""
    legendre = np.polynomial.Legendre.basis(band).convert(kind=np.polynomial.Polynomial)
    ratio = math.factorial(band - m) / math.factorial(band + m)
    norm = math.sqrt((2 * band + 1) / (4 * math.pi) * ratio * (2 if m else 1))
    return tuple((-1) ** m * norm * legendre.deriv(m).coef)


def _polynomial(coefficients: tuple[float, ...], z: Tensor) -> Tensor:
    total = torch.full_like(z, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        total = total * z + coefficient
    return total


class Composite(Encoding):
    """Encodings of slices of the input, side by side, or added, or multiplied."""

    def __init__(
        self,
        n_input_dims: int,
        nested: list[tuple[int, Encoding]],
        reduction: str = "Concatenation",
    ) -> None:
        alignment = math.lcm(*(part.alignment for _, part in nested))
        n_params = sum(part.n_params for _, part in nested)
        super().__init__(n_input_dims, 0, n_params, alignment)
        self.nested = nested
        self.reduction = reduction
        self._align_parts()

    @classmethod
    def from_config(cls, n_input_dims: int, config: Config) -> Composite:
        """Read ``nested`` and ``reduction``."""
        reduction = choice("Composite", config, "reduction", REDUCTIONS[0], REDUCTIONS)
        parts = config.get("nested")
        if not isinstance(parts, list | tuple) or not parts:
            raise InputError("Composite", "nested", parts, "a list of encodings")
        return cls(n_input_dims, _nested(n_input_dims, parts), reduction)

    @property
    def n_output_dims(self) -> int:
        """Width of the output, padding included."""
        widths = [part.n_output_dims for _, part in self.nested]
        return sum(widths) if self.reduction == "Concatenation" else widths[0]

    def pad_to(self, width: int) -> None:
        """Pad the last part, or each one where they are reduced."""
        if self.reduction == "Concatenation":
            _, last = self.nested[-1]
            last.pad_to(width - self.n_output_dims + last.n_output_dims)
        else:
            for _, part in self.nested:
                part.pad_to(width)

    def initial_params(self, generator: torch.Generator | None = None) -> Tensor:
        """The parts' parameters, in their order."""
        return torch.cat([part.initial_params(generator) for _, part in self.nested])

    def encode(self, x: Tensor, params: Tensor) -> Tensor:
        """Encode the slices and join them."""
        shares = params.split([part.n_params for _, part in self.nested])
        encoded = [
            part(x[:, begin : begin + part.n_input_dims], share)
            for (begin, part), share in zip(self.nested, shares, strict=True)
        ]
        if self.reduction == "Concatenation":
            return torch.cat(encoded, dim=-1)
        stack = torch.stack(encoded).to(x.dtype)
        return stack.sum(dim=0) if self.reduction == "Sum" else stack.prod(dim=0)

    def _align_parts(self) -> None:
        """Pad each part so that the next one is aligned."""
        parts = [part for _, part in self.nested]
        if self.reduction != "Concatenation":
            for part in parts:
                part.align(self.alignment)
            if len({part.n_output_dims for part in parts}) > 1:
                widths = ", ".join(str(part.n_output_dims) for part in parts)
                raise InputError("Composite", "nested", f"widths {widths}", "one width")
            return
        begin = 0
        for part, following in zip(parts, parts[1:], strict=False):
            end = next_multiple(begin + part.n_output_dims, following.alignment)
            part.pad_to(end - begin)
            begin = end


def _nested(n_input_dims: int, parts: Any) -> list[tuple[int, Encoding]]:
    """Where each part begins in the input, and its encoding; parts of no dimension are left out."""
    remaining = _remaining_dims(n_input_dims, parts)
    nested, begin = [], 0
    for index, part in enumerate(parts):
        where = f"Composite.nested[{index}]"
        width = integer(where, part, "n_dims_to_encode", remaining, least=0)
        if "n_dims_to_encode" in part:
            begin = integer(where, part, "dims_to_encode_begin", begin, least=0)
        if begin + width > n_input_dims:
            expected = f"no more than {n_input_dims}"
            raise InputError(where, "n_dims_to_encode", f"dimension {begin + width}", expected)
        if width > 0:
            nested.append((begin, make_encoding(width, part)))
            nested[-1][1].align(1)
        begin += width
    if not nested:
        raise InputError("Composite", "nested", "no dimension to encode", "at least one")
    return nested


def _remaining_dims(n_input_dims: int, parts: Any) -> int:
    """Dimensions left to the one part that does not say how many it takes."""
    silent = [index for index, part in enumerate(parts) if "n_dims_to_encode" not in part]
    explicit = any("dims_to_encode_begin" in part for part in parts)
    if len(silent) > (0 if explicit else 1):
        where = f"Composite.nested[{silent[-1]}]"
        raise InputError(where, "n_dims_to_encode", "none", "a number of dimensions")
    taken = sum(integer("Composite", part, "n_dims_to_encode", 0, least=0) for part in parts)
    return max(n_input_dims - taken, 0)


ENCODINGS: dict[str, Callable[[int, Config], Encoding]] = {
    "Composite": Composite.from_config,
    "DenseGrid": Grid.from_config,
    "Frequency": Frequency.from_config,
    "Grid": Grid.from_config,
    "HashGrid": Grid.from_config,
    "Identity": Identity.from_config,
    "OneBlob": OneBlob.from_config,
    "SphericalHarmonics": SphericalHarmonics.from_config,
    "TiledGrid": Grid.from_config,
    "TriangleWave": TriangleWave.from_config,
}


def make_encoding(n_input_dims: int, config: Config) -> Encoding:
    """Build the encoding that ``config["otype"]`` names; fields that it does not have are ignored.

    Raises
    ------
    InputError
        When the name is unknown or a field is out of range.
    """
    otype = choice("encoding", config, "otype", "OneBlob", ENCODINGS)
    return ENCODINGS[otype](n_input_dims, {**config, "otype": otype})
