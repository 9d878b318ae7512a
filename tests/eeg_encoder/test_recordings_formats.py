from __future__ import annotations

import os
import pickle
from dataclasses import replace
from pathlib import Path

import mne
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eeg_encoder.errors import InputError
from eeg_encoder.recordings import arrays, lazy, perceivelab
from eeg_encoder.recordings.arrays import load_npz, write_npz
from eeg_encoder.recordings.bids import load_bids
from eeg_encoder.recordings.eeg3d import load_eeg3d
from eeg_encoder.recordings.eeg3d import published_test as eeg3d_test
from eeg_encoder.recordings.formats import FORMATS, open_recording, recognise
from eeg_encoder.recordings.lazy import LazySignals
from eeg_encoder.recordings.mne_epochs import load_epochs
from eeg_encoder.recordings.pretraining import load_folder
from eeg_encoder.recordings.things_eeg2 import POSTERIOR, load_things_eeg2, published_test
from eeg_encoder.recordings.trials import TrialSet, concatenate

from .conftest import small_trials

REST = ("Fp1", "Fz", "Cz")


class Payload:
    def __init__(self, touched: Path) -> None:
        self.touched = touched

    def __reduce__(self):
        return os.system, (f"touch {self.touched}",)


def random(*shape, dtype=np.float64):
    return np.random.default_rng(0).normal(size=shape).astype(dtype)


def things(pictures=20, repeats=4, names=(*REST, *POSTERIOR), samples=10, **changes):
    return {
        "preprocessed_eeg_data": random(pictures, repeats, len(names), samples),
        "ch_names": list(names),
        "times": np.linspace(-0.2, 1.0, samples + 50, endpoint=False),
        **changes,
    }


def write_things(folder, test=None, training=None, how="bare"):
    folder.mkdir(parents=True, exist_ok=True)
    for part, content in (("test", test), ("training", training)):
        if content is None:
            continue
        path = folder / f"preprocessed_eeg_{part}.npy"
        if how == "npy":
            np.save(path, content, allow_pickle=True)
        else:
            path.write_bytes(pickle.dumps(content, protocol=4))
    return folder


def write_eeg3d(folder, n=144, data=None, names=None):
    folder.mkdir(parents=True, exist_ok=True)
    data = random(n, 64, 25) if data is None else data
    if names is None:
        names = [f"{i % 6 + 1:02d}_thing_{i // 6 % 10:02d}" for i in range(len(data))]
    np.save(folder / "process_data_1s_250Hz.npy", data)
    np.save(folder / "name_label.npy", np.array(names))
    return folder


def epochs(n=12, metadata=None, **changes):
    info = mne.create_info(["Fz", "Cz", "Oz", "STI"], 100.0, ["eeg", "eeg", "eeg", "stim"])
    events = np.stack([np.arange(n) * 50, np.zeros(n, int), 1 + np.arange(n) % 2], axis=1)
    return mne.EpochsArray(
        random(n, 4, 30) * 1e-5,
        info,
        events,
        tmin=-0.1,
        event_id={"house": 1, "face": 2},
        metadata=metadata,
        verbose="error",
        **changes,
    )


