"""``nvdiff-rasterizer``: pictures of a mesh, by nvdiffrast on CUDA, else in torch."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from eeg_encoder.errors import InputError

from .mesh_rasteriser import TorchRaster, to_clip
from .registry import register
from .renderer_base import Renderer
from .silhouettes import Silhouettes, to_screen
from .surface_mesh import SurfaceMesh

BACKENDS = ("torch", "nvdiffrast")
CONTEXTS = ("gl", "cuda")
HINT = "torch, or nvdiffrast on a CUDA device (https://github.com/NVlabs/nvdiffrast)"


class NvdiffRaster:
    """One mesh in B pictures by nvdiffrast; the interface of :class:`.TorchRaster`.

    Blended by :class:`.Silhouettes`: where triangles are about as small as pixels, nvdiffrast's own
    antialiasing finds few of the edges, and the shape gets as little of the outlines' gradient.
    """

    def __init__(
        self, mesh: SurfaceMesh, clip: Tensor, height: int, width: int, context: Any
    ) -> None:
        import nvdiffrast.torch as nvdiffrast

        clip = clip.float().contiguous()
        self._module, self._faces = nvdiffrast, mesh.t_pos_idx.int().contiguous()
        self._fragments, _ = nvdiffrast.rasterize(context, clip, self._faces, (height, width))
        self.covered = self._fragments[..., 3] > 0
        depth = torch.where(self.covered, self._fragments[..., 2], torch.inf)
        self._silhouettes = Silhouettes(mesh, to_screen(clip, height, width), depth)

    def interpolate(self, attribute: Tensor) -> Tensor:
        """Values (P, C) at the covered pixels, in their order, of an attribute (V, C)."""
        values, _ = self._module.interpolate(
            attribute[None].float().contiguous(), self._fragments, self._faces
        )
        return values[self.covered]

    def antialias(self, picture: Tensor) -> Tensor:
        """Blend a picture (B, H, W, C) along the silhouettes."""
        return self._silhouettes.antialias(picture)


@register("nvdiff-rasterizer")
class NVDiffRasterizer(Renderer):
    """Rasterisation of a geometry's mesh: normals, and the material's colours.

    A field that threestudio does not have: ``backend``, ``nvdiffrast`` or ``torch``; the default is
    nvdiffrast where it is installed and the mesh is on CUDA. ``context_type`` is nvdiffrast's; its
    versions without OpenGL use CUDA for ``gl`` too.
    """

    @dataclass
    class Config(Renderer.Config):
        radius: float = 1.0
        context_type: str = "gl"
        backend: str | None = None

    where = "nvdiff-rasterizer"

    def configure(self, geometry: Any, material: Any, background: Any) -> None:
        if self.cfg.context_type not in CONTEXTS:
            found = self.cfg.context_type
            raise InputError(self.where, "context_type", found, " or ".join(CONTEXTS))
        if not hasattr(geometry, "surface"):
            expected = "a geometry with a differentiable mesh: tetrahedra-sdf-grid"
            raise InputError(self.where, "geometry", type(geometry).__name__, expected)
        if self.cfg.backend is not None:
            choose_backend(self.cfg.backend, self.device)
        self._use(geometry, material, background)
        self._context: Any = None

    def forward(
        self,
        mvp_mtx: Tensor,
        camera_positions: Tensor,
        light_positions: Tensor,
        height: int,
        width: int,
        rays_d: Tensor | None = None,
        render_rgb: bool = True,
        bg_color: Tensor | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Render pictures.

        Parameters
        ----------
        mvp_mtx
            World-to-clip matrices, y down, (B, 4, 4).
        camera_positions, light_positions
            (B, 3).
        rays_d
            Directions of the pixels, for the background, (B, H, W, 3).
        render_rgb
            Whether to add the colours.
        bg_color
            Instead of the background's colour: (B, 3) or (B, H, W, 3).

        Returns
        -------
        dict
            ``opacity``, ``depth`` (distance to the camera), ``comp_normal`` in [0, 1] as
            (B, H, W, ·), ``mesh``; with colours also ``comp_rgb``, ``comp_rgb_fg``,
            ``comp_rgb_bg``.
        """
        mesh = self.geometry.surface()
        raster = self._raster(mesh, to_clip(mesh.v_pos, mvp_mtx), height, width)
        picture, _, _ = raster.covered.nonzero().unbind(1)
        points = raster.interpolate(mesh.v_pos)
        normal = F.normalize(raster.interpolate(mesh.v_nrm), dim=-1)
        away = points - camera_positions[picture]
        parts = [torch.ones_like(away[:, :1]), away.norm(dim=-1, keepdim=True), (normal + 1) / 2]
        if render_rgb:
            parts.append(self._colours(points, normal, away, light_positions[picture]))
        values = _spread(torch.cat(parts, dim=-1), raster.covered)
        values = raster.antialias(values)
        out = {
            "opacity": values[..., :1],
            "depth": values[..., 1:2],
            "comp_normal": values[..., 2:5],
            "mesh": mesh,
        }
        if render_rgb:
            background = self._background(rays_d, bg_color)
            out["comp_rgb_fg"], out["comp_rgb_bg"] = values[..., 5:], background
            out["comp_rgb"] = values[..., 5:] + background * (1 - values[..., :1])
        return out

    def _colours(self, points: Tensor, normal: Tensor, away: Tensor, light: Tensor) -> Tensor:
        """Colours (P, 3) of surface points; a bare shape is shown by its normals."""
        features = self.geometry(points, output_normal=False)
        if not features:
            return (normal + 1) / 2
        shading = {"shading_normal": normal} if self.material.requires_normal else {}
        colours: Tensor = self.material(
            viewdirs=F.normalize(away, dim=-1),
            positions=points,
            light_positions=light,
            **shading,
            **features,
        )
        return colours

    def _raster(self, mesh: SurfaceMesh, clip: Tensor, height: int, width: int) -> Any:
        if choose_backend(self.cfg.backend, clip.device) == "torch":
            return TorchRaster(mesh, clip, height, width)
        if self._context is None:
            self._context = _make_context(self.cfg.context_type, clip.device)
        return NvdiffRaster(mesh, clip, height, width, self._context)

    def _background(self, rays_d: Tensor | None, bg_color: Tensor | None) -> Tensor:
        if rays_d is None:
            raise InputError(self.where, "rays_d", "nothing", "directions for the background")
        if bg_color is None:
            colour: Tensor = self.background(dirs=F.normalize(rays_d, dim=-1))
            return colour
        if bg_color.dim() == 2:
            return bg_color[:, None, None].expand(*rays_d.shape[:3], -1)
        return bg_color


