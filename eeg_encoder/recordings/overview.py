"""What a recording holds, in numbers: counts, amplitudes, bad channels, line noise, its split."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import InputError
from .lazy import CHUNK
from .positions import electrode_positions
from .splits import PARTS, block_ids, check_split, is_block_design, shared_stimuli
from .trials import TrialSet

LINE_FREQUENCIES = (50.0, 60.0)
NOISY = 4.0
SPECTRA_FROM = 1024


@dataclass
class Overview:
    """Numbers of a recording.

    Parameters
    ----------
    summary
        What :meth:`as_dict` returns, ready for JSON.
    average
        (C, T) mean over all trials, the finite samples only.
    deviation
        (C,) standard deviation over trials and time around each trial's mean.
    frequencies, spectrum
        (F,) hertz and (C, F) power a hertz, mean over trials.
    positions
        (C, 3) electrode positions in metres, NaN where not known.
    """

    summary: dict[str, Any]
    average: np.ndarray
    deviation: np.ndarray
    frequencies: np.ndarray
    spectrum: np.ndarray
    positions: np.ndarray

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return self.summary

    def refuse_nonfinite(self, where: object) -> None:
        """Raise :class:`InputError` when a sample is NaN or infinite."""
        bad = self.summary["channels"]["nonfinite"]
        if bad:
            channel, count = next(iter(bad.items()))
            raise InputError(
                where, f"channel {channel}", f"NaN or infinity in {count} trials", "finite samples"
            )


def overview(
    trials: TrialSet, splits: Mapping[str, np.ndarray] | None = None, *, progress: bool = False
) -> Overview:
    """Read a recording once and describe it.

    Parameters
    ----------
    trials
        Any recording, also one opened with ``bad='keep'``.
    splits
        ``train``, ``val``, ``test``: positions in the recording's file.
    progress
        Show a progress bar.

    Raises
    ------
    InputError
        For a recording without trials.
    """
    if not len(trials):
        raise InputError("recording", "trials", "none", "at least one")
    scan = _Scan(trials)
    for rows in _chunks(len(trials), progress):
        scan.add(np.asarray(trials.signals[rows]))
    frequencies, spectrum = _spectrum(trials)
    positions = electrode_positions(trials.channels)
    summary = {
        "source": trials.source,
        "trials": len(trials),
        "trials_in_file": trials.total,
        "channels": {
            "count": len(trials.channels),
            "with_position": int(np.isfinite(positions).all(axis=1).sum()),
            "nonfinite": _named(trials, scan.nonfinite, scan.nonfinite > 0),
            "flat": _named(trials, scan.flat, scan.flat > 0),
            "noisy": _noisy(trials, scan.deviation),
        },
        "sfreq_hz": trials.sfreq,
        "samples": int(trials.signals.shape[2]),
        "window_s": [trials.tmin, trials.tmin + (trials.signals.shape[2] - 1) / trials.sfreq],
        "unit": trials.unit,
        "amplitude": _amplitude(trials, scan),
        "line_noise_db": _line_noise(frequencies, spectrum),
        **_counts(trials),
    }
    if splits is not None:
        summary["split"] = describe_split(trials, splits)
    return Overview(summary, scan.average, scan.deviation, frequencies, spectrum, positions)


def describe_split(trials: TrialSet, splits: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Sizes of the parts, what they share, and whether the split is refused.

    Returns
    -------
    dict
        ``trials`` and ``left_out`` (positions that the loader left out) of each part; for each
        pair of parts the ``shared`` stimuli, blocks, sessions and subjects; ``refused``, why, or
        None.
    """
    rows = {part: trials.rows(splits[part]) for part in PARTS}
    block = block_ids(trials)
    session = np.stack([trials.subjects, trials.sessions], axis=1)
    session = np.unique(session, axis=0, return_inverse=True)[1].reshape(-1)
    shared = {}
    for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
        a, b = rows[one], rows[other]
        shared[f"{one} and {other}"] = {
            "stimuli": len(shared_stimuli(trials, a, b)),
            "blocks": len(np.intersect1d(block[a], block[b])),
            "sessions": len(np.intersect1d(session[a], session[b])),
            "subjects": len(np.intersect1d(trials.subjects[a], trials.subjects[b])),
        }
    refused = None
    try:
        check_split(trials, splits, where="split")
    except InputError as error:
        refused = f"{error.field}: {error.found}; expected {error.expected}"
    return {
        "trials": {part: len(index) for part, index in rows.items()},
        "left_out": {part: len(splits[part]) - len(rows[part]) for part in PARTS},
        "shared": shared,
        "refused": refused,
    }


class _Scan:
    """Sums over all trials, finite samples only."""

    def __init__(self, trials: TrialSet) -> None:
        _, c, t = trials.signals.shape
        self.total, self.count = np.zeros((c, t)), np.zeros((c, t), np.int64)
        self.square, self.samples = np.zeros(c), np.zeros(c, np.int64)
        self.nonfinite, self.flat = np.zeros(c, np.int64), np.zeros(c, np.int64)
        self.spans: list[np.ndarray] = []

    def add(self, signals: np.ndarray) -> None:
        finite = np.isfinite(signals)
        whole = finite.all(axis=2)
        values = np.where(finite, signals, 0.0).astype(np.float64)
        self.total += values.sum(axis=0)
        self.count += finite.sum(axis=0)
        mean = values.sum(axis=2) / np.maximum(finite.sum(axis=2), 1)
        self.square += (np.where(finite, values - mean[..., None], 0.0) ** 2).sum(axis=(0, 2))
        self.samples += finite.sum(axis=(0, 2))
        self.nonfinite += (~whole).sum(axis=0)
        span = np.ptp(values, axis=2)
        self.flat += ((span == 0) & whole).sum(axis=0)
        self.spans.append(np.where(whole, span, np.nan).astype(np.float32))

    @property
    def average(self) -> np.ndarray:
        return self.total / np.maximum(self.count, 1)

    @property
    def deviation(self) -> np.ndarray:
        return np.sqrt(self.square / np.maximum(self.samples, 1))


