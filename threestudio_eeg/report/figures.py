"""What the figures on the page mean, and how they are written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Figure:
    """One line of the page's table: a name, a value as text, what it means, what it is beside."""

    name: str
    value: str
    meaning: str = ""
    beside: str = ""
    simulated: bool = False


# key: (name, unit, meaning)
KNOWN: dict[str, tuple[str, str, str]] = {
    "chamfer": (
        "Chamfer distance",
        "%",
        "Mean distance between the two surfaces, both ways, as a share of the diagonal of the "
        "bounding box. 0 is the same shape.",
    ),
    "fscore": (
        "F-score",
        "%",
        "How much of each surface lies within 5 % of the diagonal of the other. 100 % is best.",
    ),
    "precision": ("Precision", "%", "Share of the rebuilt surface that lies near the true one."),
    "recall": ("Recall", "%", "Share of the true surface that lies near the rebuilt one."),
    "iou": (
        "Volume overlap (IoU)",
        "%",
        "Volume in both solids over volume in either, after the same normalisation.",
    ),
    "yaw": ("Best turn", "°", "Turn about the vertical that fits best, of the four tried."),
    "view_agreement": (
        "Agreement of views",
        "",
        "Mean cosine between the image embeddings of the views. 1 means every side shows the "
        "same thing.",
    ),
    "category": ("Category", "", "What the independent judge calls the rendered views."),
    "category_right": ("Category right", "", "Whether that is what the person saw."),
    "category_probability": (
        "Share of the true category",
        "%",
        "The judge's mean probability of the true category over the views.",
    ),
    "colour": ("Colour", "", "The judge's colour of the rendered views."),
    "colour_right": ("Colour right", "", "Whether that is the colour the person saw."),
    "side_right": (
        "Sides right",
        "%",
        "Views whose side (front, left, back, right) the judge names as it should be.",
    ),
    "two_fronts": ("Two fronts", "", "Whether a view from behind also looks like a front."),
    "fronts_apart": (
        "Fronts apart",
        "",
        "Whether it looks like a front from two cameras 120° or more apart, however turned.",
    ),
    "seconds": ("Time", "s", "Wall time from the conditioning file to the mesh."),
    "faces": ("Triangles", "", "Triangles of the exported mesh."),
    "vertices": ("Vertices", "", "Vertices of the exported mesh."),
}
HEADLINES = ("category", "fscore", "chamfer", "iou", "view_agreement")


def read_figures(metrics: Mapping[str, Any]) -> dict[str, list[Figure]]:
    """Sort metrics into titled groups of figures.

    Parameters
    ----------
    metrics
        Figures by key. A value is a number, a text, a truth value or a list; or a mapping with
        ``value`` and, if wanted, ``name``, ``unit``, ``meaning``, ``chance``, ``control``,
        ``simulated``; or a mapping of such entries, which makes a group. Keys starting with
        an underscore and the key ``simulated`` are not shown as figures. ``simulated`` of the
        whole or of a group marks every figure in it.
    """
    everything = bool(metrics.get("simulated", False))
    groups: dict[str, list[Figure]] = {}
    for key, value in metrics.items():
        if key == "simulated" or key.startswith("_"):
            continue
        if isinstance(value, Mapping) and "value" not in value:
            marked = everything or bool(value.get("simulated", False))
            inner = [(k, v) for k, v in value.items() if k != "simulated"]
            groups.setdefault(_title(key), []).extend(_figure(k, v, marked) for k, v in inner)
        else:
            groups.setdefault("This object", []).append(_figure(key, value, everything))
    return {title: figures for title, figures in groups.items() if figures}


def headline_figures(groups: Mapping[str, list[Figure]], most: int = 4) -> list[Figure]:
    """Pick the few figures that go beside the object."""
    figures = [figure for group in groups.values() for figure in group]
    names = [KNOWN[key][0] for key in HEADLINES]
    picked = {figure.name: figure for figure in reversed(figures) if figure.name in names}
    return [picked[name] for name in names if name in picked][:most]


def _figure(key: str, entry: Any, simulated: bool) -> Figure:
    name, unit, meaning = KNOWN.get(key, (_title(key), "", ""))
    if not isinstance(entry, Mapping):
        return Figure(name, write_value(entry, unit), meaning, "", simulated)
    unit = str(entry.get("unit", unit))
    beside = [
        f"{word} {write_value(entry[word], unit)}"
        for word in ("chance", "control")
        if word in entry
    ]
    return Figure(
        str(entry.get("name", name)),
        write_value(entry.get("value"), unit),
        str(entry.get("meaning", meaning)),
        ", ".join(beside),
        simulated or bool(entry.get("simulated", False)),
    )


def write_value(value: Any, unit: str = "") -> str:
    """Write a value for people: percent for shares, three figures, true minus signs."""
    if value is None:
        return "not measured"
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {write_value(item, unit)}" for key, item in value.items())
    if isinstance(value, list | tuple | np.ndarray):
        return ", ".join(write_value(item, unit) for item in value)
    if not isinstance(value, Real):
        return str(value)
    amount = float(value)
    if unit == "%":
        share = amount * 100
        return f"{share:.{1 if abs(share) >= 10 else 2}f} %".replace("-", "−")
    if amount.is_integer() and abs(amount) < 1e12:
        text = f"{int(amount):,}".replace(",", "\u202f")
    else:
        text = f"{amount:.3g}"
    space = "" if unit in ("", "°") else " "
    return f"{text}{space}{unit}".replace("-", "−")


def _title(key: str) -> str:
    text = key.replace("_", " ").strip()
    return text[:1].upper() + text[1:]
