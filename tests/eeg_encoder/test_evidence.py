"""The evidence of signals about remembered pictures, and the noise it allows for."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from eeg_encoder.models.evidence import PictureEvidence
from eeg_encoder.models.memory import PictureMemory
from eeg_encoder.recipes.separable_noise import separable_whitening

N, CHANNELS, SAMPLES, P = 600, 5, 24, 10
SFREQ = 100.0


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def coloured_noise(n: int, g: torch.Generator) -> torch.Tensor:
    """(n, C, T) noise, separable: mixed over channels, smooth over time."""
    mixing = torch.randn(CHANNELS, CHANNELS, generator=generator(90))
    white = torch.randn(n, CHANNELS, SAMPLES + 2, generator=g)
    smooth = white[..., :-2] + white[..., 1:-1] + white[..., 2:]
    return torch.einsum("cd,ndt->nct", mixing, smooth)


@pytest.fixture(scope="module")
def world():
    """Pictures, and a person's response to them: linear, another for each of two people."""
    pictures = F.normalize(torch.randn(40, P, generator=generator(0)), dim=1)
    maps = {s: torch.randn(P, CHANNELS, SAMPLES, generator=generator(s)) for s in (1, 4)}

    def seen(subjects, shown, trials, seed):
        responses = torch.stack(
            [
                torch.einsum("p,pct->ct", p, maps[int(s)])
                for s, p in zip(subjects, shown, strict=True)
            ]
        )
        noise = coloured_noise(len(shown), generator(seed)) / trials**0.5
        return 3.0 + responses + noise

    return pictures, seen


@pytest.fixture(scope="module")
def evidence(world):
    _, seen = world
    shown = F.normalize(torch.randn(N, P, generator=generator(10)), dim=1)
    subjects = torch.tensor([1, 4]).repeat(N // 2)
    fitted = PictureEvidence.fitted(seen(subjects, shown, 1, 11), shown, subjects, sfreq=SFREQ)
    assert fitted is not None
    return fitted


@pytest.mark.parametrize("subject", [1, 4])
def test_the_picture_seen_is_the_likeliest(world, evidence, subject):
    pictures, seen = world
    subjects = torch.full((len(pictures),), subject)
    scores = evidence(
        seen(subjects, pictures, 16, 12), subjects, torch.full((len(pictures),), 16.0), pictures
    )
    right = (scores.argmax(1) == torch.arange(len(pictures))).float().mean()
    others = torch.full((len(pictures),), 5 - subject)
    wrong_person = evidence(seen(subjects, pictures, 16, 12), others, torch.ones(40), pictures)
    assert right > 0.9
    assert (wrong_person.argmax(1) == torch.arange(40)).float().mean() < 0.4


def test_it_is_calibrated(world, evidence):
    """Where the model holds, the probability of the picture seen is what its share of hits is."""
    pictures, seen = world
    rows = torch.arange(40).repeat(20)
    subjects = torch.ones(len(rows), dtype=torch.long)
    scores = evidence(
        seen(subjects, pictures[rows], 1, 13), subjects, torch.ones(len(rows)), pictures
    )
    probability, guess = scores.softmax(1).max(1)
    assert abs(float(probability.mean()) - float((guess == rows).float().mean())) < 0.08
    assert 0.1 < float(probability.mean()) < 0.9


def test_trials_and_temperature_scale_it(world, evidence):
    pictures, seen = world
    subjects = torch.ones(3, dtype=torch.long)
    signals = seen(subjects, pictures[:3], 1, 14)
    once = evidence(signals, subjects, torch.ones(3), pictures)
    evidence.temperature = 2.0
    halved = evidence(signals, subjects, torch.full((3,), 5.0), pictures)
    evidence.temperature = 1.0
    torch.testing.assert_close(halved, once * 2.5)


def test_of_a_stranger_it_says_nothing(world, evidence):
    pictures, seen = world
    signals = seen(torch.ones(2), pictures[:2], 1, 15)
    strangers = torch.full((2,), 7)
    assert not evidence(signals, strangers, torch.ones(2), pictures).any()


def test_too_few_trials_are_no_evidence(world):
    pictures, seen = world
    subjects = torch.ones(12, dtype=torch.long)
    signals = seen(subjects, pictures[:12], 1, 16)
    assert PictureEvidence.fitted(signals, pictures[:12], subjects, sfreq=SFREQ) is None


def test_an_empty_one_of_its_sizes_takes_its_state(world, evidence):
    pictures, seen = world
    again = PictureEvidence(**evidence.sizes())
    again.load_state_dict(evidence.state_dict())
    subjects = torch.tensor([1, 4])
    signals = seen(subjects, pictures[:2], 1, 17)
    torch.testing.assert_close(
        again(signals, subjects, torch.ones(2), pictures),
        evidence(signals, subjects, torch.ones(2), pictures),
    )


def test_evidence_corrects_the_memory(world, evidence):
    pictures, seen = world
    memory = PictureMemory.of(pictures, 0.1)
    subjects = torch.ones(len(pictures), dtype=torch.long)
    weighed = evidence(
        seen(subjects, pictures, 16, 18), subjects, torch.full((40,), 16.0), pictures
    )
    wrong = pictures.roll(1, 0)
    assert memory.nearness(wrong, pictures) < 0.5
    assert memory.nearness(wrong, pictures, weighed) > 0.9


@pytest.mark.parametrize("shrinkage", [0.0, 0.3, 1.0])
def test_separable_noise_becomes_white(shrinkage):
    noise = coloured_noise(4000, generator(20))
    whiten = separable_whitening(noise[:2000], 2000, shrinkage)
    white = noise[2000:].flatten(1) @ whiten.T
    covariance = white.T @ white / len(white)
    assert (covariance - torch.eye(len(covariance))).abs().mean() < 0.05
    assert abs(float(covariance.diagonal().mean()) - 1) < 0.15


def test_shrinkage_keeps_what_is_not_separable():
    g = generator(21)
    noise = coloured_noise(3000, g)
    noise[:, 0, 3] += 9 * torch.randn(3000, generator=g) * noise[:, 0, 3].std()
    whites = {s: noise.flatten(1) @ separable_whitening(noise, 3000, s).T for s in (0.05, 1.0)}
    worst = {s: float(white.var(0).max()) for s, white in whites.items()}
    assert worst[0.05] < 1.2 < 2 < worst[1.0]
