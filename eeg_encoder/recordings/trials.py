"""The trials of a recording, in volts, with what was shown when."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from ..errors import InputError

PER_TRIAL = ("labels", "stimuli", "subjects", "sessions", "blocks")


@dataclass
class TrialSet:
    """EEG trials cut around the onset of a stimulus.

    Parameters
    ----------
    signals
        (N, C, T) float32, volts.
    sfreq
        Sampling rate in hertz.
    channels
        C channel names.
    labels
        (N,) int64, index into ``label_names``.
    label_names
        Category names, for example WordNet ids.
    stimuli
        (N,) str, the id of the picture shown.
    subjects, sessions, blocks
        (N,) int64. Blocks are numbered within a subject and session.
    positions
        (N,) int64, where each trial stands in the file it came from. Default: 0 to N - 1.
    total
        Trials in that file, counting those the loader left out. Default: N.

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

    def __post_init__(self) -> None:
        if not len(self.positions):
            self.positions = np.arange(len(self.signals), dtype=np.int64)
        self.total = self.total or len(self.signals)
        _check(self)

    def __len__(self) -> int:
        return len(self.signals)

    def select(self, index: np.ndarray | slice) -> TrialSet:
        """Trials at ``index`` (integers, a boolean mask or a slice), in that order."""
        fields = {name: getattr(self, name)[index] for name in (*PER_TRIAL, "positions")}
        return replace(self, signals=self.signals[index], **fields)

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

        Numbered in order of first appearance.
        """
        _, stimulus = np.unique(self.stimuli, return_inverse=True)
        pair = np.stack([self.subjects, stimulus.reshape(-1)], axis=1)
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
    last = len(trials.label_names) - 1
    if len(trials) and not 0 <= trials.labels.min() <= trials.labels.max() <= last:
        span = f"{trials.labels.min()} to {trials.labels.max()}"
        raise InputError("TrialSet", "labels", span, f"0 to {last}")
