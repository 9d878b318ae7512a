"""The deterministic transform: settings, what was fitted, and its two files."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Optional

import numpy as np

from ..errors import InputError
from ..files import whole_file
from ..recordings.trials import TrialSet
from .filters import METHODS, PHASES, band_pass, notch, resample, resampled_length, stretch
from .montage import electrode_places, montage_places, spline_matrix
from .whitening import MODES, RULES, fit_whitening

# the keys of the first format; the later ones have defaults
ORIGINAL = {
    *("sfreq", "band", "demean", "whiten", "shrinkage", "clip"),
    *("input_sfreq", "channels", "samples", "median", "spread", "whitening"),
}


@dataclass
class PreprocessingSettings:
    """What is done, in this order.

    Parameters
    ----------
    pick
        Channels used, by name, in this order; empty for those of the training trials as they are.
        A recording may have others besides.
    band
        Pass band in hertz, or None. Fourth-order Butterworth.
    notch
        Frequencies removed, hertz.
    phase
        Of both filters: ``zero`` (forwards and backwards) or ``causal`` (forwards only).
    baseline
        Seconds from the onset of the stimulus, first and last; the mean in between is subtracted.
    window
        Seconds from the onset, first (kept) and last (not kept), or None for the whole trial.
    sfreq
        Sampling rate after resampling, hertz; 0 for the recording's.
    resampling
        ``polyphase``, ``fft`` or ``linear``; see :func:`.filters.resample`.
    length
        Stretch to this number of samples by linear interpolation, whatever the rate; 0 for no. The
        published system stretches 440 samples to 512.
    demean
        Subtract each trial's mean from each channel, which removes the offset that drift left.
    montage
        MNE's name of the montage that the channels' names belong to.
    map_to
        MNE's name of a montage, to whose electrodes the potentials are interpolated by spherical
        splines; empty for no.
    whiten
        Multiply by the inverse square root of the covariance of the noise between channels:
        multivariate noise normalisation (Guggenmos et al., NeuroImage 2018). The noise is what
        trials of the same subject and stimulus differ by, or the whole signal where nothing was
        repeated.
    whiten_mode
        ``time`` or ``epochs``; see :func:`.whitening.noise_covariance`.
    whiten_per
        ``subject`` or ``session``: a matrix for each one seen in training, and one for all others.
    shrinkage
        Weight of the mean variance on the diagonal of that covariance, 0 to 1.
    shrinkage_rule
        ``fixed``, or ``ledoit-wolf``: estimated, but not below ``shrinkage``.
    zscore
        Subtract each channel's median over training trials and divide by its interquartile range /
        1.349.
    clip
        Largest absolute value after that; 0 for no limit.
    """

    sfreq: float = 250.0
    band: Optional[list[float]] = None  # noqa: UP045
    demean: bool = True
    whiten: bool = True
    shrinkage: float = 0.01
    clip: float = 8.0
    pick: list[str] = field(default_factory=list)
    notch: list[float] = field(default_factory=list)
    phase: str = "zero"
    baseline: Optional[list[float]] = None  # noqa: UP045
    window: Optional[list[float]] = None  # noqa: UP045
    resampling: str = "polyphase"
    length: int = 0
    montage: str = "standard_1005"
    map_to: str = ""
    whiten_mode: str = "time"
    whiten_per: str = "subject"
    shrinkage_rule: str = "fixed"
    zscore: bool = True

    def check(self) -> None:
        """Refuse settings that no recording could fit.

        Raises
        ------
        InputError
            Naming the setting.
        """
        for name, choices in (
            ("phase", PHASES),
            ("resampling", METHODS),
            ("whiten_mode", MODES),
            ("whiten_per", ("subject", "session")),
            ("shrinkage_rule", RULES),
        ):
            if getattr(self, name) not in choices:
                found, expected = getattr(self, name), ", ".join(choices)
                raise InputError("preprocessing", name, found, f"one of {expected}")
        for name in ("baseline", "window"):
            span = getattr(self, name)
            if span is not None and not (len(span) == 2 and span[0] < span[1]):
                raise InputError("preprocessing", name, span, "two seconds, first < last")
        if not 0 <= self.shrinkage <= 1:
            raise InputError("preprocessing", "shrinkage", self.shrinkage, "0 to 1")


@dataclass(eq=False)
class Preprocessing(PreprocessingSettings):
    """Settings, and what :meth:`fit` learnt from training trials.

    Parameters
    ----------
    input_sfreq, channels, samples, tmin
        What :meth:`fit` saw, channels after ``pick``; a recording that differs is refused.
    median, spread
        Per channel, of training trials: median, and interquartile range / 1.349.
    whitening
        (C, C) for each subject number, as text (``subject/session`` for each session), and for
        ``other``.
    mapping
        (C', C) of the interpolation to ``map_to``, or None.
    mapped
        Names of the C' electrodes.
    """

    input_sfreq: float = 0.0
    channels: list[str] = field(default_factory=list)
    samples: int = 0
    tmin: float = 0.0
    median: list[float] = field(default_factory=list)
    spread: list[float] = field(default_factory=list)
    whitening: dict[str, np.ndarray] = field(default_factory=dict)
    mapping: np.ndarray | None = None
    mapped: list[str] = field(default_factory=list)

    def fit(self, trials: TrialSet, *, at_most: int = 4096, seed: int = 0) -> Preprocessing:
        """Learn whitening, medians and spreads from single training trials.

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
            When settings and recording do not fit, a value is not finite, or a channel is constant.
        """
        self.check()
        if not len(trials):
            raise InputError("preprocessing", "training trials", "none", "at least one")
        self.channels = list(self.pick or trials.channels)
        self.input_sfreq, self.tmin = float(trials.sfreq), float(trials.tmin)
        self.samples = trials.signals.shape[2]
        self._check_times()
        self._fit_mapping()
        part = trials.select(_whole_groups(trials.groups(), at_most, seed))
        rows = self._rows(trials)
        signals = np.concatenate([self._linear(part.signals, c, rows) for c in _every(len(part))])
        if self.whiten:
            self.whitening = fit_whitening(
                signals,
                part.groups(),
                self._who(part),
                mode=self.whiten_mode,
                shrinkage=self.shrinkage,
                rule=self.shrinkage_rule,
            )
            signals = self._whitened(signals, part)
        self._fit_scale(signals)
        return self

    def __call__(self, trials: TrialSet) -> np.ndarray:
        """Preprocessed signals (N, C, T') float32, without a unit.

        Raises
        ------
        InputError
            When the channels, rate or length are not those of the fit, or a value is not finite.
        """
        rows = self._check(trials)
        median = np.asarray(self.median, np.float32)[:, None]
        spread = np.asarray(self.spread, np.float32)[:, None]
        limit = self.clip or np.inf
        out = np.empty((len(trials), len(self.output_channels), self.output_samples), np.float32)
        for chunk in _every(len(trials)):
            whitened = self._whitened(self._linear(trials.signals, chunk, rows), trials, rows=chunk)
            out[chunk] = np.clip((whitened - median) / spread, -limit, limit)
        return out

    @property
    def output_samples(self) -> int:
        """Samples of a preprocessed trial."""
        first, last = self._span()
        return self.length or resampled_length(last - first, (self.input_sfreq, self.output_sfreq))

    @property
    def output_sfreq(self) -> float:
        """Sampling rate of preprocessed trials before any stretching, hertz."""
        return self.sfreq or self.input_sfreq

    @property
    def output_channels(self) -> list[str]:
        """Names of the channels of a preprocessed trial."""
        return self.mapped or self.channels

    def places(self) -> np.ndarray:
        """Places (C, 3) of the output channels on the unit sphere, for encoders with positions.

        Raises
        ------
        InputError
            When a name is not in the montage.
        """
        return electrode_places(self.output_channels, self.map_to or self.montage)

    def as_dict(self, *, matrices: bool = True) -> dict[str, Any]:
        """Plain values, for JSON; names in place of the matrices when not asked for."""
        values = asdict(self)
        if not matrices:
            shape = None if self.mapping is None else list(self.mapping.shape)
            return {**values, "whitening": sorted(self.whitening), "mapping": shape}
        values["whitening"] = {name: matrix.tolist() for name, matrix in self.whitening.items()}
        values["mapping"] = None if self.mapping is None else self.mapping.tolist()
        return values

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Preprocessing) and self.as_dict() == other.as_dict()

    def save(self, path: str | Path) -> None:
        """Write as JSON, and the matrices beside it as safetensors."""
        from safetensors.numpy import save

        tensors = {f"whitening.{name}": matrix for name, matrix in self.whitening.items()}
        if self.mapping is not None:
            tensors["mapping"] = self.mapping
        matrices = Path(path).with_suffix(".safetensors")
        if tensors:
            with whole_file(matrices) as temporary:
                temporary.write_bytes(save(tensors))
        with whole_file(path) as temporary:
            content = json.dumps(self.as_dict(matrices=False), indent=1)
            temporary.write_text(content + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Preprocessing:
        """Read what :meth:`save` wrote; also the older form, with the matrices in the JSON.

        Raises
        ------
        InputError
            When a file is missing or not such a file.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(path, "file", error, "a preprocessing file (JSON)") from error
        _check_keys(path, content, {entry.name for entry in fields(cls)})
        names, shape = content["whitening"], content.get("mapping")
        if isinstance(names, dict):
            content["whitening"] = {
                name: np.asarray(matrix, np.float32) for name, matrix in names.items()
            }
        elif names or shape:
            tensors = _read_matrices(Path(path).with_suffix(".safetensors"), names, shape)
            content["mapping"] = tensors.pop("mapping", None)
            content["whitening"] = {
                name.removeprefix("whitening."): matrix for name, matrix in tensors.items()
            }
        else:
            content["whitening"] = {}
        return cls(**content)

    def _check_times(self) -> None:
        rates = self.input_sfreq, self.sfreq
        if rates[1] < 0 or rates[1] > rates[0]:
            expected = f"0 or more, at most the recording's {self.input_sfreq:g}"
            raise InputError("preprocessing", "sfreq", self.sfreq, expected)
        last = self.tmin + self.samples / self.input_sfreq
        for name in ("baseline", "window"):
            span = getattr(self, name)
            if span is not None and (
                span[0] < self.tmin - 1e-9 or span[1] > last + 0.5 / self.input_sfreq
            ):
                expected = f"inside {self.tmin:g} to {last:g} s"
                raise InputError("preprocessing", name, span, expected)

    def _fit_mapping(self) -> None:
        self.mapping, self.mapped = None, []
        if self.map_to:
            source = electrode_places(self.channels, self.montage)
            places = montage_places(self.map_to)
            self.mapped = list(places)
            matrix = spline_matrix(source, np.stack(list(places.values())))
            self.mapping = matrix.astype(np.float32)

    def _fit_scale(self, signals: np.ndarray) -> None:
        low, middle, high = np.percentile(signals, [25, 50, 75], axis=(0, 2))
        if np.any(high <= low):
            channel = self.output_channels[int(np.argmin(high - low))]
            raise InputError("preprocessing", f"channel {channel}", "constant", "one that varies")
        if not self.zscore:
            low, middle, high = np.zeros_like(low), np.zeros_like(low), np.full_like(low, 1.349)
        self.median = [float(value) for value in middle]
        self.spread = [float(value) for value in (high - low) / 1.349]

    def _linear(self, signals: Any, chunk: slice, channels: np.ndarray | slice) -> np.ndarray:
        """Everything before whitening, of a slice of trials."""
        x = np.asarray(signals[chunk], dtype=np.float32)[:, channels]
        if not np.isfinite(x).all():
            raise InputError("recording", "signals", "NaN or infinity", "finite samples")
        if self.band is not None:
            x = band_pass(x, self.input_sfreq, self.band, self.phase)
        if self.notch:
            x = notch(x, self.input_sfreq, self.notch, self.phase)
        if self.baseline is not None:
            first, last = (self._sample(second) for second in self.baseline)
            x = x - x[:, :, first : max(last, first + 1)].mean(axis=2, keepdims=True)
        x = x[:, :, slice(*self._span())]
        x = resample(x, (self.input_sfreq, self.output_sfreq), self.resampling)
        if self.length:
            x = stretch(x, self.length)
        if self.demean:
            x = x - x.mean(axis=2, keepdims=True)
        return x if self.mapping is None else self.mapping @ x

    def _sample(self, second: float) -> int:
        return round((second - self.tmin) * self.input_sfreq)

    def _span(self) -> tuple[int, int]:
        if self.window is None:
            return 0, self.samples
        first, last = (self._sample(second) for second in self.window)
        return max(0, first), min(self.samples, last)

    def _who(self, trials: TrialSet, rows: slice = slice(None)) -> np.ndarray:
        subjects = trials.subjects[rows].astype(str)
        if self.whiten_per == "subject":
            return subjects
        sessions = trials.sessions[rows].astype(str)
        return np.char.add(np.char.add(subjects, "/"), sessions)

    def _whitened(
        self, signals: np.ndarray, trials: TrialSet, rows: slice = slice(None)
    ) -> np.ndarray:
        if not self.whiten:
            return signals
        who, whitened = self._who(trials, rows), np.empty_like(signals)
        for name in np.unique(who):
            matrix = self.whitening.get(str(name), self.whitening["other"])
            mine = who == name
            whitened[mine] = matrix @ signals[mine]
        return whitened

    def _rows(self, trials: TrialSet) -> np.ndarray | slice:
        if list(trials.channels) == self.channels:
            return slice(None)
        place = {name: i for i, name in enumerate(trials.channels)}
        absent = [name for name in self.channels if name not in place]
        if absent or not self.pick:
            expected = f"{len(self.channels)} channels {self.channels[0]} ... {self.channels[-1]}"
            found = f"{len(trials.channels)} channels {trials.channels[0]} ... "
            found += f"{trials.channels[-1]}" + (f", without {absent[0]}" if absent else "")
            raise InputError("recording", "channels", found, f"{expected}, as in training")
        return np.array([place[name] for name in self.channels])

    def _check(self, trials: TrialSet) -> np.ndarray | slice:
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
        timed = self.window is not None or self.baseline is not None
        if timed and abs(trials.tmin - self.tmin) > 0.5 / self.input_sfreq:
            found_start = f"{trials.tmin:g} s"
            raise InputError("recording", "tmin", found_start, f"{self.tmin:g} s, as in training")
        return self._rows(trials)


def _every(n: int, size: int = 256) -> list[slice]:
    return [slice(start, start + size) for start in range(0, n, size)]


def _whole_groups(group: np.ndarray, at_most: int, seed: int) -> np.ndarray:
    rank = np.random.default_rng(seed).permutation(int(group.max()) + 1)
    order = np.argsort(rank[group], kind="stable")
    return np.sort(order[:at_most])


def _check_keys(path: str | Path, content: Any, known: set[str]) -> None:
    found = set(content) if isinstance(content, dict) else set()
    wrong = (found - known) | (ORIGINAL - found)
    if wrong:
        raise InputError(
            path, "keys", f"unknown or missing {sorted(wrong)}", "those of Preprocessing"
        )


def _read_matrices(file: Path, names: list[str], shape: list[int] | None) -> dict[str, np.ndarray]:
    from safetensors.numpy import load

    wanted = {f"whitening.{name}" for name in names} | ({"mapping"} if shape else set())
    try:
        tensors = load(file.read_bytes())
    except Exception as error:
        reason = " ".join(str(error).split())[:160]
        raise InputError(file, "file", reason, "matrices (safetensors)") from error
    if set(tensors) != wanted:
        raise InputError(file, "matrices", sorted(tensors)[:5], sorted(wanted)[:5])
    return tensors
