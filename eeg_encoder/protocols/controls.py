"""Controls: the same trials with signals in which something was destroyed, or nothing is left.

Run the whole evaluation on them. A figure means as much as it is above its controls.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from ..errors import InputError
from ..recordings.lazy import lazy_signals, rows_at
from ..recordings.trials import TrialSet

STATISTICS_FROM = 512


@dataclass(frozen=True)
class Control:
    """Base of the controls.

    Parameters
    ----------
    seed
        Of everything random.
    """

    seed: int = 0

    name: ClassVar[str] = ""
    tells: ClassVar[str] = ""

    def __call__(self, trials: TrialSet, parts: Mapping[str, np.ndarray] | None = None) -> TrialSet:
        """The same trials with other signals.

        Parameters
        ----------
        trials
            The recording.
        parts
            ``train``, ``val``, ``test``: positions in the recording's file; signals are not mixed
            between parts. Default: all trials are one part.

        Raises
        ------
        InputError
            When there are no trials.
        """
        if not len(trials):
            raise InputError(self.name, "trials", "none", "at least one")
        return replace(trials, signals=self.signals(trials, _part_of(trials, parts)))

    def signals(self, trials: TrialSet, part: np.ndarray) -> np.ndarray:
        """Signals (N, C, T) of the control; ``part`` (N,) numbers the part of each trial."""
        raise NotImplementedError


@dataclass(frozen=True)
class ShuffledEEG(Control):
    """Real signals of the same person and part, each with another trial's labels."""

    name: ClassVar[str] = "shuffled"
    tells: ClassVar[str] = (
        "what labels, gallery and generator give without any EEG; every figure should fall to "
        "its chance level"
    )

    def signals(self, trials: TrialSet, part: np.ndarray) -> np.ndarray:
        generator = np.random.default_rng(self.seed)
        order = np.arange(len(trials))
        for rows in _groups(part, trials.subjects):
            order[rows] = generator.permutation(rows)
        return rows_at(trials.signals, order)


@dataclass(frozen=True)
class DriftOnly(Control):
    """A random walk of each electrode over the trials in their order, and white noise.

    No trial knows its stimulus. A walk starts at each session of a subject; a step has ``step``
    times the standard deviation of the channel.

    Parameters
    ----------
    step
        Step from trial to trial, in standard deviations of the noise.
    """

    step: float = 0.1

    name: ClassVar[str] = "drift"
    tells: ClassVar[str] = (
        "whether the split leaks: above chance, the order of the trials alone names the category"
    )

    def signals(self, trials: TrialSet, part: np.ndarray) -> np.ndarray:
        _, deviation = _statistics(trials)
        generator = np.random.default_rng(self.seed)
        walk = np.empty((len(trials), len(trials.channels)), np.float32)
        for rows in _groups(trials.subjects, trials.sessions):
            rows = rows[np.argsort(trials.positions[rows], kind="stable")]
            steps = generator.normal(size=(len(rows), walk.shape[1]))
            walk[rows] = np.cumsum(steps, axis=0) * self.step * deviation[rows]
        return _noise(trials, walk, deviation, self.seed)


@dataclass(frozen=True)
class GaussianNoise(Control):
    """White noise with each channel's mean and standard deviation over the subject's trials."""

    name: ClassVar[str] = "gaussian"
    tells: ClassVar[str] = (
        "what the pipeline makes of amplitude alone; a generator that still looks good shows its "
        "prior, not the EEG"
    )

    def signals(self, trials: TrialSet, part: np.ndarray) -> np.ndarray:
        mean, deviation = _statistics(trials)
        return _noise(trials, mean, deviation, self.seed)


