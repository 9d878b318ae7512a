"""Loading networks without the libraries' remarks and bars."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

LIBRARIES = ("diffusers", "transformers")


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Hide diffusers' and transformers' warnings and progress bars; their settings come back.

    Errors are still raised.
    """
    with ExitStack() as stack:
        for library in LIBRARIES:
            stack.enter_context(_quiet(importlib.import_module(f"{library}.utils.logging")))
        yield


@contextmanager
def _quiet(logging: Any) -> Iterator[None]:
    """Quieten one library through its own logging module."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
