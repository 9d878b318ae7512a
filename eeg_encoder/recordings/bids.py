"""A BIDS folder, read through mne-bids, cut into trials around its events."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from .fields import numbered
from .mne_epochs import load_epochs
from .trials import TrialSet, concatenate


def load_bids(
    path: str | Path,
    *,
    task: str | None = None,
    subjects: Sequence[str | int] | None = None,
    tmin: float = -0.2,
    tmax: float = 1.0,
    events: Sequence[str] | None = None,
    stimulus: str | None = None,
    bad: str = "refuse",
) -> TrialSet:
    """Read every EEG recording of a BIDS folder as epochs.

    Nothing is filtered, referenced or corrected by a baseline. The event's name is the category;
    subject, session and run are those of the file name, each run is a block. Events too near to
    the ends of a recording are left out.

    Parameters
    ----------
    path
        The folder with ``dataset_description.json``.
    task
        Only this task.
    subjects
        Only these, with or without ``sub-``.
    tmin, tmax
        Seconds around the event.
    events
        Only events of these names; default all.
    stimulus
        ``event`` when each event name is a picture; default: the picture is not known.
    bad
        What to do with NaN and infinity: ``refuse``, or ``keep`` to inspect the folder.

    Raises
    ------
    InputError
        When mne-bids is not installed, nothing matches, a recording cannot be read, or rates or
        channels differ from one recording to the next.
    """
    path = Path(path)
    mne_bids = _mne_bids(path)
    wanted = None if subjects is None else [str(s).removeprefix("sub-") for s in subjects]
    found = [
        entry
        for entry in mne_bids.find_matching_paths(
            path, subjects=wanted, tasks=task, suffixes="eeg", datatypes="eeg", check=True
        )
        if entry.extension not in (".json", ".tsv", ".fdt", ".eeg", ".vmrk")
    ]
    if not found:
        expected = f"EEG recordings of task {task or 'any'}, subjects {subjects or 'any'}"
        raise InputError(path, "folder", "no matching recordings", expected)
    parts = [_trials(mne_bids, entry, tmin, tmax, events, stimulus, bad) for entry in found]
    whole = concatenate(parts, where=path)
    for name, key in (("subjects", "subject"), ("sessions", "session"), ("runs", "run")):
        number = numbered([getattr(entry, key) or "0" for entry in found])
        sizes = [len(part) for part in parts]
        setattr(whole, name, np.repeat(number, sizes))
    whole.blocks = whole.runs.copy()
    whole.source = f"BIDS, {len(found)} recordings, {tmin:g} to {tmax:g} s around events"
    return whole


def _mne_bids(path: Path) -> Any:
    if not (path / "dataset_description.json").is_file():
        raise InputError(path, "folder", "no dataset_description.json", "a BIDS folder")
    try:
        import mne_bids
    except ImportError as error:
        expected = "mne-bids, which reads BIDS folders (pip install mne-bids)"
        raise InputError(path, "library", "mne-bids is not installed", expected) from error
    return mne_bids


def _trials(
    mne_bids: Any,
    entry: Any,
    tmin: float,
    tmax: float,
    events: Sequence[str] | None,
    stimulus: str | None,
    bad: str,
) -> TrialSet:
    import mne

    where = entry.fpath
    try:
        raw = mne_bids.read_raw_bids(entry, verbose="error")
        found, codes = mne.events_from_annotations(raw, verbose="error")
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
        raise InputError(where, "file", reason, "a recording that mne-bids can read") from error
    unknown = sorted(set(events or ()) - set(codes))
    if unknown:
        raise InputError(where, "events", f"no {unknown[0]}", f"names among {', '.join(codes)}")
    chosen = {name: code for name, code in codes.items() if events is None or name in events}
    if not chosen:
        raise InputError(where, "events", "none", "events in events.tsv")
    epochs = mne.Epochs(
        raw, found, chosen, tmin, tmax,
        baseline=None, preload=True, on_missing="ignore", verbose="error",
    )  # fmt: skip
    return load_epochs(epochs, stimulus=stimulus, bad=bad)
