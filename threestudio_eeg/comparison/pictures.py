"""The pictures of a comparison: four views an object in one file, and the sheet of all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from eeg_encoder.files import whole_file

from ..evaluation.views import contact_sheet
from .comparing import Comparison
from .rows import Row

N_VIEWS = 12
SHOWN = (1, 3, 6, 9)
"""Of a ring of twelve: three-quarter front, right, back, left."""

MAX_COLUMNS = 20


def write_strip(path: Path, views: Mapping[str, Any]) -> Path:
    """Write four views of a ring of twelve side by side over light grey, as PNG."""
    from ..evaluation.objects import BACKGROUNDS, on_background

    rgb = on_background(views, BACKGROUNDS[0])[list(SHOWN)].permute(0, 2, 3, 1).numpy()
    strip = np.concatenate(list((rgb * 255).round().astype(np.uint8)), axis=1)
    with whole_file(path) as temporary:
        Image.fromarray(strip).save(temporary, format="PNG")
    return path


def squares(path: Path) -> list[Image.Image]:
    """Cut a strip of square views apart."""
    with Image.open(path) as image:
        side = image.height
        count = max(1, image.width // side)
        return [
            image.convert("RGB").crop((i * side, 0, (i + 1) * side, side)) for i in range(count)
        ]


def comparison_sheet(
    comparison: Comparison, seen: Callable[[str], Any] | None = None, *, cell: int = 128
) -> Image.Image:
    """One row a condition, one column a trial; above them what was seen.

    An object without a picture is shown in words. More than :data:`MAX_COLUMNS` trials are thinned
    evenly.

    Parameters
    ----------
    seen
        From a trial to its stimulus picture or None; without it the row is left out.
    """
    trials = _thinned(_shared_trials(comparison))
    pictures: list[Any] = []
    labels: list[str] = []
    if seen is not None:
        pictures += [_or_words(seen(trial), "not given", cell) for trial in trials]
        labels += [f"seen: {trial}" for trial in trials]
    for condition in comparison.conditions:
        rows = {row.trial: row for row in reversed(comparison.rows[condition])}
        pictures += [_picture(rows.get(trial), cell) for trial in trials]
        labels += [f"{condition}: {_judged(rows.get(trial))}" for trial in trials]
    return contact_sheet(pictures, len(trials), labels, cell=cell)


def _shared_trials(comparison: Comparison) -> list[str]:
    sets = [{row.trial for row in rows} for rows in comparison.rows.values()]
    return sorted(set.intersection(*sets))


def _thinned(trials: Sequence[str]) -> list[str]:
    places = np.linspace(0, len(trials) - 1, min(len(trials), MAX_COLUMNS)).round().astype(int)
    return [trials[place] for place in places]


def _picture(row: Row | None, cell: int) -> Any:
    if row is None:
        return _words("not made", cell)
    if row.picture is not None:
        return squares(row.picture)[0]
    score = row.figures.get("fscore")
    return _words(_judged(row) + ("" if score is None else f"\nF {score:.2f}"), cell)


def _judged(row: Row | None) -> str:
    if row is None:
        return ""
    words = (row.figures.get("colour"), row.figures.get("category"))
    return " ".join(str(word) for word in words if word)


def _or_words(picture: Any, words: str, cell: int) -> Any:
    return _words(words, cell) if picture is None else picture


def _words(text: str, cell: int) -> Image.Image:
    image = Image.new("RGB", (cell, cell), "#f4f4f4")
    font = ImageFont.load_default(size=max(9, cell // 10))
    ImageDraw.Draw(image).multiline_text(
        (cell / 2, cell / 2), text.replace(" ", "\n", 1), "#444", font, anchor="mm", align="center"
    )
    return image