@dataclass(frozen=True)
class LabelEmbedding(Control):
    """A fixed random pattern for each category, at the amplitude of the recording.

    Uses the true category: an oracle.
    """

    name: ClassVar[str] = "label"
    tells: ClassVar[str] = (
        "the ceiling of a decoder that knows the category and nothing of the picture; an encoder "
        "below it has not shown more than category decoding"
    )

    def signals(self, trials: TrialSet, part: np.ndarray) -> np.ndarray:
        n, c, t = trials.signals.shape
        _, deviation = _statistics(trials)
        generator = np.random.default_rng(self.seed)
        patterns = generator.normal(size=(len(trials.label_names), c, t)).astype(np.float32)
        labels = trials.labels

        def read(rows: np.ndarray) -> np.ndarray:
            return patterns[labels[rows]] * deviation[rows][:, :, None]

        return lazy_signals(read, n, c, t)


@dataclass(frozen=True)
class MeanPerClass(Control):
    """The mean of the person's trials of the category, within the part.

    Uses the true category: an oracle.
    """

    name: ClassVar[str] = "class-mean"
    tells: ClassVar[str] = (
        "what is left when all trials of a category look alike: retrieval within a category falls "
        "to chance; a figure that stays was about categories only"
    )

    def signals(self, trials: TrialSet, part: np.ndarray) -> np.ndarray:
        n, c, t = trials.signals.shape
        group = np.empty(n, np.int64)
        means = []
        for number, rows in enumerate(_groups(part, trials.subjects, trials.labels)):
            group[rows] = number
            total = np.zeros((c, t))
            for start in range(0, len(rows), STATISTICS_FROM):
                total += trials.signals[rows[start : start + STATISTICS_FROM]].sum(axis=0)
            means.append((total / len(rows)).astype(np.float32))
        table = np.stack(means)
        return lazy_signals(lambda rows: table[group[rows]], n, c, t)


CONTROLS: dict[str, type[Control]] = {
    kind.name: kind
    for kind in (ShuffledEEG, DriftOnly, GaussianNoise, LabelEmbedding, MeanPerClass)
}
"""Controls by name."""


def find_control(name: str, **parameters: float) -> Control:
    """A control by name.

    Raises
    ------
    InputError
        For a name that is not known.
    """
    if name not in CONTROLS:
        raise InputError("control", "name", name, f"one of {', '.join(CONTROLS)}")
    return CONTROLS[name](**parameters)  # type: ignore[arg-type]


def _part_of(trials: TrialSet, parts: Mapping[str, np.ndarray] | None) -> np.ndarray:
    part = np.full(len(trials), -1)
    for number, positions in enumerate((parts or {}).values()):
        part[trials.rows(positions)] = number
    return part


def _groups(*columns: np.ndarray) -> Iterator[np.ndarray]:
    """Rows of each combination of values."""
    number = np.unique(np.stack(columns, axis=1), axis=0, return_inverse=True)[1].reshape(-1)
    order = np.argsort(number, kind="stable")
    yield from np.split(order, np.flatnonzero(np.diff(number[order])) + 1)


def _statistics(trials: TrialSet) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation (N, C) of each trial's channels over the subject's trials.

    Of at most 512 trials of a subject, evenly spaced.
    """
    mean = np.empty((len(trials), len(trials.channels)), np.float32)
    deviation = np.empty_like(mean)
    for rows in _groups(trials.subjects):
        chosen = rows[:: -(-len(rows) // STATISTICS_FROM)]
        signals = trials.signals[chosen]
        mean[rows] = signals.mean(axis=(0, 2))
        deviation[rows] = signals.std(axis=(0, 2))
    return mean, deviation


def _noise(trials: TrialSet, offset: np.ndarray, deviation: np.ndarray, seed: int) -> np.ndarray:
    """Offset (N, C) and white noise, the same for a trial however often it is read."""
    n, c, t = trials.signals.shape
    positions = trials.positions

    def read(rows: np.ndarray) -> np.ndarray:
        out = np.empty((len(rows), c, t), np.float32)
        for i, row in enumerate(rows):
            generator = np.random.default_rng([seed, int(positions[row])])
            generator.standard_normal(out=out[i], dtype=np.float32)
        return out * deviation[rows][:, :, None] + offset[rows][:, :, None]

    return lazy_signals(read, n, c, t)
