"""Where golden values of other programs are; tests of them skip where they are not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def golden_folder() -> Path:
    """The folder, whether it exists or not."""
    sibling = Path(__file__).resolve().parents[3] / "shared" / "data"
    return Path(os.environ.get("THREESTUDIO_EEG_DATA", sibling)) / "golden"


def golden_file(name: str) -> Path:
    """A file of golden values; skips the test where it is absent."""
    path = golden_folder() / name
    if not path.is_file():
        pytest.skip(f"the golden values {name} are not here")
    return path
