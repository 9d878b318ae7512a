"""Which threestudio this process uses: the installed one, or the embedded :mod:`.builtin`.

``prompt_processor``, ``guidance`` and ``system`` import the host's names from here, so the same
classes register with either. ``THREESTUDIO_EEG_HOST=upstream|builtin`` decides; without it the
host is upstream where threestudio can be imported, else the embedded one. The choice is made when
a name is first asked for, and holds for the life of the process.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import warnings
from typing import TYPE_CHECKING, Any

from eeg_encoder.errors import InputError

if TYPE_CHECKING:
    from .builtin.base import BaseModule, BaseObject, get_device, parse_structured
    from .builtin.config import C
    from .builtin.prompts import DirectionConfig, PromptProcessor, PromptProcessorOutput
    from .builtin.registry import find, register
    from .builtin.systems import BaseLift3DSystem

    name: str

VARIABLE = "THREESTUDIO_EEG_HOST"
NAMES = ("builtin", "upstream")

__all__ = [
    "BaseLift3DSystem",
    "BaseModule",
    "BaseObject",
    "C",
    "DirectionConfig",
    "PromptProcessor",
    "PromptProcessorOutput",
    "find",
    "get_device",
    "name",
    "parse_structured",
    "register",
]

_BUILTIN = "threestudio_eeg.builtin."
_PLACES = {
    "register": (_BUILTIN + "registry", "threestudio"),
    "find": (_BUILTIN + "registry", "threestudio"),
    "BaseModule": (_BUILTIN + "base", "threestudio.utils.base"),
    "BaseObject": (_BUILTIN + "base", "threestudio.utils.base"),
    "get_device": (_BUILTIN + "base", "threestudio.utils.misc"),
    "parse_structured": (_BUILTIN + "base", "threestudio.utils.config"),
    "C": (_BUILTIN + "config", "threestudio.utils.misc"),
    "PromptProcessor": (_BUILTIN + "prompts", "threestudio.models.prompt_processors.base"),
    "PromptProcessorOutput": (_BUILTIN + "prompts", "threestudio.models.prompt_processors.base"),
    "DirectionConfig": (_BUILTIN + "prompts", "threestudio.models.prompt_processors.base"),
    "BaseLift3DSystem": (_BUILTIN + "systems", "threestudio.systems.base"),
}


@functools.cache
def choose() -> str:
    """Return ``"builtin"`` or ``"upstream"``, decided on the first call.

    Raises
    ------
    InputError
        When the variable has another value, or asks for a threestudio that cannot be imported.
    """
    wanted = os.environ.get(VARIABLE, "").strip().lower()
    if wanted and wanted not in NAMES:
        raise InputError("environment", VARIABLE, wanted, " or ".join(NAMES))
    if wanted == "builtin" or (not wanted and not _installed()):
        return "builtin"
    try:
        importlib.import_module("threestudio")
    except ImportError as error:
        if wanted:
            found = f"{type(error).__name__}: {error}"
            raise InputError("environment", VARIABLE, found, "a threestudio to import") from error
        warnings.warn(
            f"threestudio is installed but cannot be imported ({error}); using the embedded host",
            stacklevel=2,
        )
        return "builtin"
    return "upstream"


def settle(host: str) -> None:
    """Decide the host before anything asks for it, whatever the environment said.

    Raises
    ------
    InputError
        When this process has another one already.
    """
    if choose.cache_info().currsize and choose() != host:
        raise InputError("process", "host", f"{choose()}, in use", f"{host} in another process")
    os.environ[VARIABLE] = host


def _installed() -> bool:
    spec = importlib.util.find_spec("threestudio")
    return spec is not None and spec.origin is not None


def __getattr__(attribute: str) -> Any:
    if attribute == "name":
        return choose()
    if attribute not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {attribute!r}")
    module = _PLACES[attribute][NAMES.index(choose())]
    return getattr(importlib.import_module(module), attribute)
