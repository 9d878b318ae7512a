from __future__ import annotations

import numpy as np
import pytest
import torch

from eeg_encoder.errors import InputError
from eeg_encoder.recordings.simulation import SimulationConfig, simulate
from eeg_encoder.recordings.splits import check_split, is_block_design, split_by_stimulus

from .conftest import small_trials


def drift_only(order: str, categories: int = 10, stimuli: int = 20):
    """Trials of noise and drift, no response to any stimulus; two sessions."""
    labels = np.repeat(np.arange(categories), stimuli)
    names = [f"n{c:08d}" for c in range(categories)]
    ids = [f"{names[label]}_{i}" for i, label in enumerate(labels)]
    embeddings = torch.randn(len(labels), 16, generator=torch.Generator().manual_seed(0))
    config = SimulationConfig(
        channels=32,
        sfreq=250.0,
        repetitions=2,
        subjects=1,
        sessions=2,
        order=order,
        drift=0.3,
        signal=False,
    )
    return simulate(embeddings, labels, names, ids, config=config)


def nearest_centroid(trials, train, test):
    features = trials.signals.mean(axis=2)
    centres = np.stack(
        [features[train][trials.labels[train] == c].mean(0) for c in range(len(trials.label_names))]
    )
    distance = ((features[test][:, None] - centres) ** 2).sum(2)
    return float((distance.argmin(1) == trials.labels[test]).mean())


def test_drift_alone_decodes_in_a_leaking_split_only():
    block = drift_only("block")
    first = np.flatnonzero(block.sessions == 0)
    mixed = np.random.default_rng(0).permutation(first)
    leaking = {"train": mixed[:160], "val": mixed[:0], "test": mixed[160:]}
    assert nearest_centroid(block, leaking["train"], leaking["test"]) > 0.9
    with pytest.raises(InputError, match="block design"):
        check_split(block, leaking)

    guarded = split_by_stimulus(block, fractions=(0.5, 0.0, 0.5))
    assert check_split(block, guarded)["design"] == "block"
    chance = nearest_centroid(block, guarded["train"], guarded["test"])
    assert chance < 0.1 + 3 * np.sqrt(0.1 * 0.9 / 10)

    rapid = drift_only("rapid")
    split = split_by_stimulus(rapid, fractions=(0.5, 0.0, 0.5))
    tested = len(split["test"])
    found = nearest_centroid(rapid, split["train"], split["test"])
    assert found < 0.1 + 3 * np.sqrt(0.1 * 0.9 / tested)


def test_block_design_is_recognised():
    assert is_block_design(small_trials(order="block"))
    assert not is_block_design(small_trials(order="rapid"))


def test_a_shared_stimulus_is_refused():
    trials = small_trials()
    stimulus = trials.stimuli[0]
    same = np.flatnonzero(trials.stimuli == stimulus)
    splits = {"train": same[:1], "val": same[:0], "test": same[1:]}
    with pytest.raises(InputError, match=f"also in train, for example {stimulus}"):
        check_split(trials, splits, where="splits.pth")


def test_within_block_can_be_allowed_and_is_marked():
    trials = small_trials(order="block", sessions=1, repetitions=1)
    half = len(trials) // 2
    order = np.random.default_rng(0).permutation(len(trials))
    splits = {"train": order[:half], "val": order[:0], "test": order[half:]}
    with pytest.raises(InputError, match="allow_within_block"):
        check_split(trials, splits)
    assert check_split(trials, splits, allow_within_block=True)["within_block"]


@pytest.mark.parametrize("order", ["rapid", "block"])
def test_split_by_stimulus_passes_the_guard(order):
    trials = small_trials(order=order, repetitions=3, sessions=3)
    splits = split_by_stimulus(trials, fractions=(4, 1, 1), seed=3)
    protocol = check_split(trials, splits)
    assert not protocol["within_block"]
    assert all(len(part) for part in splits.values())
    assert set(trials.labels[splits["test"]]) == {0, 1, 2}


def test_a_block_design_needs_sessions():
    with pytest.raises(InputError, match="sessions"):
        split_by_stimulus(small_trials(order="block", sessions=1))
