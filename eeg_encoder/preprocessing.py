"""From volts to what the encoder reads: explicit, fitted on training trials, kept beside it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from math import gcd
from pathlib import Path
from typing import Any

import numpy as np

from .errors import InputError
from .files import whole_file
from .recordings.trials import TrialSet


@dataclass
class Preprocessing:
    """Band-pass, resample, centre, whiten, robust z-score, clip; in this order.

    Parameters
    ----------
    sfreq
        Sampling rate after resampling, hertz. Resampling is polyphase (SciPy's ``resample_poly``
        with its Kaiser-windowed anti-alias filter, edges extended by a line).
    band
        Pass band in hertz, or None. Fourth-order Butterworth, forwards and backwards.
    demean
        Subtract each trial's mean from each channel, which removes the offset that drift left.
    whiten
        Multiply by the inverse square root of the covariance of the noise between channels, one
        for each training subject and one for all others: multivariate noise normalisation
        (Guggenmos et al., NeuroImage 2018). The noise is what trials of the same subject and
        stimulus differ by, or the whole signal where nothing was repeated.
    shrinkage
        Weight of the mean variance on the diagonal of that covariance, 0 to 1.
    clip
        Largest absolute z-score.
    input_sfreq, channels, samples
        What :meth:`fit` saw; a recording that differs is refused.
    median, spread
        Per channel, of training trials: median, and interquartile range / 1.349.
    whitening
        (C, C) for each subject number, as text, and for ``other``.
    """

    sfreq: float = 250.0
    band: list[float] | None = None
    demean: bool = True
    whiten: bool = True
    shrinkage: float = 0.01
    clip: float = 8.0
    input_sfreq: float = 0.0
    channels: list[str] = field(default_factory=list)
    samples: int = 0
    median: list[float] = field(default_factory=list)
    spread: list[float] = field(default_factory=list)
    whitening: dict[str, list[list[float]]] = field(default_factory=dict)

    def fit(self, trials: TrialSet, *, at_most: int = 4096, seed: int = 0) -> Preprocessing:
        """Learn medians and spreads from single training trials.

        Parameters
        ----------
        trials
            Training trials only, not averaged.
        at_most
            Trials used, about; a random choice of whole groups of repetitions when there are more.
        seed
            Of that choice.

        Raises
        ------
        InputError
            When the rates do not fit or a channel is constant.
        """
        self.input_sfreq = float(trials.sfreq)
        self.channels = list(trials.channels)
        self.samples = trials.signals.shape[2]
        chosen = _whole_groups(trials.groups(), at_most, seed)
        part = trials.select(chosen)
        signals = np.concatenate([self._filtered(part.signals[c]) for c in _every(len(part))])
        if self.whiten:
            self.whitening = _fit_whitening(signals, part, self.shrinkage)
            signals = self._whitened(signals, part.subjects)
        low, middle, high = np.percentile(signals, [25, 50, 75], axis=(0, 2))
        if np.any(high <= low):
            channel = self.channels[int(np.argmin(high - low))]
            raise InputError("preprocessing", f"channel {channel}", "constant", "one that varies")
        self.median = [float(value) for value in middle]
        self.spread = [float(value) for value in (high - low) / 1.349]
        return self

    def __call__(self, trials: TrialSet) -> np.ndarray:
        """Preprocessed signals (N, C, T') float32, without a unit.

        Raises
        ------
        InputError
            When the channels, rate or length are not those of the fit.
        """
        self._check(trials)
        median = np.asarray(self.median, np.float32)[:, None]
        spread = np.asarray(self.spread, np.float32)[:, None]
        out = np.empty((len(trials), len(self.channels), self.output_samples), np.float32)
        for chunk in _every(len(trials)):
            filtered = self._filtered(trials.signals[chunk])
            z = (self._whitened(filtered, trials.subjects[chunk]) - median) / spread
            out[chunk] = np.clip(z, -self.clip, self.clip)
        return out

    @property
    def output_samples(self) -> int:
        """Samples of a preprocessed trial."""
        up, down = self._ratio()
        return -(-self.samples * up // down)

    def as_dict(self, *, matrices: bool = True) -> dict[str, Any]:
        """Plain values, for JSON; without the whitening matrices when not asked for."""
        values = asdict(self)
        return values if matrices else {**values, "whitening": sorted(self.whitening)}

    def save(self, path: str | Path) -> None:
        """Write as JSON, on one line: the matrices are long."""
        with whole_file(path) as temporary:
            temporary.write_text(json.dumps(self.as_dict()) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Preprocessing:
        """Read what :meth:`save` wrote.

        Raises
        ------
        InputError
            When the file is missing or not such a file.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(path, "file", error, "a preprocessing file (JSON)") from error
        unknown = set(content) ^ {entry.name for entry in fields(cls)}
        if unknown:
            found = f"unknown or missing {sorted(unknown)}"
            raise InputError(path, "keys", found, "those of Preprocessing")
        return cls(**content)

    def _ratio(self) -> tuple[int, int]:
        rates = round(self.sfreq * 1000), round(self.input_sfreq * 1000)
        if min(rates) <= 0 or rates[0] > rates[1]:
            expected = f"above 0, at most the recording's {self.input_sfreq}"
            raise InputError("preprocessing", "sfreq", self.sfreq, expected)
        divisor = gcd(*rates)
        return rates[0] // divisor, rates[1] // divisor

    def _filtered(self, signals: np.ndarray) -> np.ndarray:
        from scipy.signal import butter, resample_poly, sosfiltfilt

        signals = signals.astype(np.float32)
        if self.band is not None:
            low, high = self.band
            if not 0 < low < high < self.input_sfreq / 2:
                expected = f"0 < low < high < {self.input_sfreq / 2}"
                raise InputError("preprocessing", "band", self.band, expected)
            sections = butter(4, [low, high], btype="bandpass", fs=self.input_sfreq, output="sos")
            signals = sosfiltfilt(sections, signals, axis=2).astype(np.float32)
        up, down = self._ratio()
        if up != down:
            signals = resample_poly(signals, up, down, axis=2, padtype="line")
        if self.demean:
            signals = signals - signals.mean(axis=2, keepdims=True)
        return signals

    def _whitened(self, signals: np.ndarray, subjects: np.ndarray) -> np.ndarray:
        if not self.whiten:
            return signals
        whitened = np.empty_like(signals)
        for number in np.unique(subjects):
            matrix = self.whitening.get(str(number), self.whitening["other"])
            mine = subjects == number
            whitened[mine] = np.asarray(matrix, np.float32) @ signals[mine]
        return whitened

    def _check(self, trials: TrialSet) -> None:
        if not self.median:
            raise InputError("preprocessing", "median", "nothing", "a call of fit first")
        found = (trials.sfreq, trials.signals.shape[2])
        if found != (self.input_sfreq, self.samples):
            raise InputError(
                "recording",
                "rate and length",
                f"{found[0]:g} Hz x {found[1]}",
                f"{self.input_sfreq:g} Hz x {self.samples}, as in training",
            )
        if list(trials.channels) != self.channels:
            expected = f"{len(self.channels)} channels {self.channels[0]} ... {self.channels[-1]}"
            found_names = (
                f"{len(trials.channels)} channels {trials.channels[0]} ... {trials.channels[-1]}"
            )
            raise InputError("recording", "channels", found_names, f"{expected}, as in training")


def _every(n: int, size: int = 256) -> list[slice]:
    return [slice(start, start + size) for start in range(0, n, size)]


def _whole_groups(group: np.ndarray, at_most: int, seed: int) -> np.ndarray:
    rank = np.random.default_rng(seed).permutation(int(group.max()) + 1)
    order = np.argsort(rank[group], kind="stable")
    return np.sort(order[:at_most])


def _fit_whitening(
    signals: np.ndarray, trials: TrialSet, shrinkage: float
) -> dict[str, list[list[float]]]:
    noise = _residuals(signals, trials.groups())
    found = {}
    for number in np.unique(trials.subjects):
        found[str(number)] = _covariance(noise[trials.subjects == number])
    found["other"] = np.mean(list(found.values()), axis=0)
    return {name: _inverse_root(matrix, shrinkage) for name, matrix in found.items()}


def _residuals(signals: np.ndarray, group: np.ndarray) -> np.ndarray:
    count = np.bincount(group)[group]
    if not np.any(count > 1):
        return signals - signals.mean(axis=0)
    order = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))
    means = np.add.reduceat(signals[order], starts, axis=0)
    residuals = signals - means[group] / count[:, None, None]
    residuals *= np.sqrt(count / np.maximum(count - 1, 1))[:, None, None]
    return residuals


def _covariance(noise: np.ndarray) -> np.ndarray:
    flat = noise.transpose(1, 0, 2).reshape(noise.shape[1], -1)
    scale = float(np.abs(flat).max()) or 1.0
    flat = flat / scale
    return (flat @ flat.T).astype(np.float64) / flat.shape[1] * scale**2


def _inverse_root(covariance: np.ndarray, shrinkage: float) -> list[list[float]]:
    mean = np.trace(covariance) / len(covariance)
    shrunk = (1 - shrinkage) * covariance + shrinkage * mean * np.eye(len(covariance))
    values, vectors = np.linalg.eigh(shrunk)
    values = np.maximum(values, 1e-12 * values.max())
    root = vectors @ np.diag(values**-0.5) @ vectors.T
    return [[float(f"{value:.5g}") for value in row] for row in root]
