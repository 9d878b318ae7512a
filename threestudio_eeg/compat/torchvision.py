"""torchvision, of which there is no CPU build on every index, and which must match torch exactly.

transformers, diffusers and torchmetrics ask once whether torchvision is there and then import real
names from it. So they are asked first, and the stand-in is put in after their answer is fixed.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import patching
from .absent import missing, why_absent
from .remedy import Remedy

HINT = "the torchvision that belongs to this torch: pip install torchvision"
ASK_FIRST = ("torchmetrics", "transformers.utils", "diffusers")


def reason(device: str) -> str | None:
    return why_absent("torchvision")


def apply(device: str) -> None:
    _let_others_ask()
    functional = patching.new_module(
        "torchvision.transforms.functional", to_tensor=to_tensor, to_pil_image=to_pil_image
    )
    models = patching.new_module("torchvision.models", __getattr__=_model)
    for module in (
        patching.new_module("torchvision"),
        patching.new_module("torchvision.transforms"),
        functional,
        models,
    ):
        patching.add_module(module.__name__, module)


def _let_others_ask() -> None:
    """Have the libraries that look for torchvision find none, and remember it."""
    blocked = "torchvision" not in sys.modules
    if blocked:
        sys.modules["torchvision"] = None  # type: ignore[assignment]
    try:
        for name in ASK_FIRST:
            importlib.import_module(name)
        importlib.import_module("transformers.utils").is_torchvision_available()
    finally:
        if blocked:
            del sys.modules["torchvision"]


def to_tensor(picture: Any) -> Tensor:
    """A picture (H, W, C) to a tensor (C, H, W); bytes become [0, 1]."""
    values = np.array(picture)
    if values.ndim == 2:
        values = values[:, :, None]
    tensor = torch.from_numpy(np.ascontiguousarray(values.transpose(2, 0, 1)))
    return tensor.float() / 255 if tensor.dtype == torch.uint8 else tensor


def to_pil_image(picture: Any) -> Any:
    """A tensor (C, H, W) in [0, 1], or an array (H, W, C) of bytes, to a PIL image."""
    from PIL import Image

    if isinstance(picture, Tensor):
        values = picture.detach().cpu().permute(1, 2, 0)
        if values.is_floating_point():
            values = values.mul(255).byte()
        picture = values.numpy()
    if picture.shape[-1] == 1:
        picture = picture[..., 0]
    return Image.fromarray(picture)


def _model(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    return missing("torchvision", f"models.{name}", HINT)


REMEDY = Remedy(
    name="torchvision",
    stands_in_for="torchvision's conversions between pictures and tensors, done by numpy; its "
    "models are errors on use.",
    reason=reason,
    apply=apply,
    hint=HINT,
)
