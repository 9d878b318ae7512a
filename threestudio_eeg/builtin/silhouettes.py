"""Where a mesh ends or covers itself in a picture: pixels blended along it, with gradients.

Neighbouring pixels are blended by where the silhouette crosses the line between their centres, as
in nvdiffrast's antialiasing (Laine et al. 2020). That looks at the edges of the triangles that the
pixels show; here it is the silhouette's own edges, so that triangles may be smaller than a pixel.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .surface_mesh import SurfaceMesh

LEAST_W = 1e-6
SAME_DEPTH = 1e-6


def to_screen(clip: Tensor, height: int, width: int) -> Tensor:
    """Pixels x, y (y down), depth and w, (B, V, 4), of homogeneous positions (B, V, 4)."""
    flat = clip[..., :3] / clip[..., 3:].clamp(min=LEAST_W)
    size = clip.new_tensor([width, height])
    return torch.cat(((flat[..., :2] + 1) / 2 * size, flat[..., 2:], clip[..., 3:]), dim=-1)


@dataclass
class Blends:
    """Pixels ``into`` (K,) get ``weights`` (K,) of what pixels ``of`` (K,) show."""

    into: Tensor
    of: Tensor
    weights: Tensor


class Silhouettes:
    """Of one mesh in B pictures.

    Parameters
    ----------
    mesh
        The surface.
    screen
        Where its vertices are in them, :func:`to_screen`, (B, V, 4).
    depth
        ``z / w`` at the pixels' centres, infinite where nothing is, (B, H, W).
    """

    def __init__(self, mesh: SurfaceMesh, screen: Tensor, depth: Tensor) -> None:
        self.mesh, self.screen = mesh, screen
        self.shape = depth.shape
        self.depth = depth.detach().reshape(-1)
        self.blends = self._find()

    def antialias(self, picture: Tensor) -> Tensor:
        """Blend a picture (B, H, W, C) along the silhouettes."""
        flat, blends = picture.reshape(-1, picture.shape[-1]), self.blends
        change = blends.weights[:, None] * (flat[blends.of] - flat[blends.into])
        return flat.index_add(0, blends.into, change).view(picture.shape)

    def _find(self) -> Blends:
        picture, edge = self._edges()
        ends = self.screen[picture[:, None], self.mesh.edges.vertices[edge]]
        apex = self.screen[picture, self.mesh.edges.opposite[edge]]
        steep = _steep(ends)
        parts = [
            self._crossings(picture[chosen], ends[chosen], apex[chosen], along)
            for chosen, along in ((steep, 0), (~steep, 1))
        ]
        return Blends(*(torch.cat(values) for values in zip(*parts, strict=True)))

    @torch.no_grad()
    def _edges(self) -> tuple[Tensor, Tensor]:
        """Pictures and edges (N,) where a side that faces the camera meets one that does not."""
        edges, faces = self.mesh.edges, self.mesh.t_pos_idx
        a, b, c = self.screen[:, faces, :2].unbind(2)
        facing = cross(b - a, c - a) > 0
        border = edges.faces[:, 1] < 0
        turned = facing[:, edges.faces[:, 0]] != facing[:, edges.faces[:, 1].clamp(min=0)]
        ahead = (self.screen[:, edges.vertices, 3] > LEAST_W).all(-1)
        picture, edge = ((turned | border) & ahead).nonzero().unbind(1)
        return picture, edge

    def _crossings(
        self, picture: Tensor, ends: Tensor, apex: Tensor, along: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Blends of pixels that are neighbours along x (0) or y (1) and have an edge between them.

        ``ends`` (N, 2, 4) and ``apex`` (N, 4) are on the screen.
        """
        across = 1 - along
        sizes = (self.shape[2], self.shape[1])
        low = (ends[..., across].amin(1) - 0.5).ceil().clamp(0, sizes[across]).detach().long()
        high = (ends[..., across].amax(1) - 0.5).ceil().clamp(0, sizes[across]).detach().long()
        count = (high - low).clamp(min=0)
        owner = torch.arange(len(count), device=count.device).repeat_interleave(count)
        line = torch.arange(len(owner), device=count.device)
        line = line - (count.cumsum(0) - count).repeat_interleave(count) + low[owner]
        start, end = ends[owner].unbind(1)
        run = (end - start)[:, across]
        share = (line + 0.5 - start[:, across]) / run
        crossing = torch.lerp(start[:, along], end[:, along], share)
        depth = torch.lerp(start[:, 2], end[:, 2], share).detach()
        before = (crossing.detach() - 0.5).floor().long()
        place = (apex[owner][:, across] - start[:, across]) / run
        at_apex = torch.lerp(start[:, along], end[:, along], place)
        surface_before = (apex[owner][:, along] < at_apex).detach()
        inside = (before >= 0) & (before + 1 < sizes[along])
        first = self._pixel(picture[owner], before, line, along)
        second = self._pixel(picture[owner], before + 1, line, along)
        surface = torch.where(surface_before, first, second)
        beyond = torch.where(surface_before, second, first)
        chosen = self._nearest(inside, surface, beyond, first, depth)
        offset = crossing - (before + 0.5)
        reach = torch.where(surface_before, offset, 1 - offset)[chosen]
        surface, beyond = surface[chosen], beyond[chosen]
        spills = reach.detach() > 0.5
        into, of = torch.where(spills, beyond, surface), torch.where(spills, surface, beyond)
        return into, of, (reach - 0.5).abs()

    def _pixel(self, picture: Tensor, place: Tensor, line: Tensor, along: int) -> Tensor:
        _, height, width = self.shape
        x, y = (place, line) if along == 0 else (line, place)
        x, y = x.clamp(0, width - 1), y.clamp(0, height - 1)
        return (picture * height + y) * width + x

    @torch.no_grad()
    def _nearest(
        self, inside: Tensor, surface: Tensor, beyond: Tensor, pair: Tensor, depth: Tensor
    ) -> Tensor:
        """Crossings whose surface is seen and lies before what is beyond: one a pair of pixels."""
        seen = inside & (self.depth[surface] < torch.inf)
        seen &= self.depth[beyond] > depth + SAME_DEPTH
        rows = seen.nonzero().squeeze(1)
        nearest = torch.full_like(self.depth, torch.inf)
        nearest = nearest.scatter_reduce(0, pair[rows], depth[rows], "amin")
        rows = rows[depth[rows] == nearest[pair[rows]]]
        first = torch.full_like(self.depth, len(pair), dtype=torch.long)
        first = first.scatter_reduce(0, pair[rows], rows, "amin")
        return rows[first[pair[rows]] == rows]


def cross(a: Tensor, b: Tensor) -> Tensor:
    """Third coordinate of the cross product of vectors (..., 2)."""
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]


def _steep(ends: Tensor) -> Tensor:
    """Which edges (N, 2, 4) go more down than across the screen."""
    run = (ends[:, 1] - ends[:, 0]).detach().abs()
    return run[:, 1] >= run[:, 0]
