"""tiny-cuda-nn's encodings against closed forms, and their rules of padding."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import lpmv

from eeg_encoder.errors import InputError
from threestudio_eeg.neural_fields.encodings import Composite, make_encoding

GRID = {"otype": "HashGrid", "n_levels": 3, "log2_hashmap_size": 6, "base_resolution": 3}
NOTHING = torch.empty(0, dtype=torch.float64)


def random_inputs(n_points, n_dims):
    return torch.rand(n_points, n_dims, generator=torch.Generator().manual_seed(0)).double()


def encode(config, x):
    """Encode with no parameters, in double precision."""
    return make_encoding(x.shape[1], config)(x, NOTHING)


def random_directions(n_points):
    x = torch.randn(n_points, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return x / x.norm(dim=-1, keepdim=True)


@pytest.mark.parametrize("degree", range(1, 9))
def test_spherical_harmonics_are_legendre_functions_times_waves(degree):
    directions = random_directions(50)
    x, y, z = directions.numpy().T
    azimuth = np.arctan2(y, x)
    columns = []
    for band in range(degree):
        for m in range(-band, band + 1):
            ratio = math.factorial(band - abs(m)) / math.factorial(band + abs(m))
            norm = math.sqrt((2 * band + 1) / (4 * math.pi) * ratio * (2 if m else 1))
            wave = np.sin(-m * azimuth) if m < 0 else np.cos(m * azimuth)
            columns.append(norm * lpmv(abs(m), band, z) * wave)
    found = encode({"otype": "SphericalHarmonics", "degree": degree}, (directions + 1) / 2)
    np.testing.assert_allclose(found.numpy(), np.stack(columns, axis=-1), atol=1e-12)


def test_spherical_harmonics_are_polynomials_off_the_sphere():
    """tiny-cuda-nn does not normalise: the bands written out, at a point that is no unit vector."""
    x, y, z = 0.3, -0.2, 0.7
    point = torch.tensor([[x, y, z]], dtype=torch.float64)
    found = encode({"otype": "SphericalHarmonics", "degree": 4}, (point + 1) / 2)[0]
    expected = {
        0: math.sqrt(1 / (4 * math.pi)),
        1: -math.sqrt(3 / (4 * math.pi)) * y,
        4: math.sqrt(15 / (4 * math.pi)) * x * y,
        6: math.sqrt(5 / (16 * math.pi)) * (3 * z * z - 1),
        11: -math.sqrt(21 / (32 * math.pi)) * y * (5 * z * z - 1),
        14: math.sqrt(105 / (16 * math.pi)) * z * (x * x - y * y),
        15: -math.sqrt(35 / (32 * math.pi)) * x * (x * x - 3 * y * y),
    }
    for index, value in expected.items():
        assert float(found[index]) == pytest.approx(value, abs=1e-12)


def test_frequency_order():
    x = torch.tensor([[0.1, 0.2]], dtype=torch.float64)
    expected = [
        f(math.pi * 2**k * v) for v in (0.1, 0.2) for k in (0, 1, 2) for f in (math.sin, math.cos)
    ]
    found = encode({"otype": "Frequency", "n_frequencies": 3}, x)[0].tolist()
    assert found == pytest.approx(expected)


def test_triangle_wave_is_written_out():
    x = random_inputs(20, 2)
    found = encode({"otype": "TriangleWave", "n_frequencies": 4}, x).view(20, 2, 4)
    for k in range(4):
        phase = x * 2.0 ** (k - 1) + k * 0.25
        expected = 2 / math.pi * torch.asin(torch.sin(2 * math.pi * (phase + 0.25)))
        torch.testing.assert_close(found[..., k], expected, rtol=0, atol=1e-9)


def test_identity():
    x = random_inputs(5, 3)
    assert torch.equal(encode({"otype": "Identity"}, x), x)
    scaled = encode({"otype": "Identity", "scale": 2.0, "offset": -1}, x)
    torch.testing.assert_close(scaled, x * 2 - 1)


def test_one_blob_integrates_the_kernel():
    """Bins hold the integral of the kernel around x, wrapped around, by the midpoint rule."""
    n_bins, steps = 8, 4000
    x = torch.tensor([[0.03, 0.41], [0.5, 0.99]], dtype=torch.float64)
    found = encode({"otype": "OneBlob", "n_bins": n_bins}, x).view(2, 2, n_bins)
    t = (torch.arange(steps, dtype=torch.float64) + 0.5) / steps
    distance = t - x[..., None]
    distance = distance - distance.round()
    kernel = 15 / 16 * n_bins * (1 - (n_bins * distance).square()).clamp(min=0).square()
    expected = kernel.view(2, 2, n_bins, -1).mean(dim=-1) / n_bins
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(found.sum(-1), torch.ones(2, 2, dtype=torch.float64))


@pytest.mark.parametrize(
    "config",
    [
        {"otype": "SphericalHarmonics", "degree": 5},
        {"otype": "Frequency", "n_frequencies": 3},
        {"otype": "OneBlob", "n_bins": 4},
        {"otype": "TriangleWave", "n_frequencies": 3},
    ],
)
def test_gradcheck(config):
    x = random_inputs(3, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: encode(config, x), x)


@pytest.mark.parametrize(
    ("config", "where", "value"),
    [
        ({"otype": "Identity"}, slice(3, 16), 1.0),
        ({"otype": "Frequency", "n_frequencies": 2}, slice(12, 16), 1.0),
        ({"otype": "OneBlob", "n_bins": 4}, slice(12, 16), 1.0),
        ({"otype": "TriangleWave", "n_frequencies": 2}, slice(6, 16), 1.0),
        ({"otype": "SphericalHarmonics", "degree": 2}, slice(0, 12), 1.0),
        (GRID, slice(6, 16), 0.0),
    ],
)
def test_padding(config, where, value):
    """Ones behind; ones in front of spherical harmonics; zeros behind a grid."""
    x = random_inputs(4, 3)
    bare, padded = make_encoding(3, config), make_encoding(3, config)
    padded.align(16)
    assert (bare.n_padding, padded.n_output_dims) == (0, 16)
    params = bare.initial_params().double()
    encoded = padded(x, params)
    assert torch.equal(encoded[:, where], torch.full_like(encoded[:, where], value))
    kept = torch.ones(16, dtype=torch.bool)
    kept[where] = False
    assert torch.equal(encoded[:, kept], bare(x, params))


def test_composite_slices():
    config = {
        "otype": "Composite",
        "nested": [
            {"n_dims_to_encode": 2, "otype": "TriangleWave", "n_frequencies": 2},
            {"n_dims_to_encode": 1, "otype": "OneBlob", "n_bins": 4},
            {"otype": "Identity"},
        ],
    }
    x = random_inputs(6, 5)
    parts = [
        encode({"otype": "TriangleWave", "n_frequencies": 2}, x[:, :2]),
        encode({"otype": "OneBlob", "n_bins": 4}, x[:, 2:3]),
        x[:, 3:],
    ]
    assert torch.equal(encode(config, x), torch.cat(parts, dim=-1))


def test_composite_slices_by_their_begin():
    nested = [
        {"n_dims_to_encode": 1, "dims_to_encode_begin": 3, "otype": "Identity"},
        {"n_dims_to_encode": 2, "dims_to_encode_begin": 0, "otype": "Identity", "scale": 2},
        {"n_dims_to_encode": 1, "otype": "Identity"},
    ]
    x = random_inputs(6, 4)
    expected = torch.cat((x[:, 3:], 2 * x[:, :2], x[:, 2:3]), dim=-1)
    assert torch.equal(encode({"otype": "Composite", "nested": nested}, x), expected)


def test_composite_aligns_what_follows():
    """A grid of 4 features begins at a multiple of 4; the part before it is padded with ones."""
    grid = {**GRID, "n_features_per_level": 4}
    nested = [{"n_dims_to_encode": 1, "otype": "Frequency", "n_frequencies": 3}, grid]
    composite = make_encoding(4, {"otype": "Composite", "nested": nested})
    assert isinstance(composite, Composite)
    alone = make_encoding(3, grid)
    params = alone.initial_params().double()
    x = random_inputs(5, 4)
    encoded = composite(x, params)
    assert encoded.shape == (5, composite.n_output_dims) == (5, 8 + 12)
    assert torch.equal(encoded[:, 6:8], torch.ones_like(encoded[:, 6:8]))
    assert torch.equal(encoded[:, 8:], alone(x[:, 1:], params))
    composite.align(16)
    assert torch.equal(composite(x, params)[:, 20:], torch.zeros(5, 12, dtype=torch.float64))


@pytest.mark.parametrize("reduction", ["Sum", "product"])
def test_composite_reductions(reduction):
    nested = [
        {"n_dims_to_encode": 2, "otype": "Identity"},
        {"n_dims_to_encode": 2, "otype": "Identity", "scale": 3},
    ]
    x = random_inputs(5, 4)
    left, right = x[:, :2], 3 * x[:, 2:]
    expected = left + right if reduction == "Sum" else left * right
    config = {"otype": "Composite", "nested": nested, "reduction": reduction}
    torch.testing.assert_close(encode(config, x), expected)


def test_parameters_of_a_composite_follow_each_other():
    grids = [{"n_dims_to_encode": 3, **GRID}, {"n_dims_to_encode": 2, **GRID}]
    composite = make_encoding(5, {"otype": "Composite", "nested": grids})
    first, second = make_encoding(3, GRID), make_encoding(2, GRID)
    assert composite.n_params == first.n_params + second.n_params
    params = torch.randn(composite.n_params).double()
    x = random_inputs(5, 5)
    expected = torch.cat(
        (first(x[:, :3], params[: first.n_params]), second(x[:, 3:], params[first.n_params :])), -1
    )
    assert torch.equal(composite(x, params), expected)


@pytest.mark.parametrize(
    ("config", "kind", "n_levels", "growth"),
    [
        ({"otype": "Grid"}, True, 16, 2.0),
        ({"otype": "hashgrid", "n_levels": 14}, True, 14, 2.0),
        ({"otype": "Grid", "type": "Tiled"}, False, 16, 2.0),
        ({"otype": "TiledGrid", "n_features": 6}, False, 3, 2.0),
        ({"otype": "DenseGrid", "n_levels": 3, "base_resolution": 4}, False, 3, 8.0),
        ({"otype": "DenseGrid", "type": "Hash", "n_levels": 12}, True, 12, 2.0),
    ],
)
def test_defaults_of_grids(config, kind, n_levels, growth):
    """Two features, base 16, growth 2; a dense grid grows to 256."""
    levels = make_encoding(3, config).layout.levels
    base = config.get("base_resolution", 16)
    assert len(levels) == n_levels
    assert levels[-1].hashed == kind
    assert [level.scale for level in levels[:3]] == pytest.approx(
        [base * growth**k - 1 for k in range(3)], rel=1e-5
    )


def test_initial_grid_is_uniform_and_small():
    config = {"otype": "HashGrid", "log2_hashmap_size": 14}
    params = make_encoding(3, config).initial_params(torch.Generator())
    assert float(params.abs().max()) <= 1e-4
    assert float(params.std()) == pytest.approx(1e-4 / math.sqrt(3), rel=1e-2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_output_has_the_parameters_precision(dtype):
    x = random_inputs(4, 3).float()
    config = {"otype": "Composite", "nested": [{"otype": "Frequency"}]}
    assert make_encoding(3, config)(x, torch.empty(0, dtype=dtype)).dtype == dtype


@pytest.mark.parametrize(
    ("n_dims", "config", "field"),
    [
        (3, {"otype": "Hashgrids"}, "encoding: otype"),
        (3, {"otype": "HashGrid", "n_levels": 1.5}, "HashGrid: n_levels"),
        (3, {"otype": "HashGrid", "n_levels": 2, "n_features": 4}, "HashGrid: n_levels"),
        (3, {"otype": "HashGrid", "n_features": 5}, "HashGrid: n_features"),
        (3, {"otype": "HashGrid", "per_level_scale": "2"}, "HashGrid: per_level_scale"),
        (3, {"otype": "HashGrid", "type": "Sparse"}, "HashGrid: type"),
        (3, {"otype": "HashGrid", "hash": "Prime"}, "HashGrid: hash"),
        (3, {"otype": "HashGrid", "stochastic_interpolation": True}, "stochastic_interpolation"),
        (5, {"otype": "HashGrid"}, "n_input_dims"),
        (2, {"otype": "SphericalHarmonics"}, "n_input_dims"),
        (3, {"otype": "SphericalHarmonics", "degree": 9}, "degree"),
        (3, {"otype": "OneBlob", "n_bins": 12}, "n_bins"),
        (3, {"otype": "Frequency", "n_frequencies": True}, "n_frequencies"),
        (3, {"otype": "Composite"}, "nested"),
        (3, {"otype": "Composite", "nested": [{"n_dims_to_encode": 0}]}, "nested"),
        (3, {"otype": "Composite", "nested": [{"n_dims_to_encode": 4}]}, "n_dims_to_encode"),
        (3, {"otype": "Composite", "nested": [{}, {}]}, "n_dims_to_encode"),
        (
            2,
            {
                "otype": "Composite",
                "reduction": "Sum",
                "nested": [
                    {"n_dims_to_encode": 1, "n_bins": n, "otype": "OneBlob"} for n in (2, 4)
                ],
            },
            "nested",
        ),
    ],
)
def test_bad_fields(n_dims, config, field):
    with pytest.raises(InputError, match=field):
        make_encoding(n_dims, config)


def test_wrong_width_of_input():
    with pytest.raises(InputError, match="Identity: input"):
        encode({"otype": "Identity"}, random_inputs(2, 3)[0][None, :, None])
