"""``occlusion-mesh-exporter`` for threestudio itself; the embedded host has its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from eeg_encoder.errors import InputError

from .host import find, register
from .occlusion import SURFACE, checked, occlusion

if TYPE_CHECKING:
    from .builtin.exporter import MeshExporter
else:
    MeshExporter = find("mesh-exporter")


@register("occlusion-mesh-exporter")
class OcclusionMeshExporter(MeshExporter):
    """threestudio's ``mesh-exporter`` with the surface of
    :class:`~threestudio_eeg.builtin.exporter.OcclusionMeshExporter`.

    It needs ``isosurface_method: mc-cpu``, whose points are a lattice.

    Raises
    ------
    InputError
        When ``occlusion`` is not between 0 and 1, nothing is occluded that much, or the points are
        no lattice.
    """

    @dataclass
    class Config(MeshExporter.Config):
        occlusion: float = SURFACE

    cfg: Config

    def configure(self, geometry: Any, material: Any, background: Any) -> None:
        super().configure(geometry, material, background)
        level = checked(self.cfg.occlusion)
        if hasattr(geometry, "forward_density"):
            _use_occlusion(geometry, level)


def _use_occlusion(geometry: Any, least: float) -> None:
    """Let one of threestudio's implicit geometries look for its surface by occlusion.

    Its ``_isosurface`` asks ``forward_level`` once about all points of a box.
    """
    method, n = geometry.cfg.isosurface_method, geometry.cfg.isosurface_resolution
    if method != "mc-cpu":
        expected = "mc-cpu for occlusion-mesh-exporter: points on a lattice"
        raise InputError("system.geometry", "isosurface_method", method, expected)

    def isosurface(bbox: Tensor, fine_stage: bool = False) -> Any:
        spacing = ((bbox[1] - bbox[0]) / (n - 1)).tolist()

        def level(density: Tensor, threshold: float) -> Tensor:
            occluded = occlusion(density.view(n, n, n), spacing)
            if float(occluded.max()) <= least:
                found = f"{least:g}, with values up to {float(occluded.max()):.4g}"
                expected = "below the largest (this isosurface is empty)"
                raise InputError("system.exporter", "occlusion", found, expected)
            return (least - occluded).view(-1, 1)

        geometry.forward_level = level
        return type(geometry)._isosurface(geometry, bbox, fine_stage)

    geometry._isosurface = isosurface
