"""A field's values without its graph: the same values and gradients, and less memory."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from threestudio_eeg.neural_fields.recomputation import evaluate, recomputed, rows_of_turn


class Field(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.density, self.features = nn.Linear(3, 64), nn.Linear(64, 3)
        self.calls: list[int] = []

    def forward(self, points):
        self.calls.append(len(points))
        hidden = self.density(points).relu()
        return {"density": hidden.sum(-1, keepdim=True), "features": self.features(hidden)}


@pytest.fixture
def points():
    return torch.rand(50, 3, generator=torch.Generator().manual_seed(1))


def gradients(field, values):
    field.zero_grad()
    sum(value.square().sum() for value in values.values()).backward()
    return [parameter.grad for parameter in field.parameters()]


@pytest.mark.parametrize("chunk", [7, 50, 1000])
@pytest.mark.parametrize("know", [False, True])
def test_values_and_gradients_are_the_fields_own(points, chunk, know):
    field = Field()
    known = evaluate(field, points, 20) if know else None
    known = {name: value.detach() for name, value in known.items()} if known else None
    found = recomputed(field, points, list(field.parameters()), chunk, known)
    expected = field(points)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)
    torch.testing.assert_close(gradients(field, found), gradients(field, expected))


def test_known_values_save_one_evaluation(points):
    field = Field()
    values = {name: value.detach() for name, value in field(points).items()}
    field.calls.clear()
    recomputed(field, points, list(field.parameters()), 20, values)["density"].sum().backward()
    assert field.calls == [16, 16, 18]


@pytest.mark.parametrize(
    ("count", "n_turns"), [(10, 1), (5, 5), (70, 4), (1000, 3), (5000, 4), (5003, 7)]
)
def test_turns_have_every_row_once_and_pieces_of_neighbours(count, n_turns):
    rows = torch.arange(count)
    turns = [rows_of_turn(rows, turn, n_turns) for turn in range(n_turns)]
    assert torch.equal(torch.cat(turns).sort().values, rows)
    sizes = [len(turn) for turn in turns]
    words = count >= 16 * n_turns
    assert max(sizes) - min(sizes) <= (16 if words else 1)
    assert not words or all(size % 16 == 0 for size in sizes[:-1])
    if count == 5000:
        assert turns[1][[0, 255, 256]].tolist() == [256, 511, 1280]


def test_a_value_that_no_loss_uses_gets_no_gradient(points):
    field = Field()
    recomputed(field, points, list(field.parameters()), 20)["density"].sum().backward()
    assert field.features.weight.grad is None
    assert field.density.weight.grad.abs().sum() > 0


def test_frozen_parameters_stay_without_gradient(points):
    field = Field()
    field.density.requires_grad_(False)
    recomputed(field, points, list(field.parameters()), 20)["features"].sum().backward()
    assert field.density.weight.grad is None
    assert field.features.weight.grad is not None


def test_autocast_is_entered_again_in_the_backward_pass(points):
    field, kinds = Field(), []
    parameters = list(field.parameters())

    def watched(part):
        values = field(part)
        kinds.append(values["features"].dtype)
        return values

    with torch.autocast("cpu", dtype=torch.bfloat16):
        values = recomputed(watched, points, parameters, 50)
    values["features"].float().sum().backward()
    assert kinds == [torch.bfloat16] * 2


def test_only_points_and_parameters_are_kept():
    field, count = Field(), 4000
    points = torch.rand(count, 3)

    def kept(make):
        total = [0]

        def pack(tensor):
            total[0] += tensor.numel() * tensor.element_size()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            values = make()
        assert values["density"].requires_grad
        return total[0]

    parameters = list(field.parameters())
    n_parameters = sum(parameter.numel() for parameter in parameters)
    chunked = kept(lambda: recomputed(field, points, parameters, 500))
    assert chunked <= 4 * (3 * count + n_parameters)
    assert kept(lambda: field(points)) > 10 * chunked
