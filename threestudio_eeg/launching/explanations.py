"""Say in one line what threestudio says of a bad experiment in a traceback."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from omegaconf.errors import OmegaConfBaseException

from eeg_encoder.errors import InputError

from ..builtin.registry import suggestion
from .checks import unknown_key

_UNEXPECTED = "unexpected keyword argument"


@contextmanager
def explained(where: str) -> Iterator[None]:
    """Turn the errors of threestudio that come from the experiment into :class:`InputError`.

    An unknown key of a part that :mod:`.checks` cannot look into, a value of the wrong type or a
    missing one, a module that nobody registered, a file of threestudio's folder ``load/`` that is
    not there. Other errors pass.
    """
    try:
        yield
    except (OmegaConfBaseException, TypeError, KeyError, FileNotFoundError) as error:
        explanation = explanation_of(where, error)
        if explanation is None:
            raise
        raise explanation from error


def explanation_of(where: str, error: BaseException) -> InputError | None:
    """Return what ``error`` means, or nothing where it is no matter of the experiment."""
    if isinstance(error, OmegaConfBaseException):
        key = getattr(error, "full_key", None) or "config"
        found = (getattr(error, "msg", None) or str(error)).splitlines()[0]
        return InputError(where, str(key), found, "a value of the field's type")
    if isinstance(error, FileNotFoundError):
        return _missing_resource(error)
    frame = _last_frame(error)
    if frame is None or not frame.f_globals.get("__name__", "").startswith("threestudio"):
        return None
    if isinstance(error, TypeError) and _UNEXPECTED in str(error):
        fields = frame.f_locals.get("fields")
        if dataclasses.is_dataclass(fields):
            name = getattr(fields, "__qualname__", "config")
            return unknown_key(f"{where}: {name}", str(error).split("'")[1], fields)
    if isinstance(error, KeyError) and frame.f_code.co_name == "find":
        known = frame.f_globals.get("__modules__", {})
        name = str(error.args[0])
        found = f"{name!r}, which nobody registered"
        return InputError(where, "module name", found, suggestion(name, sorted(known)))
    return None


def _missing_resource(error: FileNotFoundError) -> InputError | None:
    name = str(error.filename or "")
    if not name.startswith(("load/", "./load/")):
        return None
    expected = "the folder load/ of threestudio's repository (--threestudio CHECKOUT)"
    return InputError(name, "file", "no such file", expected)


def _last_frame(error: BaseException) -> FrameType | Any:
    step = error.__traceback__
    while step is not None and step.tb_next is not None:
        step = step.tb_next
    return step.tb_frame if step is not None else None
