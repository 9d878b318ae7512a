"""Lets the unmodified upstream threestudio import and run on today's libraries.

Importing this package changes nothing. :func:`activate` looks at every remedy's condition and
applies those that are needed, before threestudio is imported; :func:`after_import` applies those
that change threestudio's own modules. A package that works is never replaced.

Examples
--------
>>> from threestudio_eeg import compat
>>> compat.activate(device="cpu", threestudio=Path("threestudio"))  # doctest: +SKIP
>>> import threestudio  # doctest: +SKIP
>>> compat.after_import()  # doctest: +SKIP
"""

from __future__ import annotations

from .activation import REMEDIES, activate, active, after_import, deactivate
from .remedy import Applied, Remedy
from .requirements import missing_requirements

__all__ = [
    "REMEDIES",
    "Applied",
    "Remedy",
    "activate",
    "active",
    "after_import",
    "deactivate",
    "missing_requirements",
]
