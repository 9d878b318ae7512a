"""Say in one line what threestudio says of a bad experiment in a traceback."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from omegaconf.errors import OmegaConfBaseException

from eeg_encoder.errors import InputError

from ..builtin.registry import suggestion
from .checks import unknown_key

LIBRARIES = ("diffusers", "transformers")
_UNEXPECTED = "unexpected keyword argument"


@contextmanager
def explained(where: str) -> Iterator[None]:
    """Turn the errors of threestudio that come from the experiment into :class:`InputError`.

    An unknown key of a part that :mod:`.checks` cannot look into, a value of the wrong type or a
    missing one, a module that nobody registered, a file of threestudio's folder ``load/`` that is
    not there, a pipeline without a part that threestudio loads. Other errors pass.
    """
    try:
        yield
    except InputError:
        raise
    except (OmegaConfBaseException, TypeError, KeyError, OSError, ValueError) as error:
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
    if isinstance(error, OSError | ValueError):
        return _missing_resource(error) or _missing_part(error)
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


def _missing_resource(error: BaseException) -> InputError | None:
    name = str(getattr(error, "filename", None) or "")
    if not name.startswith(("load/", "./load/")):
        return None
    expected = "the folder load/ of threestudio's repository (--threestudio CHECKOUT)"
    return InputError(name, "file", "no such file", expected)


def _missing_part(error: BaseException) -> InputError | None:
    """What ``from_pretrained`` of diffusers or transformers could not load, and from where."""
    for frame in _frames(error):
        library = frame.f_globals.get("__name__", "").partition(".")[0]
        if library not in LIBRARIES or frame.f_code.co_name != "from_pretrained":
            continue
        values = frame.f_locals
        model = values.get("pretrained_model_name_or_path")
        options = {**values, **values.get("kwargs", {})}
        part = options.get("subfolder") or "pipeline"
        found = f"nothing that loads ({str(error).strip().splitlines()[0]})"
        return InputError(
            model, part, found, "a pipeline folder in diffusers' layout with this part"
        )
    return None


def _frames(error: BaseException) -> Iterator[FrameType]:
    """From the outermost inwards."""
    step = error.__traceback__
    while step is not None:
        yield step.tb_frame
        step = step.tb_next


def _last_frame(error: BaseException) -> FrameType | None:
    return next(reversed([*_frames(error)]), None)