def npz(**changes):
    n = 6
    content = {
        "signals": random(n, 3, 20, dtype=np.float32),
        "labels": np.arange(n) % 2,
        "channels": np.array(["Fz", "Cz", "Oz"]),
        "sfreq": np.array(250.0),
        "subjects": np.repeat([3, 5], n // 2),
        "trial_ids": np.tile(np.arange(n // 2), 2),
        "unit": np.array("uV"),
        **changes,
    }
    return {name: value for name, value in content.items() if value is not None}


def write(path, **changes):
    np.savez(path, **npz(**changes))
    return path


# ---------------------------------------------------------------- lazy signals


def whole_and_lazy(n=7, c=3, t=5):
    array = random(n, c, t, dtype=np.float32)
    return array, lazy.lazy_signals(lambda rows: array[rows], n, c, t)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_lazy_signals_index_like_an_array(data):
    array, signals = whole_and_lazy()
    rows = st.one_of(
        st.integers(-7, 6),
        st.slices(7),
        st.lists(st.integers(-7, 6), max_size=9).map(lambda x: np.array(x, np.int64)),
        st.lists(st.booleans(), min_size=7, max_size=7).map(np.array),
        st.just(Ellipsis),
    )
    first = data.draw(rows)
    key = data.draw(
        st.sampled_from([first, (first, slice(1, 3)), (first, ..., slice(None, None, 2))])
    )
    if first is Ellipsis and isinstance(key, tuple) and Ellipsis in key[1:]:
        key = first
    np.testing.assert_array_equal(signals[key], array[key])
    if first is not Ellipsis and not isinstance(first, int):
        np.testing.assert_array_equal(signals.rows_at(first)[:], array[first])
    np.testing.assert_array_equal(np.asarray(signals), array)
    assert signals.shape == array.shape
    assert len(signals) == len(array)


def test_lazy_trials_average_select_and_concatenate_like_trials_in_memory():
    trials = small_trials(subjects=2)
    n, c, t = trials.signals.shape
    on_disk = replace(trials, signals=lazy.lazy_signals(lambda r: trials.signals[r], n, c, t))
    np.testing.assert_array_equal(on_disk.average().signals, trials.average().signals)
    chosen = on_disk.select(trials.labels == 1)
    assert isinstance(chosen.signals, LazySignals)
    np.testing.assert_array_equal(chosen.in_memory().signals, trials.signals[trials.labels == 1])
    both = concatenate([chosen, trials])
    assert isinstance(both.signals, LazySignals)
    np.testing.assert_array_equal(both.signals[len(chosen) + 3], trials.signals[3])
    assert both.positions[-1] == 2 * n - 1
    assert both.total == 2 * n
    some = on_disk.channels_at([trials.channels[4].lower(), trials.channels[0]])
    np.testing.assert_array_equal(some.signals[:], trials.signals[:, [4, 0]])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sfreq": 500.0}, "sfreq: found 500 Hz"),
        ({"unit": "standardised"}, "unit: found standardised"),
        ({"tmin": 0.1}, "tmin: found 0.1 s"),
        ({"channels": [f"X{i}" for i in range(16)]}, "channels: found 16 channels X0"),
    ],
)
def test_recordings_that_differ_are_not_joined(change, message):
    trials = small_trials()
    with pytest.raises(InputError, match=message):
        concatenate([trials, replace(trials, **change)])


# ---------------------------------------------------------------- THINGS-EEG2


@pytest.mark.parametrize("how", ["bare", "npy"])
def test_things_keeps_repetitions(tmp_path, how):
    content = things()
    folder = write_things(tmp_path / "sub-07", training=content, how=how)
    trials = open_recording(folder / "preprocessed_eeg_training.npy")
    assert isinstance(trials.signals, LazySignals)
    assert trials.signals.shape == (80, 20, 10)
    data = content["preprocessed_eeg_data"].astype(np.float32)
    np.testing.assert_array_equal(trials.signals[:], data.reshape(80, 20, 10))
    assert trials.labels.tolist() == [0] * 40 + [1] * 40
    assert len(np.unique(trials.stimuli)) == 20
    assert set(trials.subjects) == {7}
    assert trials.sfreq == 50.0
    assert trials.tmin == pytest.approx(content["times"][50])
    assert trials.unit == "standardised"


def test_things_averages_on_request_and_picks_channels(tmp_path):
    content = things()
    folder = write_things(tmp_path / "sub-01", training=content)
    trials = load_things_eeg2(folder, repetitions="average", channels="posterior")
    assert trials.channels == list(POSTERIOR)
    expected = content["preprocessed_eeg_data"][:, :, len(REST) :].mean(1)
    np.testing.assert_allclose(trials.signals[:], expected, rtol=1e-5, atol=1e-6)
    kept = load_things_eeg2(folder, channels=["OZ", "Fz"])
    assert kept.channels == ["Oz", "Fz"]
    np.testing.assert_allclose(kept.average().signals[:, 0], expected[:, 15], rtol=1e-4, atol=1e-5)


def test_things_folders_hold_both_parts_and_many_subjects(tmp_path):
    for subject in (1, 2):
        write_things(tmp_path / f"sub-{subject:02d}", test=things(5, 6), training=things())
    assert recognise(tmp_path) == "things-eeg2"
    trials = open_recording(tmp_path)
    assert len(trials) == 2 * (80 + 30)
    assert len(published_test(trials)) == 5
    assert len(open_recording(tmp_path, subjects=[2])) == 110
    assert set(open_recording(tmp_path / "sub-02").subjects) == {2}
    assert trials.positions.tolist() == list(range(220))


def test_things_metadata_names_concepts_and_pictures(tmp_path):
    write_things(tmp_path / "sub-01", test=things(3, 2))
    described = {
        "test_img_concepts": ["00001_bear", "00002_cup", "00003_dog"],
        "test_img_files": ["bear_1.jpg", "cup_1.jpg", "dog_1.jpg"],
    }
    np.save(tmp_path / "image_metadata.npy", described, allow_pickle=True)
    trials = open_recording(tmp_path / "sub-01")
    assert trials.label_names[0] == "test-00001_bear"
    assert trials.stimuli[0] == trials.stimuli[1] == "bear_1.jpg"
    described["test_img_files"] = ["bear_1.jpg"] * 3
    np.save(tmp_path / "image_metadata.npy", described, allow_pickle=True)
    with pytest.raises(InputError, match=r"image_metadata.*test_img_files\[1\]: found bear_1.jpg"):
        open_recording(tmp_path / "sub-01")


BAD_THINGS = {
    "keys": (lambda: {"eeg": random(2, 3, 4, 5)}, "preprocessed_eeg_data: found keys eeg"),
    "list": (lambda: [1, 2], "content: found list"),
    "shape": (
        lambda: things(preprocessed_eeg_data=random(4, 20, 10)),
        r"found shape \(4, 20, 10\)",
    ),
    "empty": (lambda: things(pictures=0), r"found shape \(0,"),
    "names": (lambda: things(ch_names=["Oz"]), "channels: found 1 names, expected 20"),
    "double": (lambda: things(ch_names=["Oz"] * 20), "channels: found Oz twice"),
    "times": (lambda: things(times=[0.0, 0.1]), "times: found 2 times, expected 10"),
    "uneven": (lambda: things(times=np.geomspace(1, 9, 10)), "times: found steps of"),
}


@pytest.mark.parametrize("case", BAD_THINGS)
def test_bad_things_are_named(tmp_path, case):
    make, message = BAD_THINGS[case]
    folder = write_things(tmp_path / "sub-01", test=make())
    with pytest.raises(InputError, match=message) as caught:
        open_recording(folder)
    assert "preprocessed_eeg_test.npy" in str(caught.value)


def test_things_refuses_what_it_cannot_trust(tmp_path):
    content = things()
    content["preprocessed_eeg_data"][3, 1, 2, 5] = np.nan
    folder = write_things(tmp_path / "sub-01", training=content)
    with pytest.raises(InputError, match="trial 13, channel Cz: found NaN or infinity"):
        open_recording(folder).signals[:]
    assert np.isnan(open_recording(folder, bad="keep").signals[13]).sum() == 1
    with pytest.raises(InputError, match="channels: found no T9"):
        open_recording(folder, channels=["Oz", "T9"])
    with pytest.raises(InputError, match="repetitions: found some"):
        open_recording(folder, repetitions="some")
    whole = (folder / "preprocessed_eeg_training.npy").read_bytes()
    (folder / "preprocessed_eeg_training.npy").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="truncated"):
        open_recording(folder)
    evil = things(ch_names=[Payload(tmp_path / "touched")])
    write_things(folder, training=evil)
    with pytest.raises(
        InputError, match=f"training.npy: pickle: found the global {os.name}.system"
    ):
        open_recording(folder)
    assert not (tmp_path / "touched").exists()


