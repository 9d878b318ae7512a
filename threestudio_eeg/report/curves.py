"""Training curves from Lightning's ``metrics.csv``."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from eeg_encoder.errors import InputError


def read_curves(path: str | Path, most: int = 6) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Read steps and values of the logged figures, losses first.

    Parameters
    ----------
    path
        CSV with a ``step`` column; cells may be empty.
    most
        How many curves to keep.

    Returns
    -------
    dict
        Name to (steps, values), each (T,), finite, with at least two points.

    Raises
    ------
    InputError
        When the file is missing or has no ``step`` column.
    """
    try:
        with open(path, encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            names = [name for name in reader.fieldnames or [] if name]
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(path, "curves", error, "a readable CSV file") from error
    if "step" not in names:
        raise InputError(path, "columns", ", ".join(names) or "none", "a column 'step'")
    curves = {}
    for name in sorted(set(names) - {"step", "epoch"}, key=lambda n: ("loss" not in n, n)):
        pairs = [(_number(row["step"]), _number(row[name])) for row in rows]
        points = np.array([pair for pair in pairs if np.isfinite(pair).all()])
        if len(points) >= 2 and np.ptp(points[:, 0]) > 0:
            order = np.argsort(points[:, 0], kind="stable")
            curves[name] = points[order, 0], points[order, 1]
        if len(curves) == most:
            break
    return curves


def _number(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return float("nan")
