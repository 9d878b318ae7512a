"""A triangle mesh with the normals, edges and smoothness terms of its vertices."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from .isosurface import Mesh

LEAST_AREA = 1e-10
"""Twice the area around a vertex below which rounding decides where its normal points."""


@dataclass
class Edges:
    """Edges of a mesh, once each.

    ``vertices`` (E, 2), the smaller number first; ``faces`` (E, 2), the triangles on its sides, -1
    for none; ``opposite`` (E,), the first triangle's third vertex.
    """

    vertices: Tensor
    faces: Tensor
    opposite: Tensor


class SurfaceMesh(Mesh):
    """Triangles whose vertices carry gradients."""

    @cached_property
    def v_nrm(self) -> Tensor:
        """Unit normals at the vertices (V, 3): the mean of the faces', by area, outwards.

        Where the faces have no area it is (0, 0, 1), as in threestudio, and has no gradient: that
        of a direction grows without bound as the area vanishes.
        """
        a, b, c = self.v_pos[self.t_pos_idx].unbind(1)
        face = torch.cross(b - a, c - a, dim=-1)
        total = torch.zeros_like(self.v_pos)
        for corner in self.t_pos_idx.unbind(1):
            total = total.index_add(0, corner, face)
        known = total.detach().norm(dim=-1, keepdim=True) > LEAST_AREA
        return F.normalize(torch.where(known, total, total.new_tensor([0.0, 0.0, 1.0])), dim=-1)

    @cached_property
    def edges(self) -> Edges:
        """The edges, found by sorting the triangles' sides."""
        a, b, c = self.t_pos_idx.unbind(1)
        start, end = torch.cat((a, b, c)), torch.cat((b, c, a))
        low, high = torch.minimum(start, end), torch.maximum(start, end)
        key, order = (low * len(self.v_pos) + high).sort(stable=True)
        face = torch.arange(len(a), device=a.device).repeat(3)[order]
        same = key[1:] == key[:-1]
        first = torch.cat((same.new_ones(1), ~same)) if len(key) else same
        paired = torch.cat((same, same.new_zeros(1))) if len(key) else same
        other = torch.where(paired, face.roll(-1), -1)
        vertices = torch.stack((low[order], high[order]), dim=-1)
        opposite = torch.cat((c, a, b))[order]
        return Edges(vertices[first], torch.stack((face, other), dim=-1)[first], opposite[first])

    def normal_consistency(self) -> Tensor:
        """Mean over edges of one minus the cosine between the normals at their ends."""
        start, end = self.edges.vertices.unbind(1)
        return (1 - F.cosine_similarity(self.v_nrm[start], self.v_nrm[end], dim=-1)).mean()

    def laplacian(self) -> Tensor:
        """Mean distance of a vertex from the mean of its neighbours (uniform Laplacian)."""
        start, end = self.edges.vertices.unbind(1)
        total = torch.zeros_like(self.v_pos)
        total = total.index_add(0, start, self.v_pos[end]).index_add(0, end, self.v_pos[start])
        ones = torch.ones_like(self.v_pos[:, :1])
        count = torch.zeros_like(ones).index_add(
            0, torch.cat((start, end)), ones[:1].expand(2 * len(start), 1)
        )
        offset = total / count.clamp(min=1) - self.v_pos
        return (offset.square().sum(-1) + 1e-20).sqrt().mean()
