"""Encoders by name, one a file, imported when asked for."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, TypeVar

from ..errors import InputError

T = TypeVar("T", bound=type)

BUILT_IN = {
    "atm": "eeg_encoder.models.atm",
    "braindecode": "eeg_encoder.models.from_braindecode",
    "compact": "eeg_encoder.models.compact",
    "dual_self_attention": "eeg_encoder.models.dual_self_attention",
    "eeg_project": "eeg_encoder.models.eeg_project",
    "eegnet": "eeg_encoder.models.eegnet",
    "masked_autoencoder": "eeg_encoder.models.masked_autoencoder",
    "tsconv": "eeg_encoder.models.tsconv",
}
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


def find(name: str) -> type:
    """Class of an encoder.

    Raises
    ------
    InputError
        For an unknown name.
    """
    if name not in _registry:
        if name not in BUILT_IN:
            raise InputError("model", "name", name, f"one of {', '.join(names())}")
        import_module(BUILT_IN[name])
    return _registry[name]


def build(name: str, preset: str | None = None, **settings: Any) -> Any:
    """Build an encoder.

    Parameters
    ----------
    name
        One of :func:`names`.
    preset
        Named settings of its class (``presets``), which ``settings`` override.
    settings
        Arguments of its class.

    Raises
    ------
    InputError
        For an unknown name, preset or setting.
    """
    cls = find(name)
    if preset is not None:
        presets = getattr(cls, "presets", {})
        if preset not in presets:
            raise InputError("model", f"{name} preset", preset, f"one of {sorted(presets)}")
        settings = {**presets[preset], **settings}
    try:
        return cls(**settings)
    except TypeError as error:
        raise InputError("model", name, error, "settings that this model has") from error
