"""tiny-cuda-nn's Python interface: layout of parameters, precision, the library's own outputs."""

from __future__ import annotations

import copy
import io
import json

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from eeg_encoder.errors import InputError
from tests.threestudio_eeg.golden import golden_folder
from threestudio_eeg.neural_fields import tinycudann as tcnn
from threestudio_eeg.neural_fields.perceptron import ACTIVATIONS

HASH = {"otype": "HashGrid", "n_levels": 4, "log2_hashmap_size": 8, "base_resolution": 4}
MLP = {"otype": "FullyFusedMLP", "n_neurons": 32, "n_hidden_layers": 2}
CPU = {"device": "cpu", "dtype": torch.float32}
GOLDEN = sorted(golden_folder().glob("tcnn_module_*.npz"))


def build(case, **options):
    """The module that a golden file's ``case`` describes."""
    options |= {"device": "cpu", "dtype": getattr(torch, case["dtype"])}
    if case["kind"] == "Encoding":
        return tcnn.Encoding(case["n_input_dims"], case["encoding"], **options)
    widths = (case["n_input_dims"], case["n_output_dims"])
    if case["kind"] == "Network":
        return tcnn.Network(*widths, case["network"], **options)
    return tcnn.NetworkWithInputEncoding(*widths, case["encoding"], case["network"], **options)


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_outputs_and_gradients_of_tiny_cuda_nn(path):
    golden = np.load(path, allow_pickle=False)
    case = json.loads(str(golden["case"]))
    module = build(case)
    assert module.params.shape == golden["params"].shape
    with torch.no_grad():
        module.params.copy_(torch.from_numpy(golden["params"]))
    x = torch.from_numpy(golden["x"]).requires_grad_()
    y = module(x)
    cotangent = torch.from_numpy(golden["cotangent"]).to(y.dtype).requires_grad_()
    by_x, by_params = torch.autograd.grad(
        y, (x, module.params), cotangent, create_graph=True, allow_unused=True
    )
    found = {"y": y, "x_gradient": by_x}
    if by_params is not None:
        found["params_gradient"] = by_params
    if "direction" in golden:
        inner = (by_x * torch.from_numpy(golden["direction"])).sum()
        inputs = (x, module.params, cotangent)
        names = ("x_second", "params_second", "cotangent_second")
        found |= dict(zip(names, torch.autograd.grad(inner, inputs), strict=True))
    for name, value in found.items():
        expected = golden[name]
        scale = max(float(np.abs(expected).max()), 1e-6)
        np.testing.assert_allclose(
            value.detach().float().numpy() / scale,
            expected / scale,
            rtol=0,
            atol=case["tolerance"],
            err_msg=name,
        )


def test_params_of_a_network_are_row_major_matrices():
    network = tcnn.Network(
        3, 5, {"activation": "Tanh", "n_hidden_layers": 2, "n_neurons": 24}, **CPU
    )
    shapes = [(24, 16), (24, 24), (16, 24)]
    assert network.params.shape == (sum(rows * columns for rows, columns in shapes),)
    first, second, last = (
        part.view(shape)
        for part, shape in zip(
            network.params.split([rows * columns for rows, columns in shapes]), shapes, strict=True
        )
    )
    x = torch.rand(7, 3)
    padded = torch.cat((x, torch.ones(7, 13)), dim=-1)
    expected = (padded @ first.T).tanh()
    expected = (expected @ second.T).tanh() @ last.T
    assert network(x).shape == (7, 5)
    torch.testing.assert_close(network(x), expected[:, :5])


@pytest.mark.parametrize("n_hidden_layers", [0, 1, 3])
def test_sizes_of_networks(n_hidden_layers):
    config = {"otype": "CutlassMLP", "n_neurons": 64, "n_hidden_layers": n_hidden_layers}
    sizes = {0: 32 * 32, 1: 64 * 32 + 32 * 64, 3: 64 * 32 + 2 * 64 * 64 + 32 * 64}
    assert tcnn.Network(17, 20, config, **CPU).params.numel() == sizes[n_hidden_layers]


def test_defaults_of_networks():
    """128 neurons, 5 hidden layers, ReLU, no activation at the end."""
    network = tcnn.Network(3, 1, {"otype": "MLP"}, **CPU)
    assert network.params.numel() == 128 * 16 + 4 * 128 * 128 + 16 * 128


