"""A comparison as Markdown, CSV and JSON."""

from __future__ import annotations

import csv
import io
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eeg_encoder.files import whole_file, write_json

from .figures import Figure, figure_of
from .statistics import Difference, Estimate

if TYPE_CHECKING:
    from .comparing import Comparison

CSV_COLUMNS = (
    "figure", "condition", "reference", "mean", "se", "low", "high", "n",
    "difference", "difference_low", "difference_high", "wilcoxon", "adjusted", "sign",
    "more", "less", "equal", "pairs",
)  # fmt: skip


def write_tables(folder: Path, comparison: Comparison) -> dict[str, Path]:
    """Write ``comparison.md``, ``comparison.csv`` and ``comparison.json``; return them by kind."""
    files = {kind: folder / f"comparison.{kind}" for kind in ("md", "csv", "json")}
    with whole_file(files["md"]) as temporary:
        temporary.write_text(markdown(comparison), encoding="utf-8")
    with whole_file(files["csv"]) as temporary:
        temporary.write_text(as_csv(comparison), encoding="utf-8")
    write_json(files["json"], as_json(comparison))
    return files


def markdown(comparison: Comparison) -> str:
    """Means of every condition, differences to the reference, figures of sets, and notes."""
    parts = [
        f"# Comparison of {len(comparison.conditions)} conditions",
        comparison.description(),
        "\n".join(_means(comparison)),
        f"## {comparison.reference} minus the others, trial by trial",
        "\n".join(_differences(comparison)),
    ]
    if comparison.sets:
        parts += ["## Sets of views", "\n".join(_sets(comparison))]
    if comparison.notes:
        parts.append("\n".join(f"- {note}" for note in comparison.notes))
    return "\n\n".join(parts) + "\n"


def _means(comparison: Comparison) -> list[str]:
    lines = _head(["figure", *comparison.conditions])
    for key in comparison.figures:
        figure = _known(key)
        cells = [comparison.estimates[key].get(name) for name in comparison.conditions]
        lines.append(_line([_arrow(figure), *(_mean(cell, figure) for cell in cells)]))
    counted = [str(comparison.counts[name]["made"]) for name in comparison.conditions]
    lines.append(_line(["objects", *counted]))
    for what in ("failed", "empty"):
        counts = [str(comparison.counts[name][what]) for name in comparison.conditions]
        if any(count != "0" for count in counts):
            lines.append(_line([what, *counts]))
    return lines


def _differences(comparison: Comparison) -> list[str]:
    others = [name for name in comparison.conditions if name != comparison.reference]
    lines = _head(
        ["figure", "other", "difference [95 %]", "Wilcoxon", "Holm", "sign", "+ / − / =", "pairs"]
    )
    for key in comparison.figures:
        for other in others:
            difference = comparison.differences[key].get(other)
            if difference is not None:
                lines.append(_line([_arrow(_known(key)), other, *_paired(difference, _known(key))]))
    return lines


def _paired(difference: Difference, figure: Figure) -> list[str]:
    mean, low, high = (
        _number(value, figure, sign=True)
        for value in (difference.mean, difference.low, difference.high)
    )
    adjusted = difference.wilcoxon if difference.adjusted is None else difference.adjusted
    return [
        f"{mean} [{low}, {high}]",
        _p_value(difference.wilcoxon),
        _p_value(adjusted),
        _p_value(difference.sign),
        f"{difference.more} / {difference.less} / {difference.equal}",
        str(difference.n),
    ]


def _sets(comparison: Comparison) -> list[str]:
    names = list(dict.fromkeys(name for entry in comparison.sets.values() for name in entry))
    lines = _head(["condition", *names])
    for condition, entry in comparison.sets.items():
        cells = [_plain(entry.get(name)) for name in names]
        lines.append(_line([condition, *cells]))
    return lines


def as_csv(comparison: Comparison) -> str:
    """One line a figure and condition, with the difference of the reference to it."""
    text = io.StringIO()
    writer = csv.DictWriter(text, CSV_COLUMNS, lineterminator="\n")
    writer.writeheader()
    for key in comparison.figures:
        for condition, mean in comparison.estimates[key].items():
            line = {"figure": key, "condition": condition, "reference": comparison.reference}
            paired = comparison.differences[key].get(condition)
            writer.writerow({**line, **asdict(mean), **_csv_pairs(paired)})
    return text.getvalue()


def _csv_pairs(paired: Difference | None) -> dict[str, Any]:
    if paired is None:
        return {}
    renamed = {
        "mean": "difference", "low": "difference_low", "high": "difference_high", "n": "pairs"
    }  # fmt: skip
    return {renamed.get(name, name): value for name, value in asdict(paired).items()}


def as_json(comparison: Comparison) -> dict[str, Any]:
    """Everything, with the values trial by trial."""
    return {
        "reference": comparison.reference,
        "conditions": comparison.conditions,
        "counts": comparison.counts,
        "notes": comparison.notes,
        "sources": comparison.sources,
        "statistics": {
            "interval": "95 %, percentile bootstrap over trials, 10,000 draws",
            "seeds": "averaged within a trial first",
            "adjusted": "Holm, over the figures of one pair of conditions",
        },
        "estimates": {
            key: {name: asdict(value) for name, value in of.items()}
            for key, of in comparison.estimates.items()
        },
        "differences": {
            key: {name: asdict(value) for name, value in of.items()}
            for key, of in comparison.differences.items()
        },
        "sets": comparison.sets,
        "values": comparison.values,
    }


def _known(key: str) -> Figure:
    figure = figure_of(key)
    assert figure is not None
    return figure


def _arrow(figure: Figure) -> str:
    return figure.title + {1: " ↑", -1: " ↓", 0: ""}[figure.better]


def _head(cells: list[str]) -> list[str]:
    return [_line(cells), _line(["---"] * len(cells))]


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _mean(value: Estimate | None, figure: Figure) -> str:
    if value is None:
        return "–"
    return f"{_number(value.mean, figure)} ± {_number(value.se, figure)}"


def _number(value: float, figure: Figure, *, sign: bool = False) -> str:
    plus = "+" if sign else ""
    return f"{100 * value:{plus}.1f} %" if figure.share else f"{value:{plus}.3f}"


def _plain(value: Any) -> str:
    return "–" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _p_value(p: float) -> str:
    return "< 0.0001" if p < 1e-4 else f"{p:.4f}" if p < 0.01 else f"{p:.2f}"
