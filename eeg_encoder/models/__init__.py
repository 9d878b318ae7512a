"""Encoders by name, one a file, imported when asked for."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, TypeVar

from ..errors import InputError

T = TypeVar("T", bound=type)

BUILT_IN = {"compact": "eeg_encoder.models.compact"}
_registry: dict[str, type] = {}


def register(name: str) -> Callable[[T], T]:
    """Class decorator that makes an encoder available to :func:`build`."""

    def decorate(cls: T) -> T:
        _registry[name] = cls
        return cls

    return decorate


def names() -> list[str]:
    """Names that :func:`build` knows."""
    return sorted({*BUILT_IN, *_registry})


def build(name: str, **settings: Any) -> Any:
    """Build an encoder.

    Parameters
    ----------
    name
        One of :func:`names`.
    settings
        Arguments of its class.

    Raises
    ------
    InputError
        For an unknown name or setting.
    """
    if name not in _registry:
        if name not in BUILT_IN:
            raise InputError("model", "name", name, f"one of {', '.join(names())}")
        import_module(BUILT_IN[name])
    try:
        return _registry[name](**settings)
    except TypeError as error:
        raise InputError("model", name, error, "settings that this model has") from error
