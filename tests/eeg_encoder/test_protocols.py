from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eeg_encoder.errors import InputError
from eeg_encoder.protocols import (
    CONTROLS,
    PROTOCOLS,
    Split,
    find_control,
    find_leaks,
    find_protocol,
    refuse_leaks,
)
from eeg_encoder.recordings.splits import check_split
from eeg_encoder.recordings.trials import TrialSet


def trials(
    subjects=2, sessions=3, categories=4, stimuli=5, order="rapid", known=True, seed=0, samples=6
) -> TrialSet:
    """Every subject sees every stimulus once in every session; white noise."""
    rows = []
    generator = np.random.default_rng(seed)
    for subject in range(subjects):
        for session in range(sessions):
            shown = np.arange(categories * stimuli)
            shown = shown if order == "block" else generator.permutation(shown)
            for place, stimulus in enumerate(shown):
                block = place // stimuli
                rows.append((subject, session, block, session, stimulus // stimuli, stimulus))
    subject, session, block, run, label, stimulus = np.array(rows, dtype=np.int64).T
    signals = generator.normal(size=(len(rows), 3, samples)).astype(np.float32) * 1e-5
    names = np.array([f"s{number}" for number in stimulus])
    return TrialSet(
        signals=signals + 1e-6,
        sfreq=100.0,
        channels=["Fz", "Cz", "Oz"],
        labels=label,
        label_names=[f"n{c}" for c in range(categories)],
        stimuli=names if known else np.full(len(rows), ""),
        subjects=subject,
        sessions=session,
        blocks=block,
        runs=run,
    )


FITTING = {
    "within-subject": {"fractions": (0.6, 0.2, 0.2)},
    "k-fold-by-stimulus": {},
    "leave-block-out": {"folds_of": 3},
    "leave-run-out": {},
    "leave-session-out": {},
    "leave-subject-out": {},
    "zero-shot-by-concept": {"fractions": (0.5, 0.25, 0.25)},
    "naive": {"leaks_by_design": True},
}
GUARDED = [name for name in PROTOCOLS if name != "naive"]


def test_every_protocol_has_a_case():
    assert set(FITTING) == set(PROTOCOLS)


@pytest.mark.parametrize("order", ["rapid", "block"])
@pytest.mark.parametrize("name", GUARDED)
def test_splits_pass_the_guard_or_are_refused(name, order):
    recording = trials(order=order)
    protocol = find_protocol(name, **FITTING[name])
    if (name, order) == ("k-fold-by-stimulus", "block"):
        with pytest.raises(InputError, match="24 blocks also in train, for example subject 0"):
            list(protocol.splits(recording))
        return
    splits = list(protocol.splits(recording))
    assert len({split.name for split in splits}) == len(splits)
    for split in splits:
        check_split(recording, split.parts())
        assert not find_leaks(recording, split.parts(), ("trial", "stimulus"))
        counts = [split.description[f"{part}_trials"] for part in ("train", "val", "test")]
        assert counts == [len(split.train), len(split.val), len(split.test)]
        assert sum(counts) + split.description["left_out_trials"] <= len(recording)
        assert split.description["protocol"] == name
        json.dumps(split.as_dict())


@pytest.mark.parametrize(
    ("name", "kind", "count"),
    [
        ("leave-subject-out", "subject", 2),
        ("leave-session-out", "session", 2 * 3),
        ("leave-run-out", "run", 2 * 3),
        ("leave-block-out", "block", 2 * 3),
    ],
)
def test_groups_are_left_out(name, kind, count):
    recording = trials()
    splits = list(find_protocol(name, **FITTING[name]).splits(recording))
    assert len(splits) == count
    for split in splits:
        assert not find_leaks(recording, split.parts(), (kind,))
        assert set(recording.labels[split.test]) <= set(recording.labels[split.train])
    if kind != "subject":
        assert len(set(recording.subjects[splits[0].train])) == 1
        assert len(splits[0].val)


def test_stimuli_of_one_group_only_cost_no_trial():
    recording = trials()
    own = np.char.add(recording.stimuli, recording.sessions.astype(str))
    split = next(find_protocol("leave-session-out").splits(replace(recording, stimuli=own)))
    first = recording.subjects == 0
    assert len(split.train) + len(split.val) + len(split.test) == first.sum()
    assert split.description["left_out_trials"] == (~first).sum()


def test_shared_stimuli_must_be_asked_for_and_are_said():
    recording = trials()
    kept = next(find_protocol("leave-session-out", units="shared").splits(recording))
    assert len(find_leaks(recording, kept.parts(), ("stimulus",))) == 3
    assert kept.description["parameters"]["units"] == "shared"
    assert "stimulus" not in kept.description["apart"]
    with pytest.raises(InputError, match="units: found picture"):
        next(find_protocol("leave-session-out", units="picture").splits(recording))


def test_new_people_and_new_concepts():
    recording = trials(subjects=4, categories=10)
    for split in find_protocol("leave-subject-out", units="concept").splits(recording):
        assert not find_leaks(recording, split.parts(), ("subject", "concept"))
        assert len(split.val)
    folded = list(find_protocol("leave-subject-out", folds_of=2).splits(recording))
    assert len(folded) == 2
    assert [len(split.description["held_out"]["subjects"]) for split in folded] == [2, 2]


def test_published_test_stimuli_and_concepts():
    recording = trials()
    splits = list(find_protocol("within-subject", test=("s0", "s6")).splits(recording))
    assert [set(recording.stimuli[split.test]) for split in splits] == [{"s0", "s6"}] * 2
    splits = list(find_protocol("zero-shot-by-concept", test=("n3",)).splits(recording))
    assert [set(recording.labels[split.test]) for split in splits] == [{3}] * 2
    assert not find_leaks(recording, splits[0].parts(), ("concept",))
    pooled = find_protocol("zero-shot-by-concept", test=("n3",), within_subject=False)
    assert len(list(pooled.splits(recording))) == 1
    with pytest.raises(InputError, match="test: found n9, not in the recording"):
        next(find_protocol("zero-shot-by-concept", test=("n9",)).splits(recording))


def test_folds_by_stimulus_test_everything_once():
    recording = trials()
    splits = list(find_protocol("k-fold-by-stimulus", k=5).splits(recording))
    tested = np.concatenate([split.test for split in splits])
    assert sorted(tested) == list(range(len(recording)))
    assert all(len(set(recording.labels[split.test])) == 4 for split in splits)


def test_the_naive_split_must_be_asked_for():
    recording = trials(order="block")
    for asked in ({}, {"leaks_by_design": False}, {"leaks_by_design": 1}):
        with pytest.raises(InputError, match="naive: leaks_by_design: .*expected leaks_by_design="):
            next(find_protocol("naive", **asked).splits(recording))
    split = next(find_protocol("naive", leaks_by_design=True).splits(recording))
    assert split.description["leaks_by_design"] is True
    assert any("blocks also in train" in leak for leak in split.description["leaks"])
    assert any("stimuli also in train" in leak for leak in split.description["leaks"])
    with pytest.raises(InputError):
        check_split(recording, split.parts())


REFUSED = {
    "one session": ("leave-session-out", {}, {"sessions": 1}, "sessions: found 1, expected 2"),
    "one subject": ("leave-subject-out", {}, {"subjects": 1}, "subjects: found 1, expected 2"),
    "folds": ("leave-run-out", {"folds_of": 7}, {}, "runs: found 3, expected 7 or more"),
    "one block a category": (
        "leave-block-out",
        {},
        {"order": "block", "sessions": 1},
        "blocks: found 1 of category n0, expected 5 or more of each category",
    ),
    "no stimuli": ("within-subject", {}, {"known": False}, "stimuli: found 120 trials whose"),
    "no stimuli to fold": ("k-fold-by-stimulus", {}, {"known": False}, "stimulus is not known"),
    "two folds": ("k-fold-by-stimulus", {"k": 2}, {}, "k: found 2"),
    "concepts": (
        "zero-shot-by-concept",
        {},
        {"categories": 2},
        "test: found no trials",
    ),
    "a stimulus a category": (
        "within-subject",
        {"test": ("s0",)},
        {"stimuli": 1},
        "test: found 1 categories, none of them in training",
    ),
    "fractions": (
        "within-subject",
        {"fractions": (-1.0, 1.0, 1.0), "test": ("s0",)},
        {},
        "fractions",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_recordings_that_do_not_fit_are_refused(case):
    name, parameters, recording, message = REFUSED[case]
    with pytest.raises(InputError, match=message):
        list(find_protocol(name, **parameters).splits(trials(**recording)))


def test_runs_can_be_left_out_where_stimuli_are_not_known():
    recording = trials(known=False)
    split = next(find_protocol("leave-run-out").splits(recording))
    assert split.description["stimuli"] == "not recorded"
    assert len(split.train) + len(split.val) + len(split.test) == 60


LEAKS = {
    "trial": ([0, 1], [1], "1 trial also in train, for example position 1"),
    "subject": ([0], [1], "1 subject also in train, for example subject 0"),
    "session": ([0, 20], [1], "1 session also in train, for example subject 0 session 0"),
    "run": ([0], [1], "1 run also in train, for example subject 0 session 0 run 0"),
    "block": ([0, 1, 5, 6], [2, 7], "2 blocks also in train, for example subject 0 session 0"),
    "stimulus": ([0, 1, 2], [20, 21, 22], "3 stimuli also in train, for example s0"),
    "concept": ([0], [1], "1 concept also in train, for example n0"),
}


@pytest.mark.parametrize("kind", LEAKS)
def test_a_leak_is_refused_with_what_and_how_many(kind):
    recording = trials(order="block")
    train, test, message = LEAKS[kind]
    parts = {"train": np.array(train), "val": np.array([], int), "test": np.array(test)}
    with pytest.raises(InputError, match=message) as caught:
        refuse_leaks(recording, parts, (kind,), where="mine")
    assert str(caught.value).startswith("mine: test: found")
    assert "of its own" in str(caught.value)


def test_validation_and_test_are_kept_apart_too():
    recording = trials()
    parts = {"train": np.array([0]), "val": np.array([1]), "test": np.array([1])}
    assert [leak.other for leak in find_leaks(recording, parts, ("trial",))] == ["val"]
    parts["test"] = np.array([], int)
    with pytest.raises(InputError, match="test: found no trials"):
        refuse_leaks(recording, parts, ())


def test_names_and_parameters_are_checked():
    with pytest.raises(InputError, match="name: found random, expected one of within-subject"):
        find_protocol("random")
    with pytest.raises(InputError, match="within-subject: folds: found no such parameter"):
        find_protocol("within-subject", folds=3)
    with pytest.raises(InputError, match="name: found eyes, expected one of shuffled"):
        find_control("eyes")


def test_a_split_comes_back_from_its_file(tmp_path):
    split = next(find_protocol("leave-subject-out").splits(trials()))
    split.save(tmp_path / "split.json")
    again = Split.load(tmp_path / "split.json")
    assert again.as_dict() == split.as_dict()
    assert again.train.dtype == np.int64


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "file: found"),
        ("[]", "format: found another"),
        ('{"format": 2}', "format"),
        ('{"format": 1, "train": [0.5], "val": [], "test": []}', "train: found no list"),
        ('{"format": 1, "train": [1, 1], "val": [], "test": []}', "train: found a trial twice"),
        ('{"format": 1, "train": [0], "val": [-1], "test": []}', "val: found"),
        ('{"format": 1, "train": [0], "val": []}', "test: found no list"),
    ],
)
def test_bad_split_files_are_named(tmp_path, content, message):
    (tmp_path / "split.json").write_text(content)
    with pytest.raises(InputError, match=f"split.json: {message}"):
        Split.load(tmp_path / "split.json")


@settings(max_examples=25, deadline=None)
@given(
    name=st.sampled_from(GUARDED),
    order=st.sampled_from(["rapid", "block"]),
    subjects=st.integers(1, 3),
    sessions=st.integers(1, 3),
    categories=st.integers(2, 5),
    stimuli=st.integers(1, 5),
    known=st.booleans(),
    seed=st.integers(0, 5),
)
def test_no_protocol_ever_yields_a_leak(
    name, order, subjects, sessions, categories, stimuli, known, seed
):
    recording = trials(subjects, sessions, categories, stimuli, order, known, seed, samples=1)
    recording = recording.select(np.random.default_rng(seed).random(len(recording)) < 0.9)
    if not len(recording):
        return
    kinds = {
        "leave-subject-out": "subject",
        "leave-session-out": "session",
        "leave-run-out": "run",
        "leave-block-out": "block",
        "zero-shot-by-concept": "concept",
    }
    with suppress(InputError):
        for split in find_protocol(name, seed=seed).splits(recording):
            apart = ("trial", "stimulus", *([kinds[name]] if name in kinds else []))
            assert not find_leaks(recording, split.parts(), apart)
            check_split(recording, split.parts())
            assert len(split.train)
            assert len(split.test)


# ---------------------------------------------------------------- controls


@pytest.mark.parametrize("name", CONTROLS)
def test_controls_keep_fields_and_amplitude(name):
    recording = trials(samples=200)
    control = find_control(name)
    made = control(recording)
    np.testing.assert_array_equal(made.labels, recording.labels)
    np.testing.assert_array_equal(made.stimuli, recording.stimuli)
    signals = np.asarray(made.signals)
    assert signals.shape == recording.signals.shape
    assert signals.dtype == np.float32
    assert np.isfinite(signals).all()
    np.testing.assert_array_equal(made.signals[[5, 3]], signals[[5, 3]])
    np.testing.assert_array_equal(control(recording).signals[:], signals)
    assert control.tells
    assert control.__doc__
    if name != "class-mean":
        assert signals.std() == pytest.approx(recording.signals.std(), rel=0.35)
    if name in ("drift", "gaussian", "label", "shuffled"):
        other = np.asarray(find_control(name, seed=1)(recording).signals)
        assert not np.array_equal(other, signals)


def test_shuffling_stays_inside_part_and_person():
    recording = trials()
    signals = np.arange(len(recording), dtype=np.float32)[:, None, None] + np.zeros((1, 3, 2))
    recording = replace(recording, signals=signals.astype(np.float32))
    split = next(find_protocol("k-fold-by-stimulus").splits(recording))
    source = find_control("shuffled")(recording, split.parts()).signals[:, 0, 0].astype(int)
    assert sorted(source) == list(range(len(recording)))
    assert np.mean(source == np.arange(len(recording))) < 0.2
    np.testing.assert_array_equal(recording.subjects[source], recording.subjects)
    for part in split.parts().values():
        assert set(source[part]) == set(part)


def test_gaussian_noise_matches_each_channel_and_person():
    recording = trials(samples=400)
    scale = np.array([1.0, 3.0, 9.0], np.float32)[:, None]
    shifted = recording.signals * scale + 2e-5 * recording.subjects[:, None, None]
    recording = replace(recording, signals=shifted.astype(np.float32))
    noise = np.asarray(find_control("gaussian")(recording).signals)
    for subject in (0, 1):
        mine = recording.subjects == subject
        for statistic in (np.mean, np.std):
            found, expected = (statistic(x[mine], axis=(0, 2)) for x in (noise, recording.signals))
            np.testing.assert_allclose(found, expected, rtol=0.05, atol=1e-6)


def test_drift_walks_over_trials_and_restarts_with_the_session():
    recording = trials(categories=20, stimuli=20, subjects=1, sessions=2, samples=50)
    signals = np.asarray(find_control("drift", step=1.0)(recording).signals)
    walk = signals.mean(axis=2)[:, 0] / recording.signals.std()
    steps = np.diff(walk[:400])
    assert steps.std() == pytest.approx(1.0, rel=0.2)
    assert np.abs(walk[:400]).max() > 5
    assert abs(walk[400]) < 4


def test_label_embedding_and_class_mean_know_only_the_category():
    recording = trials()
    label = np.asarray(find_control("label")(recording).signals)
    mean = np.asarray(find_control("class-mean")(recording).signals)
    for subject in (0, 1):
        for category in range(4):
            rows = (recording.labels == category) & (recording.subjects == subject)
            assert np.ptp(label[rows], axis=0).max() == 0
            np.testing.assert_allclose(
                mean[rows][0], recording.signals[rows].mean(axis=0), rtol=1e-4, atol=1e-10
            )
            assert np.ptp(mean[rows], axis=0).max() == 0
    split = next(find_protocol("k-fold-by-stimulus").splits(recording))
    parted = np.asarray(find_control("class-mean")(recording, split.parts()).signals)
    chosen = split.test[(recording.labels[split.test] == 0) & (recording.subjects[split.test] == 0)]
    np.testing.assert_allclose(
        parted[chosen[0]], recording.signals[chosen].mean(axis=0), rtol=1e-4, atol=1e-10
    )


def test_controls_need_trials():
    with pytest.raises(InputError, match="drift: trials: found none"):
        find_control("drift")(trials().select(slice(0, 0)))
