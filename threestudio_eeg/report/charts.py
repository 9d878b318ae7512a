"""Line charts as inline SVG; colours come from the page's style sheet, so both themes work."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

WIDTH = 1000


def _path(x: np.ndarray, y: np.ndarray) -> str:
    points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
    return f"M{points}"


def thin(values: np.ndarray, most: int) -> np.ndarray:
    """Indices of at most ``most`` evenly spaced columns of (…, T), first and last among them."""
    count = values.shape[-1]
    return np.unique(np.rint(np.linspace(0, count - 1, min(count, most))).astype(int))


def nice_step(span: float, ticks: int) -> float:
    """The 1, 2 or 5 times a power of ten that cuts ``span`` into about ``ticks`` parts."""
    raw = max(span, 1e-30) / max(ticks, 1)
    power = 10.0 ** np.floor(np.log10(raw))
    return float(power * min((1, 2, 5, 10), key=lambda factor: abs(factor * power - raw)))


def tick_values(low: float, high: float, ticks: int) -> list[float]:
    """Round values from ``low`` to ``high``."""
    step = nice_step(high - low, ticks)
    first = np.ceil(low / step - 1e-9)
    last = np.floor(high / step + 1e-9)
    return [float(k * step) + 0.0 for k in np.arange(first, last + 1)]


def number(value: float) -> str:
    """A short text for a number on an axis."""
    text = f"{value + 0.0:.3g}"
    return text.replace("-", "−")


def butterfly(
    signals: np.ndarray,
    milliseconds: np.ndarray,
    colours: Sequence[str],
    marks: Sequence[float],
    *,
    description: str,
) -> str:
    """All channels over each other, and under them the global field power.

    Parameters
    ----------
    signals
        (C, T) volts, at the average reference.
    milliseconds
        (T,) times.
    colours
        One CSS colour a channel.
    marks
        Latencies in ms to mark with a vertical line and a label.
    description
        What a screen reader says.
    """
    keep = thin(signals, 260)
    micro, times = signals[:, keep] * 1e6, milliseconds[keep]
    power = micro.std(axis=0)
    left, right, top, middle, bottom = 58, 12, 26, 270, 390
    limit = max(float(np.abs(micro).max()), 1e-9)
    start, end = float(times[0]), float(times[-1])
    x = left + (times - start) / max(end - start, 1e-9) * (WIDTH - left - right)

    def across(time: float) -> float:
        return left + (time - start) / max(end - start, 1e-9) * (WIDTH - left - right)

    half = (middle - top) / 2
    parts = [
        f'<svg class="chart" viewBox="0 0 {WIDTH} {bottom + 42}" role="img" '
        f'aria-label="{escape(description, quote=True)}">'
    ]
    for value in tick_values(-limit, limit, 4):
        y = top + half - value / limit * half
        parts.append(_rule(left, WIDTH - right, y, "zero" if value == 0 else "grid"))
        parts.append(_text(left - 8, y + 5, number(value), "end"))
    for time in tick_values(start, end, 6):
        parts.append(_text(across(time), bottom + 20, number(time), "middle"))
        parts.append(
            f'<line class="grid" x1="{across(time):.1f}" x2="{across(time):.1f}" '
            f'y1="{bottom}" y2="{bottom + 5}"/>'
        )
    parts.append(_text((left + WIDTH - right) / 2, bottom + 39, "ms after onset", "middle"))
    parts.append(_text(left + 6, top + 4, "µV", "start"))
    parts.append('<g class="traces">')
    for channel, colour in zip(micro, colours, strict=True):
        line = _path(x, top + half - channel / limit * half)
        parts.append(f'<path d="{line}" stroke="{colour}"/>')
    parts.append("</g>")
    ceiling = max(float(power.max()), 1e-9)
    height = bottom - middle - 34
    y = bottom - power / ceiling * height
    area = f"{_path(x, y)} {x[-1]:.1f},{bottom} {x[0]:.1f},{bottom}Z"
    parts.append(f'<path class="area" d="{area}"/><path class="power" d="{_path(x, y)}"/>')
    parts.append(_rule(left, WIDTH - right, bottom, "zero"))
    peak = number(ceiling)
    parts.append(_text(left - 8, bottom - height + 5, peak, "end"))
    parts.append(_text(left + 6, bottom - height - 6, "global field power, µV", "start"))
    for mark in marks:
        parts.append(
            f'<line class="mark" x1="{across(mark):.1f}" x2="{across(mark):.1f}" '
            f'y1="{top - 4}" y2="{bottom}"/>'
        )
        parts.append(_text(across(mark), top - 10, f"{mark:.0f}", "middle", "marked"))
    parts.append("</svg>")
    return "".join(parts)


def line_chart(x: np.ndarray, y: np.ndarray, *, title: str, unit: str = "") -> str:
    """One small curve with its range on the axes; x in steps, or ``unit``; both (T,)."""
    width, left, right, top, bottom = 320, 46, 8, 12, 128
    keep = thin(y, 240)
    x, y = x[keep], y[keep]
    low, high = float(y.min()), float(y.max())
    span = high - low or max(abs(high), 1e-9)
    if high == low:
        low = low - span / 2
    reach = max(float(x[-1] - x[0]), 1e-9)
    across = left + (x - x[0]) / reach * (width - left - right)
    down = bottom - (y - low) / span * (bottom - top)
    end = f"{number(float(x[-1]))} {unit}" if unit else f"step {number_of_steps(float(x[-1]))}"
    label = f"{title}: from {number(float(y[0]))} to {number(float(y[-1]))}"
    return "".join(
        [
            f'<svg class="chart small" viewBox="0 0 {width} 150" role="img" '
            f'aria-label="{escape(label, quote=True)}">',
            _rule(left, width - right, bottom, "zero"),
            _rule(left, width - right, top, "grid"),
            _text(left - 6, top + 4, number(low + span), "end"),
            _text(left - 6, bottom + 4, number(low), "end"),
            _text(left, bottom + 17, number(float(x[0])), "start"),
            _text(width - right, bottom + 17, end, "end"),
            f'<path class="power" d="{_path(across, down)}"/></svg>',
        ]
    )


def number_of_steps(value: float) -> str:
    """A whole number with narrow spaces between thousands."""
    return f"{value:,.0f}".replace(",", "\u202f")


def head_legend(places: Sequence[tuple[float, float]], colours: Sequence[str]) -> str:
    """The head from above, each channel a dot in its colour."""
    dots = "".join(
        f'<circle cx="{x * 40:.1f}" cy="{-y * 40:.1f}" r="2" fill="{colour}"/>'
        for (x, y), colour in zip(places, colours, strict=True)
    )
    return (
        '<svg class="head" viewBox="-50 -54 100 104" role="img" '
        'aria-label="Head from above: the colour of each channel by its place">'
        '<circle class="skull" r="44"/><path class="skull" d="M-7,-43.5 L0,-52 L7,-43.5"/>'
        f"{dots}</svg>"
    )


def _rule(x1: float, x2: float, y: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" x2="{x2:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>'


def _text(x: float, y: float, text: str, anchor: str, kind: str = "tick") -> str:
    return (
        f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
    )
