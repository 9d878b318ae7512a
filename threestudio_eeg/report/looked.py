"""Where and when the encoder's answer came from: saliency over time and over the head."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

import numpy as np

from eeg_encoder.errors import InputError

from . import charts
from .electrodes import find_montage, topographic_maps
from .pictures import data_uri


def looked(saliency: Mapping[str, Any]) -> str:
    """The section's body.

    Parameters
    ----------
    saliency
        ``shares`` (C, T), not negative, that sum to 1 (:func:`eeg_encoder.evaluation.saliency`);
        ``channels`` (C names), ``sfreq`` (Hz), and ``tmin`` (s) if not 0.

    Raises
    ------
    InputError
        When the shares do not fit the channels or are no shares.
    """
    shares = np.asarray(saliency["shares"], dtype=np.float64)
    channels, sfreq = [str(name) for name in saliency["channels"]], float(saliency["sfreq"])
    if shares.ndim != 2 or len(shares) != len(channels) or shares.shape[1] < 2:
        raise InputError("report", "saliency.shares", shares.shape, f"({len(channels)}, samples)")
    if not np.isfinite(shares).all() or (shares < 0).any():
        raise InputError("report", "saliency.shares", "negative or not finite", "shares from 0")
    times = (float(saliency.get("tmin", 0.0)) + np.arange(shares.shape[1]) / sfreq) * 1000
    percent = shares.sum(axis=0) * 100
    chart = charts.line_chart(
        times, percent, title="Share of each sample in time, %", unit="ms after onset"
    )
    figures = [f"<figure>{chart}<figcaption>Over time, % a sample</figcaption></figure>"]
    montage = find_montage(channels)
    if montage is not None:
        figures.append(_head(shares, channels, sfreq, montage))
    strongest = ", ".join(channels[index] for index in np.argsort(-shares.sum(axis=1))[:5])
    return (
        '<p class="lead">Gradient times input: how much of the similarity to the picture seen '
        "each sample carries. It says what the encoder used, not where the brain made it. "
        f'Strongest channels: {escape(strongest)}.</p><div class="curves looked">'
        f"{''.join(figures)}</div>"
    )


def _head(
    shares: np.ndarray,
    channels: list[str],
    sfreq: float,
    montage: tuple[str, dict[str, np.ndarray]],
) -> str:
    over_head = shares.sum(axis=1, keepdims=True)
    (content,), _ = topographic_maps(over_head, channels, sfreq, [0], montage)
    return (
        f'<figure><img src="{data_uri(content)}" width="264" height="264" loading="lazy" '
        'alt="Saliency over the head, nose up; red is above the mean of the channels">'
        "<figcaption>Over the head; red is above the mean channel</figcaption></figure>"
    )
