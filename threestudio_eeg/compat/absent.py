"""Asking whether a package works here, and saying clearly that it does not."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from typing import Any, NoReturn

from eeg_encoder.errors import InputError

from . import patching


def why_absent(name: str) -> str | None:
    """Why ``import name`` fails here; ``None`` where the real module is imported.

    A module of ours counts as absent.
    """
    if patching.is_stand_in(name):
        return f"{name} is not usable here"
    package = name.partition(".")[0]
    before = set(sys.modules)
    try:
        importlib.import_module(name)
    except Exception as error:  # a compiled package may fail with any type
        for module in set(sys.modules) - before:
            if module == package or module.startswith(package + "."):
                del sys.modules[module]
        if isinstance(error, ModuleNotFoundError) and error.name == package:
            return f"{package} is not installed"
        return f"{name} cannot be imported ({type(error).__name__}: {_first_line(error)})"
    return None


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0]


def complain(package: str, name: str, hint: str) -> NoReturn:
    """Say that ``package.name`` was used and cannot be had."""
    raise InputError(package, name, "no such package here", hint)


class _Missing(type):
    """Metaclass: the class exists, so it can be imported and named, and nothing else."""

    def __call__(cls, *args: Any, **kwargs: Any) -> NoReturn:
        complain(*cls._where)  # type: ignore[attr-defined]

    def __getattr__(cls, attribute: str) -> NoReturn:
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        complain(*cls._where)  # type: ignore[attr-defined]


def missing(package: str, name: str, hint: str) -> type:
    """A class that can be imported; its use is an error that names ``package``.

    Raises
    ------
    InputError
        When the class is called, or an attribute of it asked for.
    """
    return _Missing(name, (), {"_where": (package, name, hint)})
