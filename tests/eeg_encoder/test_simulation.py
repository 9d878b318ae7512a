from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from eeg_encoder.errors import InputError
from eeg_encoder.recordings.forward_model import head_model
from eeg_encoder.recordings.simulation import SimulationConfig, StimulusCode, Subject, simulate

from .conftest import small_trials


@pytest.fixture(scope="module")
def embeddings():
    return torch.randn(200, 24, generator=torch.Generator().manual_seed(0)) @ torch.diag(
        torch.linspace(2, 0.2, 24)
    )


@pytest.mark.parametrize("snr_db", [-30.0, -24.0])
def test_snr_is_what_the_docstring_says(embeddings, snr_db):
    code = StimulusCode.fit(embeddings)
    subject = Subject(SimulationConfig(snr_db=snr_db), code, 1)
    response = subject.response(code(embeddings)).double()
    specific = ((response - response.mean(0)) ** 2).mean()
    noise = subject.noise(200, torch.Generator().manual_seed(0)).double()
    measured = 10 * math.log10(float(specific / noise.square().mean()))
    assert measured == pytest.approx(snr_db, abs=0.3)


def test_amplitudes_are_those_of_eeg():
    trials = small_trials(channels=128, evoked_uv=5.0, noise_uv=8.0, drift=0.0, session_gain=0.0)
    assert trials.signals.std() * 1e6 == pytest.approx(8.0, rel=0.15)
    code = StimulusCode.fit(torch.randn(50, 8))
    config = SimulationConfig()
    evoked = Subject(config, code, 1).response(torch.zeros(1, 8))[0]
    peak = float(evoked.abs().max()) * 1e6
    assert 4.0 < peak < 6.0
    latency = float(evoked.abs().amax(0).argmax()) / config.sfreq
    assert 0.08 < latency < 0.45


def test_detail_share_falls_with_latency(embeddings):
    code = StimulusCode.fit(embeddings)
    readout = Subject(SimulationConfig(), code, 1).readout
    power = (readout**2).reshape(4, -1, readout.shape[1]).sum(1)
    share = power[:, 12:].sum(1) / power.sum(1)
    assert share.tolist() == sorted(share.tolist(), reverse=True)
    assert share[0] > 0.7
    assert share[3] < 0.25


def test_background_falls_with_frequency():
    code = StimulusCode.fit(torch.randn(50, 8))
    subject = Subject(SimulationConfig(alpha=0.0, sensor=0.01), code, 1)
    noise = subject.noise(100, torch.Generator().manual_seed(0))
    power = torch.fft.rfft(noise * torch.hann_window(500)).abs().square().mean((0, 1))
    frequency = torch.fft.rfftfreq(500, 1e-3)
    chosen = (frequency > 6) & (frequency < 60)
    slope = np.polyfit(np.log(frequency[chosen]), np.log(power[chosen]), 1)[0]
    assert slope == pytest.approx(-1.2, abs=0.25)


def test_deterministic_given_the_seed():
    first, again, other = small_trials(), small_trials(), small_trials(seed=1)
    np.testing.assert_array_equal(first.signals, again.signals)
    np.testing.assert_array_equal(first.stimuli, again.stimuli)
    assert not np.array_equal(first.signals, other.signals)


def test_other_stimuli_reach_the_same_brain(embeddings, tmp_path):
    code = StimulusCode.fit(embeddings)
    code.save(tmp_path / "code.safetensors")
    again = StimulusCode.load(tmp_path / "code.safetensors")
    few = embeddings[:3]
    one = Subject(SimulationConfig(), code, 2).response(code(embeddings))[:3]
    two = Subject(SimulationConfig(), again, 2).response(again(few))
    torch.testing.assert_close(one, two)


def test_subjects_differ(embeddings):
    code = StimulusCode.fit(embeddings)
    one, two = (Subject(SimulationConfig(), code, n).response(code(embeddings[:1])) for n in (1, 2))
    assert not torch.allclose(one, two)


def test_presentation():
    config = {"subjects": 2, "sessions": 2, "repetitions": 4}
    rapid = small_trials(**config)
    assert len(rapid) == 2 * 18 * 4
    _, counts = np.unique(rapid.groups(), return_counts=True)
    assert set(counts) == {4}
    block = small_trials(order="block", **config)
    first = block.labels[(block.subjects == 1) & (block.sessions == 0)]
    assert np.count_nonzero(np.diff(first)) == 2
    assert np.count_nonzero(np.diff(rapid.labels[:36])) > 10


def test_held_out_stimuli_are_shown_more_often():
    labels = np.array([0, 0, 1, 1])
    ids = ["n1_0", "n1_1", "n2_0", "n2_1"]
    config = SimulationConfig(channels=16, subjects=1, repetitions=2, held_out_repetitions=5)
    held = np.array([False, True, False, False])
    trials = simulate(torch.eye(4), labels, ["n1", "n2"], ids, config=config, held_out=held)
    assert (trials.stimuli == "n1_1").sum() == 5
    assert (trials.stimuli == "n2_0").sum() == 2


def test_neighbours_overlap():
    knobs = {"noise_uv": 1e-3, "evoked_uv": 5.0, "drift": 0.0, "jitter": 0.0, "soa": 0.2}
    alone = small_trials(overlap=0.0, **knobs).signals
    beside = small_trials(overlap=1.0, **knobs).signals
    assert np.abs(beside - alone).max() > 1e-6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"channels": 100}, "channels: found 100"),
        ({"order": "random"}, "order: found random"),
        ({"repetitions": 0}, "repetitions: found 0"),
        ({"background_sources": 5}, "background_sources"),
    ],
)
def test_bad_knobs_are_named(change, message):
    with pytest.raises(InputError, match=message):
        small_trials(**change)


def test_embeddings_must_be_finite():
    bad = torch.full((4, 3), float("nan"))
    with pytest.raises(InputError, match="embeddings"):
        simulate(bad, [0, 0, 1, 1], ["a", "b"], list("wxyz"))


def test_head_model_is_a_head():
    head = head_model(128)
    assert head.gain.shape[0] == len(head.channels) == 128
    np.testing.assert_allclose(head.gain.mean(0), 0, atol=1e-9)
    peak = np.abs(head.gain).max() * 20e-9
    assert 1e-6 < peak < 20e-6
    assert np.linalg.matrix_rank(head.gain.reshape(128, -1)) == 127
