from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from eeg_encoder.errors import InputError
from eeg_encoder.preprocessing import Preprocessing

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
    [({"sfreq": 2000.0}, "sfreq"), ({"band": [40.0, 1.0]}, "band"), ({"sfreq": 0.0}, "sfreq")],
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
