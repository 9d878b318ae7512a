"""How currents in the head appear at the electrodes: MNE's spherical head model, offline."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ..errors import InputError

BIOSEMI = (16, 32, 64, 128, 160, 256)


@dataclass(frozen=True)
class HeadModel:
    """A montage, a grid of sources and the gain between them.

    Parameters
    ----------
    channels
        C electrode names.
    electrodes
        (C, 3) positions in metres: x to the right, y to the front, z up.
    sources
        (S, 3) positions in metres from the centre of the sphere, same axes.
    gain
        (C, S, 3) volts at each electrode for a dipole of 1 ampere metre along x, y, z; average
        reference.
    """

    channels: tuple[str, ...]
    electrodes: np.ndarray
    sources: np.ndarray
    gain: np.ndarray


@lru_cache(maxsize=4)
def head_model(n_channels: int = 128, spacing: float = 0.012) -> HeadModel:
    """Three-layer sphere, BioSemi montage, sources on a regular grid.

    Parameters
    ----------
    n_channels
        16, 32, 64, 128, 160 or 256: MNE's BioSemi montages.
    spacing
        Distance between sources, metres.

    Raises
    ------
    InputError
        When there is no montage of that size.
    """
    if n_channels not in BIOSEMI:
        expected = f"one of {', '.join(map(str, BIOSEMI))} (BioSemi montages)"
        raise InputError("simulation", "channels", n_channels, expected)
    import mne

    montage = mne.channels.make_standard_montage(f"biosemi{n_channels}")
    info = mne.create_info(montage.ch_names, 1000.0, "eeg", verbose="error")
    info.set_montage(montage, verbose="error")
    sphere = mne.make_sphere_model("auto", "auto", info, verbose="error")
    grid = mne.setup_volume_source_space(
        None, pos=spacing * 1e3, sphere=sphere, sphere_units="m", verbose="error"
    )
    forward = mne.make_forward_solution(
        info, None, grid, sphere, meg=False, eeg=True, mindist=5.0, verbose="error"
    )
    gain = forward["sol"]["data"].reshape(n_channels, -1, 3)
    electrodes = np.stack([channel["loc"][:3] for channel in info["chs"]])
    return HeadModel(
        channels=tuple(montage.ch_names),
        electrodes=electrodes,
        sources=forward["source_rr"] - np.asarray(sphere["r0"]),
        gain=gain - gain.mean(axis=0, keepdims=True),
    )
