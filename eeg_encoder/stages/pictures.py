"""The pictures that were shown, on the training device."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import InputError
from ..recordings.perceivelab import picture_path

CROP = 0.8


def picture_bank(
    pictures: str | Path, stimuli: Sequence[str], size: int, device: str | torch.device
) -> Tensor:
    """Pictures (S, 3, size, size) uint8, squeezed to a square, in the order of the stimuli.

    Raises
    ------
    InputError
        When a picture is missing or unreadable.
    """
    return picture_files([picture_path(pictures, name) for name in stimuli], size, device)


def picture_files(paths: Sequence[Path], size: int, device: str | torch.device) -> Tensor:
    """Picture files as (S, 3, size, size) uint8.

    Raises
    ------
    InputError
        When one cannot be read.
    """
    return torch.stack([_read(path, size) for path in paths]).to(device)


def random_crops(rgb: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """A share of pictures (B, 3, H, W) cropped to a random window of 0.8 and stretched back.

    The published system crops half of its training pictures so (410 of 512 pixels).
    """
    if not share:
        return rgb
    b, size = len(rgb), rgb.shape[-1]
    draw = torch.rand(b, 3, device=rgb.device, generator=generator)
    room = 1 - CROP
    theta = rgb.new_zeros(b, 2, 3)
    cropped = (draw[:, 0] < share).to(rgb)
    theta[:, 0, 0] = theta[:, 1, 1] = 1 - room * cropped
    theta[:, :, 2] = room * cropped[:, None] * (2 * draw[:, 1:] - 1)
    grid = F.affine_grid(theta, [b, 3, size, size], align_corners=False)
    return F.grid_sample(rgb, grid, padding_mode="border", align_corners=False)


def _read(path: Path, size: int) -> Tensor:
    from PIL import Image

    try:
        with Image.open(path) as image:
            rgb = image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR)
            return torch.from_numpy(np.array(rgb)).permute(2, 0, 1)
    except OSError as error:
        raise InputError(path, "picture", error, "a picture that can be read") from error