def choose_backend(wanted: str | None, device: torch.device) -> str:
    """``wanted``, or without one nvdiffrast where it can run, else torch.

    Raises
    ------
    InputError
        For an unknown backend, and for nvdiffrast where it is not installed or there is no CUDA.
    """
    where, name = "nvdiff-rasterizer", "backend"
    if wanted is not None and wanted not in BACKENDS:
        raise InputError(where, name, wanted, " or ".join(BACKENDS))
    installed = importlib.util.find_spec("nvdiffrast") is not None
    if wanted is None:
        return "nvdiffrast" if installed and device.type == "cuda" else "torch"
    if wanted == "nvdiffrast" and not installed:
        raise InputError(where, name, "nvdiffrast, which is not installed", HINT)
    if wanted == "nvdiffrast" and device.type != "cuda":
        found = f"nvdiffrast, which is for CUDA, on a {device.type}"
        raise InputError(where, name, found, HINT)
    return wanted


def _make_context(kind: str, device: torch.device) -> Any:
    import nvdiffrast.torch as nvdiffrast

    if kind == "gl" and hasattr(nvdiffrast, "RasterizeGLContext"):
        return nvdiffrast.RasterizeGLContext(device=device)
    return nvdiffrast.RasterizeCudaContext(device=device)


def _spread(values: Tensor, covered: Tensor) -> Tensor:
    """A picture (B, H, W, C) of values (P, C) at the covered pixels, zero elsewhere."""
    flat = values.new_zeros(covered.numel(), values.shape[-1])
    pixels = covered.reshape(-1).nonzero().squeeze(1)
    return flat.index_copy(0, pixels, values).view(*covered.shape, -1)