# ---------------------------------------------------------------- EEG-3D


def test_eeg3d(tmp_path):
    folder = write_eeg3d(tmp_path / "sub09")
    trials = open_recording(folder)
    assert trials.signals.shape == (144, 64, 25)
    assert isinstance(trials.signals, LazySignals)
    assert trials.label_names == [f"{i:02d}_thing" for i in range(1, 7)]
    assert trials.runs.tolist() == [0] * 72 + [1] * 72
    assert set(trials.subjects) == {9}
    assert {s[-2:] for s in eeg3d_test(trials)} == {"08", "09"}
    assert (trials.sfreq, trials.tmin, trials.unit) == (250.0, -0.2, "standardised")
    write_eeg3d(tmp_path / "sub10")
    both = open_recording(tmp_path, channels=["Oz"])
    assert both.signals.shape == (288, 1, 25)
    assert open_recording(folder / "process_data_1s_250Hz.npy").signals.shape[0] == 144


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": random(8, 2, 4, 64, 25)}, r"content: found shape \(8, 2, 4, 64, 25\)"),
        ({"names": ["01_a_00"] * 5}, "name_label.npy: content: found 5 names, expected 144"),
        ({"names": ["01_a_0"] * 144}, r"name_label.npy: \[0\]: found '01_a_0'"),
    ],
)
def test_bad_eeg3d_is_named(tmp_path, change, message):
    write_eeg3d(tmp_path / "sub01", **change)
    with pytest.raises(InputError, match=message):
        open_recording(tmp_path / "sub01")


