"""``torch.cross`` without an axis, which takes the first one of length 3: the batch, where it is 3.

Threestudio makes its cameras in this way. Three of them in a training batch would not point where
they should, without an error; three test or validation views are an error.
"""

from __future__ import annotations

import functools
from typing import Any

import torch

from . import patching
from .remedy import Remedy, always


def apply(device: str) -> None:
    patching.set_attribute(torch, "cross", _along_the_last_axis(torch.cross))


def _along_the_last_axis(cross: Any) -> Any:
    @functools.wraps(cross)
    def wrapped(input: Any, other: Any, dim: int | None = None, **kwargs: Any) -> Any:
        if dim is None and input.shape[-1] == 3:
            dim = -1
        return cross(input, other, dim=dim, **kwargs)

    return wrapped


REMEDY = Remedy(
    name="cross-products",
    stands_in_for="torch.cross without an axis, in threestudio's cameras: along the last axis, "
    "also where there are three of them.",
    reason=always("with a batch of three cameras, torch.cross would take the batch for the axis"),
    apply=apply,
    hint="not needed for other numbers of cameras than three",
)
