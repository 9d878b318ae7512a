"""A folder of ``.npy`` signals for pre-training, without labels.

As DreamDiffusion and 3D-Telepathy keep them: every ``*.npy`` below a folder is one signal (C, T) or
a stack (N, C, T), of any number of channels and samples. They are brought to one shape by rules
said here; nothing is filtered or normalised.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from .fields import check_bad, factor_to_volts, kept_unit, rate_of
from .lazy import checked, lazy_signals
from .trials import TrialSet


def load_folder(
    path: str | Path,
    *,
    sfreq: float,
    n_channels: int = 128,
    samples: int = 512,
    unit: str = "unknown",
    channels: Sequence[str] | None = None,
    bad: str = "refuse",
) -> TrialSet:
    """Every signal in the folder, mapped: files are opened when they are indexed.

    A signal longer than ``samples`` gives as many windows as fit, one after the other. A shorter
    one is stretched to ``samples`` by linear interpolation, as in the published loaders, which
    changes its rate. Fewer channels than ``n_channels`` are repeated in order, of more the first
    ones are taken.

    Parameters
    ----------
    path
        The folder.
    sfreq
        Sampling rate in hertz of all files: an array does not carry it.
    n_channels, samples
        Shape of a trial.
    unit
        Of the files: ``V``, ``uV``, ``standardised``, ``unknown``.
    channels
        Names, where all files have ``n_channels`` known channels.
    bad
        What to do with NaN and infinity: ``refuse``, or ``keep`` to inspect the folder.

    Returns
    -------
    TrialSet
        One category, ``unlabelled``. The stimulus is the file (and window), the subject the folder
        below ``path`` that it lies in, the block the file.

    Raises
    ------
    InputError
        For an empty folder, a file that is truncated, pickled or not of that shape.
    """
    path = Path(path)
    check_bad(path, bad)
    sfreq = rate_of(path, sfreq)
    if min(n_channels, samples) < 1:
        raise InputError(path, "shape", f"{n_channels} x {samples}", "1 or more")
    files = sorted(path.rglob("*.npy"))
    if not files:
        raise InputError(path, "folder", "no .npy files", "signals (C, T) or (N, C, T)")
    windows = [_windows(file, samples) for file in files]
    owner = np.repeat(np.arange(len(files)), [len(w) for w in windows])
    places = np.concatenate(windows)
    factor = np.float32(factor_to_volts(path, unit))

    def read(rows: np.ndarray) -> np.ndarray:
        out = np.empty((len(rows), n_channels, samples), np.float32)
        for number in np.unique(owner[rows]):
            array = _mapped(files[number])
            for row in np.flatnonzero(owner[rows] == number):
                number_in_file, start = places[rows[row]]
                signal = array[number_in_file, :, start : start + samples]
                out[row] = _shaped(np.asarray(signal, np.float32), n_channels, samples) * factor
        return out

    names = list(channels) if channels else [f"E{i + 1}" for i in range(n_channels)]
    signals = lazy_signals(read, len(owner), n_channels, samples)
    relative = [file.relative_to(path) for file in files]
    folders = [r.parts[0] if len(r.parts) > 1 else "" for r in relative]
    subject = np.unique(folders, return_inverse=True)[1].reshape(-1).astype(np.int64)
    zeros = np.zeros(len(owner), np.int64)
    return TrialSet(
        signals=checked(path, signals, names) if bad == "refuse" else signals,
        sfreq=sfreq,
        channels=names,
        labels=zeros,
        label_names=["unlabelled"],
        stimuli=np.asarray(
            [
                f"{relative[o].as_posix()}#{n}@{s}"
                for o, (n, s) in zip(owner, places.tolist(), strict=True)
            ]
        ),
        subjects=subject[owner],
        sessions=zeros,
        blocks=owner.astype(np.int64),
        unit=kept_unit(unit),
        source=f"folder of {len(files)} .npy files",
    )


def _mapped(path: Path) -> Any:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
        raise InputError(path, "file", reason, "a whole array, not pickled") from error
    return array[None] if array.ndim == 2 else array


def _windows(path: Path, samples: int) -> np.ndarray:
    """(W, 2): the signal in the file, and the first sample, of each window."""
    array = _mapped(path)
    if array.ndim != 3 or not all(array.shape) or array.dtype.kind not in "fiu":
        found = f"shape {array.shape}, type {array.dtype}"
        raise InputError(path, "content", found, "numbers (C, T) or (N, C, T)")
    starts = np.arange(0, max(array.shape[2] - samples, 0) + 1, samples)
    number, start = np.meshgrid(np.arange(len(array)), starts, indexing="ij")
    return np.stack([number.reshape(-1), start.reshape(-1)], axis=1)


def _shaped(signal: np.ndarray, n_channels: int, samples: int) -> np.ndarray:
    if signal.shape[1] < samples:
        old, new = np.linspace(0, 1, signal.shape[1]), np.linspace(0, 1, samples)
        signal = np.stack([np.interp(new, old, row) for row in signal])
    return signal[np.arange(n_channels) % len(signal)]