def _chunks(n: int, progress: bool) -> Iterator[slice]:
    starts = range(0, n, CHUNK)
    if progress and len(starts) > 8:
        from rich.console import Console
        from rich.progress import track

        console = Console(stderr=True)
        for start in track(starts, description="reading", console=console, transient=True):
            yield slice(start, start + CHUNK)
        return
    for start in starts:
        yield slice(start, start + CHUNK)


def _spectrum(trials: TrialSet) -> tuple[np.ndarray, np.ndarray]:
    """Mean power of evenly chosen trials whose samples are all finite, Hann window."""
    chosen = np.arange(0, len(trials), -(-len(trials) // SPECTRA_FROM))
    t = trials.signals.shape[2]
    window = np.hanning(t + 2)[1:-1]
    scale = 2.0 / (trials.sfreq * np.sum(window**2))
    power, count = np.zeros((len(trials.channels), t // 2 + 1)), 0
    for start in range(0, len(chosen), CHUNK):
        signals = np.asarray(trials.signals[chosen[start : start + CHUNK]], np.float64)
        signals = signals[np.isfinite(signals).all(axis=(1, 2))]
        signals = signals - signals.mean(axis=2, keepdims=True)
        power += (np.abs(np.fft.rfft(signals * window, axis=2)) ** 2).sum(axis=0) * scale
        count += len(signals)
    return np.fft.rfftfreq(t, 1 / trials.sfreq), power / max(count, 1)


def _line_noise(frequencies: np.ndarray, spectrum: np.ndarray) -> dict[str, float]:
    """Power at the mains frequency over that of its neighbours, decibels; median over channels."""
    step = float(frequencies[1]) if len(frequencies) > 1 else np.inf
    found = {}
    for line in LINE_FREQUENCIES:
        near = np.abs(frequencies - line) <= max(step / 2, 1.0)
        beside = (np.abs(frequencies - line) <= max(4 * step, 8.0)) & (
            np.abs(frequencies - line) > max(2 * step, 2.0)
        )
        if step > 5 or line + 2 * step > frequencies[-1] or not near.any() or not beside.any():
            continue
        peak, floor = spectrum[:, near].max(axis=1), np.median(spectrum[:, beside], axis=1)
        usable = (peak > 0) & (floor > 0)
        if usable.any():
            found[f"{line:g} Hz"] = round(
                float(np.median(10 * np.log10(peak[usable] / floor[usable]))), 1
            )
    return found


def _noisy(trials: TrialSet, deviation: np.ndarray) -> dict[str, float]:
    """Channels whose log deviation is far from the median, in robust deviations."""
    usable = deviation > 0
    if usable.sum() < 4:
        return {}
    log = np.log(np.where(usable, deviation, 1.0))
    middle = np.median(log[usable])
    spread = max(1.4826 * float(np.median(np.abs(log[usable] - middle))), 0.05)
    score = np.where(usable, (log - middle) / spread, 0.0)
    chosen = np.flatnonzero(np.abs(score) > NOISY)
    return {trials.channels[i]: round(float(score[i]), 1) for i in chosen}


def _amplitude(trials: TrialSet, scan: _Scan) -> dict[str, Any]:
    factor, unit = (1e6, "uV") if trials.unit == "V" else (1.0, "as stored")
    deviation = scan.deviation * factor
    span = np.concatenate(scan.spans) * factor
    span = span[np.isfinite(span)]
    return {
        "unit": unit,
        "deviation_median": _rounded(np.median(deviation)),
        "deviation_of_channel": {
            name: _rounded(value) for name, value in zip(trials.channels, deviation, strict=True)
        },
        "peak_to_peak_median": _rounded(np.median(span)) if len(span) else None,
        "peak_to_peak_largest": _rounded(span.max()) if len(span) else None,
    }


def _counts(trials: TrialSet) -> dict[str, Any]:
    known = trials.stimuli != ""
    repeats = np.bincount(trials.groups()[known]) if known.any() else np.zeros(0, np.int64)
    repeats = repeats[repeats > 0]
    labels = np.bincount(trials.labels, minlength=len(trials.label_names))
    return {
        "categories": int((labels > 0).sum()),
        "trials_of_category": {
            name: int(count) for name, count in zip(trials.label_names, labels, strict=True)
        },
        "stimuli": int(len(np.unique(trials.stimuli[known]))),
        "trials_without_stimulus": int((~known).sum()),
        "repetitions": [int(repeats.min()), int(repeats.max())] if len(repeats) else None,
        "trials_of_subject": _counted(trials.subjects),
        "trials_of_session": _counted(trials.sessions),
        "blocks": int(len(np.unique(block_ids(trials)))),
        "runs": int(
            len(np.unique(np.stack([trials.subjects, trials.sessions, trials.runs]), axis=1).T)
        ),
        "design": "block" if is_block_design(trials) else "rapid",
    }


def _counted(values: np.ndarray) -> dict[str, int]:
    found, count = np.unique(values, return_counts=True)
    return {str(value): int(n) for value, n in zip(found, count, strict=True)}


def _named(trials: TrialSet, counts: np.ndarray, chosen: np.ndarray) -> dict[str, int]:
    return {trials.channels[i]: int(counts[i]) for i in np.flatnonzero(chosen)}


def _rounded(value: Any) -> float:
    return float(f"{float(value):.4g}")
