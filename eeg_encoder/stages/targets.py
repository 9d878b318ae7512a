"""What the alignment stage regresses to: a layer of the image tower, several views averaged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import InputError
from ..image_space import CLIP_MEAN, CLIP_STD
from ..objectives import mean_view
from .pictures import picture_bank


@dataclass
class TargetConfig:
    """Which image embedding EEG is aligned with.

    Parameters
    ----------
    layer
        Layer of the pipeline's image tower, 1 to its depth: the mean of its patch tokens, minus
        the mean over training pictures, at unit length. Null for the tower's own projected
        embedding, the only one that the pipeline's image projection can turn into tokens.
        Layers of the middle decode better from EEG (Shallow Alignment, arXiv 2601.21948).
    views
        Out of ``sharp``, ``blur``, ``noise``, ``coarse``, ``mosaic``; their embeddings are
        averaged (:func:`eeg_encoder.objectives.mean_view`).
    """

    layer: Optional[int] = None  # noqa: UP045
    views: list[str] = field(default_factory=lambda: ["sharp"])

    def __post_init__(self) -> None:
        unknown = sorted(set(self.views) - set(VIEWS))
        if unknown or not self.views:
            found = unknown[0] if unknown else "none"
            raise InputError("targets", "views", found, f"some of {', '.join(VIEWS)}")


@torch.no_grad()
def picture_targets(
    pipeline: str | Path,
    pictures: str | Path,
    stimuli: dict[str, Sequence[str]],
    config: TargetConfig,
    *,
    device: str | torch.device,
    seed: int = 0,
    batch: int = 128,
) -> dict[str, Tensor]:
    """Unit embeddings (S, P), on the CPU, of the stimuli of ``train`` and of other parts.

    Raises
    ------
    InputError
        When a picture or the tower is missing, or the tower has no such layer.
    """
    from transformers import CLIPVisionModelWithProjection

    from ..image_space import _load

    tower = _load(CLIPVisionModelWithProjection, Path(pipeline), "image_encoder").to(device)
    depth = tower.config.num_hidden_layers
    if config.layer is not None and not 1 <= config.layer <= depth:
        raise InputError("targets", "layer", config.layer, f"1 to {depth}")
    generator = torch.Generator(device).manual_seed(seed)
    found = {}
    for part, names in stimuli.items():
        bank = picture_bank(pictures, names, tower.config.image_size, device)
        chunks = [
            torch.stack(
                [_embed(tower, VIEWS[v](rgb, generator), config.layer) for v in config.views], dim=1
            )
            for rgb in (chunk.float() / 255 for chunk in bank.split(batch))
        ]
        found[part] = torch.cat(chunks).float()
    if config.layer is not None:
        centre = found["train"].mean(0)
        found = {part: views - centre for part, views in found.items()}
    return {part: mean_view(views).cpu() for part, views in found.items()}


def _embed(tower: Any, rgb: Tensor, layer: int | None) -> Tensor:
    mean, std = (torch.tensor(v, device=rgb.device).view(1, 3, 1, 1) for v in (CLIP_MEAN, CLIP_STD))
    answer = tower(pixel_values=(rgb - mean) / std, output_hidden_states=layer is not None)
    if layer is None:
        return F.normalize(answer.image_embeds, dim=1)
    return answer.hidden_states[layer][:, 1:].mean(dim=1)


def _blur(rgb: Tensor, _: torch.Generator) -> Tensor:
    side = max(3, rgb.shape[-1] // 8 * 2 + 1)
    places = torch.arange(side, device=rgb.device) - side // 2
    kernel = torch.exp(-0.5 * (places / (side / 6)) ** 2)
    kernel = (kernel / kernel.sum()).view(1, 1, 1, -1).expand(3, 1, 1, -1)
    padded = F.pad(rgb, [side // 2] * 4, mode="replicate")
    rows = F.conv2d(padded, kernel, groups=3)
    return F.conv2d(rows, kernel.transpose(2, 3), groups=3)


def _noise(rgb: Tensor, generator: torch.Generator) -> Tensor:
    white = torch.randn(rgb.shape, device=rgb.device, generator=generator)
    return (rgb + 0.1 * white).clamp(0, 1)


def _coarse(rgb: Tensor, _: torch.Generator) -> Tensor:
    size = rgb.shape[-2:]
    small = F.interpolate(rgb, scale_factor=0.25, mode="bilinear", antialias=True)
    return F.interpolate(small, size, mode="bilinear").clamp(0, 1)


def _mosaic(rgb: Tensor, _: torch.Generator) -> Tensor:
    small = F.adaptive_avg_pool2d(rgb, max(1, rgb.shape[-1] // 8))
    return F.interpolate(small, rgb.shape[-2:], mode="nearest")


VIEWS: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    "sharp": lambda rgb, _: rgb,
    "blur": _blur,
    "noise": _noise,
    "coarse": _coarse,
    "mosaic": _mosaic,
}
"""Views of a picture by name, after NeuroBridge (AAAI 2026)."""
