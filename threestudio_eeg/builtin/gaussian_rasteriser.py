"""3D Gaussians as pictures, in plain torch: projection, tiles, front-to-back compositing.

The image formation is that of 3D Gaussian splatting (Kerbl et al. 2023, arXiv 2308.04079), with the
local affine approximation of the projection by EWA splatting (Zwicker et al. 2002), and with the
constants of gsplat: a splat is blurred by 0.3 square pixels, an opacity at a pixel is at most 0.999
and counts from 1/255.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

BLUR = 0.3
LEAST_ALPHA = 1 / 255
MOST_ALPHA = 0.999
NEAR = 0.01
TILE = 8
GROUP_BUDGET = 1 << 23
"""Splats times pixels that one group of tiles may hold."""


@dataclass
class Splats:
    """Gaussians in the world.

    ``means`` (N, 3); ``scales`` (N, 3), standard deviations along the axes; ``rotations`` (N, 4),
    unit quaternions, real part first; ``opacities`` (N,) in [0, 1].
    """

    means: Tensor
    scales: Tensor
    rotations: Tensor
    opacities: Tensor


@dataclass
class Projection:
    """Splats in B pictures.

    ``means`` (B, N, 2) in pixels, x right, y down, the first pixel's centre at 0.5; ``covariances``
    (B, N, 3): xx, xy, yy in square pixels; ``depths`` (B, N) along the optical axis.
    """

    means: Tensor
    covariances: Tensor
    depths: Tensor


def rotation_matrices(quaternions: Tensor) -> Tensor:
    """Rotations (..., 3, 3) of quaternions (..., 4), real part first, of any length."""
    w, x, y, z = F.normalize(quaternions, dim=-1).unbind(-1)
    rows = (
        (1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        (2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        (2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    )
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)


def world_to_camera(c2w: Tensor) -> tuple[Tensor, Tensor]:
    """Rotation (B, 3, 3) and centre (B, 3) to x right, y down, z forward, of OpenGL's poses."""
    flip = torch.tensor([1.0, -1.0, -1.0]).to(c2w)
    return flip[:, None] * c2w[:, :3, :3].transpose(1, 2), c2w[:, :3, 3]


def project(splats: Splats, c2w: Tensor, fovy: Tensor, height: int, width: int) -> Projection:
    """Project splats into pictures.

    Parameters
    ----------
    c2w
        OpenGL's camera-to-world matrices, (B, 4, 4).
    fovy
        Vertical field of view in radians, (B,).
    """
    rotation, centre = world_to_camera(c2w)
    x, y, z = torch.einsum("bij,bnj->bni", rotation, splats.means - centre[:, None]).unbind(-1)
    focal = (0.5 * height / torch.tan(0.5 * fovy))[:, None]
    depth = z.clamp(min=NEAR)
    means = torch.stack((focal * x / depth + width / 2, focal * y / depth + height / 2), dim=-1)
    zero = torch.zeros_like(depth)
    jacobian = torch.stack(
        (
            torch.stack((focal / depth, zero, -focal * x / depth**2), dim=-1),
            torch.stack((zero, focal / depth, -focal * y / depth**2), dim=-1),
        ),
        dim=-2,
    )
    axes = rotation_matrices(splats.rotations) * splats.scales[:, None, :]
    spread = jacobian @ rotation[:, None] @ axes
    u, v = spread.unbind(-2)
    covariances = torch.stack(
        ((u * u).sum(-1) + BLUR, (u * v).sum(-1), (v * v).sum(-1) + BLUR), dim=-1
    )
    return Projection(means, covariances, z)


@torch.no_grad()
def half_extents(projection: Projection, opacities: Tensor) -> Tensor:
    """Half sides (B, N, 2), in pixels, of the box outside of which a splat has no opacity.

    The box is exact for :data:`LEAST_ALPHA`; zero for splats that are behind or transparent.
    """
    reach = (2 * torch.log(opacities / LEAST_ALPHA)).clamp(min=0)
    seen = (projection.depths > NEAR) & (opacities >= LEAST_ALPHA)
    half = (reach[:, None] * projection.covariances[..., (0, 2)]).sqrt()
    return half * seen[..., None]


