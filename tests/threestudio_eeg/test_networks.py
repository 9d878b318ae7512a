"""Encodings and networks by name."""

from __future__ import annotations

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
        ({"otype": "Composite", "nested": [{"otype": "OneBlob", "n_bins": 4}]}, 12),
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


def test_progressive_band_opens_levels():
    schedule = {"start_level": 1, "start_step": 10, "update_steps": 5}
    encoding = get_encoding(3, {"otype": "ProgressiveBandHashGrid", **GRID, **schedule})
    x = torch.rand(5, 3)
    for step, opened in ((0, 1), (14, 1), (15, 2), (1000, 4)):
        encoding.update_step(0, step)
        assert int((encoding(x).abs().sum(0) > 0).sum()) == 2 * opened


def test_vanilla_mlp_is_written_out():
    mlp = get_mlp(4, 2, {"otype": "VanillaMLP", "n_neurons": 8, "output_activation": "sigmoid"})
    x = torch.randn(6, 4)
    first, last = mlp.layers[0].weight, mlp.layers[2].weight
    torch.testing.assert_close(mlp(x), torch.sigmoid((x @ first.T).relu() @ last.T))


@pytest.mark.parametrize("otype", ["FullyFusedMLP", "CutlassMLP"])
def test_flat_mlp_is_tiny_cuda_nns(otype):
    config = {"otype": otype, "n_neurons": 32, "n_hidden_layers": 1, "output_activation": "none"}
    mlp = get_mlp(4, 2, config)
    assert {name: value.shape for name, value in mlp.state_dict().items()} == {
        "network.params": (32 * 16 + 16 * 32,)
    }
    x = torch.randn(6, 4)
    first, last = (
        part.view(shape)
        for part, shape in zip(mlp.network.params.split(512), ((32, 16), (16, 32)), strict=True)
    )
    padded = torch.cat((x, torch.ones(6, 12)), dim=-1)
    torch.testing.assert_close(mlp(x), ((padded @ first.T).relu() @ last.T)[:, :2])


def test_initial_values_follow_the_global_seed():
    def params(seed):
        torch.manual_seed(seed)
        return get_encoding(3, {"otype": "HashGrid", **GRID}).state_dict()[
            "encoding.encoding.params"
        ]

    assert torch.equal(params(0), params(0))
    assert not torch.equal(params(0), params(1))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_have_gradients(name):
    x = torch.linspace(-2, 2.1, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(get_activation(name), x)


@pytest.mark.parametrize(
    ("build", "field"),
    [
        (lambda: get_encoding(3, {"otype": "Hashgrid"}), "otype"),
        (lambda: get_mlp(3, 3, {"otype": "Perceptron"}), "otype"),
        (lambda: get_mlp(3, 3, {"otype": "VanillaMLP", "activation": "GELU"}), "activation"),
        (lambda: get_encoding(3, {"otype": "SphericalHarmonics", "degree": 9}), "degree"),
        (lambda: get_activation("swoosh"), "activation"),
    ],
)
def test_unknown_names(build, field):
    with pytest.raises(InputError, match=field):
        build()