def test_network_comes_before_the_encoding():
    both = tcnn.NetworkWithInputEncoding(3, 4, HASH, MLP, **CPU)
    encoding = tcnn.Encoding(3, HASH, dtype=torch.float32, device="cpu")
    network = tcnn.Network(16, 4, MLP, **CPU)
    n_weights = network.params.numel()
    assert both.params.numel() == n_weights + encoding.params.numel()
    with torch.no_grad():
        both.params.normal_(std=0.3)
        network.params.copy_(both.params[:n_weights])
        encoding.params.copy_(both.params[n_weights:])
    x = torch.rand(9, 3)
    padded = F.pad(encoding(x), (0, 16 - encoding.n_output_dims))
    torch.testing.assert_close(both(x), network(padded))


def test_encoding_alone_is_not_padded():
    assert tcnn.Encoding(3, {"otype": "SphericalHarmonics", "degree": 3}).n_output_dims == 9
    assert tcnn.Encoding(3, HASH).n_output_dims == 8


@pytest.mark.parametrize(
    ("name", "formula"),
    [
        ("none", lambda x: x),
        ("ReLU", lambda x: x.clamp(min=0)),
        ("LeakyReLU", lambda x: torch.where(x > 0, x, 0.01 * x)),
        ("SiLU", lambda x: x / (1 + torch.exp(-x))),
        ("Exponential", torch.exp),
        ("Sine", torch.sin),
        ("Sigmoid", lambda x: 1 / (1 + torch.exp(-x))),
        ("Squareplus", lambda x: 0.5 * (10 * x + torch.sqrt(100 * x * x + 4)) / 10),
        ("Softplus", lambda x: torch.log(torch.exp(10 * x) + 1) / 10),
        ("Tanh", torch.tanh),
    ],
)
def test_activations(name, formula):
    network = tcnn.Network(16, 16, {"n_hidden_layers": 0, "output_activation": name}, **CPU)
    with torch.no_grad():
        network.params.copy_(torch.eye(16).flatten())
    x = torch.linspace(-2, 2, 32).view(2, 16)
    torch.testing.assert_close(network(x), formula(x))


def test_every_activation_is_tested_by_its_formula():
    (marker,) = test_activations.pytestmark
    tested = {name.lower() for name, _ in marker.args[1]}
    assert tested == {name.lower() for name in ACTIVATIONS}


@pytest.mark.parametrize("activation", ["ReLU", "Sine"])
def test_initial_weights(activation):
    config = {"otype": "CutlassMLP", "activation": activation, "n_neurons": 64}
    first, *_ = tcnn.Network(48, 16, config, **CPU).params.detach().split(64 * 48)
    bound = 30 / 48 if activation == "Sine" else (6 / (48 + 64)) ** 0.5
    assert 0.99 * bound < float(first.abs().max()) <= bound
    assert float(first.std()) == pytest.approx(bound / 3**0.5, rel=0.03)


def test_seed():
    def params(seed):
        return tcnn.NetworkWithInputEncoding(3, 1, HASH, MLP, seed=seed, **CPU).params

    state = torch.get_rng_state()
    assert torch.equal(params(1), params(1))
    assert not torch.equal(params(1), params(2))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    "make",
    [
        lambda: tcnn.Encoding(3, HASH, seed=5),
        lambda: tcnn.Network(3, 2, MLP, seed=5),
        lambda: tcnn.NetworkWithInputEncoding(3, 2, HASH, MLP, seed=5),
        lambda: tcnn.Encoding(3, {"otype": "SphericalHarmonics"}),
    ],
)
def test_state_round_trip(make):
    module, other = make(), make()
    assert list(module.state_dict()) == ["params"]
    assert module.params.ndim == 1
    with torch.no_grad():
        module.params.normal_()
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    x = torch.rand(4, 3)
    assert torch.equal(module(x), other(x))
    assert torch.equal(module(x), copy.deepcopy(module)(x))


def test_attributes():
    module = tcnn.NetworkWithInputEncoding(3, 2, HASH, MLP, seed=7, **CPU)
    assert (module.n_input_dims, module.n_output_dims, module.seed) == (3, 2, 7)
    assert (module.dtype, module.loss_scale) == (torch.float32, 1.0)
    assert tcnn.Encoding(3, HASH, dtype=torch.float16).loss_scale == 128.0
    assert tcnn.Encoding(3, HASH).dtype == tcnn.preferred_precision()
    assert "n_output_dims=2" in repr(module)
    assert not tcnn.supports_jit_fusion()
    tcnn.free_temporary_memory()