def test_eeg3d_missing_truncated_and_infinite(tmp_path):
    folder = write_eeg3d(tmp_path / "sub01")
    with pytest.raises(InputError, match="no process_data_6s_100Hz.npy"):
        load_eeg3d(folder, stage="dynamic")
    path = folder / "process_data_1s_250Hz.npy"
    path.write_bytes(path.read_bytes()[:9999])
    with pytest.raises(InputError, match=r"process_data_1s_250Hz.npy: file"):
        open_recording(folder)
    data = random(72, 64, 5)
    data[70, 63, 2] = np.inf
    with pytest.raises(InputError, match="trial 70, channel CB2"):
        np.asarray(open_recording(write_eeg3d(tmp_path / "sub02", data=data)).signals)
    write_eeg3d(folder)
    (folder / "name_label.npy").unlink()
    with pytest.raises(InputError, match=r"name_label.npy: file: found nothing"):
        load_eeg3d(folder)


# ---------------------------------------------------------------- MNE


def test_epochs_as_object_and_file(tmp_path):
    made = epochs()
    made.drop([0, 5], verbose="error")
    made.save(tmp_path / "a-epo.fif", verbose="error")
    for source in (made, tmp_path / "a-epo.fif"):
        trials = open_recording(source)
        assert trials.signals.shape == (10, 3, 30)
        assert trials.signals.dtype == np.float32
        np.testing.assert_allclose(
            trials.signals, made.get_data(picks="eeg", verbose="error"), rtol=1e-5, atol=1e-12
        )
        assert trials.channels == ["Fz", "Cz", "Oz"]
        assert trials.label_names == ["face", "house"]
        assert trials.positions.tolist() == [1, 2, 3, 4, 6, 7, 8, 9, 10, 11]
        assert trials.total == 12
        assert trials.tmin == pytest.approx(-0.1)
        assert set(trials.stimuli) == {""}
    assert set(load_epochs(made, stimulus="event", subject=4).stimuli) == {"face", "house"}
    assert set(load_epochs(made, subject=4).subjects) == {4}


def test_large_epoch_files_stay_on_disk(tmp_path, monkeypatch):
    epochs().save(tmp_path / "a-epo.fif", verbose="error")
    monkeypatch.setattr("eeg_encoder.recordings.mne_epochs.LARGE", 0)
    trials = open_recording(tmp_path / "a-epo.fif")
    assert isinstance(trials.signals, LazySignals)
    expected = epochs().get_data(picks="eeg", verbose="error")
    np.testing.assert_allclose(trials.signals[[7, 2]], expected[[7, 2]], rtol=1e-4, atol=1e-11)


def test_epoch_metadata_gives_fields():
    made = epochs()
    columns = {"category": ["a", "b", "c"] * 4, "image": [f"p{i}" for i in range(12)]}
    columns |= {"subject": ["x"] * 6 + ["y"] * 6, "run": list(range(12))}
    made._metadata = [
        dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)
    ]
    trials = load_epochs(made)
    assert trials.label_names == ["a", "b", "c"]
    assert trials.stimuli[3] == "p3"
    assert trials.subjects.tolist() == [0] * 6 + [1] * 6
    assert trials.runs.tolist() == list(range(12))
    assert load_epochs(made, label="subject").label_names == ["x", "y"]
    with pytest.raises(InputError, match=r"metadata.mood: found nothing, expected a column of cat"):
        load_epochs(made, label="mood")


def test_bad_epochs_are_named(tmp_path):
    with pytest.raises(InputError, match="type: found int"):
        load_epochs(3)
    with pytest.raises(InputError, match="file: found nothing"):
        load_epochs(tmp_path / "none-epo.fif")
    epochs().save(tmp_path / "a-epo.fif", verbose="error")
    (tmp_path / "b-epo.fif").write_bytes((tmp_path / "a-epo.fif").read_bytes()[:3000])
    with pytest.raises(InputError, match=r"b-epo.fif: file") as caught:
        load_epochs(tmp_path / "b-epo.fif")
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="channels of type stim, expected EEG"):
        load_epochs(epochs().pick(["STI"], verbose="error"))
    with pytest.raises(InputError, match="found no Pz"):
        load_epochs(epochs(), picks=["Pz"])
    spoiled = epochs()
    spoiled._data[4, 1, 3] = np.nan
    with pytest.raises(InputError, match="trial 4, channel Cz: found NaN"):
        load_epochs(spoiled)


