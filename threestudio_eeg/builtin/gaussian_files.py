"""Splats as ply files in the layout of the reference implementation; ``gaussian-mesh-exporter``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eeg_encoder.errors import InputError
from threestudio_eeg.occlusion import checked

from .exporter import ExporterOutput, MeshExporter
from .registry import register

SH_C0 = 0.28209479177387814
"""Value of the zeroth spherical harmonic: a colour is ``0.5 + SH_C0 * f_dc``."""
COLUMNS = {
    "_xyz": ("x", "y", "z"),
    "_features_dc": ("f_dc_0", "f_dc_1", "f_dc_2"),
    "_opacity": ("opacity",),
    "_scaling": ("scale_0", "scale_1", "scale_2"),
    "_rotation": ("rot_0", "rot_1", "rot_2", "rot_3"),
}
NORMALS = ("nx", "ny", "nz")
END = b"end_header\n"
LONGEST_HEADER = 1 << 16


class SplatFile:
    """Splats to write, with the method by which a ``trimesh.Trimesh`` is written."""

    def __init__(self, stored: dict[str, Tensor]) -> None:
        self.stored = stored

    def export(self, path: str | Path, file_type: str = "ply") -> None:
        """Write binary ply: positions, normals (zero), colours, opacity, scales, rotations."""
        names = [name for columns in COLUMNS.values() for name in columns]
        names[3:3] = NORMALS
        table = np.zeros(len(self.stored["_xyz"]), [(name, "<f4") for name in names])
        for tensor, columns in COLUMNS.items():
            values = self.stored[tensor].flatten(1).float().cpu().numpy()
            for i, column in enumerate(columns):
                table[column] = values[:, i]
        lines = ["ply", "format binary_little_endian 1.0", f"element vertex {len(table)}"]
        lines += [f"property float {name}" for name in names]
        Path(path).write_bytes("\n".join(lines).encode() + b"\n" + END + table.tobytes())


def read_splats(path: str | Path) -> dict[str, Tensor]:
    """Read a ply file of splats; what it holds beyond the first harmonic is left out.

    Raises
    ------
    InputError
        When the file is missing, no binary ply, cut short, or lacks a column.
    """
    expected = "a binary ply file of splats"
    if not Path(path).is_file():
        raise InputError(path, "file", "no such file", expected)
    data = Path(path).read_bytes()
    end = data.find(END, 0, LONGEST_HEADER)
    header = data[: max(end, 0)].decode("ascii", "replace").split("\n")
    if header[:2] != ["ply", "format binary_little_endian 1.0"]:
        raise InputError(path, "header", header[0][:20] or "nothing", expected)
    counts = [line.split()[2] for line in header if line.startswith("element vertex ")]
    properties = [line.split() for line in header if line.startswith("property ")]
    if len(counts) != 1 or not counts[0].isdigit() or any(p[1] != "float" for p in properties):
        raise InputError(path, "header", "other elements or types", "one table of floats")
    kind = np.dtype([(words[-1], "<f4") for words in properties])
    body, n = data[end + len(END) :], int(counts[0])
    for column in (name for columns in COLUMNS.values() for name in columns):
        if column not in (kind.names or ()):
            raise InputError(path, column, "no such column", expected)
    if len(body) < n * kind.itemsize:
        raise InputError(path, "size", f"{len(body)} bytes", f"{n * kind.itemsize} for {n} splats")
    table = np.frombuffer(body, kind, n)
    stored = {
        tensor: torch.from_numpy(np.stack([table[c] for c in columns], axis=1))
        for tensor, columns in COLUMNS.items()
    }
    return {**stored, "_features_dc": stored["_features_dc"][:, None]}


@register("gaussian-mesh-exporter")
class GaussianMeshExporter(MeshExporter):
    """The surface of 3D Gaussians, coloured by the nearest splats, and the splats as they are.

    The splats keep the world's axes, whatever ``fmt`` is. A field of our own: ``occlusion``, where
    the surface is, as ``occlusion-mesh-exporter`` has it; null is ``isosurface_threshold``.
    """

    @dataclass
    class Config(MeshExporter.Config):
        occlusion: float | None = None

    def configure(self, geometry: Any, material: Any, background: Any) -> None:
        super().configure(geometry, material, background)
        level = self.cfg.occlusion
        geometry.surface_occlusion = None if level is None else checked(level)

    def __call__(self) -> list[ExporterOutput]:
        splats = SplatFile(self.geometry.stored())
        return [*super().__call__(), ExporterOutput(f"{self.cfg.save_name}-splats.ply", splats)]

    def _colours(self, points: Tensor) -> np.ndarray | None:
        albedo = self.geometry.export(points=points)["albedo"]
        rgb = (albedo.float() * 255).round().to(torch.uint8).cpu().numpy()
        return np.concatenate([rgb, np.full((len(rgb), 1), 255, np.uint8)], axis=1)
