"""Triangle meshes as pictures, in plain torch, with gradients to the vertices.

Which triangle a pixel shows is decided hard. Inside a triangle, attributes follow the vertices
through the perspective-correct weights of homogeneous rasterisation (Olano & Greer 1997). Where
the object ends or covers itself, :class:`.Silhouettes` blends.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .silhouettes import LEAST_W, Silhouettes, cross, to_screen
from .surface_mesh import SurfaceMesh


def to_clip(points: Tensor, mvp_mtx: Tensor) -> Tensor:
    """Homogeneous positions (B, V, 4) of points (V, 3), by matrices (B, 4, 4)."""
    return torch.cat((points, torch.ones_like(points[:, :1])), dim=-1) @ mvp_mtx.transpose(1, 2)


class TorchRaster:
    """One mesh in B pictures.

    Parameters
    ----------
    mesh
        The surface.
    clip
        Its vertices in clip space with y down, (B, V, 4).
    height, width
        Of the pictures.
    """

    def __init__(self, mesh: SurfaceMesh, clip: Tensor, height: int, width: int) -> None:
        self.mesh, self.clip = mesh, clip
        self.shape = (len(clip), height, width)
        self.screen = to_screen(clip, height, width)
        pixels, triangles, depth = self._visible()
        self.depth = depth.view(self.shape)
        self.covered = self.depth < torch.inf
        self.corners = mesh.t_pos_idx[triangles]
        self.weights = self._barycentric(pixels, triangles)
        self._silhouettes = Silhouettes(mesh, self.screen, self.depth)

    def interpolate(self, attribute: Tensor) -> Tensor:
        """Values (P, C) at the covered pixels, in their order, of an attribute (V, C)."""
        return (attribute[self.corners] * self.weights[..., None]).sum(1)

    def antialias(self, picture: Tensor) -> Tensor:
        """Blend a picture (B, H, W, C) along the silhouettes."""
        return self._silhouettes.antialias(picture)

    @torch.no_grad()
    def _visible(self) -> tuple[Tensor, Tensor, Tensor]:
        """Covered pixels (P,), rising, their triangles (P,), and all depths (B * H * W,)."""
        batch, height, width = self.shape
        picture, triangle, x, y = self._candidates()
        pixel = (picture * height + y) * width + x
        weights, depth = self._inside(picture, triangle, x, y)
        hit = (weights >= 0).all(-1) & (depth >= -1) & (depth <= 1)
        pixel, triangle, depth = pixel[hit], triangle[hit], depth[hit]
        nearest = depth.new_full((batch * height * width,), torch.inf)
        nearest = nearest.scatter_reduce(0, pixel, depth, "amin")
        front = depth == nearest[pixel]
        owner = torch.full_like(nearest, len(self.mesh.t_pos_idx), dtype=torch.long)
        owner = owner.scatter_reduce(0, pixel[front], triangle[front], "amin")
        pixels = (nearest < torch.inf).nonzero().squeeze(1)
        return pixels, owner[pixels], nearest

    def _candidates(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Picture, triangle and pixel x, y (N,) for every pixel centre in a triangle's box."""
        _, height, width = self.shape
        faces = self.mesh.t_pos_idx
        corners = self.screen[:, faces, :2]
        limit = self.screen.new_tensor([width, height])
        low = (corners.amin(2) - 0.5).ceil().clamp(min=0).minimum(limit).long()
        high = (corners.amax(2) - 0.5).floor().clamp(min=-1).minimum(limit - 1).long()
        size = (high - low + 1).clamp(min=0)
        size = size * (self.screen[:, faces, 3] > LEAST_W).all(2)[..., None]
        count = (size[..., 0] * size[..., 1]).reshape(-1)
        owner = torch.arange(len(count), device=count.device).repeat_interleave(count)
        within = torch.arange(len(owner), device=count.device)
        within = within - (count.cumsum(0) - count).repeat_interleave(count)
        low, size = low.view(-1, 2)[owner], size.view(-1, 2)[owner]
        x, y = low[:, 0] + within % size[:, 0], low[:, 1] + within // size[:, 0]
        return owner // len(faces), owner % len(faces), x, y

    def _inside(
        self, picture: Tensor, triangle: Tensor, x: Tensor, y: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Barycentric weights (N, 3) of pixel centres, negative outside, and depths (N,)."""
        _, height, width = self.shape
        corners = self.clip[picture[:, None], self.mesh.t_pos_idx[triangle]]
        place = torch.stack(((x + 0.5) / width * 2 - 1, (y + 0.5) / height * 2 - 1), dim=-1)
        a, b, c = (corners[..., :2] - place[:, None] * corners[..., 3:]).unbind(1)
        edges = torch.stack((cross(b, c), cross(c, a), cross(a, b)), dim=-1)
        total = edges.sum(-1, keepdim=True)
        weights = edges / torch.where(total == 0, torch.nan, total)
        z, w = (weights[..., None] * corners[..., 2:]).sum(1).unbind(-1)
        return weights, z / w

    def _barycentric(self, pixels: Tensor, triangles: Tensor) -> Tensor:
        """Weights (P, 3) of the covered pixels, with gradients."""
        _, height, width = self.shape
        y, x = pixels // width % height, pixels % width
        return self._inside(pixels // (height * width), triangles, x, y)[0]
