"""Any ``mne.Epochs``: the object, or its ``-epo.fif`` file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from .fields import categories, check_bad, column_of, numbered
from .lazy import LARGE, checked, lazy_signals
from .trials import TrialSet, channel_index

COLUMNS = {
    "label": ("label", "category", "condition", "trial_type"),
    "stimulus": ("stimulus", "stimulus_id", "stim_file", "image", "picture"),
    "subject": ("subject", "participant"),
    "session": ("session",),
    "block": ("block",),
    "run": ("run",),
}


def load_epochs(
    source: Any,
    *,
    label: str | None = None,
    stimulus: str | None = None,
    subject: int | str | None = None,
    session: int | str | None = None,
    block: int | str | None = None,
    run: int | str | None = None,
    picks: str | Sequence[str] = "eeg",
    bad: str = "refuse",
) -> TrialSet:
    """Take epochs as trials, in volts.

    Files above 1 GiB stay on disk. Epochs that MNE dropped are left out; ``positions`` count the
    events before that.

    Parameters
    ----------
    source
        ``mne.Epochs`` or the path of a ``-epo.fif`` file.
    label
        Metadata column with the category; default one of :data:`COLUMNS`, else the event's name.
    stimulus
        Metadata column with the picture, or ``event`` when each event name is a picture. Default:
        one of :data:`COLUMNS`, else not known.
    subject, session, block, run
        Metadata column, or one number for all. Default: one of :data:`COLUMNS`, else 0.
    picks
        Channels: ``eeg``, or names.
    bad
        What to do with NaN and infinity: ``refuse``, or ``keep`` to inspect the file.

    Raises
    ------
    InputError
        For a truncated or foreign file, no epochs, no EEG channels, a metadata column that is not
        there, or samples that are not finite.
    """
    where, epochs, large = _epochs(source)
    check_bad(where, bad)
    if not len(epochs):
        raise InputError(where, "epochs", "none", "at least one that was not dropped")
    index, channels = _channels(where, epochs, picks)
    n, t = len(epochs), len(epochs.times)

    def read(rows: np.ndarray) -> np.ndarray:
        return epochs[rows].get_data(picks=index, verbose="error")

    signals = lazy_signals(read, n, len(index), t)
    if not large:
        signals = np.asarray(epochs.get_data(picks=index, verbose="error"), dtype=np.float32)
    events = _event_names(epochs)
    columns = _Columns(where, epochs, n)
    labels, label_names = categories(columns.get("label", label, events))
    stimuli = events if stimulus == "event" else columns.get("stimulus", stimulus, np.full(n, ""))
    numbers: dict[str, Any] = {
        f"{name}s": numbered(columns.get(name, value, np.zeros(n, np.int64)))
        for name, value in (
            ("subject", subject), ("session", session), ("block", block), ("run", run)
        )
    }  # fmt: skip
    return TrialSet(
        signals=checked(where, signals, channels) if bad == "refuse" else signals,
        sfreq=float(epochs.info["sfreq"]),
        channels=channels,
        labels=labels,
        label_names=label_names,
        stimuli=np.asarray(stimuli).astype(str),
        positions=np.asarray(epochs.selection, dtype=np.int64),
        total=int(max(len(epochs.drop_log), int(np.max(epochs.selection)) + 1)),
        tmin=float(epochs.times[0]),
        source=f"MNE epochs, {n} of {len(epochs.drop_log)} events",
        **numbers,
    )


def _epochs(source: Any) -> tuple[object, Any, bool]:
    if not isinstance(source, (str, Path)):
        if not hasattr(source, "get_data") or not hasattr(source, "selection"):
            raise InputError("epochs", "type", type(source).__name__, "mne.Epochs or a path")
        source = source.copy().drop_bad(verbose="error")
        return "mne.Epochs", source, not source.preload
    import mne

    path = Path(source)
    if not path.is_file():
        raise InputError(path, "file", "nothing", "an -epo.fif file")
    large = path.stat().st_size > LARGE
    try:
        return path, mne.read_epochs(path, preload=not large, verbose="error"), large
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
        raise InputError(path, "file", reason, "whole epochs written by MNE") from error


def _channels(
    where: object, epochs: Any, picks: str | Sequence[str]
) -> tuple[list[int], list[str]]:
    import mne

    if picks == "eeg":
        index = [int(i) for i in mne.pick_types(epochs.info, eeg=True, exclude=())]
        if not index:
            kinds = ", ".join(sorted(set(epochs.get_channel_types())))
            raise InputError(where, "channels", f"channels of type {kinds}", "EEG channels")
    else:
        names = [picks] if isinstance(picks, str) else list(picks)
        index = channel_index(epochs.ch_names, names, where)
    return index, [epochs.ch_names[i] for i in index]


def _event_names(epochs: Any) -> np.ndarray:
    name = {code: text for text, code in epochs.event_id.items()}
    return np.asarray([name.get(code, str(code)) for code in epochs.events[:, 2]])


class _Columns:
    """Metadata columns, whether pandas is installed or not."""

    def __init__(self, where: object, epochs: Any, n_trials: int) -> None:
        self.where, self.n = where, n_trials
        table = epochs.metadata
        if table is None:
            self.columns: dict[str, np.ndarray] = {}
        elif isinstance(table, list):
            names = table[0].keys() if table else ()
            self.columns = {name: np.asarray([row[name] for row in table]) for name in names}
        else:
            self.columns = {str(name): table[name].to_numpy() for name in table.columns}

    def get(self, field: str, given: int | str | None, default: np.ndarray) -> np.ndarray:
        if isinstance(given, (int, np.integer)):
            return np.full(self.n, int(given), np.int64)
        if given is not None:
            if given not in self.columns:
                known = ", ".join(self.columns) or "none"
                raise InputError(self.where, f"metadata.{given}", "nothing", f"a column of {known}")
            return column_of(self.where, given, self.columns[given], self.n)
        for name in COLUMNS[field]:
            if name in self.columns:
                return column_of(self.where, name, self.columns[name], self.n)
        return default
