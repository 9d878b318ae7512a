"""The perceivelab EEG-ImageNet40 ``.pth`` layout, its split file and its picture folder.

A recording is a ``torch.save``'d dictionary: ``dataset``, a list of entries with ``eeg`` (float
tensor, channels x samples), ``image`` (index into ``images``), ``label`` (index into ``labels``)
and ``subject``; ``labels``, WordNet ids; ``images``, picture names ``<wnid>_<number>``. Published
by Spampinato et al., "Deep Learning Human Mind for Automated Visual Classification", CVPR 2017.
Files written here also carry ``channels``, ``sfreq``, ``tmin``, ``unit`` and, in each entry,
``session``, ``block`` and ``run``.

Three bands are published, ``eeg_5_95_std.pth``, ``eeg_14_70_std.pth`` and ``eeg_55_95_std.pth``,
for the same trials, so a split fits all of them. Low frequencies carry the slow drift that names
the block: of the three, 5-95 Hz keeps the most of it.

Two split files are published, and each has a trap. ``block_splits_by_image_all.pth`` counts all
trials of the file: on a recording that was filtered by subject its indices have to be looked up as
positions (:meth:`.TrialSet.at` does). ``block_splits_by_image_single.pth`` counts the trials of
one subject, 0 to 999 of 1,996: as positions in the file they would be trials of several people
(``within`` of :func:`load_splits`). Both split the pictures of a category inside its one block.
"""

from __future__ import annotations

import logging
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from ..files import whole_file
from .fields import check_bad
from .lazy import LARGE, lazy_signals
from .trials import TrialSet

log = logging.getLogger(__name__)

CHANNELS = 128
LENGTHS = (450, 600)
WINDOW = (20, 460)
BANDS = {"5_95": (5.0, 95.0), "14_70": (14.0, 70.0), "55_95": (55.0, 95.0)}
PICTURE_SUFFIXES = (".JPEG", ".jpg", ".jpeg", ".png")


