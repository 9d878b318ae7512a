"""What every renderer has of the system: its geometry, material and background."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .base import BaseModule


@dataclass
class _Parts:
    """The system's own modules: kept outside the renderer's registered children."""

    geometry: Any
    material: Any
    background: Any


class Renderer(BaseModule):
    """A renderer of the system's modules, which it neither trains nor saves."""

    _parts: _Parts

    def _use(self, geometry: Any, material: Any, background: Any) -> None:
        self._parts = _Parts(geometry, material, background)

    @property
    def geometry(self) -> Any:
        return self._parts.geometry

    @property
    def material(self) -> Any:
        return self._parts.material

    @property
    def background(self) -> Any:
        return self._parts.background