def test_half_precision():
    half = tcnn.Encoding(3, HASH, dtype=torch.float16, device="cpu")
    single = tcnn.Encoding(3, HASH, dtype=torch.float32, device="cpu")
    with torch.no_grad():
        half.params.normal_()
        single.params.copy_(half.params)
    x = torch.rand(200, 3)
    cotangent = torch.randn(200, 8)
    results = []
    for module in (half, single):
        x = x.detach().requires_grad_()
        y = module(x)
        assert module.params.dtype == torch.float32
        y.backward(cotangent.to(y.dtype))
        assert x.grad.dtype == module.params.grad.dtype == torch.float32
        results.append((y.float(), x.grad, module.params.grad))
    assert half(x).dtype == torch.float16
    for found, expected in zip(*results, strict=True):
        error = (found - expected).detach().norm() / expected.detach().norm()
        assert float(error) < 2e-3


def test_half_precision_keeps_small_gradients():
    """The far corner's gradient, 4e-8, is less than half precision's smallest number."""
    grid = {**HASH, "n_levels": 1}
    x, cotangent = torch.full((1, 2), 0.52 / 3), torch.full((1, 2), 1e-4)
    gradients = []
    for dtype in (torch.float16, torch.float32):
        module = tcnn.Encoding(2, grid, dtype=dtype, device="cpu")
        module(x).backward(cotangent.to(dtype))
        gradients.append(module.params.grad)
    half, single = gradients
    assert float(single[single > 0].min()) == pytest.approx(4e-8, rel=1e-3)
    torch.testing.assert_close(half, single, rtol=0.05, atol=0)


def test_half_precision_network():
    half = tcnn.Network(3, 4, MLP, seed=1, dtype=torch.float16, device="cpu")
    single = tcnn.Network(3, 4, MLP, seed=1, **CPU)
    x = torch.rand(50, 3)
    assert half(x).dtype == torch.float16
    torch.testing.assert_close(half(x).float(), single(x), rtol=0, atol=5e-3)


def test_second_derivatives_through_a_network():
    """An eikonal loss: the norm of the gradient, differentiated in the parameters."""
    config = {**MLP, "activation": "Softplus"}
    module = tcnn.NetworkWithInputEncoding(
        3, 1, {**HASH, "interpolation": "Smoothstep"}, config, **CPU
    )
    with torch.no_grad():
        module.params.normal_(std=0.3)
    x = torch.rand(64, 3, requires_grad=True)

    def loss():
        (slope,) = torch.autograd.grad(module(x).sum(), x, create_graph=True)
        return (slope.norm(dim=-1) - 1).square().mean()

    before = loss()
    before.backward()
    assert module.params.grad.isfinite().all()
    direction = F.normalize(module.params.grad, dim=0)
    slope, step = float(module.params.grad @ direction), 1e-3
    with torch.no_grad():
        module.params.sub_(step * direction)
    assert float((before - loss()).detach()) / step == pytest.approx(slope, rel=0.2)


def test_autocast_changes_nothing():
    module = tcnn.Network(3, 2, MLP, **CPU)
    x = torch.rand(5, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(module(x), module(x.clone()))
        assert module(x).dtype == torch.float32


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: tcnn.Encoding(3, {"otype": "Grids"}), "otype"),
        (lambda: tcnn.Encoding(3, HASH, dtype=torch.float64), "dtype"),
        (lambda: tcnn.Network(3, 1, {"otype": "VanillaMLP"}), "otype"),
        (lambda: tcnn.Network(3, 1, {**MLP, "n_neurons": 48}), "n_neurons"),
        (lambda: tcnn.Network(3, 1, {**MLP, "n_hidden_layers": 0}), "n_hidden_layers"),
        (lambda: tcnn.Network(3, 1, {**MLP, "activation": "GELU"}), "activation"),
        (lambda: tcnn.Network(3, 1, {**MLP, "output_activation": "x"}), "output_activation"),
        (lambda: tcnn.Network(3, 1, MLP)(torch.rand(2, 4)), "input"),
    ],
)
def test_bad_fields(make, field):
    with pytest.raises(InputError, match=field):
        make()


@pytest.mark.gpu
def test_input_is_moved_to_the_parameters():
    module = tcnn.Encoding(3, HASH)
    assert module.params.is_cuda
    assert module.dtype == torch.float16
    with pytest.warns(UserWarning, match="input on cpu"):
        assert module(torch.rand(4, 3)).is_cuda
