"""What one remedy is: a condition, a change to this process, and words for the user."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

DEVICES = ("cpu", "cuda")


@dataclass(frozen=True)
class Remedy:
    """Something that upstream threestudio needs and this Python does not give it.

    Attributes
    ----------
    name
        Short, unique, as it is printed.
    stands_in_for
        One sentence: what upstream expects, and what it gets instead.
    reason
        Maps a device (``"cpu"`` or ``"cuda"``) to why the remedy is needed there; ``None`` where
        the real thing works. Changes nothing.
    apply
        Makes the change, for a device.
    hint
        How to do without the remedy: the package to install, the version to use.
    after_import
        Whether it changes threestudio's own modules, and so runs after they are imported.
    """

    name: str
    stands_in_for: str
    reason: Callable[[str], str | None]
    apply: Callable[[str], None]
    hint: str
    after_import: bool = False


@dataclass(frozen=True)
class Applied:
    """A remedy in force in this process, and why."""

    remedy: Remedy
    reason: str

    @property
    def name(self) -> str:
        return self.remedy.name


def on_cpu_only(reason: str) -> Callable[[str], str | None]:
    """A condition that holds on a CPU and not on a GPU."""
    return lambda device: reason if device == "cpu" else None


def always(reason: str) -> Callable[[str], str | None]:
    """A condition that holds with every library this package supports."""
    return lambda device: reason
