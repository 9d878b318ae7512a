"""Packages that threestudio imports always and few configs use: stand-ins that fail on use."""

from __future__ import annotations

from dataclasses import dataclass

from . import patching
from .absent import missing, why_absent
from .remedy import Remedy


@dataclass(frozen=True)
class _Package:
    """A package, the names that threestudio takes from it, and what it uses them in."""

    name: str
    contents: tuple[str, ...]
    used_by: str

    @property
    def hint(self) -> str:
        return f"pip install {self.name}"

    def reason(self, device: str) -> str | None:
        return why_absent(self.name)

    def apply(self, device: str) -> None:
        contents = {name: missing(self.name, name, self.hint) for name in self.contents}
        patching.add_module(self.name, patching.new_module(self.name, **contents))

    def remedy(self) -> Remedy:
        return Remedy(
            name=self.name,
            stands_in_for=f"{self.name}, which threestudio imports always and uses in "
            f"{self.used_by}; there its use is an error.",
            reason=self.reason,
            apply=self.apply,
            hint=self.hint,
        )


REMEDIES = [
    package.remedy()
    for package in (
        _Package("controlnet_aux", ("CannyDetector", "NormalBaeDetector"), "ControlNet"),
        _Package("envlight", ("EnvLight",), "the PBR material"),
        _Package("wandb", ("Image", "Video", "log", "init"), "its Weights & Biases logger"),
    )
]