# ---------------------------------------------------------------- .npz


def test_npz_round_trip(tmp_path):
    trials = small_trials(subjects=2)
    write_npz(tmp_path / "a.npz", trials)
    again = open_recording(tmp_path / "a.npz")
    np.testing.assert_array_equal(again.signals, trials.signals)
    for name in ("labels", "stimuli", "subjects", "sessions", "blocks", "runs"):
        np.testing.assert_array_equal(getattr(again, name), getattr(trials, name))
    assert (again.channels, again.label_names) == (trials.channels, trials.label_names)
    assert (again.sfreq, again.unit) == (trials.sfreq, "V")
    assert [p.name for p in tmp_path.iterdir()] == ["a.npz"]


def test_npz_units_and_names(tmp_path):
    path = write(tmp_path / "a.npz")
    trials = load_npz(path)
    np.testing.assert_allclose(trials.signals, npz()["signals"] * 1e-6)
    np.savez(
        tmp_path / "b.npz", X=npz()["signals"], y=["b", "a"] * 3, ch_names=["A", "B", "C"], fs=9
    )
    other = load_npz(tmp_path / "b.npz", unit="unknown")
    assert other.label_names == ["a", "b"]
    assert other.unit == "unknown"
    assert other.labels.tolist() == [1, 0] * 3


def test_large_npz_files_stay_on_disk(tmp_path, monkeypatch):
    path = write(tmp_path / "a.npz")
    expected = load_npz(path).signals
    monkeypatch.setattr(arrays, "LARGE", 0)
    trials = load_npz(path)
    assert isinstance(trials.signals, LazySignals)
    np.testing.assert_array_equal(np.asarray(trials.signals), expected)
    np.savez_compressed(tmp_path / "b.npz", **npz())
    assert isinstance(load_npz(tmp_path / "b.npz").signals, np.ndarray)


def spoiled_signals(value):
    signals = npz()["signals"].copy()
    signals[4, 2, 7] = value
    return signals


BAD_NPZ = {
    "no signals": ({"signals": None}, "signals: found labels"),
    "no rate": ({"sfreq": None}, "sfreq: found .* expected a key sfreq or fs"),
    "two dimensions": ({"signals": random(6, 3)}, r"signals: found shape \(6, 3\)"),
    "mixed rates": ({"sfreq": np.array([250.0, 500.0])}, "sfreq: found 2 rates 250, 500"),
    "no hertz": ({"sfreq": np.array(0.0)}, "sfreq: found 0.0"),
    "labels": ({"labels": np.arange(5)}, r"labels: found shape \(5,\), expected \(6,\)"),
    "label range": ({"label_names": np.array(["a"])}, "labels: found 0 to 1, expected 0 to 0"),
    "channels": ({"channels": np.array(["Fz"])}, "channels: found 1 names, expected 3"),
    "double": ({"channels": np.array(["Fz", "Oz", "Fz"])}, "channels: found Fz twice"),
    "ids": ({"trial_ids": np.zeros(6, int)}, r"trial_ids\[1\]: found \(3, 0\), as in \[0\]"),
    "nan": ({"signals": spoiled_signals(np.nan)}, "trial 4, channel Oz: found NaN or infinity"),
    "infinity": ({"signals": spoiled_signals(np.inf)}, "trial 4, channel Oz"),
    "unit": ({"unit": np.array("furlong")}, "unit: found furlong"),
    "objects": ({"signals": np.array([{}], dtype=object)}, "signals: found Object arrays"),
    "object labels": ({"labels": np.array([{}] * 6, dtype=object)}, "labels: found Object arrays"),
}


