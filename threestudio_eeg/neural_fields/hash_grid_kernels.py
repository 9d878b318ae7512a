"""Triton kernels of :mod:`.hash_grid_triton`: look-up, its gradients, and theirs.

Arguments that all kernels share: ``points`` and ``along`` are positions and directions by axis,
(3, pitch); ``scales`` and ``numbers`` describe the levels. ``UNIT`` features (1 or 2) of a level
are one program's work, ``N_UNITS`` of them make a level. ``PACK`` is the number of bits of a
feature where an entry's two are read as one word, else 0. ``DIRECTIONAL`` puts the weights'
derivatives along the directions in the weights' place. ``WIDE`` treats neighbours in memory
together; entries 0 and 1, 2 and 3, ... of a level must then be at multiples of 16 bytes.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _level(scales, numbers, level):
    """Scale, factors along x, y and z, size, 2**32 over size, offset, hashed."""
    row = numbers + level * 7
    return (
        tl.load(scales + level),
        tl.load(row).to(tl.uint32),
        tl.load(row + 1).to(tl.uint32),
        tl.load(row + 2).to(tl.uint32),
        tl.load(row + 3).to(tl.uint32),
        tl.load(row + 4).to(tl.uint32),
        tl.load(row + 5),
        tl.load(row + 6) != 0,
    )


@triton.jit
def _coordinate(points, i, inside, scale):
    """Number of the cell along one axis, and the place within."""
    at = tl.load(points + i, mask=inside, other=0.0) * scale + 0.5
    cell = tl.floor(at)
    return cell.to(tl.int32).to(tl.uint32), at - cell


@triton.jit
def _row(x, y, z, size, inverse, hashed):
    """Entry of a vertex within its level: the index modulo ``size``, by multiplication."""
    index = tl.where(hashed, x ^ (y ^ z), x + (y + z))
    index -= tl.umulhi(index, inverse) * size
    return tl.where(index >= size, index - size, index).to(tl.int32)


@triton.jit
def _halves(word, COMPUTE: tl.constexpr, PACK: tl.constexpr, HALF: tl.constexpr):
    """Both features of an entry read as one word."""
    if PACK == 32:
        low = word.to(tl.int32).to(tl.float32, bitcast=True)
        high = (word >> 32).to(tl.int32).to(tl.float32, bitcast=True)
    else:
        low = word.to(tl.int16).to(HALF, bitcast=True)
        high = (word >> 16).to(tl.int16).to(HALF, bitcast=True)
    return low.to(COMPUTE), high.to(COMPUTE)


@triton.jit
def _read(
    table, row, N_UNITS: tl.constexpr, UNIT: tl.constexpr, COMPUTE: tl.constexpr,
    PACK: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """Features of an entry; the second is zero where entries have one."""
    if PACK > 0:
        low, high = _halves(tl.load(table + row * N_UNITS), COMPUTE, PACK, HALF)
    else:
        first = table + row * (N_UNITS * UNIT)
        low = tl.load(first).to(COMPUTE)
        high = tl.zeros_like(low)
        if UNIT == 2:
            high = tl.load(first + 1).to(COMPUTE)
    return low, high


@triton.jit
def _read_edge(
    table, row0, row1, N_UNITS: tl.constexpr, UNIT: tl.constexpr, COMPUTE: tl.constexpr,
    PACK: tl.constexpr, HALF: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Features of two entries, by one access where they are neighbours at an even place."""
    if WIDE:
        odd = row0 & 1
        beside = (row0 ^ row1) == 1
        even_word, odd_word = tl.inline_asm_elementwise(
            "ld.global.nc.v2.b64 {$0, $1}, [$2];",
            "=l,=l,l",
            [(table + (row0 - odd)).to(tl.int64)],
            dtype=(tl.int64, tl.int64),
            is_pure=True,
            pack=1,
        )
        far = tl.load(table + row1, mask=beside == 0, other=0)
        near_word = tl.where(odd == 1, odd_word, even_word)
        far_word = tl.where(beside, tl.where(odd == 1, even_word, odd_word), far)
        low0, high0 = _halves(near_word, COMPUTE, PACK, HALF)
        low1, high1 = _halves(far_word, COMPUTE, PACK, HALF)
    else:
        low0, high0 = _read(table, row0, N_UNITS, UNIT, COMPUTE, PACK, HALF)
        low1, high1 = _read(table, row1, N_UNITS, UNIT, COMPUTE, PACK, HALF)
    return low0, high0, low1, high1


