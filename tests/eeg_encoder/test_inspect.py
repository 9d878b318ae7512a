from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from eeg_encoder.cli import app
from eeg_encoder.errors import InputError
from eeg_encoder.protocols import find_protocol
from eeg_encoder.recordings.arrays import write_npz
from eeg_encoder.recordings.overview import overview
from eeg_encoder.recordings.overview_picture import draw_overview
from eeg_encoder.recordings.perceivelab import write_perceivelab, write_splits
from eeg_encoder.recordings.positions import electrode_positions

from .conftest import small_trials

SCALP = ["Fp1", "Fp2", "F3", "F4", "C3", "C4", "P3", "P4", "O1", "O2", "Fz", "Cz", "Pz", "Oz"]
SCALP += ["T7", "T8"]


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in ("inspect", *arguments)])


def recording(**knobs):
    return replace(small_trials(**knobs), channels=SCALP)


def with_line(trials, frequency=50.0, amplitude=2e-5):
    time = np.arange(trials.signals.shape[2]) / trials.sfreq
    wave = amplitude * np.sin(2 * np.pi * frequency * time)
    return replace(trials, signals=(trials.signals + wave).astype(np.float32))


def test_overview_counts_and_measures():
    trials = recording(subjects=2, sessions=2)
    found = overview(trials).as_dict()
    assert (found["trials"], found["trials_in_file"]) == (72, 72)
    assert (found["categories"], found["stimuli"], found["repetitions"]) == (3, 18, [2, 2])
    assert sum(found["trials_of_category"].values()) == 72
    assert found["trials_of_subject"] == {"1": 36, "2": 36}
    assert found["channels"]["count"] == found["channels"]["with_position"] == 16
    assert found["design"] == "rapid"
    assert found["window_s"] == [0.0, pytest.approx(0.499)]
    expected = trials.signals - trials.signals.mean(axis=2, keepdims=True)
    deviation = found["amplitude"]["deviation_of_channel"]["Oz"]
    assert deviation == pytest.approx(expected[:, 13].std() * 1e6, rel=1e-3)
    assert found["channels"]["nonfinite"] == found["channels"]["flat"] == {}
    json.dumps(found)


def test_bad_channels_are_named():
    trials = recording()
    signals = trials.signals.copy()
    signals[3, 2, 10], signals[4, 2, 11] = np.nan, np.inf
    signals[:, 5] = 3e-6
    signals[:, 7] *= 40
    found = overview(replace(trials, signals=signals))
    channels = found.as_dict()["channels"]
    assert channels["nonfinite"] == {"F3": 2}
    assert channels["flat"] == {"C4": 36}
    assert list(channels["noisy"]) == ["P4"]
    assert np.isfinite(found.average).all()
    with pytest.raises(InputError, match="a.fif: channel F3: found NaN or infinity in 2 trials"):
        found.refuse_nonfinite("a.fif")


@pytest.mark.parametrize("line", [50.0, 60.0])
def test_line_noise_is_measured(line):
    quiet = overview(recording()).as_dict()["line_noise_db"]
    loud = overview(with_line(recording(), line)).as_dict()["line_noise_db"]
    name = f"{line:g} Hz"
    assert quiet[name] < 5
    assert loud[name] > 20
    assert overview(replace(recording(), sfreq=80.0)).as_dict()["line_noise_db"] == {}


def test_the_spectrum_has_the_power_of_the_signals():
    trials = with_line(recording(), 100.0, 1e-4)
    found = overview(trials)
    total = found.spectrum.sum(axis=1) * found.frequencies[1]
    np.testing.assert_allclose(total, found.deviation**2, rtol=0.05)
    assert found.frequencies[found.spectrum.mean(axis=0).argmax()] == pytest.approx(100.0)


def test_splits_are_described():
    trials = recording(subjects=2)
    split = next(find_protocol("k-fold-by-stimulus", k=3).splits(trials))
    good = overview(trials, split.parts()).as_dict()["split"]
    assert good["refused"] is None
    assert good["shared"]["train and test"]["stimuli"] == 0
    assert good["shared"]["train and test"]["subjects"] == 2
    order = np.random.default_rng(0).permutation(72)
    bad = {"train": order[:40], "val": order[40:50], "test": order[50:]}
    found = overview(trials, bad).as_dict()["split"]
    assert found["shared"]["train and test"]["stimuli"] > 5
    assert "also in train" in found["refused"]


