"""Solids made of parts, as signed distance functions in batches.

A solid is an ordered list of parts; each part is joined to what came before it or cut out of it
(constructive solid geometry). Distances follow I. Quilez's closed forms for the primitives; the
ellipsoid's is a first-order bound, so marching along it takes nine tenths of a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

BOX, ELLIPSOID, CONE, TORUS, PRISM = range(5)
EMPTY = -1
RADIUS = 0.6
FAR = 1e3


@dataclass(frozen=True)
class Part:
    """One primitive, in the solid's frame (z up, front at +x).

    ``size`` by kind: box (half sides, rounding) · ellipsoid (radii) · cone along local z (radius
    below, radius above, half height) · torus about local z (ring radius, tube radius) · triangular
    prism along local y (half width in x, half height in z, half length in y).
    """

    kind: int
    centre: tuple[float, float, float]
    size: tuple[float, ...]
    colour: tuple[float, float, float]
    rotation: Tensor = field(default_factory=lambda: torch.eye(3))
    cut: bool = False

    def scaled(self, factor: float, shift: Tensor) -> Part:
        """This part after ``x -> factor * (x - shift)``."""
        centre = (torch.tensor(self.centre) - shift) * factor
        return replace(
            self,
            centre=tuple(centre.tolist()),
            size=tuple(factor * value for value in self.size),
        )

    def half_box(self) -> Tensor:
        """Half sides (3,) of a box along the axes that holds the part."""
        s = self.size
        local = {
            BOX: lambda: s[:3],
            ELLIPSOID: lambda: s[:3],
            CONE: lambda: (max(s[0], s[1]), max(s[0], s[1]), s[2]),
            TORUS: lambda: (s[0] + s[1], s[0] + s[1], s[1]),
            PRISM: lambda: (s[0], s[2], s[1]),
        }[self.kind]()
        return self.rotation.abs() @ torch.tensor(local, dtype=torch.float32)


def towards(direction: Sequence[float]) -> Tensor:
    """Rotation (3, 3) that takes local z to ``direction``."""
    z = torch.nn.functional.normalize(torch.tensor(direction, dtype=torch.float32), dim=0)
    helper = torch.tensor([0.0, 1.0, 0.0] if abs(z[1]) < 0.9 else [1.0, 0.0, 0.0])
    x = torch.nn.functional.normalize(torch.linalg.cross(helper, z), dim=0)
    return torch.stack([x, torch.linalg.cross(z, x), z], dim=1)


def fit(parts: Sequence[Part], radius: float = RADIUS) -> list[Part]:
    """Centre parts on the origin and scale them into a sphere of ``radius``."""
    joined = [part for part in parts if not part.cut]
    low = torch.stack([torch.tensor(p.centre) - p.half_box() for p in joined]).amin(0)
    high = torch.stack([torch.tensor(p.centre) + p.half_box() for p in joined]).amax(0)
    factor = float(radius / ((high - low) / 2).norm())
    return [part.scaled(factor, (low + high) / 2) for part in parts]


@dataclass
class Solids:
    """B solids of at most P parts: kind (B, P), centre (B, P, 3), rotation (B, P, 3, 3),
    size (B, P, 4), colour (B, P, 3) and cut (B, P); unused places have kind :data:`EMPTY`."""

    kind: Tensor
    centre: Tensor
    rotation: Tensor
    size: Tensor
    colour: Tensor
    cut: Tensor

    def __len__(self) -> int:
        return len(self.kind)

    def to(self, device: str | torch.device) -> Solids:
        return Solids(**{name: value.to(device) for name, value in vars(self).items()})

    def select(self, index: Tensor | slice) -> Solids:
        """The solids at ``index``."""
        return Solids(**{name: value[index] for name, value in vars(self).items()})

    def distance(self, points: Tensor) -> Tensor:
        """Signed distance (B, N) of ``points`` (B, N, 3), negative inside."""
        return self.distance_and_part(points)[0]

    def distance_and_part(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Signed distance (B, N), and the index (B, N) of the part whose surface is nearest."""
        parts = self._part_distances(points)
        distance = torch.full_like(parts[:, 0], FAR)
        nearest = torch.zeros_like(distance, dtype=torch.long)
        for i in range(parts.shape[1]):
            cut = self.cut[:, i, None]
            candidate = torch.where(cut, -parts[:, i], parts[:, i])
            takes = torch.where(cut, candidate > distance, candidate < distance)
            distance = torch.where(takes, candidate, distance)
            nearest = torch.where(takes, i, nearest)
        return distance, nearest

    def colour_at(self, part: Tensor) -> Tensor:
        """Albedo (B, N, 3) of the parts with index (B, N)."""
        return torch.gather(self.colour, 1, part[..., None].expand(-1, -1, 3))

    def normal(self, points: Tensor, step: float = 2e-3) -> Tensor:
        """Outward unit normals (B, N, 3) by differences over a tetrahedron."""
        corners = torch.tensor(
            [[1, -1, -1], [-1, -1, 1], [-1, 1, -1], [1, 1, 1]], dtype=points.dtype
        ).to(points.device)
        gradient = sum(
            corner * self.distance(points + step * corner)[..., None] for corner in corners
        )
        return torch.nn.functional.normalize(gradient, dim=-1)

    def _part_distances(self, points: Tensor) -> Tensor:
        local = torch.einsum(
            "bpji,bpnj->bpni", self.rotation, points[:, None] - self.centre[:, :, None]
        ).flatten(0, 1)
        kind, size = self.kind.flatten(), self.size.flatten(0, 1)
        distance = local.new_full(local.shape[:2], FAR)
        empty_is_cut = self.cut.flatten() & (kind == EMPTY)
        assert not bool(empty_is_cut.any()), "an empty place cannot cut"
        for number, function in _DISTANCES.items():
            chosen = (kind == number).nonzero()[:, 0]
            if len(chosen):
                distance[chosen] = function(local[chosen], size[chosen][:, None])
        return distance.view(*self.kind.shape, -1)