def load_perceivelab(
    path: str | Path,
    *,
    channels: Sequence[str] | None = None,
    sfreq: float = 1000.0,
    scale: float = 1.0,
    subjects: Sequence[int] | None = None,
    window: tuple[int, int] = WINDOW,
    lengths: tuple[int, int] = LENGTHS,
    n_channels: int = CHANNELS,
    lazy: bool | None = None,
    bad: str = "refuse",
) -> TrialSet:
    """Read a recording.

    Trials vary in length (491 to 1527 samples in the published files). Those outside ``lengths``
    or shorter than the window are left out, as the reference loader does, and counted in the log;
    the samples ``window[0]:window[1]`` are kept of the others. Nothing is padded, resampled or
    normalised.

    Parameters
    ----------
    path
        The ``.pth`` file.
    channels
        Channel names; default those in the file, else ``E1`` to ``E128``.
    sfreq
        Sampling rate in hertz for a file that does not carry one.
    scale
        Factor from the file's unit to volts.
    subjects
        Keep only these subjects. Positions in the file are kept, so splits still fit.
    window
        First sample and one past the last sample kept.
    lengths
        Shortest and longest trial kept, in samples.
    n_channels
        Channels each trial must have.
    lazy
        Read signals from disk when they are indexed, and check them then. Default: for more than
        1 GiB.
    bad
        What to do with NaN, infinity and flat channels: ``refuse``, or ``keep`` to inspect them.

    Returns
    -------
    TrialSet
        A file without blocks is taken for the published block design: one block a category. Its
        unit is ``V`` with a ``scale`` or in files written here, else ``standardised`` or
        ``unknown``.

    Raises
    ------
    InputError
        For a missing, truncated or foreign file, a wrong channel count or length, a label or image
        out of range, NaN, infinite or flat channels.
    """
    path = Path(path)
    check_bad(path, bad)
    content = _read(path)
    entries = _required(path, content, "dataset", list)
    label_names = [str(name) for name in _required(path, content, "labels", list)]
    images = [str(name) for name in _required(path, content, "images", list)]
    first, last = window
    if not 0 <= first < last <= lengths[1]:
        raise InputError(path, "window", f"{first}:{last}", f"inside 0:{lengths[1]}")
    shortest = max(lengths[0], last)

    rows = []
    for number, entry in enumerate(entries):
        length = _check_entry(path, number, entry, len(label_names), len(images), n_channels)
        wanted = subjects is None or int(entry["subject"]) in subjects
        if wanted and shortest <= length <= lengths[1]:
            rows.append(number)
    if not rows:
        found = f"none of {len(entries)} trials"
        expected = f"trials of {shortest} to {lengths[1]} samples, subjects {subjects or 'any'}"
        raise InputError(path, "dataset", found, expected)
    if len(rows) < len(entries):
        log.warning("%s: %d of %d trials kept", path, len(rows), len(entries))

    def read(chosen: np.ndarray) -> np.ndarray:
        part = np.empty((len(chosen), n_channels, last - first), dtype=np.float32)
        numbers = [rows[i] for i in chosen]
        for row, number in enumerate(numbers):
            part[row] = entries[number]["eeg"][:, first:last].float().numpy()
        if bad == "refuse":
            _check_signals(path, part, numbers)
        if scale != 1.0:
            part *= np.float32(scale)
        return part

    signals = lazy_signals(read, len(rows), n_channels, last - first)
    if not (lazy if lazy is not None else len(rows) * n_channels * (last - first) * 4 > LARGE):
        signals = np.asarray(signals)

    def column(key: str, default: str | None = None) -> np.ndarray:
        values = [entries[n].get(key, entries[n][default] if default else 0) for n in rows]
        return np.asarray([int(value) for value in values], dtype=np.int64)

    names = list(channels) if channels else content.get("channels")
    names = [str(name) for name in names or [f"E{i + 1}" for i in range(n_channels)]]
    if len(names) != n_channels:
        raise InputError(path, "channels", f"{len(names)} names", f"{n_channels}")
    return TrialSet(
        signals=signals,
        sfreq=float(content.get("sfreq", sfreq)),
        channels=names,
        labels=column("label"),
        label_names=label_names,
        stimuli=np.asarray([images[i] for i in column("image")]),
        subjects=column("subject"),
        sessions=column("session"),
        blocks=column("block", default="label"),
        positions=np.asarray(rows, dtype=np.int64),
        total=len(entries),
        runs=column("run"),
        tmin=float(content.get("tmin", 0.0)) + first / float(content.get("sfreq", sfreq)),
        unit=_unit(path, content, scale),
        source=_found(path, len(rows), len(entries)),
    )


def band_of(path: str | Path) -> tuple[float, float] | None:
    """Pass band in hertz that the name of a published file says, or None."""
    match = re.search(r"(?<!\d)(5_95|14_70|55_95)(?!\d)", Path(path).name)
    return BANDS[match[1]] if match else None


def subject_positions(path: str | Path, subject: int) -> np.ndarray:
    """Positions in the file of all trials of a subject, in order, whatever their length.

    What the indices of a single-subject split file count.

    Raises
    ------
    InputError
        For a bad file, or a subject who is not in it.
    """
    entries = _required(Path(path), _read(Path(path)), "dataset", list)
    subjects = [int(entry["subject"]) for entry in entries]
    found = np.flatnonzero(np.asarray(subjects) == subject)
    if not len(found):
        expected = f"one of {sorted(set(subjects))}"
        raise InputError(path, "subject", subject, expected)
    return found.astype(np.int64)


