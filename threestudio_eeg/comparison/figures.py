"""The figures a comparison knows: what they are called, which way is better, on which trials."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Figure:
    """A figure of one object.

    Parameters
    ----------
    title
        For tables.
    better
        1 when more is better, -1 when less is, 0 for a cost that is reported and not tested.
    share
        Printed in per cent.
    asymmetric
        Means something only for objects that have sides to tell apart.
    """

    title: str
    better: int
    share: bool = False
    asymmetric: bool = False


FIGURES: dict[str, Figure] = {
    "category_right": Figure("category right", 1, share=True),
    "colour_right": Figure("colour right", 1, share=True),
    "similarity": Figure("similarity to the stimulus", 1),
    "view_agreement": Figure("agreement of views", 1),
    "side_right": Figure("side right", 1, share=True, asymmetric=True),
    "two_fronts": Figure("two fronts (Janus)", -1, share=True, asymmetric=True),
    "fronts_apart": Figure("two fronts, however turned", -1, share=True, asymmetric=True),
    "chamfer": Figure("Chamfer distance", -1),
    "fscore": Figure("F-score", 1),
    "iou": Figure("IoU", 1),
    "seconds": Figure("seconds", 0),
}
"""By key in a row, in the order of the tables."""

_N_WAY = re.compile(r"(category|stimulus)_(\d+)way_top(\d+)")


def figure_of(key: str) -> Figure | None:
    """What a key of a row means; None for keys that are no figures."""
    matched = _N_WAY.fullmatch(key)
    if matched:
        what, ways, top = matched.groups()
        return Figure(f"{what}, {ways}-way top-{top} over views", 1, share=True)
    return FIGURES.get(key)


def figures_in(rows: list[Mapping[str, Any]]) -> list[str]:
    """Keys of the figures that the rows have: n-way accuracies first, the rest in table order."""
    present = {key for row in rows for key, value in row.items() if value is not None}
    ways = sorted(key for key in present if _N_WAY.fullmatch(key))
    return [*ways, *(key for key in FIGURES if key in present)]


def value_of(row: Mapping[str, Any], key: str) -> float | None:
    """A row's figure as a number; None where it has none or it means nothing."""
    figure, value = figure_of(key), row.get(key)
    if figure is None or value is None or (figure.asymmetric and not row.get("asymmetric")):
        return None
    return float(value)