def stack(solids: Sequence[Sequence[Part]]) -> Solids:
    """Several solids as one batch, padded with empty places."""
    n_parts = max(len(parts) for parts in solids)
    batch = Solids(
        kind=torch.full((len(solids), n_parts), EMPTY),
        centre=torch.zeros(len(solids), n_parts, 3),
        rotation=torch.eye(3).repeat(len(solids), n_parts, 1, 1),
        size=torch.ones(len(solids), n_parts, 4),
        colour=torch.zeros(len(solids), n_parts, 3),
        cut=torch.zeros(len(solids), n_parts, dtype=torch.bool),
    )
    for i, parts in enumerate(solids):
        for j, part in enumerate(parts):
            batch.kind[i, j] = part.kind
            batch.centre[i, j] = torch.tensor(part.centre)
            batch.rotation[i, j] = part.rotation
            batch.size[i, j, : len(part.size)] = torch.tensor(part.size)
            batch.colour[i, j] = torch.tensor(part.colour)
            batch.cut[i, j] = part.cut
    return batch


def _box(p: Tensor, size: Tensor) -> Tensor:
    rounding = size[..., 3]
    q = p.abs() - size[..., :3] + rounding[..., None]
    return q.clamp(min=0).norm(dim=-1) + q.amax(-1).clamp(max=0) - rounding


def _ellipsoid(p: Tensor, size: Tensor) -> Tensor:
    radii = size[..., :3]
    k0 = (p / radii).norm(dim=-1)
    k1 = (p / radii.square()).norm(dim=-1)
    return k0 * (k0 - 1.0) / k1.clamp(min=1e-6)


def _cone(p: Tensor, size: Tensor) -> Tensor:
    below, above, half = size[..., 0], size[..., 1], size[..., 2]
    q = torch.stack([p[..., :2].norm(dim=-1), p[..., 2]], dim=-1)
    cap = torch.where(q[..., 1] < 0, below, above)
    to_cap = torch.stack([q[..., 0] - torch.minimum(q[..., 0], cap), q[..., 1].abs() - half], -1)
    slope = torch.stack([above - below, 2 * half], dim=-1)
    top = torch.stack([above, half], dim=-1)
    along = ((top - q) * slope).sum(-1) / slope.square().sum(-1)
    to_side = q - top + slope * along.clamp(0, 1)[..., None]
    inside = (to_side[..., 0] < 0) & (to_cap[..., 1] < 0)
    nearest = torch.minimum(to_cap.square().sum(-1), to_side.square().sum(-1)).sqrt()
    return torch.where(inside, -nearest, nearest)


def _torus(p: Tensor, size: Tensor) -> Tensor:
    ring = torch.stack([p[..., :2].norm(dim=-1) - size[..., 0], p[..., 2]], dim=-1)
    return ring.norm(dim=-1) - size[..., 1]


def _prism(p: Tensor, size: Tensor) -> Tensor:
    width, height, length = size[..., 0], size[..., 1], size[..., 2]
    slant = torch.stack([2 * height, width], dim=-1)
    slant = slant / slant.norm(dim=-1, keepdim=True)
    sloped = p[..., 0].abs() * slant[..., 0] + (p[..., 2] - height) * slant[..., 1]
    return torch.stack([sloped, -p[..., 2] - height, p[..., 1].abs() - length], -1).amax(-1)


_DISTANCES = {BOX: _box, ELLIPSOID: _ellipsoid, CONE: _cone, TORUS: _torus, PRISM: _prism}
