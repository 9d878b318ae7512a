"""Filters and resampling along the last axis, each by name."""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd

import numpy as np

from ..errors import InputError

PHASES = ("zero", "causal")
METHODS = ("polyphase", "fft", "linear")


def band_pass(
    signals: np.ndarray, sfreq: float, band: Sequence[float], phase: str = "zero"
) -> np.ndarray:
    """Fourth-order Butterworth band-pass.

    Parameters
    ----------
    signals
        (..., T)
    sfreq
        Hertz.
    band
        Low and high edge, hertz.
    phase
        ``zero``: forwards and backwards, which doubles the order and smears responses to before
        their cause. ``causal``: forwards only, which delays them.

    Raises
    ------
    InputError
        When the edges are not between 0 and half of the sampling rate.
    """
    from scipy.signal import butter

    low, high = band
    if not 0 < low < high < sfreq / 2:
        raise InputError("preprocessing", "band", list(band), f"0 < low < high < {sfreq / 2:g}")
    sections = butter(4, [low, high], btype="bandpass", fs=sfreq, output="sos")
    return _applied(sections, signals, phase)


def notch(
    signals: np.ndarray,
    sfreq: float,
    frequencies: Sequence[float],
    phase: str = "zero",
    quality: float = 30.0,
) -> np.ndarray:
    """Second-order notch at each frequency, ``quality`` times narrower than it.

    Raises
    ------
    InputError
        When a frequency is not between 0 and half of the sampling rate.
    """
    from scipy.signal import iirnotch, tf2sos

    for frequency in frequencies:
        if not 0 < frequency < sfreq / 2:
            raise InputError("preprocessing", "notch", frequency, f"0 to {sfreq / 2:g} Hz")
        signals = _applied(tf2sos(*iirnotch(frequency, quality, fs=sfreq)), signals, phase)
    return signals


def resample(signals: np.ndarray, rates: tuple[float, float], method: str) -> np.ndarray:
    """Signals (..., T) from one rate to another, hertz.

    Parameters
    ----------
    rates
        From, to.
    method
        ``polyphase``: SciPy's ``resample_poly``, Kaiser-windowed anti-alias filter, edges extended
        by a line. ``fft``: SciPy's ``resample``, which takes the trial as periodic. ``linear``:
        interpolation at the new rate between the first and last sample; no anti-alias filter.
    """
    samples = resampled_length(signals.shape[-1], rates)
    if samples == signals.shape[-1]:
        return signals
    if method == "linear":
        return stretch(signals, samples)
    from scipy import signal

    if method == "fft":
        return signal.resample(signals, samples, axis=-1).astype(np.float32)
    down, up = _ratio(rates)
    return signal.resample_poly(signals, up, down, axis=-1, padtype="line").astype(np.float32)


def stretch(signals: np.ndarray, samples: int) -> np.ndarray:
    """Linear interpolation of (..., T) to ``samples`` points from the first sample to the last."""
    place = np.linspace(0.0, signals.shape[-1] - 1.0, samples)
    left = np.minimum(place.astype(np.int64), max(0, signals.shape[-1] - 2))
    share = (place - left).astype(np.float32)
    right = np.minimum(left + 1, signals.shape[-1] - 1)
    return signals[..., left] * (1 - share) + signals[..., right] * share


def resampled_length(samples: int, rates: tuple[float, float]) -> int:
    """Samples after :func:`resample`."""
    down, up = _ratio(rates)
    return -(-samples * up // down)


def _ratio(rates: tuple[float, float]) -> tuple[int, int]:
    before, after = (round(rate * 1000) for rate in rates)
    divisor = gcd(before, after)
    return before // divisor, after // divisor


def _applied(sections: np.ndarray, signals: np.ndarray, phase: str) -> np.ndarray:
    from scipy.signal import sosfilt, sosfilt_zi, sosfiltfilt

    if phase == "zero":
        return sosfiltfilt(sections, signals, axis=-1).astype(np.float32)
    start = sosfilt_zi(sections).reshape(len(sections), *[1] * (signals.ndim - 1), 2)
    state = start * signals[None, ..., :1]
    return sosfilt(sections, signals, axis=-1, zi=state)[0].astype(np.float32)
