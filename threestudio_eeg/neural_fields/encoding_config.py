"""Fields of a tiny-cuda-nn configuration, read with a default and checked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from eeg_encoder.errors import InputError

Config = Mapping[str, Any]
T = TypeVar("T")


def integer(where: str, config: Config, field: str, default: int, least: int = 1) -> int:
    """A whole number of at least ``least``."""
    value = config.get(field, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(where, field, value, f"a whole number, {least} or more")
    return value


def number(where: str, config: Config, field: str, default: float) -> float:
    """A number."""
    value = config.get(field, default)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(where, field, value, "a number")
    return float(value)


def choice(where: str, config: Config, field: str, default: str, names: Iterable[str]) -> str:
    """One of ``names``, which tiny-cuda-nn compares without regard to case."""
    value = config.get(field, default)
    found = {name.lower(): name for name in names}.get(str(value).lower())
    if found is None:
        raise InputError(where, field, value, f"one of {', '.join(names)}")
    return found
