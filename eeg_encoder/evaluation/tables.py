"""Tables by subject over seeds, a sign test against a baseline, and their files.

A row is a dictionary with ``subject``, ``seed`` and figures. Seeds are repetitions of training on
the same data; subjects are what a claim generalises to, so tests are over subjects.
"""

from __future__ import annotations

import csv
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from ..files import whole_file, write_json

Row = Mapping[str, Any]


def subject_table(rows: Sequence[Row], figures: Sequence[str]) -> list[dict[str, Any]]:
    """Mean and standard deviation over seeds, a row for each subject and one for all.

    In the row ``all`` the mean is over subjects, and the deviation over seeds is that of the means
    over subjects; ``<figure>_sd_subjects`` is the deviation of the subjects' means. Deviations of
    one value are None.

    Raises
    ------
    InputError
        When a subject lacks a seed that another has, or a pair is there twice.
    """
    subjects, seeds, values = _grid(rows, figures)
    table: list[dict[str, Any]] = []
    for number, subject in enumerate(subjects):
        row: dict[str, Any] = {"subject": subject, "seeds": len(seeds)}
        for name in figures:
            mine = values[name][number]
            row |= {name: float(mine.mean()), f"{name}_sd": _deviation(mine)}
        table.append(row)
    whole: dict[str, Any] = {"subject": "all", "seeds": len(seeds)}
    for name in figures:
        whole |= {
            name: float(values[name].mean()),
            f"{name}_sd": _deviation(values[name].mean(axis=0)),
            f"{name}_sd_subjects": _deviation(values[name].mean(axis=1)),
        }
    return [*table, whole]


def sign_test(rows: Sequence[Row], baseline: Sequence[Row], figure: str) -> dict[str, Any]:
    """Exact two-sided sign test over subjects: how often is the figure above the baseline's?

    A subject's figure is its mean over seeds; ties are left out.

    Returns
    -------
    dict
        ``above``, ``below``, ``ties``, ``p``, and ``difference``, the mean over subjects.

    Raises
    ------
    InputError
        When the two are not of the same subjects.
    """
    from scipy.stats import binomtest

    ours, theirs = (_of_subject(part, figure) for part in (rows, baseline))
    if set(ours) != set(theirs):
        found, expected = sorted(theirs, key=str), sorted(ours, key=str)
        raise InputError("baseline", "subjects", found, expected)
    difference = np.array([ours[subject] - theirs[subject] for subject in ours])
    above, below = int((difference > 0).sum()), int((difference < 0).sum())
    return {
        "figure": figure,
        "above": above,
        "below": below,
        "ties": len(difference) - above - below,
        "difference": float(difference.mean()),
        "p": float(binomtest(above, above + below).pvalue) if above + below else 1.0,
    }


def provenance(**settings: Any) -> dict[str, Any]:
    """Command, commit, versions and whatever else made a result: config, seed, protocol."""
    import platform

    import torch

    return {
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "commit": _commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "processor": platform.processor() or platform.machine(),
        **settings,
    }


def save_table(
    path: str | Path, rows: Sequence[Row], made_by: Mapping[str, Any], **more: Any
) -> tuple[Path, Path]:
    """Write rows as ``.json``, with provenance and whatever else, and as ``.csv``.

    Returns
    -------
    tuple
        Both files.

    Raises
    ------
    InputError
        When there are no rows, or a file cannot be written.
    """
    if not rows:
        raise InputError(path, "rows", "none", "at least one")
    as_json, as_csv = Path(path).with_suffix(".json"), Path(path).with_suffix(".csv")
    columns = list(dict.fromkeys(name for row in rows for name in row))
    write_json(as_json, {"provenance": dict(made_by), **more, "rows": [dict(r) for r in rows]})
    with whole_file(as_csv) as temporary, open(temporary, "w", newline="", encoding="utf-8") as f:
        writer = csv.DictWriter(f, columns)
        writer.writeheader()
        writer.writerows(rows)
    return as_json, as_csv


def _grid(
    rows: Sequence[Row], figures: Sequence[str]
) -> tuple[list[Any], list[Any], dict[str, np.ndarray]]:
    if not rows:
        raise InputError("table", "rows", "none", "at least one")
    subjects, seeds = (
        sorted({row[name] for row in rows}, key=lambda v: (str(type(v)), v))
        for name in ("subject", "seed")
    )
    pairs = [(row["subject"], row["seed"]) for row in rows]
    wanted = [(subject, seed) for subject in subjects for seed in seeds]
    if len(set(pairs)) != len(pairs) or set(pairs) != set(wanted):
        odd = next(iter(set(wanted) - set(pairs)), pairs[0])
        found = f"{len(pairs)} rows, {pairs.count(odd)} of {odd}"
        raise InputError("table", "subject and seed", found, f"{len(wanted)}, one of each pair")
    by_pair = dict(zip(pairs, rows, strict=True))
    values = {
        name: np.array([[float(by_pair[s, n][name]) for n in seeds] for s in subjects])
        for name in figures
    }
    return subjects, seeds, values


def _of_subject(rows: Sequence[Row], figure: str) -> dict[Any, float]:
    values: dict[Any, list[float]] = {}
    for row in rows:
        values.setdefault(row["subject"], []).append(float(row[figure]))
    return {subject: float(np.mean(found)) for subject, found in values.items()}


def _deviation(values: np.ndarray) -> float | None:
    return float(values.std(ddof=1)) if len(values) > 1 else None


def _commit() -> str | None:
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        subprocess.run(
            [*git, "ls-files", "--error-unmatch", "__init__.py"],
            check=True,
            capture_output=True,
            timeout=10,
        )
        described = subprocess.run(
            [*git, "describe", "--always", "--dirty", "--abbrev=40"],
            check=True,
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return described.stdout.strip()
