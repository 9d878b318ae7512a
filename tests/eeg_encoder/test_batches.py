from __future__ import annotations

import numpy as np
import pytest
import torch

from eeg_encoder.stages.batches import Augmentation, BankLoader, TrialBank, WholeLoader

from .conftest import small_trials


@pytest.fixture(scope="module")
def trials():
    return small_trials(repetitions=3, subjects=2, sfreq=100.0)


@pytest.fixture(scope="module")
def bank(trials):
    return TrialBank.of(trials, trials.signals, "cpu")


def test_whole_groups_are_averages(trials, bank):
    averaged = trials.average()
    batch = bank.batch(torch.arange(len(bank)))
    np.testing.assert_allclose(batch.signals.numpy(), averaged.signals, rtol=1e-4, atol=1e-10)
    assert batch.subjects.tolist() == averaged.subjects.tolist()
    assert [bank.stimulus_ids[i] for i in batch.stimuli] == averaged.stimuli.tolist()
    assert batch.averaged.tolist() == [3] * 36


def test_drawn_repetitions_are_means_of_some(trials, bank):
    generator = torch.Generator().manual_seed(0)
    seen = set()
    for _ in range(30):
        batch = bank.batch(torch.tensor([4]), generator)
        rows = bank.members[4]
        n = int(batch.averaged)
        seen.add(n)
        subsets = torch.combinations(rows, n)
        means = bank.signals[subsets].mean(1)
        error = (means - batch.signals).abs().flatten(1).amax(1).min()
        assert float(error) < 1e-9
    assert seen == {1, 2, 3}


def test_loaders_cover_the_bank(bank):
    loader = BankLoader(bank, 10, torch.Generator().manual_seed(0))
    batches = list(loader)
    assert len(batches) == len(loader) == 3
    assert sum(len(batch.signals) for batch in WholeLoader(bank, 10)) == len(bank)
    assert len(list(BankLoader(bank, 1000, torch.Generator().manual_seed(0)))) == 1


def test_shift_moves_and_fills_with_zeros():
    signals = torch.arange(1.0, 11.0).repeat(64, 2, 1)
    augment = Augmentation(channel_dropout=0.0, shift=2, noise=0.0)
    out = augment(signals, torch.Generator().manual_seed(0))
    starts = set()
    for row in out[:, 0]:
        step = int((row == 0).sum())
        starts.add((float(row[0]), step))
    assert starts == {(1.0, 0), (0.0, 1), (0.0, 2), (2.0, 1), (3.0, 2)}


def test_channel_dropout_and_noise():
    generator = torch.Generator().manual_seed(0)
    signals = torch.ones(200, 20, 5)
    silenced = Augmentation(channel_dropout=0.25, shift=0, noise=0.0)(signals, generator)
    assert float((silenced[:, :, 0] == 0).float().mean()) == pytest.approx(0.25, abs=0.03)
    noisy = Augmentation(channel_dropout=0.0, shift=0, noise=0.5)(signals, generator)
    assert float((noisy - signals).std()) == pytest.approx(0.5, rel=0.05)
