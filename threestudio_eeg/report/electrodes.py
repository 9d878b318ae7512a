"""Where the channels sit on the head, and maps of the potential over it."""

from __future__ import annotations

import colorsys
import io
from collections.abc import Sequence
from typing import Any

import numpy as np

MONTAGES = ("biosemi128", "standard_1005", "biosemi64", "biosemi256", "GSN-HydroCel-128")
FEWEST_CHANNELS = 8


def find_montage(channels: Sequence[str]) -> tuple[str, dict[str, np.ndarray]] | None:
    """Find the standard montage that knows most of the channels.

    Returns
    -------
    tuple or None
        The montage's name and the places (3,) in metres of the channels it knows; None when no
        montage knows at least eight, or half of them.
    """
    from mne.channels import make_standard_montage

    best: tuple[str, dict[str, np.ndarray]] | None = None
    for name in MONTAGES:
        places = make_standard_montage(name).get_positions()["ch_pos"]
        lower = {key.lower(): place for key, place in places.items()}
        known = {key: lower[key.lower()] for key in channels if key.lower() in lower}
        if best is None or len(known) > len(best[1]):
            best = name, known
        if len(known) == len(channels):
            break
    if best is None or len(best[1]) < max(FEWEST_CHANNELS, len(channels) / 2):
        return None
    return best


def flatten(place: np.ndarray) -> tuple[float, float]:
    """Project a place on the head to the unit disc seen from above, nose up (equidistant)."""
    x, y, z = place / np.linalg.norm(place)
    angle = np.arctan2(np.hypot(x, y), z) / (np.pi / 2)
    length = max(float(np.hypot(x, y)), 1e-9)
    return float(x / length * angle * 0.8), float(y / length * angle * 0.8)


def place_colour(at: tuple[float, float] | None) -> str:
    """A colour for a place on the disc: hue from the direction, strength from the distance."""
    if at is None:
        return "#888888"
    x, y = at
    hue = (np.degrees(np.arctan2(y, x)) / 360 + 0.58) % 1
    red, green, blue = colorsys.hls_to_rgb(hue, 0.5, min(0.85, 0.25 + 0.8 * float(np.hypot(x, y))))
    return f"#{round(red * 255):02x}{round(green * 255):02x}{round(blue * 255):02x}"


def topographic_maps(
    signals: np.ndarray,
    channels: Sequence[str],
    sfreq: float,
    samples: Sequence[int],
    montage: tuple[str, dict[str, np.ndarray]],
) -> tuple[list[bytes], float]:
    """Draw the potential over the head at some samples, on one scale.

    Parameters
    ----------
    signals
        (C, T) volts.
    samples
        Indices in time.
    montage
        As `find_montage` gives it.

    Returns
    -------
    list of bytes
        Transparent PNG pictures, nose up.
    float
        The end of the symmetric colour scale, volts.
    """
    import mne

    name, places = montage
    used = [index for index, channel in enumerate(channels) if channel in places]
    info = mne.create_info([channels[index] for index in used], sfreq, "eeg")
    info.set_montage(mne.channels.make_dig_montage(places, coord_frame="head"), verbose="error")
    values = signals[used][:, list(samples)]
    values = values - values.mean(axis=0)
    limit = float(np.abs(values).max()) or 1.0
    return [_map(column, info, limit) for column in values.T], limit


def _map(values: np.ndarray, info: Any, limit: float) -> bytes:
    import mne
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.2, 2.2), dpi=120)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.02, 0.02, 0.96, 0.96))
    mne.viz.plot_topomap(
        values,
        info,
        axes=axes,
        show=False,
        cmap="RdBu_r",
        vlim=(-limit, limit),
        sensors=True,
        contours=np.linspace(-limit, limit, 10).tolist(),
        res=96,
    )
    for line in axes.lines:
        line.set_color("#8a8a8a")
    stream = io.BytesIO()
    figure.savefig(stream, format="png", transparent=True)
    return stream.getvalue()