@triton.jit
def _add(
    total, row, low, high, take, STRIDE: tl.constexpr, UNIT: tl.constexpr, VECTOR: tl.constexpr
):
    """Add to the features of an entry, atomically."""
    at = total + row * STRIDE
    if VECTOR:
        tl.inline_asm_elementwise(
            "{ .reg .pred p; setp.ne.s32 p, $4, 0;"
            " @p red.relaxed.gpu.global.add.v2.f32 [$1], {$2, $3}; mov.u32 $0, 0; }",
            "=r,l,f,f,r",
            [at.to(tl.int64), low, high, take.to(tl.int32)],
            dtype=tl.int32,
            is_pure=False,
            pack=1,
        )
    else:
        tl.atomic_add(at, low, mask=take, sem="relaxed")
        if UNIT == 2:
            tl.atomic_add(at + 1, high, mask=take, sem="relaxed")


@triton.jit
def _add_edge(
    total, row0, row1, low0, high0, low1, high1, take,
    STRIDE: tl.constexpr, UNIT: tl.constexpr, VECTOR: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Add to two entries, by one access where they are neighbours at an even place."""
    if WIDE:
        odd = row0 & 1
        beside = (row0 ^ row1) == 1
        swap = odd == 1
        tl.inline_asm_elementwise(
            "{ .reg .pred p; setp.ne.s32 p, $6, 0;"
            " @p red.relaxed.gpu.global.add.v4.f32 [$1], {$2, $3, $4, $5}; mov.u32 $0, 0; }",
            "=r,l,f,f,f,f,r",
            [
                (total + (row0 - odd) * STRIDE).to(tl.int64),
                tl.where(swap, low1, low0),
                tl.where(swap, high1, high0),
                tl.where(swap, low0, low1),
                tl.where(swap, high0, high1),
                (take & beside).to(tl.int32),
            ],
            dtype=tl.int32,
            is_pure=False,
            pack=1,
        )
        take = take & (beside == 0)
    _add(total, row0, low0, high0, take, STRIDE, UNIT, VECTOR)
    _add(total, row1, low1, high1, take, STRIDE, UNIT, VECTOR)


@triton.jit
def gather_kernel(
    points, along, table, output, scales, numbers, n_points, pitch, stride_out,
    N_UNITS: tl.constexpr, UNIT: tl.constexpr, PACK: tl.constexpr, HALF: tl.constexpr,
    COMPUTE: tl.constexpr, DIRECTIONAL: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    level, unit = tl.program_id(1) // N_UNITS, tl.program_id(1) % N_UNITS
    scale, fx, fy, fz, size, inverse, offset, hashed = _level(scales, numbers, level)
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < n_points
    cx, wx = _coordinate(points, i, inside, scale)
    cy, wy = _coordinate(points + pitch, i, inside, scale)
    cz, wz = _coordinate(points + 2 * pitch, i, inside, scale)
    if DIRECTIONAL:
        vx = tl.load(along + i, mask=inside, other=0.0) * scale
        vy = tl.load(along + pitch + i, mask=inside, other=0.0) * scale
        vz = tl.load(along + 2 * pitch + i, mask=inside, other=0.0) * scale
    if PACK > 0:
        table += offset * N_UNITS + unit
    else:
        table += (offset * N_UNITS + unit) * UNIT
    x0 = cx * fx
    x1 = x0 + fx
    low = tl.zeros([BLOCK], COMPUTE)
    high = tl.zeros([BLOCK], COMPUTE)
    for yz in tl.static_range(4):
        y, ay, sy = cy * fy, 1 - wy, -1
        z, az, sz = cz * fz, 1 - wz, -1
        if yz % 2 == 1:
            y, ay, sy = y + fy, wy, 1
        if yz // 2 == 1:
            z, az, sz = z + fz, wz, 1
        row0 = _row(x0, y, z, size, inverse, hashed)
        row1 = _row(x1, y, z, size, inverse, hashed)
        low0, high0, low1, high1 = _read_edge(
            table, row0, row1, N_UNITS, UNIT, COMPUTE, PACK, HALF, WIDE
        )
        low_mix, high_mix = low0 + (low1 - low0) * wx, high0 + (high1 - high0) * wx
        if DIRECTIONAL:
            across = vy * sy * az + vz * sz * ay
            low += vx * ay * az * (low1 - low0) + across * low_mix
            high += vx * ay * az * (high1 - high0) + across * high_mix
        else:
            low += ay * az * low_mix
            high += ay * az * high_mix
    at = output + (level * N_UNITS + unit).to(tl.int64) * UNIT * stride_out + i
    tl.store(at, low.to(output.dtype.element_ty), mask=inside)
    if UNIT == 2:
        tl.store(at + stride_out, high.to(output.dtype.element_ty), mask=inside)


@triton.jit
def slope_kernel(
    points, along, table, gradient, total, scales, numbers, n_points, pitch, stride_n, stride_c,
    N_UNITS: tl.constexpr, UNIT: tl.constexpr, PACK: tl.constexpr, HALF: tl.constexpr,
    COMPUTE: tl.constexpr, DIRECTIONAL: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    level, unit = tl.program_id(1) // N_UNITS, tl.program_id(1) % N_UNITS
    scale, fx, fy, fz, size, inverse, offset, hashed = _level(scales, numbers, level)
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < n_points
    cx, wx = _coordinate(points, i, inside, scale)
    cy, wy = _coordinate(points + pitch, i, inside, scale)
    cz, wz = _coordinate(points + 2 * pitch, i, inside, scale)
    if DIRECTIONAL:
        vx = tl.load(along + i, mask=inside, other=0.0) * scale
        vy = tl.load(along + pitch + i, mask=inside, other=0.0) * scale
        vz = tl.load(along + 2 * pitch + i, mask=inside, other=0.0) * scale
    at = gradient + i * stride_n + (level * N_UNITS + unit).to(tl.int64) * UNIT * stride_c
    g0 = tl.load(at, mask=inside, other=0.0).to(COMPUTE)
    g1 = tl.zeros_like(g0)
    if UNIT == 2:
        g1 = tl.load(at + stride_c, mask=inside, other=0.0).to(COMPUTE)
    if PACK > 0:
        table += offset * N_UNITS + unit
    else:
        table += (offset * N_UNITS + unit) * UNIT
    x0 = cx * fx
    x1 = x0 + fx
    dx = tl.zeros([BLOCK], COMPUTE)
    dy = tl.zeros([BLOCK], COMPUTE)
    dz = tl.zeros([BLOCK], COMPUTE)
    for yz in tl.static_range(4):
        y, ay, sy = cy * fy, 1 - wy, -1
        z, az, sz = cz * fz, 1 - wz, -1
        if yz % 2 == 1:
            y, ay, sy = y + fy, wy, 1
        if yz // 2 == 1:
            z, az, sz = z + fz, wz, 1
        row0 = _row(x0, y, z, size, inverse, hashed)
        row1 = _row(x1, y, z, size, inverse, hashed)
        low0, high0, low1, high1 = _read_edge(
            table, row0, row1, N_UNITS, UNIT, COMPUTE, PACK, HALF, WIDE
        )
        value0 = g0 * low0 + g1 * high0
        rise = g0 * low1 + g1 * high1 - value0
        mix = value0 + rise * wx
        if DIRECTIONAL:
            dx += rise * (vy * sy * az + vz * sz * ay)
            dy += sy * (vx * rise * az + vz * sz * mix)
            dz += sz * (vx * rise * ay + vy * sy * mix)
        else:
            dx += rise * ay * az
            dy += sy * az * mix
            dz += sz * ay * mix
    tl.atomic_add(total + i, dx * scale, mask=inside, sem="relaxed")
    tl.atomic_add(total + pitch + i, dy * scale, mask=inside, sem="relaxed")
    tl.atomic_add(total + 2 * pitch + i, dz * scale, mask=inside, sem="relaxed")


@triton.jit
def _share(
    points, gradient, i, n_points, pitch, stride_n, stride_c, scale, fx, fy, fz,
    UNIT: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """Where a point lies and what it adds: first vertex, place within the cell, gradient."""
    inside = i < n_points
    cx, wx = _coordinate(points, i, inside, scale)
    cy, wy = _coordinate(points + pitch, i, inside, scale)
    cz, wz = _coordinate(points + 2 * pitch, i, inside, scale)
    g0 = tl.load(gradient + i * stride_n, mask=inside, other=0.0).to(COMPUTE)
    g1 = tl.zeros_like(g0)
    if UNIT == 2:
        g1 = tl.load(gradient + i * stride_n + stride_c, mask=inside, other=0.0).to(COMPUTE)
    return cx * fx, cy * fy, cz * fz, wx, wy, wz, g0, g1


@triton.jit
def _weights(wx, wy, wz, yz: tl.constexpr):
    """Of the vertices at both ends of a cell's edge along x."""
    ay, az = 1 - wy, 1 - wz
    if yz % 2 == 1:
        ay = wy
    if yz // 2 == 1:
        az = wz
    return ay * az * (1 - wx), ay * az * wx


@triton.jit
def _add_to_cell(
    total, x, y, z, fx, fy, fz, size, inverse, hashed, low0, high0, low1, high1, take,
    yz: tl.constexpr,
    STRIDE: tl.constexpr, UNIT: tl.constexpr, VECTOR: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Add to the vertices at both ends of one of a cell's four edges along x."""
    if yz % 2 == 1:
        y += fy
    if yz // 2 == 1:
        z += fz
    row0 = _row(x, y, z, size, inverse, hashed)
    row1 = _row(x + fx, y, z, size, inverse, hashed)
    _add_edge(total, row0, row1, low0, high0, low1, high1, take, STRIDE, UNIT, VECTOR, WIDE)


@triton.jit
def scatter_kernel(
    points, along, gradient, total, scales, numbers, n_points, pitch, stride_n, stride_c, first,
    N_UNITS: tl.constexpr, UNIT: tl.constexpr, PACK: tl.constexpr, HALF: tl.constexpr,
    COMPUTE: tl.constexpr, DIRECTIONAL: tl.constexpr, VECTOR: tl.constexpr, WIDE: tl.constexpr,
    RUN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    level, unit = first + tl.program_id(1) // N_UNITS, tl.program_id(1) % N_UNITS
    scale, fx, fy, fz, size, inverse, offset, hashed = _level(scales, numbers, level)
    i = (tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)) * RUN
    gradient += (level * N_UNITS + unit).to(tl.int64) * UNIT * stride_c
    total += (offset * N_UNITS + unit) * UNIT
    STRIDE: tl.constexpr = N_UNITS * UNIT
    if RUN > 1:
        UNROLLED: tl.constexpr = 4
        for yz in tl.static_range(4):
            low0 = tl.zeros([BLOCK], COMPUTE)
            high0, low1, high1 = low0, low0, low0
            kept_x = tl.zeros([BLOCK], tl.uint32)
            kept_y, kept_z = kept_x, kept_x
            for group in range(RUN // UNROLLED):
                for place in tl.static_range(UNROLLED):
                    x, y, z, wx, wy, wz, g0, g1 = _share(
                        points, gradient, i + group * UNROLLED + place, n_points, pitch,
                        stride_n, stride_c, scale, fx, fy, fz, UNIT, COMPUTE,
                    )  # fmt: skip
                    same = (x == kept_x) & (y == kept_y) & (z == kept_z)
                    something = (low0 != 0) | (high0 != 0) | (low1 != 0) | (high1 != 0)
                    _add_to_cell(
                        total, kept_x, kept_y, kept_z, fx, fy, fz, size, inverse, hashed,
                        low0, high0, low1, high1, something & (same == 0),
                        yz, STRIDE, UNIT, VECTOR, WIDE,
                    )  # fmt: skip
                    weight0, weight1 = _weights(wx, wy, wz, yz)
                    low0 = tl.where(same, low0, 0.0) + weight0 * g0
                    high0 = tl.where(same, high0, 0.0) + weight0 * g1
                    low1 = tl.where(same, low1, 0.0) + weight1 * g0
                    high1 = tl.where(same, high1, 0.0) + weight1 * g1
                    kept_x, kept_y, kept_z = x, y, z
            something = (low0 != 0) | (high0 != 0) | (low1 != 0) | (high1 != 0)
            _add_to_cell(
                total, kept_x, kept_y, kept_z, fx, fy, fz, size, inverse, hashed,
                low0, high0, low1, high1, something, yz, STRIDE, UNIT, VECTOR, WIDE,
            )  # fmt: skip
    else:
        x, y, z, wx, wy, wz, g0, g1 = _share(
            points, gradient, i, n_points, pitch, stride_n, stride_c, scale, fx, fy, fz,
            UNIT, COMPUTE,
        )  # fmt: skip
        if DIRECTIONAL:
            inside = i < n_points
            vx = tl.load(along + i, mask=inside, other=0.0) * scale
            vy = tl.load(along + pitch + i, mask=inside, other=0.0) * scale
            vz = tl.load(along + 2 * pitch + i, mask=inside, other=0.0) * scale
        something = (g0 != 0) | (g1 != 0)
        for yz in tl.static_range(4):
            if DIRECTIONAL:
                ay, az, sy, sz = 1 - wy, 1 - wz, -1, -1
                if yz % 2 == 1:
                    ay, sy = wy, 1
                if yz // 2 == 1:
                    az, sz = wz, 1
                across = vy * sy * az + vz * sz * ay
                weight0 = across * (1 - wx) - vx * ay * az
                weight1 = across * wx + vx * ay * az
            else:
                weight0, weight1 = _weights(wx, wy, wz, yz)
            _add_to_cell(
                total, x, y, z, fx, fy, fz, size, inverse, hashed,
                weight0 * g0, weight0 * g1, weight1 * g0, weight1 * g1, something,
                yz, STRIDE, UNIT, VECTOR, WIDE,
            )  # fmt: skip
