"""Properties of preprocessing, trials and loaders, for any settings and any damage."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eeg_encoder.errors import InputError
from eeg_encoder.preprocessing import Preprocessing, electrode_places, spline_matrix
from eeg_encoder.recordings.arrays import write_npz
from eeg_encoder.recordings.formats import open_recording
from eeg_encoder.recordings.perceivelab import write_perceivelab
from eeg_encoder.recordings.positions import electrode_positions, montage_positions
from eeg_encoder.recordings.trials import TrialSet, concatenate

NAMES = ["Fz", "Cz", "Pz", "Oz", "PO7", "PO8"]
SFREQ, SAMPLES = 100.0, 50


def trials_of(n: int, seed: int, *, unit: float = 1e-6) -> TrialSet:
    """Correlated noise with a drifting offset; six channels, three pictures, two people."""
    generator = np.random.default_rng(seed)
    mixing = generator.normal(size=(6, 6))
    signals = mixing @ generator.normal(size=(n, 6, SAMPLES)) + generator.normal(size=(n, 6, 1))
    return TrialSet(
        signals=(unit * signals).astype(np.float32),
        sfreq=SFREQ,
        channels=list(NAMES),
        labels=np.arange(n) % 3,
        label_names=["n1", "n2", "n3"],
        stimuli=np.array([f"n{i % 3 + 1}_{i % 3}" for i in range(n)]),
        subjects=1 + np.arange(n) // 3 % 2,
        sessions=np.zeros(n, np.int64),
        blocks=np.arange(n) // 6,
        tmin=-0.1,
    )


SETTINGS = st.fixed_dictionaries(
    {
        "sfreq": st.sampled_from([0.0, 100.0, 60.0, 50.0, 30.0]),
        "band": st.sampled_from([None, [1.0, 20.0]]),
        "demean": st.booleans(),
        "whiten": st.booleans(),
        "whiten_mode": st.sampled_from(["time", "epochs"]),
        "whiten_per": st.sampled_from(["subject", "session"]),
        "shrinkage_rule": st.sampled_from(["fixed", "ledoit-wolf"]),
        "shrinkage": st.floats(0.01, 1.0),
        "clip": st.sampled_from([0.0, 3.0]),
        "zscore": st.booleans(),
        "baseline": st.sampled_from([None, [-0.1, 0.0]]),
        "window": st.sampled_from([None, [0.0, 0.3], [-0.1, 0.15]]),
        "resampling": st.sampled_from(["polyphase", "fft", "linear"]),
        "length": st.sampled_from([0, 32]),
    }
)
quick = settings(max_examples=25, deadline=None)


@quick
@given(SETTINGS, st.integers(0, 5))
def test_every_setting_gives_finite_signals_of_the_promised_size(chosen, seed):
    trials = trials_of(24, seed)
    pre = Preprocessing(**chosen).fit(trials)
    out = pre(trials)
    assert out.shape == (24, len(pre.output_channels), pre.output_samples)
    assert out.dtype == np.float32
    assert np.isfinite(out).all()
    if chosen["clip"]:
        assert np.abs(out).max() <= chosen["clip"]


@quick
@given(SETTINGS, st.integers(0, 5), st.permutations(range(24)))
def test_a_trial_does_not_see_its_neighbours(chosen, seed, order):
    trials = trials_of(24, seed)
    pre = Preprocessing(**chosen).fit(trials)
    chosen_rows = np.array(order[:5])
    found = pre(trials.select(chosen_rows))
    np.testing.assert_allclose(found, pre(trials)[chosen_rows], rtol=1e-5, atol=1e-5)


@quick
@given(SETTINGS, st.integers(0, 5), st.permutations(NAMES))
def test_the_order_of_channels_in_a_file_does_not_matter(chosen, seed, names):
    trials = trials_of(24, seed)
    pre = Preprocessing(**chosen, pick=NAMES).fit(trials)
    other = replace(trials.channels_at(names), channels=list(names))
    np.testing.assert_allclose(pre(other), pre(trials), rtol=1e-5, atol=1e-5)


@quick
@given(SETTINGS, st.sampled_from([1e-3, 7.0, 1e6]))
def test_units_do_not_matter(chosen, factor):
    chosen = {**chosen, "zscore": True}
    trials = trials_of(24, 1)
    scaled = replace(trials, signals=trials.signals * np.float32(factor))
    found = Preprocessing(**chosen).fit(scaled)(scaled)
    np.testing.assert_allclose(found, Preprocessing(**chosen).fit(trials)(trials), atol=2e-3)


@quick
@given(SETTINGS, st.booleans())
def test_every_setting_comes_back_from_its_file(tmp_path_factory, chosen, mapped):
    trials = trials_of(24, 2)
    chosen = {**chosen, "map_to": "biosemi16" if mapped else ""}
    pre = Preprocessing(**chosen).fit(trials)
    path = tmp_path_factory.mktemp("pre") / "preprocessing.json"
    pre.save(path)
    again = Preprocessing.load(path)
    assert again == pre
    np.testing.assert_array_equal(again(trials), pre(trials))


@quick
@given(st.integers(2, 40), st.integers(0, 5))
def test_averages_are_means_of_groups(n, seed):
    trials = trials_of(n, seed)
    averaged, group = trials.average(), trials.groups()
    pairs = set(zip(trials.subjects.tolist(), trials.stimuli.tolist(), strict=True))
    assert len(averaged) == len(np.unique(group)) == len(pairs)
    for row in range(len(averaged)):
        mine = group == row
        assert set(trials.stimuli[mine]) == {averaged.stimuli[row]}
        np.testing.assert_allclose(
            averaged.signals[row], trials.signals[mine].mean(0), rtol=1e-4, atol=1e-9
        )


@quick
@given(st.integers(1, 12), st.integers(1, 12), st.data())
def test_positions_find_trials_whatever_was_left_out(n, m, data):
    both = concatenate([trials_of(n, 0), trials_of(m, 1)])
    assert both.total == n + m
    kept = np.array(data.draw(st.lists(st.integers(0, n + m - 1), unique=True, min_size=1)))
    wanted = np.array(data.draw(st.lists(st.integers(0, n + m - 1), unique=True, min_size=1)))
    found = both.select(kept).at(wanted)
    expected = [p for p in wanted if p in kept]
    assert found.positions.tolist() == expected
    np.testing.assert_array_equal(found.signals, both.signals[np.array(expected, int)])


@quick
@given(st.lists(st.sampled_from(sorted(montage_positions("biosemi64"))), min_size=4, unique=True),
       st.randoms())  # fmt: skip
def test_interpolation_keeps_constants_and_does_not_depend_on_order(names, random):
    source = electrode_places(names, "biosemi64")
    target = electrode_places(["Fp1", "Oz", "Cz"], "biosemi64")
    matrix = spline_matrix(source, target)
    np.testing.assert_allclose(matrix.sum(1), 1.0, atol=1e-6)
    order = list(range(len(names)))
    random.shuffle(order)
    np.testing.assert_allclose(spline_matrix(source[order], target), matrix[:, order], atol=1e-6)


@pytest.mark.parametrize("montage", ["standard_1005", "biosemi128"])
def test_overview_and_preprocessing_agree_where_electrodes_are(montage):
    names = list(montage_positions(montage))[::7]
    metres = electrode_positions(names)
    unit = electrode_places(names, montage)
    known = np.isfinite(metres).all(1)
    assert known.mean() > 0.9
    near, far = (x[known] - x[known].mean(0) for x in (metres, unit))
    cosine = (near * far).sum(1) / np.linalg.norm(near, axis=1) / np.linalg.norm(far, axis=1)
    assert cosine.min() > 0.8


def test_replaced_montage_names_are_understood():
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "Cz" in montage_positions("standard_1005")
    with pytest.raises(InputError, match="no_such_cap"):
        montage_positions("no_such_cap")


def written(folder, kind: str):
    """A small valid file of each format that is one file."""
    trials = trials_of(6, 0)
    if kind == "npz":
        write_npz(folder / "eeg.npz", trials)
        return folder / "eeg.npz"
    if kind == "perceivelab":
        rest = replace(trials, signals=np.tile(trials.signals, (1, 1, 10)), sfreq=1000.0)
        write_perceivelab(folder / "eeg.pth", rest)
        return folder / "eeg.pth"
    content = {
        "preprocessed_eeg_data": np.ones((10, 2, 3, 20), np.float32),
        "ch_names": ["O1", "Oz", "O2"],
        "times": np.linspace(-0.2, 0.75, 20),
    }
    (folder / "sub-01").mkdir()
    file = folder / "sub-01" / "preprocessed_eeg_training.npy"
    np.save(file, np.array(content, dtype=object), allow_pickle=True)
    return file


def opened(file, kind: str) -> TrialSet:
    """With every sample read."""
    options = {"window": (0, 440), "n_channels": 6} if kind == "perceivelab" else {}
    return open_recording(file, kind, **options).in_memory()


KINDS = ["npz", "perceivelab", "things-eeg2"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_files_to_damage_are_whole(tmp_path, kind):
    assert len(opened(written(tmp_path, kind), kind)) in (6, 20)


@pytest.mark.parametrize("kind", KINDS)
@settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
)
@given(data=st.data())
def test_damaged_files_are_refused_in_words(tmp_path_factory, kind, data):
    """Cut anywhere, or with any bytes replaced: a recording or an InputError, nothing else."""
    file = written(tmp_path_factory.mktemp("damaged"), kind)
    whole = file.read_bytes()
    if data.draw(st.booleans()):
        damaged = whole[: data.draw(st.integers(0, len(whole) - 1))]
    else:
        places = data.draw(st.lists(st.integers(0, len(whole) - 1), min_size=1, max_size=4))
        changed = bytearray(whole)
        for place in places:
            changed[place] = data.draw(st.integers(0, 255))
        damaged = bytes(changed)
    file.write_bytes(damaged)
    refusal = ""
    try:
        found = opened(file, kind)
    except InputError as error:
        refusal = str(error)
    assert len(refusal.splitlines()) == 1 or np.isfinite(found.signals).all()


@pytest.mark.parametrize("suffix", [".pth", ".npy"])
@given(st.sampled_from(["os.system", "builtins.eval", "subprocess.call", "shutil.rmtree"]))
@settings(max_examples=8, deadline=None, derandomize=True)
def test_no_pickle_calls_anything(tmp_path_factory, suffix, target):
    folder = tmp_path_factory.mktemp("malicious") / "sub-01"
    folder.mkdir()
    witness = folder / "witness"
    module, name = target.split(".")
    command = f"touch {witness}" if name == "system" else str(witness)
    body = f"c{module}\n{name}\n(S'{command}'\ntR.".encode()
    name = "eeg.pth" if suffix == ".pth" else "preprocessed_eeg_training.npy"
    (folder / name).write_bytes(body)
    with pytest.raises(InputError):
        open_recording(folder / name)
    assert not witness.exists()
