"""How much light is lost on the clearest way out of a field."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, combinations

import torch
from torch import Tensor

from eeg_encoder.errors import InputError

SURFACE = 0.3
"""Occlusion at a surface, unless a config says another."""
LEAST_OPACITY = 0.5
"""Opacity of a line below which its matter counts as haze: what is lost is compared with this."""


@torch.no_grad()
def occlusion(density: Tensor, spacing: Sequence[float]) -> Tensor:
    r"""Share of the light that is lost on the clearest way from a point to the outside.

    The ways are the two halves of the 13 lines :math:`l` through a lattice's neighbours. With the
    optical depths :math:`a_l, b_l` of the halves (the density's integrals, by the trapezoid rule),
    what is lost is a share of what the whole line loses, so that the middle of a thin translucent
    part is as far inside as that of a thick one:

    .. math:: o(x) = \min_l \frac{1 - e^{-\min(a_l, b_l)}}{\max(1 - e^{-(a_l + b_l)},\; 1/2)}

    Deep inside, it is high however thin the matter is there, as no picture shows it; a density has
    voids there, because nothing trains it.

    Parameters
    ----------
    density
        Density per unit of length on a lattice, (D, H, W), not negative.
    spacing
        Length between neighbours along each of the three axes.

    Returns
    -------
    Tensor
        Occlusion in [0, 1], (D, H, W).
    """
    least = torch.full_like(density, float("inf"))
    for axes in _subsets((0, 1, 2)):
        length = sum(spacing[axis] ** 2 for axis in axes) ** 0.5
        for against in ((), *_subsets(axes[1:])):
            one = _depth_along(density.flip(against), axes, length).flip(against)
            back = tuple(axis for axis in axes if axis not in against)
            other = _depth_along(density.flip(back), axes, length).flip(back)
            least = torch.minimum(least, _lost(one, other))
    return least


def checked(level: float) -> float:
    """A level of occlusion that a surface may have, or an :class:`InputError`."""
    if not 0 < level < 1:
        raise InputError("system.exporter", "occlusion", level, "a number between 0 and 1")
    return level


def _subsets(axes: Sequence[int]) -> list[tuple[int, ...]]:
    """All but the empty one."""
    return list(chain.from_iterable(combinations(axes, n + 1) for n in range(len(axes))))


def _depth_along(density: Tensor, axes: tuple[int, ...], length: float) -> Tensor:
    """Optical depth that has been crossed on the way here, one step along all ``axes`` at once."""
    half = density.movedim(axes[0], 0) * (length / 2)
    behind, ahead = (
        tuple(part if axis in axes[1:] else slice(None) for axis in (1, 2))
        for part in (slice(None, -1), slice(1, None))
    )
    depth = half.clone()
    for i in range(1, len(depth)):
        depth[i][ahead] += (depth[i - 1] + half[i - 1])[behind]
    return depth.movedim(0, axes[0])


def _lost(one: Tensor, other: Tensor) -> Tensor:
    """What the clearer side of a line loses, as a share of the line's opacity."""
    opacity = 1 - (-(one + other)).exp()
    return (1 - (-torch.minimum(one, other)).exp()) / opacity.clamp(min=LEAST_OPACITY)
