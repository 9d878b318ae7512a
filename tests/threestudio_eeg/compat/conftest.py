"""Every change that a test makes to this process is taken back after it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

from threestudio_eeg import compat
from threestudio_eeg.compat import patching


@pytest.fixture(autouse=True)
def _unpatched(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Asks for monkeypatch so as to be undone before it: what it replaced, it puts back itself."""
    compat.deactivate()
    yield
    compat.deactivate()


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Any:
    """``fake("a.b", x=1)``: make ``import a.b`` give a module with that content."""

    def make(name: str, **contents: Any) -> ModuleType:
        module = patching.new_module(name, **contents)
        monkeypatch.setitem(sys.modules, name, module)
        parent, _, child = name.rpartition(".")
        if parent in sys.modules:
            monkeypatch.setattr(sys.modules[parent], child, module, raising=False)
        return module

    return make


@pytest.fixture
def absent(monkeypatch: pytest.MonkeyPatch) -> Any:
    """``absent("a")``: make ``import a`` fail, installed or not."""

    def make(name: str) -> None:
        for loaded in [key for key in sys.modules if key.startswith(name + ".")]:
            monkeypatch.delitem(sys.modules, loaded)
        monkeypatch.setitem(sys.modules, name, None)

    return make
