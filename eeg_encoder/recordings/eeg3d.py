"""EEG-3D, the recordings of Neuro-3D: people who watch turning objects.

A folder a subject: ``process_data_1s_250Hz.npy`` (the still object, 64 channels, -0.2 to 0.8 s) or
``process_data_6s_100Hz.npy`` (the turning one), (N, 64, T), and ``name_label.npy``, N names
``<category>_<object>`` such as ``01_airplane_06``: 72 categories of 10 objects, shown in 24
recordings of 72 trials. Every trial was divided by its own deviation, so there is no unit. Objects
08 and 09 are the published test objects. Guo et al., "Neuro-3D: Towards 3D Visual Decoding from EEG
Signals", CVPR 2025.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..errors import InputError
from .fields import channel_names, check_bad, number_in
from .lazy import checked, lazy_signals
from .trials import TrialSet, concatenate
from .unpickle import load_npy

STAGES = {
    "static": ("process_data_1s_250Hz.npy", 250.0),
    "dynamic": ("process_data_6s_100Hz.npy", 100.0),
}
NAMES = "name_label.npy"
TRIALS_OF_A_RUN = 72
TMIN = -0.2
TEST_OBJECTS = ("08", "09")
CHANNELS = (
    "Fp1", "Fpz", "Fp2", "AF3", "AF4", "F7", "F5", "F3", "F1", "Fz", "F2", "F4", "F6", "F8",
    "FT7", "FC5", "FC3", "FC1", "FCz", "FC2", "FC4", "FC6", "FT8", "T7", "C5", "C3", "C1", "Cz",
    "C2", "C4", "C6", "T8", "M1", "TP7", "CP5", "CP3", "CP1", "CPz", "CP2", "CP4", "CP6", "TP8",
    "M2", "P7", "P5", "P3", "P1", "Pz", "P2", "P4", "P6", "P8", "PO7", "PO5", "PO3", "POz",
    "PO4", "PO6", "PO8", "CB1", "O1", "Oz", "O2", "CB2",
)  # fmt: skip
LABEL = re.compile(r"(?P<category>\d+_.+)_(?P<object>\d{2})")


def load_eeg3d(
    path: str | Path,
    *,
    stage: str = "static",
    channels: Sequence[str] | None = None,
    subjects: Sequence[int] | None = None,
    trials_of_a_run: int = TRIALS_OF_A_RUN,
    bad: str = "refuse",
) -> TrialSet:
    """Read a subject's folder, one of its files, or a folder of subjects.

    Signals are mapped: they are read from disk when they are indexed.

    Parameters
    ----------
    path
        File or folder. The subject is the number in the folder's name, ``sub01``.
    stage
        ``static`` (1 s at 250 Hz) or ``dynamic`` (6 s at 100 Hz); a file says it by its name.
    channels
        Names to keep; default all.
    subjects
        Keep only these, of a folder of subjects.
    trials_of_a_run
        Trials of a recording; they are numbered as runs and as blocks.
    bad
        What to do with NaN and infinity: ``refuse``, or ``keep`` to inspect the file.

    Raises
    ------
    InputError
        For missing or truncated files, wrong shapes, names that are not those of objects, or
        samples that are not finite.
    """
    path = Path(path)
    check_bad(path, bad)
    if stage not in STAGES:
        raise InputError(path, "stage", stage, f"one of {', '.join(STAGES)}")
    if path.is_file():
        stage = next((name for name, (file, _) in STAGES.items() if file == path.name), stage)
        files = [path]
    else:
        files = [
            file
            for file in eeg3d_files(path, stage)
            if subjects is None or number_in(file.parent) in subjects
        ]
    if not files:
        found = f"no {STAGES[stage][0]}" if path.exists() else "nothing"
        raise InputError(path, "file", found, "a folder sub01, or a folder of them")
    whole = concatenate(
        [_load_subject(file, stage, trials_of_a_run, bad) for file in files], where=path
    )
    return whole if channels is None else whole.channels_at(list(channels), path)


def published_test(trials: TrialSet) -> list[str]:
    """The published test objects: stimuli whose name ends in 08 or 09."""
    return sorted(str(s) for s in np.unique(trials.stimuli) if s.endswith(TEST_OBJECTS))


def eeg3d_files(path: Path, stage: str = "static") -> list[Path]:
    """The files of this layout in a folder or in its ``sub*`` folders."""
    name = STAGES[stage][0]
    if (path / name).is_file():
        return [path / name]
    return sorted(folder / name for folder in path.glob("sub*") if (folder / name).is_file())


def _load_subject(path: Path, stage: str, trials_of_a_run: int, bad: str) -> TrialSet:
    data = load_npy(path)
    shape: tuple[int, ...] = getattr(data, "shape", ())
    if len(shape) != 3 or not all(shape) or data.dtype.kind != "f":
        raise InputError(path, "content", f"shape {shape}", "numbers (trials, channels, samples)")
    n, c, t = data.shape
    names = _names(path.parent / NAMES, n)
    matches = [LABEL.fullmatch(name) for name in names]
    for row, match in enumerate(matches):
        if match is None:
            found = repr(names[row])
            raise InputError(path.parent / NAMES, f"[{row}]", found, "a name like 01_airplane_06")
    found_names, label = np.unique(
        [match["category"] for match in matches if match], return_inverse=True
    )
    known = CHANNELS if c == len(CHANNELS) else [f"E{i + 1}" for i in range(c)]
    channels = channel_names(path, known, c)
    signals = lazy_signals(lambda rows: data[rows].astype(np.float32), n, c, t)
    run = np.arange(n, dtype=np.int64) // trials_of_a_run
    return TrialSet(
        signals=checked(path, signals, channels) if bad == "refuse" else signals,
        sfreq=STAGES[stage][1],
        channels=channels,
        labels=label.reshape(-1).astype(np.int64),
        label_names=[str(name) for name in found_names],
        stimuli=np.asarray(names),
        subjects=np.full(n, number_in(path.parent), np.int64),
        sessions=np.zeros(n, np.int64),
        blocks=run,
        runs=run,
        tmin=TMIN,
        unit="standardised",
        source=f"EEG-3D {stage}, {run[-1] + 1} runs of {trials_of_a_run} trials",
    )


def _names(path: Path, n_trials: int) -> list[str]:
    names = np.asarray(load_npy(path)).reshape(-1)
    if len(names) != n_trials:
        raise InputError(path, "content", f"{len(names)} names", f"{n_trials}, one a trial")
    return [str(name).strip() for name in names]