def rasterise(
    projection: Projection, opacities: Tensor, features: Tensor, height: int, width: int
) -> Tensor:
    """Composite features front to back.

    Parameters
    ----------
    projection
        What :func:`project` gives.
    opacities
        (N,).
    features
        Of each splat in each picture, (B, N, C).

    Returns
    -------
    Tensor
        (B, H, W, C + 1): the sum of weights times features, and last the sum of weights.
    """
    pairs = _tile_pairs(projection, half_extents(projection, opacities), height, width)
    values = _PerSplat.of(projection, opacities, features)
    batch, channels = len(features), values.features.shape[-1]
    rows, columns = -(-height // TILE), -(-width // TILE)
    tiles = features.new_zeros(batch * rows * columns, TILE * TILE, channels)
    for ids, table in pairs.groups():
        pixels = _pixel_centres(ids % (rows * columns), columns).to(features)
        tiles = tiles.index_copy(0, ids, _composite(values, table, pixels))
    picture = tiles.view(batch, rows, columns, TILE, TILE, channels).permute(0, 1, 3, 2, 4, 5)
    return picture.reshape(batch, rows * TILE, columns * TILE, channels)[:, :height, :width]


@dataclass
class _PerSplat:
    """What compositing needs of every splat of every picture, flat: B x N rows and an empty one."""

    means: Tensor
    conics: Tensor
    opacities: Tensor
    features: Tensor

    @classmethod
    def of(cls, projection: Projection, opacities: Tensor, features: Tensor) -> _PerSplat:
        xx, xy, yy = projection.covariances.unbind(-1)
        determinant = xx * yy - xy * xy
        conics = torch.stack((yy, -xy, xx), dim=-1) / determinant[..., None]
        with_one = torch.cat((features, torch.ones_like(features[..., :1])), dim=-1)
        return cls(
            _with_empty_row(projection.means.flatten(0, 1)),
            _with_empty_row(conics.flatten(0, 1)),
            _with_empty_row(opacities.expand(len(features), -1).reshape(-1)),
            _with_empty_row(with_one.flatten(0, 1)),
        )


def _with_empty_row(values: Tensor) -> Tensor:
    return torch.cat((values, values.new_zeros(1, *values.shape[1:])))


@dataclass
class _TilePairs:
    """Which splats touch which tile, by tile and then from front to back.

    ``starts`` and ``counts`` (T,) are of the tiles ``ids`` (T,), most splats first; ``splats`` (P,)
    are rows of :class:`_PerSplat`, ``empty`` the row that shows nothing.
    """

    ids: Tensor
    starts: Tensor
    counts: Tensor
    splats: Tensor
    empty: int

    def groups(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Tiles and tables (T, K) of their splats, in groups of at most :data:`GROUP_BUDGET`."""
        first, counts = 0, self.counts.tolist()
        while first < len(counts):
            longest = counts[first]
            last = first + max(GROUP_BUDGET // (longest * TILE * TILE), 1)
            while last < len(counts) and 2 * counts[last] > longest:
                last += 1
            last = min(last, first + max(GROUP_BUDGET // (longest * TILE * TILE), 1), len(counts))
            yield self.ids[first:last], self._table(first, last, longest)
            first = last

    def _table(self, first: int, last: int, longest: int) -> Tensor:
        column = torch.arange(longest, device=self.splats.device)
        places = self.starts[first:last, None] + column
        there = column < self.counts[first:last, None]
        table = self.splats[places.clamp(max=len(self.splats) - 1)]
        return torch.where(there, table, self.empty)


@torch.no_grad()
def _tile_pairs(projection: Projection, half: Tensor, height: int, width: int) -> _TilePairs:
    batch, n = projection.depths.shape
    rows, columns = -(-height // TILE), -(-width // TILE)
    low, high = _tile_box(projection.means, half, height, width)
    size = (high - low + 1).clamp(min=0) * (half > 0)
    touched = (size[..., 0] * size[..., 1]).reshape(-1)
    order = projection.depths.reshape(-1).argsort(stable=True)
    order = order[touched[order] > 0]
    repeats = touched[order]
    splats = order.repeat_interleave(repeats)
    within = torch.arange(len(splats), device=half.device)
    within = within - (repeats.cumsum(0) - repeats).repeat_interleave(repeats)
    low, size = low.reshape(-1, 2)[splats], size.reshape(-1, 2)[splats]
    x, y = low[:, 0] + within % size[:, 0], low[:, 1] + within // size[:, 0]
    tile = (splats // n) * rows * columns + y * columns + x
    tile, by_tile = tile.sort(stable=True)
    ids, counts = tile.unique_consecutive(return_counts=True)
    starts = counts.cumsum(0) - counts
    fullest = counts.argsort(descending=True, stable=True)
    return _TilePairs(
        ids[fullest], starts[fullest], counts[fullest], splats[by_tile], empty=batch * n
    )


def _tile_box(means: Tensor, half: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """First and last tile (B, N, 2), x and y, whose pixel centres a splat's box holds."""
    limit = torch.tensor([width, height], device=means.device)
    low = (means - half - 0.5).ceil().clamp(min=0).minimum(limit.to(means))
    high = (means + half - 0.5).floor().clamp(min=-1).minimum(limit.to(means) - 1)
    empty = (high < low) | ~half.isfinite()
    low, high = low.nan_to_num(0).long() // TILE, high.nan_to_num(0).long() // TILE
    return low, torch.where(empty, low - 1, high)


def _pixel_centres(tile: Tensor, columns: int) -> Tensor:
    """Pixel centres (T, TILE * TILE, 2), x and y, of tiles (T,) counted row by row."""
    inside = torch.arange(TILE, device=tile.device) + 0.5
    y, x = torch.meshgrid(inside, inside, indexing="ij")
    corner = torch.stack((tile % columns, tile // columns), dim=-1) * TILE
    return corner[:, None] + torch.stack((x.reshape(-1), y.reshape(-1)), dim=-1)


def _composite(values: _PerSplat, table: Tensor, pixels: Tensor) -> Tensor:
    """Features (T, P, C) at pixels (T, P, 2), of the splats in ``table`` (T, K)."""
    flat = table.reshape(-1)

    def rows(of: Tensor) -> Tensor:
        return of.index_select(0, flat).view(*table.shape, *of.shape[1:])

    means, conics = rows(values.means), rows(values.conics)
    dx = pixels[:, None, :, 0] - means[..., :1]
    dy = pixels[:, None, :, 1] - means[..., 1:]
    a, b, c = conics[..., :1], conics[..., 1:2], conics[..., 2:]
    exponent = -0.5 * (a * dx * dx + c * dy * dy) - b * dx * dy
    alpha = (rows(values.opacities)[..., None] * exponent.exp()).clamp(max=MOST_ALPHA)
    alpha = torch.where(alpha >= LEAST_ALPHA, alpha, 0.0)
    passed = torch.log1p(-alpha)
    weights = alpha * torch.exp(passed.cumsum(1) - passed)
    return weights.transpose(1, 2) @ rows(values.features)
