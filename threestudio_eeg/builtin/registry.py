"""Modules by name, as threestudio's YAML files write them: ``main`` or ``main:sub1,sub2``."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable
from typing import Any, TypeVar

from eeg_encoder.errors import InputError

T = TypeVar("T", bound=type)

MODULES = (
    "threestudio_eeg.builtin.cameras",
    "threestudio_eeg.builtin.geometry",
    "threestudio_eeg.builtin.volume_grid",
    "threestudio_eeg.builtin.implicit_sdf",
    "threestudio_eeg.builtin.tetrahedra_sdf_grid",
    "threestudio_eeg.builtin.gaussian_splatting",
    "threestudio_eeg.builtin.materials",
    "threestudio_eeg.builtin.backgrounds",
    "threestudio_eeg.builtin.renderer",
    "threestudio_eeg.builtin.neus_renderer",
    "threestudio_eeg.builtin.nvdiff_rasterizer",
    "threestudio_eeg.builtin.gaussian_renderer",
    "threestudio_eeg.builtin.exporter",
    "threestudio_eeg.builtin.gaussian_files",
    "threestudio_eeg.builtin.prompts",
    "threestudio_eeg.builtin.systems",
    "threestudio_eeg.prompt_processor",
    "threestudio_eeg.guidance",
    "threestudio_eeg.system",
)
"""Where registered classes live, in the order :func:`find` imports them."""

_classes: dict[str, type] = {}


def register(name: str) -> Callable[[T], T]:
    """Class decorator: make a class known to :func:`find` under ``name``.

    Raises
    ------
    ValueError
        When the name is taken.
    """

    def decorate(cls: T) -> T:
        if name in _classes:
            raise ValueError(
                f"module {name} is already registered, by {_classes[name].__qualname__}"
            )
        _classes[name] = cls
        return cls

    return decorate


def find(name: str) -> Any:
    """Return the class registered as ``name``.

    ``"main:sub1,sub2"`` gives a new class on the bases ``(sub1, sub2, main)``: the mixins come
    first and override ``main``, as in threestudio.

    Raises
    ------
    InputError
        When a name is unknown; it names the closest known ones.
    """
    main, _, mixins = name.partition(":")
    if not mixins:
        return _find_one(main.strip())
    bases = [_find_one(part.strip()) for part in mixins.split(",")] + [_find_one(main.strip())]
    return type(name.replace(":", "."), tuple(bases), {})


def load_builtin() -> list[str]:
    """Import every module that registers something and return the known names, sorted."""
    for module in MODULES:
        importlib.import_module(module)
    return sorted(_classes)


def name_of(cls: type) -> str:
    """Return the name a class (or the last base of a mixed class) is registered under."""
    for candidate in cls.__mro__:
        for name, known in _classes.items():
            if known is candidate:
                return name
    return cls.__qualname__


def suggestion(word: str, known: list[str]) -> str:
    """Say what would have been right: the closest known words, then all of them."""
    close = difflib.get_close_matches(word, known, n=3, cutoff=0.6)
    everything = f"one of {', '.join(sorted(known))}" if known else "nothing"
    return f"{' or '.join(close)} ({everything})" if close else everything


def _find_one(name: str) -> type:
    for module in MODULES:
        if name in _classes:
            break
        importlib.import_module(module)
    if name not in _classes:
        raise InputError("registry", "module name", repr(name), suggestion(name, list(_classes)))
    return _classes[name]
