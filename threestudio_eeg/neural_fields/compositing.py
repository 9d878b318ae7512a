"""Compositing of packed samples along rays: weights, visibility, weighted sums.

The functions named ``*_reference`` say what is computed, in plain torch, on any device;
:mod:`.compositing_triton` is the same on a GPU, one group of threads to a ray.

References
----------
N. Max, Optical models for direct volume rendering, IEEE TVCG 1995; B. Mildenhall et al., NeRF, ECCV
2020, equation 3.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .backends import choose_backend
from .marching import Samples, ray_offsets

EARLY_STOP = 1e-4


def render_weights(
    density: Tensor, samples: Samples, n_rays: int, backend: str | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Weights, transmittance and alpha of packed samples, each (N,).

    ``alpha = 1 - exp(-density dt)``, ``T = exp(-sum of density dt in front)``, ``w = T alpha``.

    Parameters
    ----------
    density
        Shape (N,).
    backend
        ``torch`` or ``triton``; by default :func:`.backends.choose_backend`.
    """
    depth = density * (samples.t_ends - samples.t_starts)
    if choose_backend(density, backend) == "triton":
        from .compositing_triton import weights

        return weights(depth, samples.offsets(n_rays))
    return weights_reference(depth, samples.ray_indices, n_rays)


def weights_reference(
    depth: Tensor, ray_indices: Tensor, n_rays: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Weights, transmittance and alpha of samples of optical depth (N,)."""
    transmittance = torch.exp(-exclusive_sum(depth, ray_indices, n_rays))
    alpha = -torch.expm1(-depth)
    return transmittance * alpha, transmittance, alpha


def exclusive_sum(values: Tensor, ray_indices: Tensor, n_rays: int) -> Tensor:
    """Sum of what lies in front of each sample on its ray, (N,).

    One running sum over all rays, minus its value where the ray begins; in double precision, so
    that the difference keeps single precision however many rays went before.
    """
    running = values.double()
    before = running.cumsum(0) - running
    if len(values) == 0:
        return before.to(values.dtype)
    first = ray_offsets(ray_indices, n_rays)[:-1].clamp(max=len(values) - 1)
    start = before.index_select(0, first.index_select(0, ray_indices))
    return (before - start).to(values.dtype)


@torch.no_grad()
def visible(
    density: Tensor,
    samples: Samples,
    n_rays: int,
    alpha_threshold: float | Tensor,
    backend: str | None = None,
) -> Tensor:
    """Samples worth shading, (N,): opaque enough, and not hidden behind opaque ones."""
    _, transmittance, alpha = render_weights(density, samples, n_rays, backend)
    return (alpha >= alpha_threshold) & (transmittance >= EARLY_STOP)


def accumulate(
    weights: Tensor,
    values: Tensor | None,
    samples: Samples,
    n_rays: int,
    backend: str | None = None,
) -> Tensor:
    """Weighted sum along rays: (N,) and (N, C) to (R, C); without values, of ones: (R, 1)."""
    if choose_backend(weights, backend) == "triton":
        from .compositing_triton import weighted_sum

        return weighted_sum(weights, values, samples.ray_indices, samples.offsets(n_rays))
    share = weights[:, None] if values is None else weights[:, None] * values
    total = share.new_zeros(n_rays, share.shape[1])
    return total.index_add(0, samples.ray_indices, share)


def spread(values: Tensor, samples: Samples, backend: str | None = None) -> Tensor:
    """Each ray's values (R, C) at its samples, (N, C)."""
    if choose_backend(values, backend) == "triton":
        from .compositing_triton import spread as spread_triton

        return spread_triton(values, samples.ray_indices, samples.offsets(len(values)))
    return values.index_select(0, samples.ray_indices)
