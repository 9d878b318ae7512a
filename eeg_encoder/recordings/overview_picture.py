"""An overview of a recording as a picture: average, amplitude, spectrum, counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..files import whole_file
from .overview import LINE_FREQUENCIES, Overview

SHOWN_CATEGORIES = 60
NEEDED_POSITIONS = 8
HEAD_RADIUS = 0.095


def draw_overview(path: str | Path, found: Overview, *, title: str = "") -> None:
    """Write a PNG of four panels.

    The average over all trials, a line a channel; the amplitude of each channel, on the head where
    at least eight positions are known; the mean power spectrum; the trials of each category.

    Parameters
    ----------
    path
        File to write, whole or not at all.
    found
        What :func:`.overview.overview` returned.
    title
        Above the panels; default: the recording's source.

    Raises
    ------
    InputError
        When the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 2)
    scale, unit = (1e6, "µV") if found.summary["unit"] == "V" else (1.0, "as stored")
    _draw_average(axes[0, 0], found, scale, unit)
    _draw_amplitude(axes[0, 1], found, scale, unit)
    _draw_spectrum(axes[1, 0], found, scale, unit)
    _draw_counts(axes[1, 1], found)
    figure.suptitle(title or found.summary["source"], fontsize=10)
    with whole_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def _draw_average(axes: Any, found: Overview, scale: float, unit: str) -> None:
    first, last = found.summary["window_s"]
    time = np.linspace(first, last, found.average.shape[1])
    axes.plot(time, found.average.T * scale, linewidth=0.6)
    axes.axvline(0.0, color="black", linewidth=0.5)
    axes.set(
        title=f"average of {found.summary['trials']} trials", xlabel="s from the onset", ylabel=unit
    )


def _draw_amplitude(axes: Any, found: Overview, scale: float, unit: str) -> None:
    known = np.isfinite(found.positions).all(axis=1)
    amplitude = found.deviation * scale
    axes.set_title(f"standard deviation, {unit}")
    if known.sum() >= NEEDED_POSITIONS:
        from mne.viz import plot_topomap

        image, _ = plot_topomap(
            amplitude[known], flattened(found.positions[known]), axes=axes, show=False
        )
        axes.figure.colorbar(image, ax=axes, shrink=0.7)
        return
    names = list(found.summary["amplitude"]["deviation_of_channel"])
    axes.bar(np.arange(len(amplitude)), amplitude)
    axes.set_xlabel("channel")
    if len(names) <= 32:
        axes.set_xticks(np.arange(len(names)), names, rotation=90, fontsize=7)


def _draw_spectrum(axes: Any, found: Overview, scale: float, unit: str) -> None:
    power = found.spectrum[:, 1:] * scale**2
    axes.semilogy(found.frequencies[1:], np.maximum(power, 1e-30).T, color="grey", linewidth=0.4)
    axes.semilogy(found.frequencies[1:], np.maximum(np.median(power, axis=0), 1e-30), color="black")
    for line in LINE_FREQUENCIES:
        if line < found.frequencies[-1]:
            axes.axvline(line, color="tab:red", linewidth=0.5, linestyle=":")
    per_hertz = "µV²/Hz" if unit == "µV" else "a hertz"
    axes.set(title="power spectrum, black: median channel", xlabel="Hz", ylabel=per_hertz)


def _draw_counts(axes: Any, found: Overview) -> None:
    counts = found.summary["trials_of_category"]
    names, values = list(counts), list(counts.values())
    axes.bar(np.arange(len(values)), values)
    subjects = len(found.summary["trials_of_subject"])
    sessions = len(found.summary["trials_of_session"])
    axes.set(
        title=f"trials of each category; {subjects} subjects, {sessions} sessions, "
        f"{found.summary['design']} design",
        xlabel="category",
    )
    axes.title.set_fontsize(9)
    if len(names) <= SHOWN_CATEGORIES:
        axes.set_xticks(np.arange(len(names)), names, rotation=90, fontsize=6)


def flattened(positions: np.ndarray) -> np.ndarray:
    """Positions in the plane: the angle from the vertex becomes the distance from the centre."""
    length = np.maximum(np.linalg.norm(positions, axis=1), 1e-9)
    angle = np.arccos(np.clip(positions[:, 2] / length, -1, 1))
    azimuth = np.arctan2(positions[:, 1], positions[:, 0])
    radius = HEAD_RADIUS * angle / (np.pi / 2)
    return np.stack([radius * np.cos(azimuth), radius * np.sin(azimuth)], axis=1)
