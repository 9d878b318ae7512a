"""The opacity-weighted sum of 3D Gaussians in space."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from .gaussian_rasteriser import Splats, rotation_matrices

REACH = 3.0
"""Standard deviations at which a Gaussian ends (0.011 of its height) on a lattice."""
PAIRS = 1 << 22
MOST_OPAQUE = 1 - 1e-6


def as_matter(splats: Splats) -> Splats:
    """The splats with their density, per unit of length, in place of their opacity.

    A ray through the middle of a round one loses as much light as its opacity says; of a stretched
    one that holds for an axis of mean length (geometric).
    """
    depth = -torch.log1p(-splats.opacities.clamp(max=MOST_OPAQUE))
    width = splats.scales.log().mean(-1).exp()
    return replace(splats, opacities=depth / (math.sqrt(2 * math.pi) * width))


def level_at(splats: Splats, points: Tensor) -> Tensor:
    """Sum of ``opacity exp(-d² / 2)``, ``d`` in standard deviations, at points (P, 3): (P,)."""
    whitening = _whitening(splats)
    size = max(PAIRS // max(len(splats.means), 1), 1)
    return torch.cat([_sum_at(splats, whitening, part) for part in points.split(size)])


def _sum_at(splats: Splats, whitening: Tensor, points: Tensor) -> Tensor:
    offsets = points[:, None] - splats.means
    whitened = torch.einsum("nij,pnj->pni", whitening, offsets)
    return torch.exp(-0.5 * (whitened**2).sum(-1)) @ splats.opacities


def _whitening(splats: Splats) -> Tensor:
    """Matrices (N, 3, 3) that turn an offset into standard deviations along the axes."""
    return rotation_matrices(splats.rotations).transpose(1, 2) / splats.scales[:, :, None]


@torch.no_grad()
def level_on_lattice(splats: Splats, box: Tensor, n: int) -> Tensor:
    """The sum (n, n, n) on a lattice over ``box`` (2, 3); each Gaussian ends at :data:`REACH`."""
    spacing = (box[1] - box[0]) / (n - 1)
    axes = rotation_matrices(splats.rotations) * splats.scales[:, None, :]
    half = REACH * axes.norm(dim=-1)
    low = ((splats.means - half - box[0]) / spacing).ceil().clamp(0, n).long()
    high = ((splats.means + half - box[0]) / spacing).floor().clamp(-1, n - 1).long()
    size = (high - low + 1).clamp(min=0)
    whitening, level = _whitening(splats), splats.means.new_zeros(n**3)
    for rows in _groups(size.prod(-1)):
        owner = rows.repeat_interleave(size[rows].prod(-1))
        cell = low[owner] + _count_through(size[rows])
        offsets = cell * spacing + box[0] - splats.means[owner]
        square = (torch.einsum("pij,pj->pi", whitening[owner], offsets) ** 2).sum(-1)
        value = splats.opacities[owner] * torch.exp(-0.5 * square) * (square <= REACH**2)
        level.index_add_(0, (cell[:, 0] * n + cell[:, 1]) * n + cell[:, 2], value)
    return level.view(n, n, n)


def _groups(counts: Tensor) -> list[Tensor]:
    """Row numbers in order, in groups whose counts sum to about :data:`PAIRS`."""
    group = counts.cumsum(0) // PAIRS
    return [(group == number).nonzero().squeeze(1) for number in group.unique().tolist()]


def _count_through(sizes: Tensor) -> Tensor:
    """All index triples below each row of ``sizes`` (N, 3), one row after the other."""
    counts = sizes.prod(-1)
    within = torch.arange(int(counts.sum()), device=sizes.device)
    within = within - (counts.cumsum(0) - counts).repeat_interleave(counts)
    size = sizes.repeat_interleave(counts, dim=0)
    z, rest = within % size[:, 2], within // size[:, 2]
    return torch.stack((rest // size[:, 1], rest % size[:, 1], z), dim=-1)
