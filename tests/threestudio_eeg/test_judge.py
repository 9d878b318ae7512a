"""The judge: its heads, its disturbances, its file, and that it learns."""

from __future__ import annotations

import json

import pytest
import torch

from threestudio_eeg.evaluation.judge import (
    HEADS,
    Judge,
    _disturb,
    judge_accuracy,
    shipped_judge,
    train_judge,
    write_card,
)
from threestudio_eeg.phantom.bank import make_bank
from threestudio_eeg.phantom.categories import CATEGORIES, COLOURS
from threestudio_eeg.phantom.objects import make_instances
from threestudio_eeg.phantom.pictures import SIDES


def pictures(n: int = 3, size: int = 64) -> torch.Tensor:
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def judge() -> Judge:
    torch.manual_seed(0)
    return Judge(width=8).eval()


def test_heads():
    sizes = {"category": len(CATEGORIES), "colour": len(COLOURS), "side": len(SIDES)}
    assert dict(HEADS) == sizes


@pytest.mark.parametrize("size", [64, 40, 128])
def test_logits_of_pictures_of_any_size(judge, size):
    logits = judge(pictures(2, size))
    assert {name: tuple(value.shape) for name, value in logits.items()} == {
        name: (2, n) for name, n in HEADS.items()
    }


def test_probabilities_sum_to_one(judge):
    for values in judge.probabilities(pictures()).values():
        torch.testing.assert_close(values.sum(-1), torch.ones(3))
        assert not values.requires_grad


def test_save_and_load(tmp_path):
    torch.manual_seed(0)
    judge = Judge().eval()
    judge.save_pretrained(tmp_path / "judge")
    again = Judge.from_pretrained(tmp_path / "judge")
    assert not again.training
    assert not any(p.requires_grad for p in again.parameters())
    with torch.no_grad():
        wanted, found = judge(pictures()), again(pictures())
    for name in HEADS:
        torch.testing.assert_close(found[name], wanted[name], atol=5e-3, rtol=5e-2)


def test_disturbed_pictures_stay_pictures():
    rgb = pictures(16)
    disturbed = _disturb(rgb, torch.Generator().manual_seed(0))
    assert disturbed.shape == rgb.shape
    assert float(disturbed.min()) >= 0
    assert float(disturbed.max()) <= 1
    assert not torch.allclose(disturbed, rgb)
    assert torch.equal(disturbed, _disturb(rgb, torch.Generator().manual_seed(0)))


def test_card(tmp_path):
    write_card(tmp_path, {"category": 0.5})
    assert json.loads((tmp_path / "card.json").read_text()) == {"category": 0.5}


def test_training_lowers_the_loss_and_names_more_pictures():
    wanted = {"mug", "sofa"}
    instances = [i for i in make_instances("train", 3, 0) if i.category in wanted]
    bank = make_bank(instances, n_random=2, n_stimuli=1, size=64, seed=0, device="cpu")
    torch.manual_seed(0)
    before = judge_accuracy(Judge().eval(), bank, seed=1, n=64)
    lines: list[str] = []
    trained = train_judge(bank, steps=40, batch=8, seed=0, log=lines.append)
    after = judge_accuracy(trained, bank, seed=1, n=64)
    assert after["category"] > 0.8
    assert after["category"] > before["category"]
    assert lines


def test_the_judge_that_ships_knows_unseen_objects():
    if not (shipped_judge() / "model.safetensors").is_file():
        pytest.skip("no judge in this checkout")
    judge = Judge.from_pretrained()
    bank = make_bank(
        make_instances("test", 1, 11), n_random=2, n_stimuli=1, size=64, seed=5, device="cpu"
    )
    accuracy = judge_accuracy(judge, bank, seed=0, n=256)
    assert accuracy["category"] > 0.9
    assert accuracy["colour"] > 0.8
