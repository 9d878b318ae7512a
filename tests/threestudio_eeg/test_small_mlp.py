"""The fused perceptron against the torch code."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from eeg_encoder.errors import InputError
from threestudio_eeg.neural_fields.networks import evaluate_together, get_mlp
from threestudio_eeg.neural_fields.small_mlp import PRECISIONS, check_sizes, reference, small_mlp

from .kernels import DEVICE, INTERPRETED, run_in_interpreter, runs_kernels

TOLERANCE = {"float32": 1e-4, "float16": 5e-3, "bfloat16": 4e-2}
KINDS = [
    "float32",
    "float16",
    pytest.param(
        "bfloat16", marks=pytest.mark.skipif(INTERPRETED, reason="not in Triton's interpreter")
    ),
]
SHAPES = {
    "one hidden layer": [(64, 32), (4, 64)],
    "two hidden layers": [(32, 16), (32, 32), (1, 32)],
    "odd sizes": [(16, 19), (16, 16), (3, 16)],
}


def case(shapes, n, *, by_feature=False, size=1.0):
    seed = torch.Generator().manual_seed(0)
    x = torch.randn(n, shapes[0][1], generator=seed)
    if by_feature:
        x = x.t().contiguous().t()
    weights = [torch.randn(shape, generator=seed) / math.sqrt(shape[1]) for shape in shapes]
    gradient = torch.randn(n, shapes[-1][0], generator=seed) * size
    return x.to(DEVICE), [w.to(DEVICE) for w in weights], gradient.to(DEVICE)


def run(function, x, weights, gradient):
    inputs = [tensor.detach().requires_grad_() for tensor in (x, *weights)]
    out = function(inputs[0], inputs[1:])
    return [out, *torch.autograd.grad(out, inputs, gradient.to(out))]


def rounded(x, weights, gradient, precision):
    """The torch code's results with rounded values: those decide which units are on."""

    def nearest(values):
        return values + (values.to(PRECISIONS[precision]).float() - values).detach()

    def function(x, weights):
        *hidden, last = map(nearest, weights)
        for weight in hidden:
            x = F.linear(nearest(x), weight).relu()
        return F.linear(nearest(x), last)

    return run(function, x, weights, gradient)


def assert_close(found, expected, tolerance):
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape
        assert float((a - b).detach().norm()) <= tolerance * float(b.detach().norm())


def test_in_the_interpreter():
    run_in_interpreter(__file__)


@runs_kernels
@pytest.mark.parametrize("precision", KINDS)
@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)
def test_values_and_gradients(shapes, precision):
    x, weights, gradient = case(shapes, 300)
    found = run(lambda x, w: small_mlp(x, w, precision), x, weights, gradient)
    assert_close(found, rounded(x, weights, gradient, precision), TOLERANCE[precision])


@runs_kernels
@pytest.mark.parametrize("n", [1, 63, 64, 65])
def test_any_number_of_points(n):
    x, weights, gradient = case(SHAPES["one hidden layer"], n)
    found = run(small_mlp, x, weights, gradient)
    assert_close(found, run(reference, x, weights, gradient), 1e-4)


@runs_kernels
def test_nothing_gives_nothing():
    x, weights, _ = case(SHAPES["one hidden layer"], 0)
    assert small_mlp(x, weights).shape == (0, 4)


@runs_kernels
def test_features_may_lie_apart_in_memory():
    x, weights, gradient = case(SHAPES["one hidden layer"], 100, by_feature=True)
    found = run(small_mlp, x, weights, gradient)
    assert_close(found, run(reference, x, weights, gradient), 1e-4)
    assert found[1].stride() == x.stride()


@runs_kernels
def test_gradients_too_small_for_float16_survive():
    x, weights, gradient = case(SHAPES["one hidden layer"], 200, size=1e-9)
    found = run(lambda x, w: small_mlp(x, w, "float16"), x, weights, gradient)
    assert float(gradient.half().abs().sum()) == 0
    assert_close(found, rounded(x, weights, gradient, "float16"), TOLERANCE["float16"])


@runs_kernels
@pytest.mark.parametrize("wanted", ["x", "weights"])
def test_only_the_gradients_asked_for(wanted):
    x, weights, gradient = case(SHAPES["two hidden layers"], 100)
    expected = run(reference, x, weights, gradient)[1:]
    x.requires_grad_(wanted == "x")
    for weight in weights:
        weight.requires_grad_(wanted == "weights")
    small_mlp(x, weights).backward(gradient)
    found = [x.grad] if wanted == "x" else [weight.grad for weight in weights]
    assert_close(found, expected[:1] if wanted == "x" else expected[1:], 1e-4)
    assert (x.grad is None) == (wanted == "weights")


