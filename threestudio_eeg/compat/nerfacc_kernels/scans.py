"""Running sums and products along the rays of a packed list.

nerfacc's autograd functions call these for their gradients too, the sums with ``backward=True``:
the gradient of a running sum is the running sum from the other end.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .segments import rays_of_chunks

SMALLEST = 1e-10


def inclusive_sum(
    chunk_starts: Tensor, chunk_cnts: Tensor, inputs: Tensor, normalize: bool, backward: bool
) -> Tensor:
    """Sum of each value and those before it on its ray (after it, when ``backward``), (N,).

    With ``normalize``, divided by the ray's total.
    """
    return _sum(chunk_starts, chunk_cnts, inputs, normalize, backward, inclusive=True)


def exclusive_sum(
    chunk_starts: Tensor, chunk_cnts: Tensor, inputs: Tensor, normalize: bool, backward: bool
) -> Tensor:
    """Sum of the values before each one on its ray (after it, when ``backward``), (N,)."""
    return _sum(chunk_starts, chunk_cnts, inputs, normalize, backward, inclusive=False)


def inclusive_prod_forward(chunk_starts: Tensor, chunk_cnts: Tensor, inputs: Tensor) -> Tensor:
    """Product of each value and those before it on its ray, (N,)."""
    place = _place_on_ray(chunk_starts, chunk_cnts)
    return _running_product(inputs, place)


def exclusive_prod_forward(chunk_starts: Tensor, chunk_cnts: Tensor, inputs: Tensor) -> Tensor:
    """Product of the values before each one on its ray, (N,)."""
    place = _place_on_ray(chunk_starts, chunk_cnts)
    return _running_product(torch.where(place == 0, 1, inputs.roll(1)), place)


def inclusive_prod_backward(
    chunk_starts: Tensor,
    chunk_cnts: Tensor,
    inputs: Tensor,
    outputs: Tensor,
    grad_outputs: Tensor,
) -> Tensor:
    """Gradient of :func:`inclusive_prod_forward`; like nerfacc's, not that of inputs of zero."""
    total = inclusive_sum(chunk_starts, chunk_cnts, grad_outputs * outputs, False, True)
    return total / inputs.clamp_min(SMALLEST)


def exclusive_prod_backward(
    chunk_starts: Tensor,
    chunk_cnts: Tensor,
    inputs: Tensor,
    outputs: Tensor,
    grad_outputs: Tensor,
) -> Tensor:
    """Gradient of :func:`exclusive_prod_forward`; like nerfacc's, zero for inputs of zero."""
    total = exclusive_sum(chunk_starts, chunk_cnts, grad_outputs * outputs, False, True)
    return total / inputs.clamp_min(SMALLEST)


def _sum(
    starts: Tensor,
    counts: Tensor,
    inputs: Tensor,
    normalize: bool,
    backward: bool,
    *,
    inclusive: bool,
) -> Tensor:
    """One running sum over the whole list, minus its value where the ray begins.

    In double precision, so that the difference keeps single precision however many rays went
    before.
    """
    if len(inputs) == 0:
        return inputs.clone()
    values = inputs.double()
    up_to = values.cumsum(0)
    before = up_to - values
    rays = rays_of_chunks(counts)
    start = before[starts.clamp(max=len(inputs) - 1)][rays]
    end = up_to[(starts + counts - 1).clamp(min=0)][rays]
    if backward:
        found = end - (before if inclusive else up_to)
    else:
        found = (up_to if inclusive else before) - start
    if normalize:
        last = before[(starts + counts - 1).clamp(min=0)][rays]
        found = found / ((end if inclusive else last) - start).clamp_min(SMALLEST)
    return found.to(inputs.dtype)


def _place_on_ray(starts: Tensor, counts: Tensor) -> Tensor:
    """How many values of the same ray lie before each one, (N,)."""
    rays = rays_of_chunks(counts)
    return torch.arange(len(rays), device=rays.device) - starts[rays]


def _running_product(values: Tensor, place: Tensor) -> Tensor:
    """Inclusive products along rays by doubling the reach (Hillis and Steele 1986).

    A difference of logarithms would be shorter, and cannot hold zeros.
    """
    found, reach = values.clone(), 1
    longest = int(place.max()) + 1 if len(place) else 0
    while reach < longest:
        found = torch.where(place >= reach, found * found.roll(reach), found)
        reach *= 2
    return found
