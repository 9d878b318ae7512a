"""Pictures and meshes of solids, seen from threestudio's cameras.

Surfaces are lit by a sky fixed in the world, so a point looks the same from everywhere and a
radiance field without view dependence can hold it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .solids import RADIUS, Solids

FOVY = 40.0
DISTANCE = (1.9, 2.1)
ELEVATION = (-10.0, 45.0)
MARCH_STEPS = 40
SIDES = ("front", "right", "back", "left")


@dataclass
class Cameras:
    """Places of B cameras that look at the origin: degrees (B,), degrees (B,), distance (B,)."""

    elevation: Tensor
    azimuth: Tensor
    distance: Tensor

    def __len__(self) -> int:
        return len(self.elevation)

    def to(self, device: str | torch.device) -> Cameras:
        return Cameras(*(value.to(device) for value in vars(self).values()))

    def select(self, index: Tensor | slice) -> Cameras:
        return Cameras(*(value[index] for value in vars(self).values()))


def random_cameras(n: int, generator: torch.Generator) -> Cameras:
    """``n`` cameras as the phantom's random-camera-datamodule draws them."""
    return _draw(n, generator, ELEVATION, (-180.0, 180.0), DISTANCE)


def stimulus_cameras(n: int, generator: torch.Generator) -> Cameras:
    """Cameras of stimulus pictures: near the front, a little from above."""
    return _draw(n, generator, (5.0, 25.0), (-50.0, 50.0), (2.0, 2.0))


def _draw(n: int, generator: torch.Generator, *ranges: tuple[float, float]) -> Cameras:
    draws = (torch.rand(n, generator=generator) for _ in ranges)
    return Cameras(*(low + (high - low) * u for (low, high), u in zip(ranges, draws, strict=True)))


def view_word(elevation: float, azimuth: float) -> str:
    """threestudio's word for a view: overhead above 60°, front and back within 45°, else side."""
    if elevation > 60:
        return "overhead"
    turn = (azimuth + 180.0) % 360.0 - 180.0
    return "front" if abs(turn) < 45 else "back" if abs(turn) > 135 else "side"


def side_index(azimuth: Tensor) -> Tensor:
    """Index into :data:`SIDES` of azimuths in degrees, each side 90° wide.

    A camera at azimuth 90° stands at +y and sees the side that is on the right in the front view.
    """
    return torch.round(azimuth / 90.0).long() % 4


def camera_rays(cameras: Cameras, size: int, fovy: float = FOVY) -> tuple[Tensor, Tensor]:
    """Origins (B, 3) and unit directions (B, size * size, 3), rows from the top."""
    elevation, azimuth = (
        angle * (math.pi / 180.0) for angle in (cameras.elevation, cameras.azimuth)
    )
    out = torch.stack(
        [
            elevation.cos() * azimuth.cos(),
            elevation.cos() * azimuth.sin(),
            elevation.sin(),
        ],
        dim=-1,
    )
    up = torch.tensor([0.0, 0.0, 1.0], device=out.device).expand_as(out)
    right = torch.nn.functional.normalize(torch.linalg.cross(-out, up, dim=-1), dim=-1)
    up = torch.linalg.cross(right, -out, dim=-1)
    half = math.tan(math.radians(fovy) / 2)
    steps = (torch.arange(size, device=out.device) + 0.5) / size * 2 - 1
    y, x = torch.meshgrid(-steps, steps, indexing="ij")
    x, y = x.flatten()[None, :, None] * half, y.flatten()[None, :, None] * half
    directions = -out[:, None] + x * right[:, None] + y * up[:, None]
    return out * cameras.distance[:, None], torch.nn.functional.normalize(directions, dim=-1)


def render(solids: Solids, cameras: Cameras, size: int, *, supersample: int = 2) -> Tensor:
    """Pictures (B, 4, size, size) of B solids from B cameras: colour and coverage in [0, 1].

    Colour is straight, not multiplied by coverage. Sphere tracing inside the bounding sphere,
    ``supersample``² rays a pixel.
    """
    fine = size * supersample
    origins, directions = camera_rays(cameras, fine)
    depth, hit = trace(solids, origins, directions)
    seen = hit.any(0).nonzero()[:, 0]
    surface = (origins[:, None] + depth[..., None] * directions)[:, seen]
    rgba = torch.zeros(*hit.shape, 4, device=hit.device)
    rgba[:, seen] = torch.cat(
        [_shade(solids, surface) * hit[:, seen, None], hit[:, seen, None].float()], dim=-1
    )
    rgba = rgba.view(len(solids), fine, fine, 4).permute(0, 3, 1, 2)
    rgba = torch.nn.functional.avg_pool2d(rgba, supersample)
    return torch.cat([rgba[:, :3] / rgba[:, 3:].clamp(min=1e-3), rgba[:, 3:]], dim=1).clamp(0, 1)


