"""Figures as pictures; each a PNG, whole or not at all."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ..errors import InputError
from ..files import whole_file
from ..recordings.overview_picture import NEEDED_POSITIONS, flattened
from ..recordings.positions import electrode_positions
from .saliency import OverTime


def draw_over_time(path: str | Path, found: OverTime, *, figure: str = "top-1") -> None:
    """Accuracy of each window over its centre, with the whole trial's and chance."""
    picture, axes = _canvas()
    axes.plot(found.seconds.numpy(), found.values.numpy(), marker=".")
    axes.axhline(found.whole, color="black", linewidth=0.8, label="whole trial")
    axes.axhline(found.chance, color="grey", linestyle=":", linewidth=0.8, label="chance")
    axes.axvline(0.0, color="black", linewidth=0.4)
    axes.set(xlabel="s from the onset, centre of the window", ylabel=figure, ylim=(0, 1))
    axes.legend()
    _save(picture, path)


def draw_saliency(path: str | Path, shares: Tensor, channels: Sequence[str], *, sfreq: float,
                  tmin: float = 0.0) -> None:  # fmt: skip
    """Share of each electrode on the head (bars where fewer than eight positions are known), and
    of each time.

    Parameters
    ----------
    shares
        (C, T) of :func:`.saliency.saliency`.
    """
    picture, (left, right) = _canvas(1, 2)
    of_channel = shares.sum(dim=1).numpy()
    positions = electrode_positions(channels)
    known = np.isfinite(positions).all(axis=1)
    if known.sum() >= NEEDED_POSITIONS:
        from mne.viz import plot_topomap

        image, _ = plot_topomap(
            100 * of_channel[known], flattened(positions[known]), axes=left, show=False
        )
        picture.colorbar(image, ax=left, shrink=0.7, label="% of the saliency")
    else:
        left.bar(np.arange(len(channels)), 100 * of_channel)
        left.set(xlabel="channel", ylabel="% of the saliency")
    seconds = tmin + np.arange(shares.shape[1]) / sfreq
    right.plot(seconds, 100 * shares.sum(dim=0).numpy())
    right.set(xlabel="s from the onset", ylabel="% of the saliency a sample")
    _save(picture, path)


def draw_similarity(
    path: str | Path, scores: Tensor, labels: np.ndarray, names: Sequence[str]
) -> None:
    """Scores of every trial (row) and picture (column), both sorted by category.

    Parameters
    ----------
    scores
        (N, N), row i belongs to column i.
    labels
        (N,) category of each, index into ``names``.
    """
    order = np.argsort(labels, kind="stable")
    picture, axes = _canvas()
    image = axes.imshow(scores.numpy()[np.ix_(order, order)], interpolation="nearest")
    ends = np.flatnonzero(np.diff(labels[order])) + 0.5
    if len(ends) <= 60:
        for end in ends:
            axes.axhline(end, color="white", linewidth=0.3)
            axes.axvline(end, color="white", linewidth=0.3)
        middle = (np.concatenate([[-0.5], ends]) + np.concatenate([ends, [len(order) - 0.5]])) / 2
        shown = [names[label] for label in np.unique(labels)]
        axes.set_yticks(middle, shown, fontsize=5)
    axes.set(xlabel="picture", ylabel="EEG")
    axes.set_xticks([])
    picture.colorbar(image, ax=axes, shrink=0.8, label="cosine")
    _save(picture, path)


def draw_training(path: str | Path, logs: str | Path) -> list[str]:
    """Every column of the CSV logs of training, a panel for each stage; returns the stages.

    Parameters
    ----------
    logs
        Folder with ``STAGE/metrics.csv``.

    Raises
    ------
    InputError
        When there are none.
    """
    curves = {
        file.parent.relative_to(logs).as_posix(): read_curves(file)
        for file in sorted(Path(logs).rglob("metrics.csv"))
    }
    curves = {stage: found for stage, found in curves.items() if found}
    if not curves:
        raise InputError(logs, "file", "no metrics.csv with figures", "training logs")
    picture, panels = _canvas(1, len(curves))
    for axes, (stage, found) in zip(np.atleast_1d(panels), curves.items(), strict=True):
        for name, (steps, values) in found.items():
            axes.plot(steps, values, label=name, linewidth=0.8)
        axes.set(title=stage, xlabel="step")
        axes.legend(fontsize=6)
    _save(picture, path)
    return list(curves)


def read_curves(path: str | Path) -> Mapping[str, tuple[list[float], list[float]]]:
    """Columns of a log by name: steps and values where there are values."""
    curves: dict[str, tuple[list[float], list[float]]] = {}
    with open(path, newline="", encoding="utf-8") as file:
        for number, row in enumerate(csv.DictReader(file)):
            step = float(row.get("step") or number)
            for name, text in row.items():
                if name in ("step", "epoch") or not text:
                    continue
                steps, values = curves.setdefault(name, ([], []))
                steps.append(step)
                values.append(float(text))
    return curves


def _canvas(rows: int = 1, columns: int = 1) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5 * columns, 4.2 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns)


def _save(figure: Any, path: str | Path) -> None:
    with whole_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
