"""THINGS-EEG2, preprocessed: one dictionary a subject and part.

``preprocessed_eeg_training.npy`` and ``preprocessed_eeg_test.npy`` hold ``preprocessed_eeg_data``
(pictures, repetitions, channels, times), ``ch_names`` and ``times``; pickled, with or without
NumPy's header. Gifford et al., "A large and rich EEG dataset for modeling human visual object
recognition", NeuroImage 2022 (17 channels, 100 Hz); later releases have 63 channels at 250 Hz, and
50 more ``times`` than samples, because the baseline was cut off after they were written.

The files are whitened, so they have no unit, and the repetitions of all sessions are shuffled:
which session a trial is from cannot be read from them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from .fields import (
    channel_names,
    check_bad,
    column_of,
    number_in,
    numbered,
    rate_of_times,
    refuse_duplicates,
)
from .lazy import checked, lazy_signals
from .trials import TrialSet, channel_index, concatenate
from .unpickle import load_npy

TRAINING, TEST = "preprocessed_eeg_training.npy", "preprocessed_eeg_test.npy"
KEYS = ("preprocessed_eeg_data", "ch_names", "times")
PICTURES_OF_A_CONCEPT = {"training": 10, "test": 1}
POSTERIOR = (
    "P7", "P5", "P3", "P1", "Pz", "P2", "P4", "P6", "P8",
    "PO7", "PO3", "POz", "PO4", "PO8", "O1", "Oz", "O2",
)  # fmt: skip


def load_things_eeg2(
    path: str | Path,
    *,
    channels: Sequence[str] | str | None = None,
    repetitions: str = "keep",
    repetition_sessions: Sequence[int] | None = None,
    metadata: str | Path | None = None,
    subjects: Sequence[int] | None = None,
    bad: str = "refuse",
) -> TrialSet:
    """Read a file, a subject's folder (both parts) or a folder of subjects.

    Signals are mapped: they are read from disk when they are indexed.

    Parameters
    ----------
    path
        File or folder. The subject is the number in the folder's name, ``sub-01``.
    channels
        Names to keep, ``posterior`` for the 17 of the original release, or all.
    repetitions
        ``keep``: a trial each. ``average``: a trial a picture, the mean of its repetitions.
    repetition_sessions
        Session of each repetition, for files that kept their order.
    metadata
        The set's ``image_metadata.npy``; default: the one in the folder or its parent. Without it
        concepts and pictures are numbered.
    subjects
        Keep only these, of a folder of subjects.
    bad
        What to do with NaN and infinity: ``refuse``, or ``keep`` to inspect the file.

    Returns
    -------
    TrialSet
        A category a concept; of both parts, training first.

    Raises
    ------
    InputError
        For a missing, truncated or malicious file, wrong keys or shapes, channels that are not
        there, or samples that are not finite.
    """
    path = Path(path)
    check_bad(path, bad)
    if repetitions not in ("keep", "average"):
        raise InputError(path, "repetitions", repetitions, "keep or average")
    parts = [
        _load_part(file, channels, repetitions, repetition_sessions, metadata, bad)
        for file in _files(path, subjects)
    ]
    return concatenate(parts, where=path)


def published_test(trials: TrialSet) -> list[str]:
    """The 200 concepts of the test part: what zero-shot protocols hold out."""
    tested = {str(trials.label_names[i]) for i in np.unique(trials.labels)}
    return sorted(name for name in tested if name.startswith("test-"))


def things_files(path: Path) -> list[Path]:
    """The files of this layout at a path: itself, in the folder, or in its ``sub-*`` folders."""
    if path.is_file():
        return [path] if path.name in (TRAINING, TEST) else []
    here = [path / name for name in (TRAINING, TEST) if (path / name).is_file()]
    if here:
        return here
    return [
        folder / name
        for folder in sorted(path.glob("sub-*"))
        for name in (TRAINING, TEST)
        if (folder / name).is_file()
    ]


def _files(path: Path, subjects: Sequence[int] | None) -> list[Path]:
    if path.is_file():
        return [path]
    found = [
        file
        for file in things_files(path)
        if subjects is None or number_in(file.parent) in subjects
    ]
    if not found:
        found_words = "nothing" if not path.exists() else f"no {TRAINING} or {TEST}"
        raise InputError(path, "file", found_words, f"files of subjects {subjects or 'any'}")
    return found


def _load_part(
    path: Path,
    channels: Sequence[str] | str | None,
    repetitions: str,
    repetition_sessions: Sequence[int] | None,
    metadata: str | Path | None,
    bad: str,
) -> TrialSet:
    data, names, times = _content(path)
    pictures, repeats, _, samples = data.shape
    part = "test" if "test" in path.name else "training"
    kept = list(POSTERIOR) if channels == "posterior" else channels
    index = list(range(len(names))) if kept is None else channel_index(names, list(kept), path)
    kept_names = [names[i] for i in index]
    label, label_names, stimuli = _pictures(path, part, pictures, metadata)
    session = _sessions(path, repetition_sessions, repeats)

    if repetitions == "average":
        rows, repeats, session = pictures, 1, np.zeros(1, np.int64)

        def read(chosen: np.ndarray) -> np.ndarray:
            return data[chosen][:, :, index].mean(axis=1, dtype=np.float32)
    else:
        rows = pictures * repeats

        def read(chosen: np.ndarray) -> np.ndarray:
            return data[chosen // repeats, chosen % repeats][:, index].astype(np.float32)

    signals = lazy_signals(read, rows, len(index), samples)
    zeros = np.zeros(rows, np.int64)
    return TrialSet(
        signals=checked(path, signals, kept_names) if bad == "refuse" else signals,
        sfreq=rate_of_times(path, times),
        channels=kept_names,
        labels=np.repeat(label, repeats),
        label_names=label_names,
        stimuli=np.repeat(stimuli, repeats),
        subjects=zeros + number_in(path.parent),
        sessions=np.tile(session, pictures),
        blocks=zeros,
        tmin=float(times[0]),
        unit="standardised",
        source=f"THINGS-EEG2 {part} part, {pictures} pictures, repetitions: {repetitions}",
    )


def _content(path: Path) -> tuple[np.ndarray, list[str], np.ndarray]:
    content = load_npy(path)
    if not isinstance(content, dict):
        raise InputError(path, "content", type(content).__name__, "a dictionary")
    missing = [key for key in KEYS if key not in content]
    if missing:
        found = ", ".join(map(str, list(content)[:8])) or "an empty dictionary"
        raise InputError(path, missing[0], f"keys {found}", f"keys {', '.join(KEYS)}")
    data, times = content["preprocessed_eeg_data"], np.asarray(content["times"], dtype=float)
    shape: tuple[int, ...] = getattr(data, "shape", ())
    if len(shape) != 4 or not all(shape) or data.dtype.kind != "f":
        expected = "numbers (pictures, repetitions, channels, times)"
        raise InputError(path, "preprocessed_eeg_data", f"shape {shape}", expected)
    names = channel_names(path, content["ch_names"], shape[2])
    if len(times) < shape[3]:
        raise InputError(path, "times", f"{len(times)} times", f"{shape[3]}, one a sample")
    return data, names, times[len(times) - shape[3] :]


def _sessions(path: Path, sessions: Sequence[int] | None, repeats: int) -> np.ndarray:
    if sessions is None:
        return np.zeros(repeats, np.int64)
    return numbered(column_of(path, "repetition_sessions", sessions, repeats))


def _pictures(
    path: Path, part: str, pictures: int, metadata: str | Path | None
) -> tuple[np.ndarray, list[str], np.ndarray]:
    """Label of each picture, concept names and picture names."""
    described = _metadata(path, metadata)
    if described is None:
        label = np.arange(pictures) // PICTURES_OF_A_CONCEPT[part]
        names = [f"{part}-{i + 1:05d}" for i in range(int(label[-1]) + 1)]
        return label, names, np.asarray([f"{part}-picture-{i + 1:05d}" for i in range(pictures)])
    where, content = described
    kind = "train" if part == "training" else "test"
    concepts, files = (
        _described(where, content, f"{kind}_img_{what}", pictures) for what in ("concepts", "files")
    )
    refuse_duplicates(where, f"{kind}_img_files", files)
    found, label = np.unique(concepts, return_inverse=True)
    prefix = "" if part == "training" else "test-"
    return label.reshape(-1), [f"{prefix}{n}" for n in found], np.asarray(files)


def _described(where: Path, content: dict[str, Any], key: str, pictures: int) -> list[str]:
    values = content.get(key)
    if values is None or len(values) != pictures:
        found = "nothing" if values is None else f"{len(values)} entries"
        raise InputError(where, key, found, f"{pictures}, one a picture")
    return [str(value) for value in values]


def _metadata(path: Path, metadata: str | Path | None) -> tuple[Path, dict[str, Any]] | None:
    here = [folder / "image_metadata.npy" for folder in (path.parent, path.parent.parent)]
    found = [Path(metadata)] if metadata is not None else [file for file in here if file.is_file()]
    if not found:
        return None
    content = load_npy(found[0])
    if not isinstance(content, dict):
        raise InputError(found[0], "content", type(content).__name__, "a dictionary")
    return found[0], content
