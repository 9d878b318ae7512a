"""Replacing attributes and modules of other packages so that they can be put back."""

from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_ABSENT = object()
_undo: list[Callable[[], None]] = []
_stand_ins: set[str] = set()


def on_undo(step: Callable[[], None]) -> None:
    """Remember how to take back a change made by other means."""
    _undo.append(step)


def undo_all() -> None:
    """Take back every change, the last one first.

    Modules that copied a replaced name while it was replaced keep their copy.
    """
    while _undo:
        _undo.pop()()


def set_attribute(owner: Any, name: str, value: Any) -> None:
    """``owner.name = value``, to be undone."""
    before = vars(owner).get(name, _ABSENT)
    on_undo(functools.partial(_restore, owner, name, before))
    setattr(owner, name, value)


def _restore(owner: Any, name: str, before: Any) -> None:
    if before is _ABSENT:
        delattr(owner, name)
    else:
        setattr(owner, name, before)


def replace_in_modules(package: str, name: str, old: Any, new: Any) -> list[str]:
    """Put ``new`` where a loaded module of ``package`` holds ``old`` as ``name``.

    Returns
    -------
    list of str
        The modules that were changed.
    """
    changed = []
    for module_name, module in list(sys.modules.items()):
        if module_name != package and not module_name.startswith(package + "."):
            continue
        if module is not None and vars(module).get(name) is old:
            set_attribute(module, name, new)
            changed.append(module_name)
    return changed


def new_module(name: str, **contents: Any) -> ModuleType:
    """An empty module, with a spec, so that ``importlib.util.find_spec`` can be asked for it."""
    module = ModuleType(name, "Put here by threestudio_eeg.compat.")
    module.__spec__ = ModuleSpec(name, loader=None)
    module.__path__ = []
    vars(module).update(contents)
    return module


def add_module(name: str, module: ModuleType) -> None:
    """Make ``import name`` give ``module``, and the parent package know it."""
    before = sys.modules.get(name, _ABSENT)

    def restore() -> None:
        _stand_ins.discard(name)
        if before is _ABSENT:
            sys.modules.pop(name, None)
        else:
            sys.modules[name] = before  # type: ignore[assignment]

    on_undo(restore)
    _stand_ins.add(name)
    sys.modules[name] = module
    parent, _, child = name.rpartition(".")
    if parent in sys.modules:
        set_attribute(sys.modules[parent], child, module)


def is_stand_in(name: str) -> bool:
    """Whether ``import name`` gives a module of ours."""
    return name in _stand_ins


def ignore_warning(message: str, category: type[Warning], module: str) -> None:
    """Hide one kind of warning where one kind of module causes it."""
    filters = warnings.filters[:]

    def restore() -> None:
        warnings.filters[:] = filters  # type: ignore[index]

    on_undo(restore)
    warnings.filterwarnings("ignore", message=message, category=category, module=module)
