"""The trials of a recording, in volts, with what was shown when."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ..errors import InputError
from .lazy import LazySignals, concatenated, lazy_signals, rows_at

PER_TRIAL = ("labels", "stimuli", "subjects", "sessions", "blocks", "runs")
UNITS = ("V", "standardised", "unknown")


@dataclass
class TrialSet:
    """EEG trials cut around the onset of a stimulus.

    Parameters
    ----------
    signals
        (N, C, T) float32, volts unless ``unit`` says otherwise. Large files give signals that
        are read when they are indexed (:class:`.lazy.LazySignals`).
    sfreq
        Sampling rate in hertz.
    channels
        C channel names.
    labels
        (N,) int64, index into ``label_names``.
    label_names
        Category names, for example WordNet ids.
    stimuli
        (N,) str, the id of the picture shown; empty where the recording does not say.
    subjects, sessions, blocks
        (N,) int64. Blocks are numbered within a subject and session.
    positions
        (N,) int64, where each trial stands in the file it came from. Default: 0 to N - 1.
    total
        Trials in that file, counting those the loader left out. Default: N.
    runs
        (N,) int64, the uninterrupted recording each trial is from, numbered within a subject and
        session. Default: 0.
    tmin
        Seconds from the onset of the stimulus to the first sample.
    unit
        ``V``, ``standardised`` (the authors divided by a deviation) or ``unknown``.
    source
        What the loader found, in words.

    Raises
    ------
    InputError
        When the shapes disagree or a label is out of range.
    """

    signals: np.ndarray
    sfreq: float
    channels: list[str]
    labels: np.ndarray
    label_names: list[str]
    stimuli: np.ndarray
    subjects: np.ndarray
    sessions: np.ndarray
    blocks: np.ndarray
    positions: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    total: int = 0
    runs: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    tmin: float = 0.0
    unit: str = "V"
    source: str = ""

    def __post_init__(self) -> None:
        if not len(self.positions):
            self.positions = np.arange(len(self.signals), dtype=np.int64)
        if not len(self.runs):
            self.runs = np.zeros(len(self.signals), dtype=np.int64)
        self.total = self.total or len(self.signals)
        _check(self)

    def __len__(self) -> int:
        return len(self.signals)

    def select(self, index: np.ndarray | slice) -> TrialSet:
        """Trials at ``index`` (integers, a boolean mask or a slice), in that order."""
        fields = {name: getattr(self, name)[index] for name in (*PER_TRIAL, "positions")}
        return replace(self, signals=rows_at(self.signals, index), **fields)

    def in_memory(self) -> TrialSet:
        """The same trials with all signals read."""
        if not isinstance(self.signals, LazySignals):
            return self
        return replace(self, signals=np.asarray(self.signals))

    def channels_at(self, names: Sequence[str], where: object = "TrialSet") -> TrialSet:
        """These channels only, in this order; names are compared without regard to case.

        Raises
        ------
        InputError
            Naming the channels that the recording lacks.
        """
        index = channel_index(self.channels, names, where)
        kept = [self.channels[i] for i in index]
        return replace(self, signals=channels_of(self.signals, index), channels=kept)

    def at(self, positions: np.ndarray) -> TrialSet:
        """Trials that stand at these positions of the source file.

        Positions of trials that the loader left out (length out of range, other subjects) are
        passed over, so splits of the whole file fit a recording that was read in part.
        """
        return self.select(self.rows(positions))

    def rows(self, positions: np.ndarray) -> np.ndarray:
        """Row numbers of the trials that stand at these positions of the source file."""
        row = np.full(self.total, -1, dtype=np.int64)
        row[self.positions] = np.arange(len(self))
        found = row[np.asarray(positions, dtype=np.int64)]
        return found[found >= 0]

    def groups(self) -> np.ndarray:
        """(N,) int64: the same number for trials of the same subject and stimulus.

        Numbered in order of first appearance. A trial whose stimulus is not known is alone.
        """
        stimulus = np.unique(self.stimuli, return_inverse=True)[1].reshape(-1).astype(np.int64)
        unknown = self.stimuli == ""
        stimulus[unknown] = -1 - np.flatnonzero(unknown)
        pair = np.stack([self.subjects, stimulus], axis=1)
        _, first, group = np.unique(pair, axis=0, return_index=True, return_inverse=True)
        order = np.empty(len(first), dtype=np.int64)
        order[np.argsort(first, kind="stable")] = np.arange(len(first))
        return order[group.reshape(-1)]

    def average(self) -> TrialSet:
        """Mean over the trials of the same subject and stimulus, in order of first appearance.

        Session, block and position are those of the first trial of each group.
        """
        if not len(self):
            return self
        group = self.groups()
        count = np.bincount(group)
        _, first = np.unique(group, return_index=True)
        averaged = self.select(first)
        order = np.argsort(group, kind="stable")
        starts = np.concatenate([[0], np.cumsum(count)[:-1]])
        members = np.split(order, starts[1:])
        averaged.signals = np.stack(
            [self.signals[m].mean(axis=0, dtype=np.float32) for m in members]
        )
        return averaged


def concatenate(parts: Sequence[TrialSet], *, where: object = "TrialSet") -> TrialSet:
    """One recording after the other; positions and totals are counted on.

    Category names are merged. Subjects, sessions, blocks and runs keep their numbers.

    Raises
    ------
    InputError
        When channels, rates, lengths, first samples or units differ.
    """
    first = parts[0]
    for part in parts[1:]:
        _check_alike(first, part, where)
    names = list(dict.fromkeys(name for part in parts for name in part.label_names))
    number = {name: i for i, name in enumerate(names)}
    starts = np.cumsum([0, *(part.total for part in parts)])
    fields = {
        name: np.concatenate([getattr(part, name) for part in parts])
        for name in PER_TRIAL
        if name != "labels"
    }
    return TrialSet(
        signals=concatenated([part.signals for part in parts]),
        sfreq=first.sfreq,
        channels=list(first.channels),
        labels=np.concatenate(
            [np.asarray([number[n] for n in p.label_names], np.int64)[p.labels] for p in parts]
        ),
        label_names=names,
        positions=np.concatenate(
            [part.positions + start for part, start in zip(parts, starts[:-1], strict=True)]
        ),
        total=int(starts[-1]),
        tmin=first.tmin,
        unit=first.unit,
        source="; ".join(dict.fromkeys(part.source for part in parts if part.source)),
        **fields,
    )


def channel_index(channels: Sequence[str], names: Sequence[str], where: object) -> list[int]:
    """Where the named channels stand.

    Raises
    ------
    InputError
        Naming the channels that are not there.
    """
    place = {name.lower(): i for i, name in enumerate(channels)}
    missing = [name for name in names if name.lower() not in place]
    if missing:
        known = ", ".join(channels[:8]) + (" ..." if len(channels) > 8 else "")
        raise InputError(where, "channels", f"no {', '.join(missing)}", f"names among {known}")
    return [place[name.lower()] for name in names]


def channels_of(signals: np.ndarray, index: Sequence[int]) -> np.ndarray:
    """``signals[:, index]``, without reading what is on disk."""
    if not isinstance(signals, LazySignals):
        return signals[:, list(index)]
    n, _, t = signals.shape
    return lazy_signals(lambda rows: signals[rows][:, list(index)], n, len(index), t)


def _check_alike(first: TrialSet, other: TrialSet, where: object) -> None:
    for field_name, ours, theirs in (
        ("sfreq", f"{first.sfreq:g} Hz", f"{other.sfreq:g} Hz"),
        ("samples", first.signals.shape[2], other.signals.shape[2]),
        ("tmin", f"{first.tmin:g} s", f"{other.tmin:g} s"),
        ("unit", first.unit, other.unit),
    ):
        if ours != theirs:
            found = f"{theirs} in {other.source or 'one part'}"
            raise InputError(where, field_name, found, f"{ours}, as in the parts before")
    if list(first.channels) != list(other.channels):
        found = f"{len(other.channels)} channels {', '.join(other.channels[:4])} ..."
        expected = f"{len(first.channels)} channels {', '.join(first.channels[:4])} ..."
        raise InputError(where, "channels", found, f"{expected}, as in the parts before")


def _check(trials: TrialSet) -> None:
    if trials.signals.ndim != 3:
        raise InputError("TrialSet", "signals", f"shape {trials.signals.shape}", "(N, C, T)")
    if trials.signals.shape[1] != len(trials.channels):
        raise InputError(
            "TrialSet", "channels", f"{len(trials.channels)} names", f"{trials.signals.shape[1]}"
        )
    for name in (*PER_TRIAL, "positions"):
        if len(getattr(trials, name)) != len(trials.signals):
            found, expected = len(getattr(trials, name)), len(trials.signals)
            raise InputError("TrialSet", name, f"{found} entries", f"{expected}, one a trial")
    if not trials.sfreq > 0:
        raise InputError("TrialSet", "sfreq", trials.sfreq, "hertz, above 0")
    if trials.unit not in UNITS:
        raise InputError("TrialSet", "unit", trials.unit, f"one of {', '.join(UNITS)}")
    last = len(trials.label_names) - 1
    if len(trials) and not 0 <= trials.labels.min() <= trials.labels.max() <= last:
        span = f"{trials.labels.min()} to {trials.labels.max()}"
        raise InputError("TrialSet", "labels", span, f"0 to {last}")