def over(rgba: Tensor, background: Tensor) -> Tensor:
    """Pictures (B, 3, H, W) of ``rgba`` (B, 4, H, W) on flat backgrounds (B, 3)."""
    return rgba[:, :3] * rgba[:, 3:] + background[:, :, None, None] * (1 - rgba[:, 3:])


def trace(solids: Solids, origins: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
    """Depth (B, N) of the first surface along rays from ``origins`` (B, 3) in unit
    ``directions`` (B, N, 3), and whether there is one; by the Triton kernel on a GPU."""
    near, far = _sphere_interval(origins, directions)
    if directions.is_cuda:
        from . import solids_triton

        return solids_triton.trace(solids, origins, directions, near, far, MARCH_STEPS)
    return trace_reference(solids, origins, directions, near, far, MARCH_STEPS)


def trace_reference(
    solids: Solids, origins: Tensor, directions: Tensor, near: Tensor, far: Tensor, steps: int
) -> tuple[Tensor, Tensor]:
    """:func:`trace` in torch, from ``near`` to ``far`` (B, N).

    Settled rays are left out as it goes. A ray stops within 0.001 of the surface; it hit when it
    ends within 0.003 before ``far``.
    """
    depth, hit = near.clone(), torch.zeros_like(near, dtype=torch.bool)
    alive = near < far
    for step in range(steps):
        if step % 4 == 0:
            rays = alive.any(0).nonzero()[:, 0]
            if not len(rays):
                break
            start, along, limit = origins[:, None], directions[:, rays], far[:, rays]
        t = depth[:, rays]
        distance = solids.distance(start + t[..., None] * along)
        t = torch.where(alive[:, rays], t + 0.9 * distance, t)
        depth[:, rays] = t
        hit[:, rays] = distance < 3e-3
        alive[:, rays] &= (distance.abs() > 1e-3) & (t < limit)
    return depth, hit & (depth < far) & (near < far)


def _sphere_interval(origins: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
    b = (origins[:, None] * directions).sum(-1)
    c = origins.square().sum(-1)[:, None] - (1.03 * RADIUS) ** 2
    root = (b.square() - c).clamp(min=0).sqrt()
    return -b - root, -b + root


def _shade(solids: Solids, points: Tensor) -> Tensor:
    _, part = solids.distance_and_part(points)
    normal = solids.normal(points)
    light = 0.68 + 0.24 * normal[..., 2:] + 0.08 * normal[..., :1]
    return (solids.colour_at(part) * light).clamp(0, 1)


def mesh_of(solids: Solids, index: int = 0, resolution: int = 128) -> Any:
    """Watertight ``trimesh.Trimesh`` with vertex colours of one solid, by marching cubes."""
    import trimesh
    from skimage.measure import marching_cubes

    one = solids.select(slice(index, index + 1))
    side = torch.linspace(-1.05 * RADIUS, 1.05 * RADIUS, resolution)
    grid = torch.stack(torch.meshgrid(side, side, side, indexing="ij"), dim=-1).view(1, -1, 3)
    field = torch.cat([one.distance(chunk) for chunk in grid.split(1 << 18, dim=1)], dim=1)
    spacing = (float(side[1] - side[0]),) * 3
    volume = field.view(resolution, resolution, resolution).numpy()
    vertices, faces, _, _ = marching_cubes(volume, 0.0, spacing=spacing)
    vertices = torch.from_numpy(np.ascontiguousarray(vertices)).float() + side[0]
    shade = _shade(one, vertices[None])[0]
    mesh = trimesh.Trimesh(vertices.numpy(), faces[:, ::-1], process=True)
    if len(mesh.vertices) == len(shade):
        colours = (shade.numpy() * 255).round().astype(np.uint8)
        mesh.visual = trimesh.visual.ColorVisuals(mesh, vertex_colors=colours)
    if mesh.volume < 0:
        mesh.invert()
    return mesh
