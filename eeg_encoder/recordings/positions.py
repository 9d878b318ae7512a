"""Where electrodes of known names are on the head."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from ..errors import InputError
from .forward_model import BIOSEMI

TEN_FIVE = "standard_1005"
RENAMED = {TEN_FIVE: "colin27_1005"}


def electrode_positions(channels: Sequence[str]) -> np.ndarray:
    """Positions (C, 3) in metres: x to the right, y to the front, z up; NaN where not known.

    Names of the 10-5 system are looked up without regard to case, and those of a BioSemi cap when
    all of them belong to it. Numbered names such as ``E1`` say nothing: caps differ.
    """
    lowered = [name.lower() for name in channels]
    for size in BIOSEMI:
        cap = _by_lower_name(f"biosemi{size}")
        if len(lowered) <= size and set(lowered) <= set(cap):
            return np.stack([cap[name] for name in lowered])
    known = _by_lower_name(TEN_FIVE)
    return np.stack([known.get(name, np.full(3, np.nan)) for name in lowered])


@lru_cache(maxsize=16)
def montage_positions(montage: str) -> dict[str, np.ndarray]:
    """Positions (3,) in metres of all electrodes of a standard montage of MNE, by name.

    Names that newer versions of MNE replaced are understood.

    Raises
    ------
    InputError
        When MNE has no such montage.
    """
    import mne

    known = mne.channels.get_builtin_montages()
    newer = RENAMED.get(montage, montage)
    name = newer if newer in known else montage
    if name not in known:
        expected = f"a standard montage of MNE, for example {TEN_FIVE}"
        raise InputError("electrodes", "montage", montage, expected)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = mne.channels.make_standard_montage(name).get_positions()["ch_pos"]
    return {channel: np.asarray(place) for channel, place in found.items()}


def _by_lower_name(montage: str) -> dict[str, np.ndarray]:
    return {name.lower(): place for name, place in montage_positions(montage).items()}