@pytest.mark.parametrize("case", BAD_NPZ)
def test_bad_npz_is_named(tmp_path, case):
    change, message = BAD_NPZ[case]
    path = write(tmp_path / "a.npz", **change)
    with pytest.raises(InputError, match=message) as caught:
        load_npz(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("keep", [0, 40, 700, -60])
def test_truncated_npz_is_named(tmp_path, keep):
    whole = write(tmp_path / "a.npz").read_bytes()
    (tmp_path / "b.npz").write_bytes(whole[:keep])
    with pytest.raises(InputError, match=r"b\.npz"):
        load_npz(tmp_path / "b.npz")


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(1, 6),
    c=st.integers(1, 4),
    t=st.integers(1, 8),
    spoil=st.sampled_from([None, np.nan, np.inf, -np.inf]),
    data=st.data(),
)
def test_npz_comes_back_or_names_the_bad_sample(tmp_path_factory, n, c, t, spoil, data):
    signals = random(n, c, t, dtype=np.float32)
    place = tuple(data.draw(st.integers(0, size - 1)) for size in (n, c, t))
    if spoil is not None:
        signals[place] = spoil
    path = tmp_path_factory.mktemp("p") / "a.npz"
    np.savez(path, X=signals, y=np.zeros(n, int), ch_names=[f"C{i}" for i in range(c)], sfreq=100.0)
    if spoil is None:
        np.testing.assert_array_equal(load_npz(path).signals, signals)
    else:
        with pytest.raises(InputError, match=f"trial {place[0]}, channel C{place[1]}:"):
            load_npz(path)
        np.testing.assert_array_equal(load_npz(path, bad="keep").signals, signals)


# ---------------------------------------------------------------- folder for pre-training


def test_folder_windows_stretches_and_repeats_channels(tmp_path):
    (tmp_path / "s1").mkdir()
    (tmp_path / "s2").mkdir()
    long, short = random(3, 25, dtype=np.float32), random(2, 5, 4, dtype=np.float32)
    np.save(tmp_path / "s1" / "a.npy", long)
    np.save(tmp_path / "s2" / "b.npy", short)
    trials = open_recording(tmp_path, sfreq=200.0, n_channels=4, samples=10, unit="uV")
    assert trials.signals.shape == (4, 4, 10)
    np.testing.assert_allclose(trials.signals[1], long[[0, 1, 2, 0], 10:20] * 1e-6, rtol=1e-6)
    stretched = trials.signals[3] * 1e6
    np.testing.assert_allclose(stretched[:, [0, 3, 6, 9]], short[1, :4], rtol=1e-5)
    assert trials.subjects.tolist() == [0, 0, 1, 1]
    assert len(np.unique(trials.stimuli)) == 4
    assert trials.label_names == ["unlabelled"]


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (random(4), r"a.npy: content: found shape \(4,\)"),
        (np.zeros((0, 3)), r"content: found shape"),
        (np.array([{}], dtype=object), "a.npy: file: found"),
        (np.array([["a"]]), "type <U1"),
    ],
)
def test_bad_folders_are_named(tmp_path, array, message):
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    with pytest.raises(InputError, match=message):
        load_folder(tmp_path, sfreq=100.0)


def test_folder_without_files_rate_or_finite_samples(tmp_path):
    with pytest.raises(InputError, match="no .npy files"):
        load_folder(tmp_path, sfreq=100.0)
    np.save(tmp_path / "a.npy", np.full((2, 600), np.nan))
    with pytest.raises(InputError, match="option sfreq: found nothing"):
        open_recording(tmp_path)
    trials = load_folder(tmp_path, sfreq=100.0)
    with pytest.raises(InputError, match="trial 0, channel E1: found NaN"):
        trials.signals[0]


# ---------------------------------------------------------------- BIDS


def test_bids_without_mne_bids_says_so(tmp_path, monkeypatch):
    (tmp_path / "dataset_description.json").write_text("{}")
    monkeypatch.setitem(__import__("sys").modules, "mne_bids", None)
    with pytest.raises(InputError, match="mne-bids is not installed, expected .*pip install"):
        open_recording(tmp_path)
    with pytest.raises(InputError, match="no dataset_description"):
        load_bids(tmp_path / "none")


def write_bids(mne_bids, root, subject, run, sfreq=100.0):
    info = mne.create_info(["Fz", "Cz", "Oz"], sfreq, "eeg")
    raw = mne.io.RawArray(random(3, 1000) * 1e-5, info, verbose="error")
    raw.set_annotations(mne.Annotations([2, 4, 6], 0.0, ["face", "house", "face"]))
    raw.info["line_freq"] = 50
    place = mne_bids.BIDSPath(
        subject=subject, run=run, task="see", root=root, datatype="eeg", suffix="eeg"
    )
    mne_bids.write_raw_bids(
        raw, place, allow_preload=True, format="BrainVision", overwrite=True, verbose="error"
    )