def test_a_recording_of_no_trials_is_refused():
    with pytest.raises(InputError, match="trials: found none"):
        overview(recording().select(slice(0, 0)))


@pytest.mark.parametrize("known", [True, False], ids=["head", "bars"])
def test_the_picture_is_drawn(tmp_path, known):
    trials = recording() if known else replace(recording(), channels=[f"E{i}" for i in range(16)])
    draw_overview(tmp_path / "overview.png", overview(trials))
    picture = np.asarray(Image.open(tmp_path / "overview.png").convert("L"))
    assert picture.shape[0] > 400
    assert picture.std() > 10
    assert [file.name for file in tmp_path.iterdir()] == ["overview.png"]


def test_positions_of_known_names_only():
    places = electrode_positions(["CZ", "oz", "FPz", "nd", "E5"])
    assert np.isfinite(places).all(axis=1).tolist() == [True, True, True, False, False]
    assert places[0, 2] > 0.05
    assert places[1, 1] < -0.05
    assert places[2, 1] > 0.05
    biosemi = electrode_positions(["A1", "B3", "D31"])
    assert np.isfinite(biosemi).all()
    np.testing.assert_allclose(np.linalg.norm(biosemi, axis=1), 0.095, atol=0.002)


def test_the_command_prints_a_table_json_and_files(tmp_path):
    write_npz(tmp_path / "eeg.npz", recording(subjects=2))
    split = next(find_protocol("leave-subject-out").splits(recording(subjects=2)))
    split.save(tmp_path / "split.json")
    result = run(tmp_path / "eeg.npz", "--splits", tmp_path / "split.json")
    assert result.exit_code == 0, result.output
    for words in ("format: npz", "trials: 72 of 72", "design: rapid", "verdict: no leak"):
        assert words in result.output
    result = run(tmp_path / "eeg.npz", "--json", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    printed = json.loads(result.stdout)
    assert printed["sfreq_hz"] == 1000.0
    assert json.loads((tmp_path / "out" / "overview.json").read_text()) == printed
    assert Image.open(tmp_path / "out" / "overview.png").size[0] > 500


def test_the_command_takes_options_of_the_format(tmp_path):
    np.save(tmp_path / "a.npy", np.random.default_rng(0).normal(size=(3, 40)))
    options = ["-o", "sfreq=100", "-o", "n_channels=3", "-o", "samples=20"]
    result = run(tmp_path, "--json", *options)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["trials"] == 2
    result = run(tmp_path)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "option sfreq: found nothing" in result.stderr
    assert "option: found sfreq, expected key=value" in run(tmp_path, "-o", "sfreq").stderr
    assert "format: found edf" in run(tmp_path, "--format", "edf").stderr


@pytest.mark.parametrize("suffix", ["npz", "pth"])
def test_a_recording_with_nan_is_described_and_refused(tmp_path, suffix):
    trials = small_trials(channels=128)
    trials.signals[3, 5, 100] = np.nan
    path = tmp_path / f"eeg.{suffix}"
    (write_npz if suffix == "npz" else write_perceivelab)(path, trials)
    result = run(path)
    assert result.exit_code == 2
    assert f"NaN or infinity: {trials.channels[5]} (1 trials)" in result.stdout
    assert result.stderr.startswith(f"error: {path}: ")
    assert result.stderr.count("\n") == 1


def test_a_split_of_one_subject_needs_the_subject(tmp_path):
    trials = small_trials(channels=128, subjects=2)
    write_perceivelab(tmp_path / "eeg.pth", trials)
    single = tmp_path / "block_splits_by_image_single.pth"
    write_splits(single, {"train": [0, 1], "val": [2], "test": [3]})
    result = run(tmp_path / "eeg.pth", "--splits", single)
    assert result.exit_code == 2
    assert "expected the subject whose trials they count" in result.stderr
    result = run(tmp_path / "eeg.pth", "--splits", single, "--subject", "2", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["split"]["trials"] == {"train": 2, "val": 1, "test": 1}


def test_a_split_for_another_recording_is_named(tmp_path):
    write_npz(tmp_path / "eeg.npz", recording())
    next(find_protocol("leave-subject-out").splits(recording(subjects=2))).save(tmp_path / "s.json")
    result = run(tmp_path / "eeg.npz", "--splits", tmp_path / "s.json")
    assert result.exit_code == 2
    assert "positions 0 to 35" in result.stderr
