"""The result table of a batch: CSV, JSON, and Markdown for the screen."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from eeg_encoder.files import whole_file, write_json

from .jobs import Outcome
from .trials import BatchTrial

SHOWN = ("category", "colour", "category_right", "colour_right", "chamfer", "fscore", "iou")


def rows_of(trials: Sequence[BatchTrial], outcomes: Mapping[str, Outcome]) -> list[dict[str, Any]]:
    """One row a trial, in the order of the trials; figures are columns of their own."""
    rows = []
    for trial in trials:
        outcome = outcomes[trial.name]
        row = {"trial": trial.trial, "stimulus": trial.stimulus, **asdict(outcome)}
        files, figures = row.pop("files"), row.pop("figures")
        rows.append({**row, "mesh": files.get("mesh"), **figures})
    return rows


def write_table(out: Path, rows: Sequence[Mapping[str, Any]], about: Mapping[str, Any]) -> None:
    """Write ``results.csv`` and ``results.json``."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with (
        whole_file(out / "results.csv") as temporary,
        temporary.open("w", newline="", encoding="utf-8") as stream,
    ):
        writer = csv.DictWriter(stream, columns)
        writer.writeheader()
        writer.writerows(rows)
    write_json(out / "results.json", {**about, "trials": list(rows)})


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table for the screen: status, seconds, and the figures that there are."""
    figures = [name for name in SHOWN if any(row.get(name) is not None for row in rows)]
    columns = ["trial", "stimulus", "status", "seconds", *figures]
    if any(row.get("error") for row in rows):
        columns.append("error")
    lines = [columns, ["---"] * len(columns)]
    lines += [[_cell(row.get(name)) for name in columns] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    text = f"{value:.3g}" if isinstance(value, float) else str(value)
    return text.replace("|", "/")