def test_the_kernel_where_there_is_a_gpu_and_it_can():
    config = {"otype": "VanillaMLP", "n_neurons": 32, "n_hidden_layers": 1, "backend": "auto"}
    network = get_mlp(16, 3, config)
    x = torch.randn(5, 16)
    torch.testing.assert_close(network(x), network.layers(x))
    assert network.backend == "auto"
    assert get_mlp(16, 3, config, once=False).backend == "torch"
    assert get_mlp(16, 3, {**config, "n_neurons": 40}).backend == "torch"
    assert not network.goes_with(get_mlp(16, 1, config))


@pytest.mark.gpu
def test_auto_is_the_kernel_on_a_gpu():
    config = {"otype": "VanillaMLP", "n_neurons": 32, "n_hidden_layers": 1, "precision": "float16"}
    auto = get_mlp(16, 3, {**config, "backend": "auto"}).cuda()
    triton = get_mlp(16, 3, {**config, "backend": "triton"}).cuda()
    triton.load_state_dict(auto.state_dict())
    x = torch.randn(5, 16, device="cuda")
    assert torch.equal(auto(x), triton(x))
    assert auto.goes_with(triton)


@runs_kernels
def test_a_network_with_the_fused_backend_is_the_same_network():
    config = {"otype": "VanillaMLP", "n_neurons": 32, "n_hidden_layers": 2}
    torch.manual_seed(0)
    plain = get_mlp(16, 3, config).to(DEVICE)
    fused = get_mlp(16, 3, {**config, "backend": "triton"}).to(DEVICE)
    fused.load_state_dict(plain.state_dict())
    x = torch.randn(70, 16, device=DEVICE)
    torch.testing.assert_close(fused(x), plain(x), atol=1e-5, rtol=1e-4)
    fused(x).square().sum().backward()
    plain(x).square().sum().backward()
    for a, b in zip(fused.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-4, rtol=1e-3)


@runs_kernels
@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_two_networks_in_one_kernel_are_the_two_networks(precision):
    config = {"otype": "VanillaMLP", "n_neurons": 16, "backend": "triton", "precision": precision}
    torch.manual_seed(0)
    pair = [get_mlp(32, n_outputs, config).to(DEVICE) for n_outputs in (1, 3)]
    assert pair[0].goes_with(pair[1])
    x = torch.randn(70, 32, device=DEVICE).requires_grad_()
    inputs = [x, *(p for network in pair for p in network.parameters())]
    seeds = [torch.randn(70, n_outputs, device=DEVICE) for n_outputs in (1, 3)]
    results = []
    for outputs in (evaluate_together(*pair, x), [network(x) for network in pair]):
        results.append([*outputs, *torch.autograd.grad(outputs, inputs, seeds)])
    assert_close(*results, 1e-5 if precision == "float32" else 5e-3)


@runs_kernels
@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_a_wide_network_as_two_of_a_field_make_it(precision):
    x, weights, gradient = case([(128, 32), (4, 128)], 130, by_feature=True)
    weights[1][:1, 64:] = weights[1][1:, :64] = 0
    found = run(lambda x, w: small_mlp(x, w, precision), x, weights, gradient)
    assert_close(found, rounded(x, weights, gradient, precision), TOLERANCE[precision])


def test_networks_that_one_kernel_cannot_be_go_one_by_one():
    fused = {"otype": "VanillaMLP", "n_neurons": 16, "backend": "triton"}
    one = get_mlp(32, 1, fused)
    others = [{"n_neurons": 64}, {"n_hidden_layers": 2}, {"precision": "float16"}]
    others += [{"backend": "torch"}]
    assert not any(one.goes_with(get_mlp(32, 3, {**fused, **change})) for change in others)
    assert not one.goes_with(get_mlp(16, 3, fused))
    assert one.goes_with(get_mlp(32, 3, fused))
    plain = [get_mlp(8, n, {"otype": "VanillaMLP"}) for n in (1, 3)]
    x = torch.randn(5, 8)
    for found, network in zip(evaluate_together(*plain, x), plain, strict=True):
        assert torch.equal(found, network(x))


@pytest.mark.parametrize(
    ("shapes", "named"),
    [
        ([(48, 32), (3, 48)], "n_neurons"),
        ([(64, 32), (64, 64), (64, 64), (3, 64)], "n_hidden_layers"),
        ([(64, 200), (3, 64)], "inputs and outputs"),
    ],
)
def test_sizes_it_cannot_take_are_refused(shapes, named):
    with pytest.raises(InputError, match=named):
        check_sizes(shapes)


@pytest.mark.parametrize(("field", "value"), [("backend", "cuda"), ("precision", "float8")])
def test_unknown_names_are_refused(field, value):
    with pytest.raises(InputError, match=field):
        get_mlp(16, 3, {"otype": "VanillaMLP", "backend": "triton", field: value})


def test_the_fused_backend_is_off_unless_asked_for(monkeypatch):
    """Until it is measured to win."""
    monkeypatch.setattr("threestudio_eeg.neural_fields.networks.small_mlp", None)
    assert get_mlp(16, 3, {"otype": "VanillaMLP"})(torch.zeros(2, 16)).shape == (2, 3)
