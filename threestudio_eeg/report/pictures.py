"""Pictures inside the page: nothing is asked for from outside."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from typing import Any

from PIL import Image

from ..evaluation.views import open_picture

VIEW_PIXELS = 384
SMALL_PIXELS = 200
SIDES = ("front", "left side", "back", "right side")


def data_uri(content: bytes) -> str:
    """A PNG file as an address that holds it."""
    return "data:image/png;base64," + base64.b64encode(content).decode("ascii")


def picture(source: Any, alt: str, *, pixels: int = VIEW_PIXELS, lazy: bool = True) -> str:
    """An ``<img>`` with the picture inside; small ones are enlarged smoothly to ``pixels``."""
    image = open_picture(source)
    ratio = pixels / max(image.size)
    size = (max(1, round(image.width * ratio)), max(1, round(image.height * ratio)))
    resized = image.resize(size, Image.Resampling.LANCZOS) if size != image.size else image
    stream = io.BytesIO()
    resized.save(stream, format="PNG", optimize=True)
    return (
        f'<img src="{data_uri(stream.getvalue())}" alt="{escape(alt, quote=True)}" '
        f'width="{size[0]}" height="{size[1]}"{" loading=lazy" if lazy else ""}>'
    )


def four_sides(views: Sequence[Any]) -> list[Any]:
    """Front, left, back and right of views in turning order; fewer where they do not divide."""
    return [views[index * len(views) // 4] for index in range(4)] if len(views) % 4 == 0 else []


def beside(stimulus: Any, rows: Sequence[tuple[str, Sequence[Any]]]) -> str:
    """The stimulus, and beside it four sides of each object, one row an object.

    Parameters
    ----------
    stimulus
        As `open_picture` reads it, or None.
    rows
        Label and views in turning order. A row whose views do not divide by four is left out.
    """
    shown = [(label, four_sides(views)) for label, views in rows if len(views)]
    bodies = [_row(label, sides) for label, sides in shown if sides]
    if not bodies or stimulus is None:
        return ""
    seen = picture(stimulus, "The picture the person saw", pixels=SMALL_PIXELS)
    return (
        f'<div class="beside"><figure class="card">{seen}<figcaption>Seen</figcaption></figure>'
        f'<div class="rows">{"".join(bodies)}</div></div>'
    )


def _row(label: str, sides: Sequence[Any]) -> str:
    cells = "".join(
        f"<figure>{picture(side, f'{label}, {name}', pixels=SMALL_PIXELS)}"
        f"<figcaption>{name}</figcaption></figure>"
        for side, name in zip(sides, SIDES, strict=True)
    )
    return f'<h3>{escape(label)}</h3><div class="sides">{cells}</div>'
