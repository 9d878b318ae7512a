"""What the loaders share: columns as numbers, checks of names, times and rates."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError

FACTORS = {"V": 1.0, "mV": 1e-3, "uV": 1e-6, "µV": 1e-6, "nV": 1e-9}
BAD = ("refuse", "keep")


def numbered(values: Any) -> np.ndarray:
    """(N,) int64: whole numbers as they are, anything else by its place in sorted order."""
    values = np.asarray(values)
    if values.dtype.kind in "US" and np.all(np.char.isdigit(values)):
        return values.astype(np.int64)
    if values.dtype.kind in "iub":
        return values.astype(np.int64)
    if values.dtype.kind == "f" and np.all(values == np.round(values)):
        return values.astype(np.int64)
    return np.unique(values.astype(str), return_inverse=True)[1].reshape(-1).astype(np.int64)


def categories(values: Any, names: Sequence[str] | None = None) -> tuple[np.ndarray, list[str]]:
    """Labels (N,) int64 and category names.

    With ``names``, whole numbers are indices into them. Without, every different value is a
    category of its own, in sorted order.
    """
    values = np.asarray(values)
    if names is not None and values.dtype.kind in "iub":
        return values.astype(np.int64), [str(name) for name in names]
    found, label = np.unique(values, return_inverse=True)
    return label.reshape(-1).astype(np.int64), [str(name) for name in found]


def channel_names(where: object, names: Any, n_channels: int) -> list[str]:
    """Check the channel names of a file.

    Raises
    ------
    InputError
        For a wrong count or a name that occurs twice.
    """
    names = [str(name).strip() for name in np.asarray(names).reshape(-1)]
    if len(names) != n_channels:
        raise InputError(where, "channels", f"{len(names)} names", f"{n_channels}, one a channel")
    double = [name for name in names if names.count(name) > 1]
    if double:
        raise InputError(where, "channels", f"{double[0]} twice", "each name once")
    return names


def rate_of(where: object, values: Any) -> float:
    """One sampling rate in hertz.

    Raises
    ------
    InputError
        When there are several, or it is not above 0.
    """
    rates = np.unique(np.asarray(values, dtype=float).reshape(-1))
    if len(rates) != 1:
        found = f"{len(rates)} rates {', '.join(f'{rate:g}' for rate in rates[:4])}"
        raise InputError(where, "sfreq", found, "one rate; resample before")
    if not (np.isfinite(rates[0]) and rates[0] > 0):
        raise InputError(where, "sfreq", rates[0], "hertz, above 0")
    return float(rates[0])


def rate_of_times(where: object, times: Any) -> float:
    """Sampling rate in hertz of equally spaced times in seconds.

    Raises
    ------
    InputError
        When the steps differ.
    """
    times = np.asarray(times, dtype=float).reshape(-1)
    steps = np.diff(times)
    if not len(steps) or not np.all(np.isfinite(times)) or not np.all(steps > 0):
        raise InputError(where, "times", f"{len(times)} times", "increasing seconds")
    if steps.max() - steps.min() > 0.01 * steps.mean():
        found = f"steps of {steps.min():.3g} to {steps.max():.3g} s"
        raise InputError(where, "times", found, "equal steps, one rate")
    return round((len(times) - 1) / float(times[-1] - times[0]), 3)


def factor_to_volts(where: object, unit: str) -> float:
    """Factor from a unit to volts; 1 for ``standardised`` and ``unknown``.

    Raises
    ------
    InputError
        For a unit that is not known.
    """
    if unit in ("standardised", "unknown"):
        return 1.0
    if unit not in FACTORS:
        known = ", ".join([*FACTORS, "standardised", "unknown"])
        raise InputError(where, "unit", unit, f"one of {known}")
    return FACTORS[unit]


def kept_unit(unit: str) -> str:
    """The unit of a TrialSet whose file is in ``unit``."""
    return unit if unit in ("standardised", "unknown") else "V"


def column_of(where: object, field: str, values: Any, n_trials: int) -> np.ndarray:
    """A value for each trial.

    Raises
    ------
    InputError
        When there are more or fewer.
    """
    values = np.asarray(values)
    if values.shape != (n_trials,):
        raise InputError(where, field, f"shape {values.shape}", f"({n_trials},), one a trial")
    return values


def refuse_duplicates(where: object, field: str, ids: Sequence[Any]) -> None:
    """Raise when two trials have the same id."""
    seen: dict[Any, int] = {}
    for row, value in enumerate(ids):
        if value in seen:
            raise InputError(
                where, f"{field}[{row}]", f"{value}, as in [{seen[value]}]", "each trial once"
            )
        seen[value] = row


def check_bad(where: object, bad: str) -> None:
    """Raise unless ``bad`` says what to do with samples that are not finite."""
    if bad not in BAD:
        raise InputError(where, "bad", bad, f"one of {', '.join(BAD)}")


def number_in(path: Path, default: int = 0) -> int:
    """The number in a folder's name: 3 for ``sub-03`` and ``sub03``."""
    digits = "".join(c for c in path.name if c.isdigit())
    return int(digits) if digits else default
