"""Epoched trials in one ``.npz`` file.

Keys: ``signals`` (N, C, T), ``labels`` (N,), ``channels`` (C,) and ``sfreq`` are needed;
``stimuli``, ``subjects``, ``sessions``, ``blocks``, ``runs``, ``trial_ids`` (N,), ``label_names``,
``tmin`` and ``unit`` are optional. Common other names are understood (``X``, ``y``, ``ch_names``,
``subject``).
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from ..files import whole_file
from .fields import (
    categories,
    channel_names,
    check_bad,
    column_of,
    factor_to_volts,
    kept_unit,
    numbered,
    rate_of,
    refuse_duplicates,
)
from .lazy import LARGE, checked, lazy_signals
from .trials import TrialSet

NAMES = {
    "signals": ("signals", "X", "data", "eeg"),
    "labels": ("labels", "y", "label"),
    "channels": ("channels", "ch_names"),
    "sfreq": ("sfreq", "fs"),
    "stimuli": ("stimuli", "stimulus", "images"),
    "subjects": ("subjects", "subject"),
    "sessions": ("sessions", "session"),
    "blocks": ("blocks", "block"),
    "runs": ("runs", "run"),
    "trial_ids": ("trial_ids", "trial"),
    "label_names": ("label_names", "classes"),
    "tmin": ("tmin",),
    "unit": ("unit",),
}


def load_npz(
    path: str | Path,
    *,
    unit: str = "V",
    names: Mapping[str, str] | None = None,
    label_names: list[str] | None = None,
    bad: str = "refuse",
) -> TrialSet:
    """Read an epoched ``.npz`` file; nothing in it is unpickled.

    Signals above 1 GiB in a file written by ``np.savez`` (not compressed) stay on disk.

    Parameters
    ----------
    path
        The file.
    unit
        Of the signals, for a file that does not say: ``V``, ``uV``, ``standardised``, ``unknown``.
    names
        Field of a TrialSet to key of the file, where the key is not one of :data:`NAMES`.
    label_names
        Category names, for a file that does not have them.
    bad
        What to do with NaN and infinity: ``refuse``, or ``keep`` to inspect the file.

    Raises
    ------
    InputError
        For a truncated or foreign file, missing keys, shapes that disagree, several rates, a trial
        id that a subject has twice, or samples that are not finite.
    """
    path = Path(path)
    check_bad(path, bad)
    with _opened(path) as content:
        columns = _Columns(path, content, names or {})
        signals = _signals(path, content, columns.key("signals"))
        if signals.ndim != 3 or not all(signals.shape) or signals.dtype.kind not in "fiu":
            found = f"shape {signals.shape}, type {signals.dtype}"
            raise InputError(path, columns.key("signals"), found, "numbers (N, C, T)")
        n, c, t = signals.shape
        channels = channel_names(path, columns.required("channels"), c)
        unit = str(columns.get("unit", unit))
        factor = np.float32(factor_to_volts(path, unit))
        labels, known = categories(
            column_of(path, columns.key("labels"), columns.required("labels"), n),
            columns.get("label_names", label_names),
        )
        fields: dict[str, Any] = {
            name: numbered(column_of(path, name, columns.get(name, np.zeros(n, np.int64)), n))
            for name in ("subjects", "sessions", "blocks", "runs")
        }
        if (ids := columns.get("trial_ids")) is not None:
            key = columns.key("trial_ids")
            ids = column_of(path, key, ids, n).tolist()
            refuse_duplicates(path, key, list(zip(fields["subjects"].tolist(), ids, strict=True)))
        stimuli = column_of(path, "stimuli", columns.get("stimuli", np.full(n, "")), n).astype(str)
        sfreq = rate_of(path, columns.required("sfreq"))
        tmin = float(np.asarray(columns.get("tmin", 0.0)).reshape(-1)[0])

    if signals.nbytes > LARGE and isinstance(signals, np.memmap):
        read = lazy_signals(lambda rows: signals[rows].astype(np.float32) * factor, n, c, t)
    else:
        read = np.array(signals, dtype=np.float32)
        if factor != 1.0:
            read *= factor
    return TrialSet(
        signals=checked(path, read, channels) if bad == "refuse" else read,
        sfreq=sfreq,
        channels=channels,
        labels=labels,
        label_names=known,
        stimuli=stimuli,
        tmin=tmin,
        unit=kept_unit(unit),
        source=f"epoched .npz, {n} trials in {unit}",
        **fields,
    )


def write_npz(path: str | Path, trials: TrialSet) -> None:
    """Write a recording as ``.npz``, whole or not at all; ``positions`` are not stored."""
    content = {
        "signals": np.asarray(trials.signals),
        "channels": np.asarray(trials.channels),
        "label_names": np.asarray(trials.label_names),
        "sfreq": np.float64(trials.sfreq),
        "tmin": np.float64(trials.tmin),
        "unit": np.str_(trials.unit),
        **{
            name: getattr(trials, name)
            for name in ("labels", "stimuli", "subjects", "sessions", "blocks", "runs")
        },
    }
    with whole_file(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **content)


def keys_of(path: str | Path) -> list[str]:
    """Names of the arrays in a ``.npz`` file, or none when it is not one."""
    try:
        with zipfile.ZipFile(path) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist()]
    except (OSError, zipfile.BadZipFile):
        return []


class _Columns:
    """The arrays of a file by the field they belong to."""

    def __init__(self, path: Path, content: Any, names: Mapping[str, str]) -> None:
        self.path, self.content, self.names = path, content, names

    def key(self, field: str) -> str:
        candidates = (self.names[field],) if field in self.names else NAMES[field]
        for name in candidates:
            if name in self.content.files:
                return name
        return candidates[0]

    def get(self, field: str, default: Any = None) -> Any:
        key = self.key(field)
        if key not in self.content.files:
            return default
        try:
            return self.content[key]
        except Exception as error:
            raise InputError(self.path, key, _reason(error), "a whole array") from error

    def required(self, field: str) -> Any:
        found = self.get(field)
        if found is None:
            names = " or ".join(NAMES[field])
            has = ", ".join(self.content.files[:10]) or "no arrays"
            raise InputError(self.path, self.key(field), f"{has}", f"a key {names}")
        return found


def _opened(path: Path) -> Any:
    if not path.is_file():
        raise InputError(path, "file", "nothing", "a .npz file")
    try:
        content = np.load(path, allow_pickle=False)
    except Exception as error:
        raise InputError(path, "file", _reason(error), "a whole .npz file") from error
    if not isinstance(content, np.lib.npyio.NpzFile):
        raise InputError(path, "file", "a single array", "a .npz file of named arrays")
    return content


def _signals(path: Path, content: Any, key: str) -> np.ndarray:
    mapped = _mapped(path, key)
    if mapped is not None:
        return mapped
    if key not in content.files:
        has = ", ".join(content.files[:10]) or "no arrays"
        raise InputError(path, "signals", has, f"a key {' or '.join(NAMES['signals'])}")
    try:
        return content[key]
    except Exception as error:
        raise InputError(path, key, _reason(error), "a whole array, not pickled") from error


def _mapped(path: Path, key: str) -> np.ndarray | None:
    """Map an array that is stored uncompressed; None when it is not."""
    from numpy.lib import format as npy

    with zipfile.ZipFile(path) as archive:
        if f"{key}.npy" not in archive.namelist():
            return None
        entry = archive.getinfo(f"{key}.npy")
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size <= LARGE:
            return None
    with path.open("rb") as file:
        file.seek(entry.header_offset + 26)
        name, extra = np.frombuffer(file.read(4), "<u2")
        file.seek(entry.header_offset + 30 + int(name) + int(extra))
        version = npy.read_magic(file)
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, fortran, dtype = read(file)
        if dtype.hasobject:
            return None
        order: Any = "F" if fortran else "C"
        return np.memmap(path, dtype, "r", file.tell(), shape, order)


def _reason(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
