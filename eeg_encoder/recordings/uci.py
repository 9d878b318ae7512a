"""Line drawings, 64 channels: the picture matching task of the UCI EEG Database (H. Begleiter).

``X`` (N, 64, 256) float16 in microvolts, 1 s at 256 Hz from the onset; ``condition`` (``S1 obj``,
``S2 match``, ``S2 nomatch,``), ``group``, ``subject``, ``trial``. The published training and test
files are of the same people, and some trials are in both: a split by file leaks. Which picture was
shown is not recorded. ``X``, ``Y`` (eyes) and ``nd`` (nose) are electrodes too.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..errors import InputError
from .arrays import keys_of, load_npz
from .trials import TrialSet, concatenate

KEYS = {"X", "ch_names", "group", "condition", "subject", "trial", "sfreq"}
FILES = ("smni_train.npz", "smni_test.npz")
TASKS = {
    "condition": {"S1 obj": "S1", "S2 match": "S2 match", "S2 nomatch": "S2 no match"},
    "s1_s2": {"S1 obj": "S1", "S2 match": "S2", "S2 nomatch": "S2"},
    "match": {"S2 match": "match", "S2 nomatch": "no match"},
}
EYES_AND_NOSE = ("X", "Y", "nd")


def load_uci(
    path: str | Path, *, task: str = "condition", scalp_only: bool = False, bad: str = "refuse"
) -> TrialSet:
    """Read one file, or both of a folder with each trial once.

    Parameters
    ----------
    path
        File or folder.
    task
        What the categories are: ``condition`` (three), ``s1_s2``, or ``match`` (second pictures).
    scalp_only
        Leave out the eyes and the nose.
    bad
        What to do with NaN and infinity: ``refuse``, or ``keep`` to inspect the file.

    Returns
    -------
    TrialSet
        The file is the session; the order of the trials is that of the file.

    Raises
    ------
    InputError
        As :func:`.arrays.load_npz`, and for a condition that is not one of these.
    """
    path = Path(path)
    if task not in TASKS:
        raise InputError(path, "task", task, f"one of {', '.join(TASKS)}")
    files = [path / name for name in FILES] if path.is_dir() else [path]
    parts = [_load_file(file, number, bad) for number, file in enumerate(files)]
    whole = concatenate([part for part, _ in parts], where=path)
    ids = np.concatenate([ids for _, ids in parts])
    people, whole.subjects = _people(ids)
    first = np.sort(np.unique(ids, return_index=True)[1])
    whole = _with_task(path, whole.select(first), task)
    if scalp_only:
        whole = whole.channels_at([n for n in whole.channels if n not in EYES_AND_NOSE], path)
    whole.source = (
        f"UCI picture matching, {len(people)} people, {len(ids) - len(first)} trials in both files"
    )
    return whole


def is_uci(path: Path) -> bool:
    """Whether a file has the arrays of these, or a folder both files."""
    if path.is_dir():
        return all((path / name).is_file() for name in FILES)
    return path.suffix == ".npz" and set(keys_of(path)) == KEYS


def _load_file(path: Path, session: int, bad: str) -> tuple[TrialSet, np.ndarray]:
    trials = load_npz(path, unit="uV", names={"labels": "condition"}, bad=bad)
    trials.sessions[:] = session
    with np.load(path, allow_pickle=False) as content:
        trial, subject = content["trial"], content["subject"]
    return trials, np.char.add(np.char.add(subject.astype(str), "/"), trial.astype(str))


def _people(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    names, number = np.unique([i.rpartition("/")[0] for i in ids], return_inverse=True)
    return names, number.reshape(-1).astype(np.int64)


def _with_task(path: Path, trials: TrialSet, task: str) -> TrialSet:
    kept = {name.rstrip(","): name for name in trials.label_names}
    unknown = sorted(set(kept) - set(TASKS["condition"]))
    if unknown:
        expected = f"one of {', '.join(TASKS['condition'])}"
        raise InputError(path, "condition", unknown[0], expected)
    condition = np.asarray([name.rstrip(",") for name in trials.label_names])[trials.labels]
    chosen = trials.select(np.isin(condition, list(TASKS[task])))
    names = sorted(set(TASKS[task].values()))
    condition = condition[np.isin(condition, list(TASKS[task]))]
    chosen.labels = np.asarray([names.index(TASKS[task][c]) for c in condition], np.int64)
    chosen.label_names = names
    return chosen
