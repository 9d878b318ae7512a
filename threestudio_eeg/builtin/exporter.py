"""A field as a mesh file with vertex colours."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from eeg_encoder.errors import InputError
from threestudio_eeg.occlusion import SURFACE, checked

from .base import BaseObject
from .registry import register

FORMATS = {"obj": "obj", "obj-mtl": "obj", "ply": "ply", "glb": "glb"}

GLTF_FROM_WORLD = np.array([[0, 1, 0, 0], [0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1]], dtype=float)
"""World (z up, front +x) to glTF (y up, front +z): a rotation that maps x to z, y to x, z to y."""


@dataclass
class ExporterOutput:
    """One file to write: its name with suffix, and a ``trimesh.Trimesh``."""

    save_name: str
    mesh: Any


class Exporter(BaseObject):
    """Base of exporters: they hold the field, its material and its background."""

    @dataclass
    class Config(BaseObject.Config):
        save_video: bool = False

    def configure(self, geometry: Any, material: Any, background: Any) -> None:
        self.geometry, self.material, self.background = geometry, material, background

    def __call__(self) -> list[ExporterOutput]:
        """Return what is to be written."""
        raise NotImplementedError


@register("dummy-exporter")
class DummyExporter(Exporter):
    """Write nothing."""

    def __call__(self) -> list[ExporterOutput]:
        return []


@register("mesh-exporter")
class MeshExporter(Exporter):
    """Write the isosurface with the material's colour at each vertex.

    ``fmt`` is obj, ply or glb; threestudio's default obj-mtl is written as obj, its colours on the
    vertices and not in a texture, so the fields about UV and textures change nothing.

    obj and ply keep the world's axes: z up, front +x. glTF demands y up and says that the front
    looks along +z, so a glb is rotated by :data:`GLTF_FROM_WORLD`; viewers then show the object
    upright and from its front. Colours are sRGB values as rendered, 8 bits a channel.
    """

    @dataclass
    class Config(Exporter.Config):
        fmt: str = "obj-mtl"
        save_name: str = "model"
        save_normal: bool = False
        save_uv: bool = True
        save_texture: bool = True
        texture_size: int = 1024
        texture_format: str = "jpg"
        xatlas_chart_options: dict = field(default_factory=dict)
        xatlas_pack_options: dict = field(default_factory=dict)
        context_type: str = "gl"

    def configure(self, geometry: Any, material: Any, background: Any) -> None:
        super().configure(geometry, material, background)
        if self.cfg.fmt not in FORMATS:
            raise InputError("system.exporter", "fmt", self.cfg.fmt, f"one of {', '.join(FORMATS)}")

    def __call__(self) -> list[ExporterOutput]:
        suffix = FORMATS[self.cfg.fmt]
        mesh = self.coloured_mesh()
        if suffix == "glb":
            mesh.apply_transform(GLTF_FROM_WORLD)
        return [ExporterOutput(f"{self.cfg.save_name}.{suffix}", mesh)]

    @torch.no_grad()
    def coloured_mesh(self) -> Any:
        """Return the isosurface as a ``trimesh.Trimesh`` in world axes, colours on its vertices.

        Raises
        ------
        InputError
            When the field is empty at its threshold.
        """
        import trimesh

        surface = self.geometry.isosurface()
        if len(surface.v_pos) == 0 or len(surface.t_pos_idx) == 0:
            raise InputError(
                "system.geometry",
                "isosurface_threshold",
                "an empty surface",
                "a threshold below the field's highest density (or 'auto')",
            )
        colours = self._colours(surface.v_pos)
        return trimesh.Trimesh(
            vertices=surface.v_pos.cpu().numpy(),
            faces=surface.t_pos_idx.cpu().numpy(),
            vertex_colors=colours,
            process=False,
        )

    def _colours(self, points: torch.Tensor) -> np.ndarray | None:
        exported = self.geometry.export(points=points)
        if not exported:
            return None
        material = self.material.export(points=points, **exported)
        if "albedo" not in material:
            return None
        rgb = (material["albedo"].float().clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
        return np.concatenate([rgb, np.full((len(rgb), 1), 255, np.uint8)], axis=1)


@register("occlusion-mesh-exporter")
class OcclusionMeshExporter(MeshExporter):
    """A ``mesh-exporter`` that has the surface of a density where light is lost.

    A point is inside when more than ``occlusion`` of the light is lost on its clearest way out
    (:func:`~threestudio_eeg.occlusion.occlusion`). No threshold of the density needs to be found,
    thin translucent parts and the voids that pictures do not show come out as they look, and the
    same value serves fields of many densities. ``isosurface_threshold`` is not used, except for a
    geometry without a density (signed distances, a mesh), which is meshed as ever.

    Raises
    ------
    InputError
        When ``occlusion`` is not between 0 and 1, or nothing is occluded that much.
    """

    @dataclass
    class Config(MeshExporter.Config):
        occlusion: float = SURFACE

    def configure(self, geometry: Any, material: Any, background: Any) -> None:
        super().configure(geometry, material, background)
        level = checked(self.cfg.occlusion)
        if hasattr(geometry, "forward_density"):
            geometry.surface_occlusion = level
