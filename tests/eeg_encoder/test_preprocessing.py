from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from eeg_encoder.errors import InputError
from eeg_encoder.preprocessing import (
    Augmentation,
    Preprocessing,
    electrode_places,
    mix_repetitions,
    spline_matrix,
)
from eeg_encoder.preprocessing.filters import band_pass, notch, resample, stretch
from eeg_encoder.preprocessing.montage import montage_places
from eeg_encoder.preprocessing.whitening import (
    fit_whitening,
    ledoit_wolf_weight,
    noise_covariance,
    residuals,
)
from eeg_encoder.recordings.trials import TrialSet

from .conftest import small_trials


@pytest.fixture(scope="module")
def trials():
    return small_trials(repetitions=6, duration=0.44, subjects=2)


def test_resampling_keeps_a_slow_wave(trials):
    time = np.arange(440) / 1000
    wave = np.sin(2 * np.pi * 10 * time, dtype=np.float64)
    signals = np.broadcast_to(wave.astype(np.float32), trials.signals.shape).copy()
    pre = Preprocessing(sfreq=250.0, whiten=False, demean=False).fit(trials)
    pre.median, pre.spread = [0.0] * 16, [1.0] * 16
    out = pre(replace(trials, signals=signals))
    assert out.shape == (len(trials), 16, 110)
    np.testing.assert_allclose(out[0, 0, 10:-10], wave[::4][10:-10], atol=0.02)


def test_z_scores_are_robust(trials):
    out = Preprocessing(whiten=False, clip=5.0).fit(trials)(trials)
    low, middle, high = np.percentile(out, [25, 50, 75], axis=(0, 2))
    np.testing.assert_allclose(middle, 0, atol=1e-3)
    np.testing.assert_allclose(high - low, 1.349, rtol=1e-3)
    assert np.abs(out).max() <= 5.0


def test_whitening_decorrelates_the_noise_of_each_subject(trials):
    out = Preprocessing(shrinkage=1e-4).fit(trials)(trials)
    for subject in (1, 2):
        mine = trials.subjects == subject
        group = trials.groups()[mine]
        signals = out[mine]
        residual = np.concatenate(
            [signals[group == g] - signals[group == g].mean(0) for g in np.unique(group)]
        )
        correlation = np.corrcoef(residual.transpose(1, 0, 2).reshape(16, -1))
        assert np.abs(correlation - np.eye(16)).max() < 0.1


def test_unknown_subjects_get_the_shared_whitening(trials):
    pre = Preprocessing().fit(trials)
    other = pre(replace(trials, subjects=np.full(len(trials), 9)))
    assert np.isfinite(other).all()
    assert not np.allclose(other, pre(trials))


def test_test_trials_do_not_change_the_fit(trials):
    pre = Preprocessing().fit(trials)
    part = trials.select(np.arange(3))
    np.testing.assert_allclose(pre(part), pre(trials)[:3], rtol=1e-5, atol=1e-6)


def test_round_trip(trials, tmp_path):
    pre = Preprocessing(band=[1.0, 40.0]).fit(trials)
    pre.save(tmp_path / "p.json")
    again = Preprocessing.load(tmp_path / "p.json")
    assert again == pre
    np.testing.assert_array_equal(again(trials), pre(trials))


def test_recordings_that_differ_are_refused(trials):
    pre = Preprocessing().fit(trials)
    with pytest.raises(InputError, match="1000 Hz x 440, as in training"):
        pre(replace(trials, sfreq=500.0))
    with pytest.raises(InputError, match="rate and length"):
        pre(replace(trials, signals=trials.signals[:, :, :400]))
    with pytest.raises(InputError, match="channels"):
        pre(replace(trials, channels=trials.channels[::-1]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sfreq": 2000.0}, "sfreq"),
        ({"band": [40.0, 1.0]}, "band"),
        ({"sfreq": -1.0}, "sfreq"),
        ({"notch": [500.0]}, "notch"),
        ({"phase": "linear"}, "phase: found linear, expected one of zero, causal"),
        ({"resampling": "nearest"}, "resampling"),
        ({"whiten_mode": "space"}, "whiten_mode"),
        ({"whiten_per": "block"}, "whiten_per"),
        ({"shrinkage": 2.0}, "shrinkage"),
        ({"window": [0.3, 0.1]}, "window"),
        ({"window": [0.0, 9.0]}, "window"),
        ({"baseline": [-0.2, 0.0]}, "baseline"),
        ({"pick": ["Oz", "Nz1"]}, "without Nz1"),
        ({"map_to": "biosemi16", "montage": "biosemi128"}, "channels in biosemi128"),
        ({"map_to": "moon", "montage": "biosemi16"}, "montage: found moon"),
    ],
)
def test_bad_settings_are_named(trials, settings, message):
    with pytest.raises(InputError, match=message):
        Preprocessing(**settings).fit(trials)


