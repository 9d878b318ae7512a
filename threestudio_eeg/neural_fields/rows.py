"""Rows of a tensor by number: a ray's values at its samples, samples that are worth shading.

Torch's ``index_select`` takes some ten times as long as the copy of its bytes where rows are three
or four numbers, as those of points and colours; :mod:`.rows_triton` is for a GPU.
"""

from __future__ import annotations

from torch import Tensor

from .backends import choose_backend


def take_rows(tensor: Tensor, places: Tensor, backend: str | None = None) -> Tensor:
    """Rows (M, ...) of a tensor (N, ...), as ``tensor.index_select(0, places)``.

    Parameters
    ----------
    places
        Shape (M,), whole numbers from 0 to N - 1; on a GPU they are not checked.
    backend
        ``torch`` or ``triton``; by default :func:`.backends.choose_backend`, and torch where the
        rows are to be differentiated.
    """
    if tensor.requires_grad or choose_backend(tensor, backend) == "torch":
        return tensor.index_select(0, places)
    from .rows_triton import take_rows as take

    return take(tensor, places)
