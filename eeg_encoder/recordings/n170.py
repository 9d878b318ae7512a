"""Faces and houses seen with a four-channel headband (EEG-ExPy and muse-lsl, N170 task).

``X`` (N, 4, 181) in microvolts at 256 Hz from -0.1 s, ``y`` (1 for faces: the N170 at TP9 and TP10
is deeper for them), ``subject``, ``run``. Which picture was shown is not recorded, so protocols by
stimulus do not apply; leave a run out instead.
"""

from __future__ import annotations

from pathlib import Path

from .arrays import keys_of, load_npz
from .trials import TrialSet

FILE = "n170_epochs.npz"
KEYS = {"X", "y", "subject", "run", "ch_names", "sfreq", "tmin"}


def load_n170(path: str | Path, *, bad: str = "refuse") -> TrialSet:
    """Read ``n170_epochs.npz``, or the folder it lies in.

    Raises
    ------
    InputError
        As :func:`.arrays.load_npz`.
    """
    path = Path(path)
    trials = load_npz(
        path / FILE if path.is_dir() else path,
        unit="uV",
        label_names=["house", "face"],
        bad=bad,
    )
    trials.blocks = trials.runs.copy()
    trials.source = f"N170 faces and houses, {len(trials)} trials"
    return trials


def is_n170(path: Path) -> bool:
    """Whether the file, or the one in the folder, has the arrays of this one and no others."""
    path = path / FILE if path.is_dir() else path
    return path.suffix == ".npz" and set(keys_of(path)) == KEYS
