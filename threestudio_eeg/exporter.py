"""``occlusion-mesh-exporter``: a field's mesh with the surface that its pictures show."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from eeg_encoder.errors import InputError

from . import host
from .host import find, register
from .occlusion import checked, occlusion

if TYPE_CHECKING:
    from .builtin.exporter import MeshExporter
else:
    MeshExporter = find("mesh-exporter")


@register("occlusion-mesh-exporter")
class OcclusionMeshExporter(MeshExporter):
    """The active host's ``mesh-exporter``; the surface of a density is where light is lost.

    A point is inside when more than ``occlusion`` of the light is lost on its clearest way out
    (:func:`~threestudio_eeg.occlusion.occlusion`). No threshold of the density needs to be found,
    thin translucent parts and the voids that pictures do not show come out as they look, and the
    same value serves fields of any density. ``isosurface_threshold`` is not used, except for a
    geometry without a density (signed distances, a mesh), which is meshed as ever.

    On threestudio, it needs ``isosurface_method: mc-cpu``, whose points are a lattice.

    Raises
    ------
    InputError
        When ``occlusion`` is not between 0 and 1, nothing is occluded that much, or the points are
        no lattice.
    """

    @dataclass
    class Config(MeshExporter.Config):
        occlusion: float = 0.3

    cfg: Config

    def configure(self, geometry: Any, material: Any, background: Any) -> None:
        super().configure(geometry, material, background)
        level = checked(self.cfg.occlusion)
        if not hasattr(geometry, "forward_density"):
            return
        if host.name == "builtin":
            geometry.surface_occlusion = level
        else:
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
