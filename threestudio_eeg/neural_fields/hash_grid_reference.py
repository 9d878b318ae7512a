"""Grid look-ups written for reading: level by level, corner by corner, derivatives by autograd.

The fast backends are held to this one.
"""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor

from .hash_grid import GridLayout, GridLevel

UINT32 = (1 << 32) - 1


def encode(positions: Tensor, table: Tensor, layout: GridLayout) -> Tensor:
    """Look positions (N, D) up in a table (E, F): (N, L * F). See :func:`.hash_grid.encode`."""
    outputs = []
    for level in layout.levels:
        place = positions * level.scale + 0.5
        cell = place.detach().floor()
        fraction = _interpolate(place - cell, layout.interpolation)
        total = positions.new_zeros(len(positions), layout.n_features)
        for corner in product((0, 1), repeat=layout.n_dims):
            bits = torch.tensor(corner, device=positions.device)
            share = torch.where(bits.bool(), fraction, 1 - fraction).prod(dim=-1, keepdim=True)
            total = total + share * table[entry_of(cell.long() + bits, level)]
        outputs.append(total)
    return torch.cat(outputs, dim=-1).to(table.dtype)


def entry_of(vertex: Tensor, level: GridLevel) -> Tensor:
    """Table row of each vertex (N, D) of one level."""
    index = torch.zeros_like(vertex[:, 0])
    for coordinate, factor in zip(vertex.unbind(-1), level.factors, strict=True):
        term = coordinate * factor & UINT32
        index = index ^ term if level.hashed else index + term & UINT32
    return index % level.size + level.offset


def _interpolate(fraction: Tensor, interpolation: str) -> Tensor:
    if interpolation == "smoothstep":
        return fraction * fraction * (3 - 2 * fraction)
    return 0 * fraction if interpolation == "nearest" else fraction