def test_bids(tmp_path):
    mne_bids = pytest.importorskip("mne_bids")
    for subject, run in (("01", "01"), ("01", "02"), ("02", "01")):
        write_bids(mne_bids, tmp_path, subject, run)
    trials = open_recording(tmp_path, tmin=-0.1, tmax=0.5)
    assert trials.signals.shape == (9, 3, 61)
    assert trials.label_names == ["face", "house"]
    assert trials.subjects.tolist() == [1] * 6 + [2] * 3
    assert trials.runs.tolist() == [1] * 3 + [2] * 3 + [1] * 3
    assert len(open_recording(tmp_path, subjects=["02"])) == 3
    assert len(open_recording(tmp_path, events=["house"])) == 3
    with pytest.raises(InputError, match="events: found no cat"):
        open_recording(tmp_path, events=["cat"])
    with pytest.raises(InputError, match="no matching recordings"):
        open_recording(tmp_path, task="hear")
    write_bids(mne_bids, tmp_path, "03", "01", sfreq=200.0)
    with pytest.raises(InputError, match="sfreq: found 200 Hz"):
        open_recording(tmp_path, tmin=-0.1, tmax=0.5)


# ---------------------------------------------------------------- perceivelab


def published(n=8, samples=500):
    generator = torch.Generator().manual_seed(0)
    return {
        "dataset": [
            {
                "eeg": torch.randn(128, samples, generator=generator),
                "image": i,
                "label": i % 2,
                "subject": 1 + i % 2,
            }
            for i in range(n)
        ],
        "labels": ["n1", "n2"],
        "images": [f"n{i % 2 + 1}_{i}" for i in range(n)],
    }


@pytest.mark.parametrize(
    ("name", "band", "unit"),
    [
        ("eeg_5_95_std.pth", (5.0, 95.0), "standardised"),
        ("eeg_14_70_std.pth", (14.0, 70.0), "standardised"),
        ("eeg_55_95_std.pth", (55.0, 95.0), "standardised"),
        ("eeg_signals_raw_with_mean_std.pth", None, "unknown"),
    ],
)
def test_every_published_band_is_read(tmp_path, name, band, unit):
    torch.save({**published(), "means": torch.zeros(1), "stddevs": torch.ones(1)}, tmp_path / name)
    trials = open_recording(tmp_path / name)
    assert perceivelab.band_of(tmp_path / name) == band
    assert trials.unit == unit
    assert trials.tmin == pytest.approx(0.02)
    assert ("band" in trials.source) == (band is not None)
    assert open_recording(tmp_path / name, scale=1e-6).unit == "V"


def test_perceivelab_can_stay_on_disk(tmp_path):
    content = published()
    content["dataset"][5]["eeg"][7, 100] = float("nan")
    torch.save(content, tmp_path / "a.pth")
    trials = open_recording(tmp_path / "a.pth", lazy=True)
    assert isinstance(trials.signals, LazySignals)
    whole = open_recording(tmp_path / "a.pth", bad="keep")
    np.testing.assert_array_equal(trials.signals[[4, 1]], whole.signals[[4, 1]])
    with pytest.raises(InputError, match=r"dataset\[5\].eeg\[7\]"):
        trials.signals[5]
    with pytest.raises(InputError, match=r"dataset\[5\].eeg\[7\]"):
        open_recording(tmp_path / "a.pth")


def test_the_published_split_of_one_subject_counts_her_trials(tmp_path):
    torch.save(published(), tmp_path / "a.pth")
    trials = open_recording(tmp_path / "a.pth")
    single = tmp_path / "block_splits_by_image_single.pth"
    perceivelab.write_splits(single, {"train": [0], "val": [1], "test": [2]})
    with pytest.raises(InputError, match=r"indices 0 to 2 of 8 trials, expected the subject"):
        perceivelab.load_splits(single, trials.total)
    hers = perceivelab.subject_positions(tmp_path / "a.pth", 2)
    assert hers.tolist() == [1, 3, 5, 7]
    parts = perceivelab.load_splits(single, trials.total, within=hers)
    assert [parts[name].tolist() for name in ("train", "val", "test")] == [[1], [3], [5]]
    assert set(trials.at(parts["test"]).subjects) == {2}
    with pytest.raises(InputError, match="subject: found 9"):
        perceivelab.subject_positions(tmp_path / "a.pth", 9)
    perceivelab.write_splits(single, {"train": [0], "val": [1], "test": [4]})
    with pytest.raises(InputError, match=r"test\[0\]: found 4, expected 0 to 3"):
        perceivelab.load_splits(single, trials.total, within=hers)


