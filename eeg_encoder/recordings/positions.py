"""Where electrodes of known names are on the head."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from .forward_model import BIOSEMI


def electrode_positions(channels: Sequence[str]) -> np.ndarray:
    """Positions (C, 3) in metres: x to the right, y to the front, z up; NaN where not known.

    Names of the 10-5 system are looked up without regard to case, and those of a BioSemi cap when
    all of them belong to it. Numbered names such as ``E1`` say nothing: caps differ.
    """
    lowered = tuple(name.lower() for name in channels)
    for size in BIOSEMI:
        cap = _montage(f"biosemi{size}")
        if len(lowered) <= size and set(lowered) <= set(cap):
            return np.stack([cap[name] for name in lowered])
    known = _ten_five()
    return np.stack([known.get(name, np.full(3, np.nan)) for name in lowered])


@lru_cache(maxsize=8)
def _montage(name: str) -> dict[str, np.ndarray]:
    import mne

    montage = mne.channels.make_standard_montage(name)
    positions = montage.get_positions()["ch_pos"]
    return {channel.lower(): np.asarray(place) for channel, place in positions.items()}


def _ten_five() -> dict[str, np.ndarray]:
    from mne.channels import get_builtin_montages

    newer = "colin27_1005"
    return _montage(newer if newer in get_builtin_montages() else "standard_1005")
