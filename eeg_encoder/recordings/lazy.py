"""Signals that stay on disk until they are indexed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np

from ..errors import InputError

CHUNK = 256
LARGE = 1 << 30

Reader = Callable[[np.ndarray], np.ndarray]
"""Signals (n, C, T) of n rows of the source."""


class LazySignals:
    """Stands for a float32 array (N, C, T); indexing reads, :meth:`rows_at` does not.

    What an index returns is an ordinary array, so code that reads signals batch by batch needs no
    change. ``np.asarray`` reads everything.

    Parameters
    ----------
    read
        Reads rows of the source.
    shape
        (C, T) of a trial.
    rows
        (N,) the rows of the source that these signals are.
    """

    dtype = np.dtype(np.float32)
    ndim = 3

    def __init__(self, read: Reader, shape: tuple[int, int], rows: np.ndarray) -> None:
        self._read = read
        self._rows = np.asarray(rows, dtype=np.int64)
        self.shape = (len(self._rows), *shape)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, key: Any) -> np.ndarray:
        first, rest = (key[0], key[1:]) if isinstance(key, tuple) else (key, ())
        if first is Ellipsis:
            first, rest = slice(None), (Ellipsis, *rest)
        rows = self._rows[first]
        if np.ndim(rows) == 0:
            return self._signals(rows[None])[0][rest]
        index = (slice(None), *rest)
        return self._signals(rows)[index]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        whole = np.empty(self.shape, np.float32)
        for start in range(0, len(self), CHUNK):
            whole[start : start + CHUNK] = self[start : start + CHUNK]
        return whole if dtype is None else whole.astype(dtype, copy=False)

    def rows_at(self, index: Any) -> LazySignals:
        """The same signals at ``index`` (integers, a mask or a slice); nothing is read."""
        return LazySignals(self._read, self.shape[1:], self._rows[index])

    def _signals(self, rows: np.ndarray) -> np.ndarray:
        if not len(rows):
            return np.empty((0, *self.shape[1:]), np.float32)
        return np.asarray(self._read(rows), dtype=np.float32)


def lazy_signals(read: Reader, n_trials: int, n_channels: int, n_samples: int) -> np.ndarray:
    """:class:`LazySignals` of a whole source, typed as the array that it stands for."""
    return cast(np.ndarray, LazySignals(read, (n_channels, n_samples), np.arange(n_trials)))


def rows_at(signals: np.ndarray, index: Any) -> np.ndarray:
    """``signals[index]``, without reading what is on disk."""
    if isinstance(signals, LazySignals):
        return cast(np.ndarray, signals.rows_at(index))
    return signals[index]


def concatenated(parts: list[np.ndarray]) -> np.ndarray:
    """Signals one after the other; on disk where one of them is."""
    if not any(isinstance(part, LazySignals) for part in parts):
        return np.concatenate(parts)
    starts = np.cumsum([0, *(len(part) for part in parts)])

    def read(rows: np.ndarray) -> np.ndarray:
        out = np.empty((len(rows), *parts[0].shape[1:]), np.float32)
        owner = np.searchsorted(starts, rows, side="right") - 1
        for number in np.unique(owner):
            mine = owner == number
            out[mine] = parts[number][rows[mine] - starts[number]]
        return out

    return lazy_signals(read, int(starts[-1]), *parts[0].shape[1:])


def checked(where: object, signals: np.ndarray, channels: list[str]) -> np.ndarray:
    """Refuse NaN and infinity: at once in memory, when they are read on disk.

    Raises
    ------
    InputError
        Naming the first trial and channel.
    """
    if not isinstance(signals, LazySignals):
        for start in range(0, len(signals), CHUNK):
            part = signals[start : start + CHUNK]
            refuse_nonfinite(where, part, np.arange(start, start + len(part)), channels)
        return signals

    def read(rows: np.ndarray) -> np.ndarray:
        part = signals[rows]
        refuse_nonfinite(where, part, rows, channels)
        return part

    return lazy_signals(read, *signals.shape)


def refuse_nonfinite(
    where: object, signals: np.ndarray, rows: np.ndarray, channels: list[str]
) -> None:
    """Raise :class:`InputError` for the first channel that is not finite."""
    bad = ~np.isfinite(signals).all(axis=2)
    if bad.any():
        row, channel = (int(i) for i in np.argwhere(bad)[0])
        field = f"trial {rows[row]}, channel {channels[channel]}"
        raise InputError(where, field, "NaN or infinity", "finite samples")
