"""Sphere tracing of solids in one Triton kernel: ``pictures.trace`` on a GPU.

The readable form is :func:`threestudio_eeg.phantom.pictures.trace_reference`; a test holds the two
together.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .solids import Solids


@triton.jit
def _distance(kind, x, y, z, s0, s1, s2, s3):
    d = tl.full(x.shape, 1000.0, tl.float32)
    if kind == 0:
        qx, qy, qz = tl.abs(x) - s0 + s3, tl.abs(y) - s1 + s3, tl.abs(z) - s2 + s3
        ox, oy, oz = tl.maximum(qx, 0.0), tl.maximum(qy, 0.0), tl.maximum(qz, 0.0)
        inner = tl.minimum(tl.maximum(qx, tl.maximum(qy, qz)), 0.0)
        d = tl.sqrt(ox * ox + oy * oy + oz * oz) + inner - s3
    elif kind == 1:
        ax, ay, az = x / s0, y / s1, z / s2
        k0 = tl.sqrt(ax * ax + ay * ay + az * az)
        bx, by, bz = ax / s0, ay / s1, az / s2
        k1 = tl.sqrt(bx * bx + by * by + bz * bz)
        d = k0 * (k0 - 1.0) / tl.maximum(k1, 1e-6)
    elif kind == 2:
        r = tl.sqrt(x * x + y * y)
        cap = tl.where(z < 0, s0, s1)
        cx, cy = r - tl.minimum(r, cap), tl.abs(z) - s2
        kx, ky = s1 - s0, 2.0 * s2
        along = ((s1 - r) * kx + (s2 - z) * ky) / (kx * kx + ky * ky)
        along = tl.minimum(tl.maximum(along, 0.0), 1.0)
        ex, ey = r - s1 + kx * along, z - s2 + ky * along
        nearest = tl.sqrt(tl.minimum(cx * cx + cy * cy, ex * ex + ey * ey))
        d = tl.where((ex < 0) & (cy < 0), -nearest, nearest)
    elif kind == 3:
        ring = tl.sqrt(x * x + y * y) - s0
        d = tl.sqrt(ring * ring + z * z) - s1
    elif kind == 4:
        length = tl.sqrt(4.0 * s1 * s1 + s0 * s0)
        sloped = (tl.abs(x) * 2.0 * s1 + (z - s1) * s0) / length
        d = tl.maximum(sloped, tl.maximum(-z - s1, tl.abs(y) - s2))
    return d


@triton.jit
def _trace(
    origin, direction, near, far, kind, centre, rotation, size, cut, depth, hit, n_rays,
    n_parts: tl.constexpr, STEPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0)
    ray = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    valid = ray < n_rays
    at = b * n_rays + ray
    ox, oy, oz = tl.load(origin + b * 3), tl.load(origin + b * 3 + 1), tl.load(origin + b * 3 + 2)
    dx = tl.load(direction + at * 3, mask=valid, other=0.0)
    dy = tl.load(direction + at * 3 + 1, mask=valid, other=0.0)
    dz = tl.load(direction + at * 3 + 2, mask=valid, other=0.0)
    t = tl.load(near + at, mask=valid, other=0.0)
    end = tl.load(far + at, mask=valid, other=0.0)
    alive = valid & (t < end)
    d = tl.full([BLOCK], 1000.0, tl.float32)
    for _ in range(STEPS):
        px, py, pz = ox + t * dx, oy + t * dy, oz + t * dz
        d = tl.full([BLOCK], 1000.0, tl.float32)
        for p in range(n_parts):
            q = b * n_parts + p
            vx = px - tl.load(centre + q * 3)
            vy = py - tl.load(centre + q * 3 + 1)
            vz = pz - tl.load(centre + q * 3 + 2)
            m = rotation + q * 9
            x = tl.load(m) * vx + tl.load(m + 3) * vy + tl.load(m + 6) * vz
            y = tl.load(m + 1) * vx + tl.load(m + 4) * vy + tl.load(m + 7) * vz
            z = tl.load(m + 2) * vx + tl.load(m + 5) * vy + tl.load(m + 8) * vz
            s = size + q * 4
            s0, s1, s2, s3 = tl.load(s), tl.load(s + 1), tl.load(s + 2), tl.load(s + 3)
            part = _distance(tl.load(kind + q), x, y, z, s0, s1, s2, s3)
            joined, carved = tl.minimum(d, part), tl.maximum(d, -part)
            d = tl.where(tl.load(cut + q) != 0, carved, joined)
        t = tl.where(alive, t + 0.9 * d, t)
        alive = alive & (tl.abs(d) > 1e-3) & (t < end)
    tl.store(depth + at, t, mask=valid)
    tl.store(hit + at, ((d < 3e-3) & (t < end)).to(tl.int8), mask=valid)


def trace(
    solids: Solids, origins: Tensor, directions: Tensor, near: Tensor, far: Tensor, steps: int
) -> tuple[Tensor, Tensor]:
    """Depth (B, N) of the first surface along rays, and whether there is one (bool).

    Arguments as :func:`threestudio_eeg.phantom.pictures.trace_reference`.
    """
    n_solids, n_rays = near.shape
    depth = torch.empty_like(near)
    hit = torch.empty(near.shape, dtype=torch.int8, device=near.device)
    block = 128
    _trace[(n_solids, triton.cdiv(n_rays, block))](
        origins.contiguous(),
        directions.contiguous(),
        near.contiguous(),
        far.contiguous(),
        solids.kind.int().contiguous(),
        solids.centre.contiguous(),
        solids.rotation.contiguous(),
        solids.size.contiguous(),
        solids.cut.int().contiguous(),
        depth,
        hit,
        n_rays,
        n_parts=solids.kind.shape[1],
        STEPS=steps,
        BLOCK=block,
    )
    return depth, hit.bool() & (near < far)