def load_splits(
    path: str | Path, n_trials: int, split: int = 0, *, within: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Read one of the splits in a split file.

    Parameters
    ----------
    path
        A ``torch.save``'d ``{"splits": [{"train": [...], "val": [...], "test": [...]}, ...]}``.
    n_trials
        Trials in the recording's file (``TrialSet.total``): indices count all of them.
    split
        Which split.
    within
        Positions in the file that the indices count, for a split file of one subject
        (:func:`subject_positions`). Default: all trials of the file.

    Returns
    -------
    dict
        ``train``, ``val`` and ``test``: int64 positions in the recording's file.

    Raises
    ------
    InputError
        For a bad file, a missing part, an index out of range or repeated, parts that overlap, or
        the published split of one subject without ``within``.
    """
    path = Path(path)
    if within is not None:
        n_trials = len(within)
    splits = _required(path, _read(path), "splits", list)
    if not 0 <= split < len(splits):
        raise InputError(path, "splits", f"no split {split}", f"0 to {len(splits) - 1}")
    parts: dict[str, np.ndarray] = {}
    owner = np.full(n_trials, -1, dtype=np.int64)
    for number, name in enumerate(("train", "val", "test")):
        where = f"splits[{split}].{name}"
        if not isinstance(splits[split], Mapping) or name not in splits[split]:
            raise InputError(path, where, "nothing", "a list of trial indices")
        try:
            index = np.asarray([int(i) for i in splits[split][name]], dtype=np.int64)
        except (TypeError, ValueError) as error:
            raise InputError(path, where, error, "a list of trial indices") from error
        outside = np.flatnonzero((index < 0) | (index >= n_trials))
        if len(outside):
            expected = f"0 to {n_trials - 1}"
            raise InputError(path, f"{where}[{outside[0]}]", index[outside[0]], expected)
        taken = np.flatnonzero(owner[index] >= 0)
        if len(taken):
            other = ("train", "val", "test")[owner[index[taken[0]]]]
            found = f"trial {index[taken[0]]}, also in {other}"
            raise InputError(path, f"{where}[{taken[0]}]", found, "parts without a trial in common")
        if len(np.unique(index)) != len(index):
            raise InputError(path, where, "a trial named twice", "each trial once")
        owner[index] = number
        parts[name] = index
    if within is not None:
        return {name: np.asarray(within, np.int64)[index] for name, index in parts.items()}
    _refuse_single(path, owner)
    return parts


def _refuse_single(path: Path, owner: np.ndarray) -> None:
    """Refuse the published split of one subject where it would be taken for one of all trials."""
    covered = int((owner >= 0).sum())
    if "single" in path.name and covered < len(owner) and np.all(owner[:covered] >= 0):
        found = f"indices 0 to {covered - 1} of {len(owner)} trials"
        expected = "the subject whose trials they count (within=subject_positions(recording, 4))"
        raise InputError(path, "splits", found, expected)


def write_perceivelab(path: str | Path, trials: TrialSet) -> None:
    """Write a recording in the perceivelab layout, whole or not at all.

    Parameters
    ----------
    path
        File to write.
    trials
        Written in their order; ``positions`` and ``total`` are not stored.
    """
    import torch

    images, image = np.unique(trials.stimuli, return_inverse=True)
    signals = torch.from_numpy(np.ascontiguousarray(trials.signals))
    dataset = [
        {
            "eeg": signals[i],
            "image": int(image.reshape(-1)[i]),
            "label": int(trials.labels[i]),
            "subject": int(trials.subjects[i]),
            "session": int(trials.sessions[i]),
            "block": int(trials.blocks[i]),
            "run": int(trials.runs[i]),
        }
        for i in range(len(trials))
    ]
    content = {
        "dataset": dataset,
        "labels": list(trials.label_names),
        "images": [str(name) for name in images],
        "channels": list(trials.channels),
        "sfreq": float(trials.sfreq),
        "tmin": float(trials.tmin),
        "unit": trials.unit,
    }
    _write(path, content)


def write_splits(path: str | Path, splits: Mapping[str, Sequence[int] | np.ndarray]) -> None:
    """Write one split (``train``, ``val``, ``test``: positions) as a split file of one entry."""
    parts = {name: [int(i) for i in splits[name]] for name in ("train", "val", "test")}
    _write(path, {"splits": [parts]})


def picture_path(root: str | Path, stimulus: str) -> Path:
    """Picture of a stimulus in an ImageNet-style folder: ``<root>/<wnid>/<stimulus>.JPEG``.

    The WordNet id is the text before the last ``_``. ``.jpg``, ``.jpeg`` and ``.png`` are also
    looked for.

    Raises
    ------
    InputError
        When there is no such picture.
    """
    folder = Path(root) / stimulus.rpartition("_")[0]
    for suffix in PICTURE_SUFFIXES:
        if (folder / f"{stimulus}{suffix}").is_file():
            return folder / f"{stimulus}{suffix}"
    raise InputError(folder, "picture", f"no {stimulus}.JPEG", f"a picture of {stimulus}")


def _unit(path: Path, content: Mapping[str, Any], scale: float) -> str:
    if "unit" in content:
        return str(content["unit"])
    if scale != 1.0 or "sfreq" in content:
        return "V"
    return "standardised" if "_std" in path.name and "raw" not in path.name else "unknown"


def _found(path: Path, kept: int, total: int) -> str:
    band = band_of(path)
    words = f", band {band[0]:g} to {band[1]:g} Hz by its name" if band else ""
    return f"perceivelab .pth, {kept} of {total} trials{words}"


def _read(path: Path) -> dict[str, Any]:
    import torch

    if not path.is_file():
        raise InputError(path, "file", "nothing", "a .pth file")
    try:
        content = torch.load(
            path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
        )
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
        expected = "a whole file of tensors, lists and dictionaries written by torch.save"
        raise InputError(path, "file", reason, expected) from error
    if not isinstance(content, dict):
        raise InputError(path, "file", type(content).__name__, "a dictionary")
    return content


def _write(path: str | Path, content: dict[str, Any]) -> None:
    import torch

    with whole_file(path) as temporary:
        try:
            with temporary.open("wb") as file:
                torch.save(content, file)
        except RuntimeError as error:
            cause = error.__cause__ or error.__context__
            raise OSError(str(cause or error).splitlines()[0]) from error


def _required(path: Path, content: Mapping[str, Any], key: str, kind: type) -> Any:
    value = content.get(key)
    if not isinstance(value, kind):
        found = "nothing" if value is None else type(value).__name__
        raise InputError(path, key, found, f"a {kind.__name__}")
    if not value:
        raise InputError(path, key, f"an empty {kind.__name__}", "at least one entry")
    return value


def _check_entry(
    path: Path, number: int, entry: Any, n_labels: int, n_images: int, n_channels: int
) -> int:
    where = f"dataset[{number}]"
    if not isinstance(entry, Mapping):
        raise InputError(path, where, type(entry).__name__, "a dictionary")
    for key in ("eeg", "image", "label", "subject"):
        if key not in entry:
            raise InputError(path, f"{where}.{key}", "nothing", "a value")
    shape = tuple(getattr(entry["eeg"], "shape", ()))
    if len(shape) != 2 or shape[0] != n_channels:
        expected = f"a tensor of {n_channels} channels x samples"
        raise InputError(path, f"{where}.eeg", f"shape {shape}", expected)
    for key, size in (("label", n_labels), ("image", n_images)):
        if not 0 <= int(entry[key]) < size:
            raise InputError(path, f"{where}.{key}", int(entry[key]), f"0 to {size - 1}")
    return int(shape[1])


def _check_signals(path: Path, signals: np.ndarray, rows: Sequence[int]) -> None:
    for start in range(0, len(signals), 1024):
        part = signals[start : start + 1024]
        spread = part.max(axis=2) - part.min(axis=2)
        for bad, found, expected in (
            (~np.isfinite(spread), "NaN or infinity", "finite samples"),
            (spread == 0, "a flat channel", "channels that vary"),
        ):
            if bad.any():
                row, channel = (int(i) for i in np.argwhere(bad)[0])
                field = f"dataset[{rows[start + row]}].eeg[{channel}]"
                raise InputError(path, field, found, expected)
