"""One self-contained HTML page about one object: stimulus, EEG, the object, its figures."""

from __future__ import annotations

from .page import write_report

__all__ = ["write_report"]
