"""Encodings and networks by name."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from eeg_encoder.errors import InputError
from threestudio_eeg.neural_fields.networks import (
    ACTIVATIONS,
    get_activation,
    get_encoding,
    get_mlp,
)

GRID = {
    "n_levels": 4,
    "n_features_per_level": 2,
    "log2_hashmap_size": 8,
    "base_resolution": 4,
    "per_level_scale": 1.5,
}


@pytest.mark.parametrize(
    ("config", "width"),
    [
        ({"otype": "HashGrid", **GRID}, 8),
        ({"otype": "HashGrid", "include_xyz": True, **GRID}, 11),
        ({"otype": "SphericalHarmonics", "degree": 3}, 9),
        ({"otype": "Frequency", "n_frequencies": 5}, 30),
    ],
)
def test_width_of_encodings(config, width):
    encoding = get_encoding(3, config)
    assert encoding.n_output_dims == width
    assert encoding(torch.rand(7, 3)).shape == (7, width)


def test_position_comes_first_and_centred():
    x = torch.rand(7, 3)
    encoding = get_encoding(3, {"otype": "HashGrid", "include_xyz": True, **GRID})
    torch.testing.assert_close(encoding(x)[:, :3], x * 2 - 1)


def test_parameter_names_are_threestudios():
    encoding = get_encoding(3, {"otype": "HashGrid", **GRID})
    assert list(encoding.state_dict()) == ["encoding.encoding.params"]
    mlp = get_mlp(4, 2, {"otype": "VanillaMLP", "n_neurons": 8, "n_hidden_layers": 2})
    assert list(mlp.state_dict()) == [f"layers.{i}.weight" for i in (0, 2, 4)]


def test_spherical_harmonics_are_orthonormal():
    """Quadrature over the sphere: the Gram matrix of the 16 functions is the identity."""
    z, weights = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(8))
    azimuth = torch.arange(16) * (2 * math.pi / 16)
    z, azimuth = torch.meshgrid(z, azimuth.double(), indexing="ij")
    r = (1 - z**2).sqrt()
    directions = torch.stack((r * azimuth.cos(), r * azimuth.sin(), z), -1).view(-1, 3)
    measure = (weights[:, None] * (2 * math.pi / 16)).expand(8, 16).reshape(-1)
    values = get_encoding(3, {"otype": "SphericalHarmonics", "degree": 4})((directions + 1) / 2)
    gram = values.T @ (values * measure[:, None])
    torch.testing.assert_close(gram, torch.eye(16, dtype=gram.dtype), atol=1e-6, rtol=0)


def test_frequency_order():
    x = torch.tensor([[0.1, 0.2]])
    y = get_encoding(2, {"otype": "Frequency", "n_frequencies": 2})(x)[0]
    expected = [
        f(math.pi * 2**k * v) for v in (0.1, 0.2) for k in (0, 1) for f in (math.sin, math.cos)
    ]
    torch.testing.assert_close(y, torch.tensor(expected))


def test_progressive_band_opens_levels():
    schedule = {"start_level": 1, "start_step": 10, "update_steps": 5}
    encoding = get_encoding(3, {"otype": "ProgressiveBandHashGrid", **GRID, **schedule})
    x = torch.rand(5, 3)
    for step, opened in ((0, 1), (14, 1), (15, 2), (1000, 4)):
        encoding.update_step(0, step)
        assert int((encoding(x).abs().sum(0) > 0).sum()) == 2 * opened


@pytest.mark.parametrize("otype", ["VanillaMLP", "FullyFusedMLP", "CutlassMLP"])
def test_mlp_is_written_out(otype):
    mlp = get_mlp(4, 2, {"otype": otype, "n_neurons": 8, "output_activation": "sigmoid"})
    x = torch.randn(6, 4)
    first, last = mlp.layers[0].weight, mlp.layers[2].weight
    torch.testing.assert_close(mlp(x), torch.sigmoid((x @ first.T).relu() @ last.T))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_have_gradients(name):
    x = torch.linspace(-2, 2.1, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(get_activation(name), x)


@pytest.mark.parametrize(
    ("build", "field"),
    [
        (lambda: get_encoding(3, {"otype": "Hashgrid"}), "otype"),
        (lambda: get_mlp(3, 3, {"otype": "MLP"}), "otype"),
        (lambda: get_mlp(3, 3, {"otype": "VanillaMLP", "activation": "GELU"}), "activation"),
        (lambda: get_encoding(3, {"otype": "SphericalHarmonics", "degree": 9}), "degree"),
        (lambda: get_activation("swoosh"), "activation"),
    ],
)
def test_unknown_names(build, field):
    with pytest.raises(InputError, match=field):
        build()
