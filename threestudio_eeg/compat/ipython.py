"""IPython, of which threestudio imports one function, always."""

from __future__ import annotations

from typing import Any

from . import patching
from .absent import why_absent
from .remedy import Remedy

VERSION = (8, 24, 0)
"""From this one on, matplotlib leaves the choice of a notebook's backend to IPython."""


def reason(device: str) -> str | None:
    return why_absent("IPython.display")


def apply(device: str) -> None:
    # Others ask IPython, where it is loaded, for the shell that runs; matplotlib, for its version.
    package = patching.new_module("IPython", get_ipython=lambda: None, version_info=VERSION)
    patching.add_module("IPython", package)
    display = patching.new_module("IPython.display", clear_output=clear_output)
    patching.add_module("IPython.display", display)


def clear_output(*args: Any, **kwargs: Any) -> None:
    """There is no notebook cell to clear."""


REMEDY = Remedy(
    name="ipython",
    stands_in_for="IPython's clear_output, which has nothing to clear outside of a notebook.",
    reason=reason,
    apply=apply,
    hint="pip install ipython",
)
