"""Which host an experiment is launched on, and why."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from eeg_encoder.errors import InputError

from .. import host
from .checkout import VARIABLE, Threestudio, find_threestudio


@dataclass(frozen=True)
class Choice:
    """A host and the reason for it; ``threestudio`` is ``None`` for the embedded one."""

    name: str
    why: str
    threestudio: Threestudio | None = None


def choose_host(asked: str | None = None, path: str | Path | None = None) -> Choice:
    """Decide on a host. The first of these that says something wins.

    ``--host``; ``--threestudio``; the variable ``THREESTUDIO_EEG_HOST``; the variable
    ``THREESTUDIO_ROOT``; an installed threestudio. Else the host is the embedded one.

    Parameters
    ----------
    asked
        ``builtin`` or ``upstream``, as the command line says.
    path
        A threestudio, as the command line says.

    Raises
    ------
    InputError
        For another name, for a path that is no threestudio, when upstream is asked for and there
        is none, or when a path comes with the embedded host.
    """
    name, why = _wanted(asked, path)
    if name == "builtin":
        return Choice(name, why)
    threestudio = find_threestudio(path)
    if threestudio is not None:
        return Choice("upstream", why or "threestudio is installed", threestudio)
    if not name:
        return Choice("builtin", "no threestudio is installed, and no path was given")
    expected = f"--threestudio PATH, {VARIABLE}, an installed threestudio, or --host builtin"
    raise InputError("host", "upstream", "no threestudio", expected)


def _wanted(asked: str | None, path: str | Path | None) -> tuple[str, str]:
    if asked is not None and asked not in host.NAMES:
        raise InputError("command line", "--host", asked, " or ".join(host.NAMES))
    if asked == "builtin" and path is not None:
        raise InputError("command line", "--threestudio", path, "nothing beside --host builtin")
    if asked is not None:
        return asked, "--host"
    if path is not None:
        return "upstream", "--threestudio"
    variable = os.environ.get(host.VARIABLE, "").strip().lower()
    if variable and variable not in host.NAMES:
        raise InputError("environment", host.VARIABLE, variable, " or ".join(host.NAMES))
    if variable:
        return variable, host.VARIABLE
    if os.environ.get(VARIABLE, "").strip():
        return "upstream", VARIABLE
    return "", ""