def test_bad_files_are_named(tmp_path):
    with pytest.raises(InputError, match="p.json"):
        Preprocessing.load(tmp_path / "p.json")
    (tmp_path / "p.json").write_text('{"sfreq": 250.0, "colour": 1}')
    with pytest.raises(InputError, match="colour"):
        Preprocessing.load(tmp_path / "p.json")


def named_trials(names, *, n: int = 12, samples: int = 100, sfreq: float = 100.0, tmin=-0.2):
    generator = np.random.default_rng(0)
    zeros = np.zeros(n, np.int64)
    return TrialSet(
        signals=generator.normal(size=(n, len(names), samples)).astype(np.float32),
        sfreq=sfreq,
        channels=list(names),
        labels=zeros,
        label_names=["n90000001"],
        stimuli=np.array([f"s{i // 2}" for i in range(n)]),
        subjects=np.repeat([1, 2], n // 2),
        sessions=np.tile([1, 2], n // 2),
        blocks=zeros,
        tmin=tmin,
    )


PLAIN = {"sfreq": 0.0, "demean": False, "whiten": False, "zscore": False, "clip": 0.0}


def test_nothing_asked_for_changes_nothing():
    trials = named_trials(["Oz", "Pz", "Cz"])
    np.testing.assert_array_equal(Preprocessing(**PLAIN).fit(trials)(trials), trials.signals)


def test_window_and_baseline_are_in_seconds_from_the_onset():
    trials = named_trials(["Oz", "Pz", "Cz"])
    out = Preprocessing(**PLAIN, window=[0.0, 0.5], baseline=[-0.2, 0.0]).fit(trials)(trials)
    before = trials.signals[:, :, :20].mean(axis=2, keepdims=True)
    np.testing.assert_allclose(out, (trials.signals - before)[:, :, 20:70], atol=1e-6)
    with pytest.raises(InputError, match="tmin"):
        Preprocessing(**PLAIN, window=[0.0, 0.5]).fit(trials)(replace(trials, tmin=0.0))


def test_channels_are_picked_by_name():
    trials = named_trials(["Oz", "Pz", "Cz", "Fz"])
    pre = Preprocessing(**PLAIN, pick=["Cz", "Oz"]).fit(trials)
    np.testing.assert_array_equal(pre(trials), trials.signals[:, [2, 0]])
    turned = replace(trials, channels=trials.channels[::-1], signals=trials.signals[:, ::-1])
    np.testing.assert_array_equal(pre(turned), pre(trials))


def test_published_stretch_is_linear_interpolation():
    signals = np.random.default_rng(0).normal(size=(2, 3, 440)).astype(np.float32)
    axis, wanted = np.linspace(0, 1, 440), np.linspace(0, 1, 512)
    expected = np.stack([[np.interp(wanted, axis, row) for row in trial] for trial in signals])
    np.testing.assert_allclose(stretch(signals, 512), expected, atol=1e-5)
    trials = named_trials(["Oz", "Pz"], samples=440, sfreq=1000.0)
    assert Preprocessing(**PLAIN, length=512).fit(trials)(trials).shape == (12, 2, 512)


@pytest.mark.parametrize("method", ["polyphase", "fft", "linear"])
def test_resampling_by_name(method):
    time = np.arange(1000) / 1000
    wave = np.sin(2 * np.pi * 5 * time).astype(np.float32)
    out = resample(wave[None], (1000.0, 250.0), method)
    assert out.shape == (1, 250)
    tolerance = 0.1 if method == "linear" else 0.02
    np.testing.assert_allclose(out[0, 20:-20], wave[::4][20:-20], atol=tolerance)


@pytest.mark.parametrize("method", ["polyphase", "fft"])
def test_resampling_keeps_aliases_out(method):
    fast = np.sin(2 * np.pi * 200 * np.arange(1000) / 1000).astype(np.float32)
    out = resample(fast[None], (1000.0, 250.0), method)
    assert np.abs(out[0, 25:-25]).max() < 0.05


def test_filters_pass_and_stop():
    time = np.arange(2000) / 500
    slow, mains = np.sin(2 * np.pi * 10 * time), np.sin(2 * np.pi * 50 * time)
    both = (slow + mains).astype(np.float32)[None]
    middle = slice(500, 1500)
    for out in (band_pass(both, 500.0, [5.0, 20.0]), notch(both, 500.0, [50.0])):
        np.testing.assert_allclose(out[0, middle], slow[middle], atol=0.05)


def test_causal_filters_do_not_see_the_future():
    step = np.zeros((1, 400), np.float32)
    step[0, 200:] = 1.0
    causal = band_pass(step, 250.0, [1.0, 30.0], "causal")
    assert not causal[0, :200].any()
    assert causal[0, 200:].any()
    assert np.abs(band_pass(step, 250.0, [1.0, 30.0], "zero")[0, 150:200]).max() > 0.01


def correlated_noise(n=40, channels=5, samples=60):
    generator = np.random.default_rng(0)
    mixing = generator.normal(size=(channels, channels))
    return (mixing @ generator.normal(size=(n, channels, samples))).astype(np.float32), mixing


@pytest.mark.parametrize("mode", ["time", "epochs"])
def test_whitening_inverts_the_noise_covariance(mode):
    signals, mixing = correlated_noise(400)
    group, who = np.arange(400) // 4, np.full(400, "1")
    matrix = fit_whitening(signals, group, who, mode=mode, shrinkage=0.0)["1"]
    np.testing.assert_allclose(matrix @ mixing @ mixing.T @ matrix.T, np.eye(5), atol=0.06)


def test_covariance_modes_differ_by_slow_offsets():
    noise, _ = correlated_noise(400)
    offset = 10 * np.random.default_rng(1).normal(size=(400, 5, 1)).astype(np.float32)
    clean = noise_covariance(noise, "epochs")
    np.testing.assert_allclose(noise_covariance(noise + offset, "epochs"), clean, rtol=1e-3)
    assert np.trace(noise_covariance(noise + offset, "time")) > 5 * np.trace(clean)


def test_residuals_do_not_hold_the_response():
    noise, _ = correlated_noise(400)
    response = np.repeat(np.random.default_rng(1).normal(size=(100, 5, 60)), 4, axis=0)
    group = np.arange(400) // 4
    with_response = residuals((noise + response).astype(np.float32), group)
    np.testing.assert_allclose(with_response, residuals(noise, group), atol=1e-4)
    assert residuals(noise, group).var() == pytest.approx(noise.var(), rel=0.1)


def test_ledoit_wolf_is_scikit_learns():
    covariance = pytest.importorskip("sklearn.covariance")
    noise, _ = correlated_noise(6, 5, 10)
    flat = noise.transpose(0, 2, 1).reshape(-1, 5)
    expected = covariance.LedoitWolf(assume_centered=True).fit(flat).shrinkage_
    found = ledoit_wolf_weight(noise, noise_covariance(noise))
    assert found == pytest.approx(expected, rel=1e-3)


def test_whitening_per_session():
    trials = named_trials(["Oz", "Pz", "Cz"], n=160)
    trials.stimuli = np.array([f"s{i % 20}" for i in range(160)])
    trials.signals[trials.sessions == 2] *= 7
    pre = Preprocessing(whiten_per="session", sfreq=0.0).fit(trials)
    assert set(pre.whitening) == {"1/1", "1/2", "2/1", "2/2", "other"}
    out = pre(trials)
    spread = [out[trials.sessions == s].std() for s in (1, 2)]
    assert spread[0] == pytest.approx(spread[1], rel=0.1)


# THINGS-EEG2's choice
POSTERIOR = [
    *("P7", "P5", "P3", "P1", "Pz", "P2", "P4", "P6", "P8"),
    *("PO7", "PO3", "POz", "PO4", "PO8", "O1", "Oz", "O2"),
]


def test_splines_reproduce_smooth_potentials():
    names = list(montage_places("biosemi64"))
    source, target = electrode_places(names, "biosemi64"), np.stack(
        list(montage_places("biosemi128").values())
    )  # fmt: skip
    matrix = spline_matrix(source, target)
    np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=1e-6)
    exact = spline_matrix(source, source, regularisation=1e-12)
    np.testing.assert_allclose(exact, np.eye(64), atol=1e-3)
    upper = target[:, 2] > -0.2
    smooth = lambda p: p[:, 0] + 2 * p[:, 1] * p[:, 2]  # noqa: E731
    np.testing.assert_allclose((matrix @ smooth(source))[upper], smooth(target)[upper], atol=0.05)


def test_splines_are_those_of_mne():
    theirs = pytest.importorskip("mne.channels.interpolation")._make_interpolation_matrix
    source = electrode_places(POSTERIOR, "standard_1005")
    target = np.stack(list(montage_places("biosemi32").values()))
    np.testing.assert_allclose(spline_matrix(source, target), theirs(source, target), atol=1e-6)


def test_17_channels_feed_a_128_channel_model():
    from eeg_encoder import models

    trials = named_trials(POSTERIOR)
    pre = Preprocessing(map_to="biosemi128", sfreq=0.0).fit(trials)
    out = pre(trials)
    assert out.shape == (12, 128, 100)
    assert np.isfinite(out).all()
    assert pre.places().shape == (128, 3)
    model = models.build("eeg_project", channels=128, samples=100, embedding=4, hidden=8)
    assert model(torch.from_numpy(out)).shape == (12, 4)


@pytest.mark.parametrize(
    "settings",
    [{"whiten": False}, {}, {"map_to": "biosemi16"}, {"map_to": "biosemi16", "whiten": False}],
)
def test_two_files_round_trip(settings, tmp_path):
    trials = named_trials(POSTERIOR)
    pre = Preprocessing(sfreq=50.0, whiten_per="session", **settings).fit(trials)
    pre.save(tmp_path / "preprocessing.json")
    again = Preprocessing.load(tmp_path / "preprocessing.json")
    assert again == pre
    np.testing.assert_array_equal(again(trials), pre(trials))
    needed = pre.whiten or bool(pre.map_to)
    assert (tmp_path / "preprocessing.safetensors").is_file() == needed


def test_matrices_that_are_missing_are_named(tmp_path):
    trials = named_trials(POSTERIOR)
    Preprocessing(sfreq=50.0).fit(trials).save(tmp_path / "p.json")
    (tmp_path / "p.safetensors").write_bytes(b"nonsense")
    with pytest.raises(InputError, match="p.safetensors"):
        Preprocessing.load(tmp_path / "p.json")
    (tmp_path / "p.safetensors").unlink()
    with pytest.raises(InputError, match="p.safetensors"):
        Preprocessing.load(tmp_path / "p.json")


def test_the_older_file_loads(trials, tmp_path):
    """Matrices inside the JSON and none of the later settings, as the shipped encoder has it."""
    import json

    pre = Preprocessing().fit(trials)
    content = pre.as_dict()
    from eeg_encoder.preprocessing.pipeline import ORIGINAL

    (tmp_path / "p.json").write_text(json.dumps({name: content[name] for name in ORIGINAL}))
    again = Preprocessing.load(tmp_path / "p.json")
    np.testing.assert_allclose(again(trials), pre(trials), rtol=1e-5)


def test_samples_that_are_not_finite_are_refused(trials):
    pre = Preprocessing().fit(trials)
    broken = replace(trials, signals=trials.signals.copy())
    broken.signals[2, 3, 4] = np.nan
    with pytest.raises(InputError, match="NaN"):
        pre(broken)
    with pytest.raises(InputError, match="NaN"):
        Preprocessing().fit(broken)
    with pytest.raises(InputError, match="training trials: found none"):
        Preprocessing().fit(trials.select(np.arange(0)))


def test_amplitude_jitter_scales_trials():
    signals = torch.ones(2000, 2, 3)
    out = Augmentation(0.0, 0, 0.0, amplitude=0.2)(signals, torch.Generator().manual_seed(0))
    gain = out[:, 0, 0].log()
    assert gain.std().item() == pytest.approx(0.2, rel=0.1)
    torch.testing.assert_close(out, out[:, :1, :1].expand_as(out))


def test_mixed_repetitions_are_convex_combinations():
    signals = torch.eye(4)[None, :, None].expand(3000, 4, 1, 4)
    present = torch.tensor([True, True, True, False]).expand(3000, 4)
    weights = mix_repetitions(signals, present, torch.Generator().manual_seed(0))[:, 0]
    assert not weights[:, 3].any()
    torch.testing.assert_close(weights.sum(1), torch.ones(3000))
    assert weights.min() >= 0
    torch.testing.assert_close(weights.mean(0)[:3], torch.full((3,), 1 / 3), atol=0.02, rtol=0)
    even = mix_repetitions(signals, present, torch.Generator().manual_seed(0), 1e5)[:, 0]
    torch.testing.assert_close(even[:, :3], torch.full((3000, 3), 1 / 3), atol=0.01, rtol=0)