def test_the_published_split_of_all_fits_a_subject_filter(tmp_path):
    torch.save(published(), tmp_path / "a.pth")
    path = tmp_path / "block_splits_by_image_all.pth"
    perceivelab.write_splits(path, {"train": [0, 1, 2, 3], "val": [4, 5], "test": [6, 7]})
    trials = open_recording(tmp_path / "a.pth", subjects=[2])
    parts = perceivelab.load_splits(path, trials.total)
    assert trials.at(parts["test"]).positions.tolist() == [7]


# ---------------------------------------------------------------- opening


def test_formats_are_recognised(tmp_path):
    assert recognise(tmp_path / "x.pth") == "perceivelab"
    assert recognise(write(tmp_path / "a.npz")) == "npz"
    (tmp_path / "bids").mkdir()
    (tmp_path / "bids" / "dataset_description.json").write_text("{}")
    assert recognise(tmp_path / "bids") == "bids"
    assert recognise(write_eeg3d(tmp_path / "sub01")) == "eeg-3d"
    assert recognise(write_things(tmp_path / "sub-01", test=things())) == "things-eeg2"
    (tmp_path / "more").mkdir()
    np.save(tmp_path / "more" / "a.npy", random(2, 9))
    assert recognise(tmp_path / "more") == "npy-folder"
    assert recognise(Path("x-epo.fif.gz")) == "mne-epochs"


def test_unknown_formats_paths_and_options_are_named(tmp_path):
    with pytest.raises(InputError, match="file: found nothing, expected a recording: perceivelab"):
        open_recording(tmp_path / "none")
    (tmp_path / "a.csv").write_text("1,2")
    with pytest.raises(InputError, match="file: found an unknown layout"):
        open_recording(tmp_path / "a.csv")
    with pytest.raises(InputError, match="format: found edf, expected one of"):
        open_recording(tmp_path / "a.csv", "edf")
    with pytest.raises(InputError, match="option colour: found no such option"):
        open_recording(write(tmp_path / "a.npz"), colour=1)
    with pytest.raises(InputError, match="bad: found ignore"):
        open_recording(write(tmp_path / "a.npz"), bad="ignore")


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_says_what_it_is_and_can_keep_bad_samples(name):
    from eeg_encoder.recordings.formats import options_of

    assert FORMATS[name].summary
    assert "bad" in options_of(name)
    assert FORMATS[name].load.__doc__


# ---------------------------------------------------------------- the real recordings


def real(name: str) -> Path:
    sibling = Path(__file__).resolve().parents[3] / "shared" / "data"
    path = Path(os.environ.get("THREESTUDIO_EEG_DATA", sibling)) / name
    if not path.exists():
        pytest.skip("the real recordings are not here")
    return path


def test_real_faces_and_houses():
    trials = open_recording(real("n170_faces_houses"))
    assert trials.signals.shape == (2411, 4, 181)
    assert np.bincount(trials.subjects).tolist() == [1150, 376, 695, 190]
    n170 = trials.signals[:, :, round((0.212 + 0.1) * 256)] * 1e6
    face = trials.labels == trials.label_names.index("face")
    contrast = (n170[face].mean(0) - n170[~face].mean(0))[[0, 3]]
    assert np.all(contrast < -0.5)


def test_real_line_drawings_hold_each_trial_once():
    folder = real("uci_picture_erp")
    both = open_recording(folder)
    assert both.signals.shape == (924, 64, 256)
    assert both.total == 948
    assert len({trial.tobytes() for trial in both.signals}) == 924
    assert len(np.unique(both.subjects)) == 16
    assert np.bincount(open_recording(folder, task="s1_s2").labels).sum() == 924
    match = open_recording(folder, task="match", scalp_only=True)
    assert match.label_names == ["match", "no match"]
    assert match.signals.shape == (int((both.labels > 0).sum()), 61, 256)
    assert isinstance(open_recording(folder / "smni_test.npz"), TrialSet)
