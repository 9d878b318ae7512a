"""Which trials a batch makes objects of."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from eeg_encoder.conditioning import load_conditioning
from eeg_encoder.errors import InputError


@dataclass(frozen=True)
class BatchTrial:
    """One object to make: ``name`` is its folder, unique in the batch."""

    name: str
    conditioning: str
    trial: str
    stimulus: str


def read_trials(source: str | Path, chosen: Sequence[str] = ()) -> list[BatchTrial]:
    """Trials of a conditioning file or of a list file.

    Parameters
    ----------
    source
        A ``.safetensors`` conditioning file, or a text file with one ``FILE [TRIAL]`` a line, FILE
        relative to the list; without TRIAL all of the file's trials. ``#`` begins a comment.
    chosen
        Rows or ids; only these. Default all.

    Raises
    ------
    InputError
        For files that are missing or foreign, unknown trials, or a trial given twice.
    """
    source = Path(source)
    if source.suffix == ".safetensors":
        trials = _of_file(source, chosen)
    else:
        trials = _of_list(source)
        if chosen:
            trials = [_named(source, trials, name) for name in chosen]
    names = [trial.name for trial in trials]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(source, "trials", f"{twice[0]} more than once", "each trial once")
    if not trials:
        raise InputError(source, "trials", "none", "at least one trial")
    return trials


def _of_file(file: Path, chosen: Sequence[str]) -> list[BatchTrial]:
    conditioning = load_conditioning(file)
    try:
        rows = [conditioning.index_of(word) for word in chosen] or range(len(conditioning.trials))
    except InputError as error:
        raise InputError(file, error.field, error.found, error.expected) from None
    trials = (conditioning.trials[row] for row in rows)
    path = str(file.absolute())
    return [BatchTrial(_folder(t.id), path, t.id, str(t.stimulus)) for t in trials]


def _of_list(file: Path) -> list[BatchTrial]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        expected = "a conditioning file (.safetensors) or a list of FILE [TRIAL] lines"
        raise InputError(file, "file", error, expected) from error
    trials: list[BatchTrial] = []
    for line in lines:
        name, _, trial = line.partition("#")[0].strip().partition(" ")
        if name:
            trials += _of_file(file.parent / name, [trial.strip()] if trial.strip() else [])
    return trials


def _named(source: Path, trials: Sequence[BatchTrial], name: str) -> BatchTrial:
    for trial in trials:
        if name in (trial.trial, trial.name):
            return trial
    raise InputError(source, "trial", name, f"one of the list, such as {trials[0].trial}")


def _folder(trial: str) -> str:
    return re.sub(r"[^\w.+-]", "_", trial).lstrip(".") or "_"
