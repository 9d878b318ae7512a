"""Who registers what in an upstream threestudio, and when two extensions want one name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from eeg_encoder.errors import InputError


@dataclass
class Registrations:
    """``threestudio.register`` with a memory.

    The same class may be registered again (a shim in ``custom/`` beside the launcher, a module run
    twice); the first one stays. Two classes under one name raise as threestudio does, which its
    loader of extensions prints and forgets; :meth:`check` says it in one line.

    Parameters
    ----------
    modules
        threestudio's own dictionary of registered classes.
    register
        threestudio's own function.
    """

    modules: dict[str, type]
    register: Callable[[str], Callable[[type], type]]
    conflicts: list[tuple[str, type, type]] = field(default_factory=list)

    def __call__(self, name: str) -> Callable[[type], type]:
        def decorate(cls: type) -> type:
            known = self.modules.get(name)
            if known is None:
                return self.register(name)(cls)
            if _origin(known) == _origin(cls):
                return cls
            self.conflicts.append((name, known, cls))
            return self.register(name)(cls)

        return decorate

    def check(self, where: object) -> None:
        """Raise for the first name that two classes wanted.

        Raises
        ------
        InputError
            It names both; ``where`` is the folder of extensions.
        """
        conflicts, self.conflicts = self.conflicts, []
        for name, first, second in conflicts:
            found = f"two modules of this name, {_origin(first)} and {_origin(second)}"
            raise InputError(where, name, found, "one: disable a folder by the ending _disabled")


def _origin(cls: Any) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
