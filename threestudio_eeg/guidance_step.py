"""What a guidance step takes in and says, and classifier-free guidance of a batch."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from .noise import Draws, Noised


@dataclass
class Prompt:
    """Context tokens of a batch of B views.

    ``guided`` is (2B, L, D), conditional half first; ``plain`` (B, L, D) is the conditional
    context that the LoRA sees. ``camera`` (B, 16) is the LoRA's, or None. ``which`` (B,) is the
    LoRA of each view, or None where there is only one.
    """

    guided: Tensor
    plain: Tensor
    camera: Tensor | None = None
    which: Tensor | None = None


@dataclass
class Levels:
    """What schedules give a step, as numbers or, in a recorded step, as scalars on the device.

    A guidance scale of 1 is always the number: it decides what is computed.
    """

    guidance_scale: float | Tensor
    grad_clip: float | Tensor | None

    def on(self, device: torch.device) -> Levels:
        """The same on a device, without waiting for it."""
        scale, clip = self.guidance_scale, self.grad_clip
        return Levels(
            scale if scale == 1.0 else torch.full((), float(scale), device=device),
            None if clip is None else torch.full((), float(clip), device=device),
        )


@dataclass
class Step:
    """All that the losses of a step depend on, besides the networks.

    ``picture`` is (B, 3, H, W) in [0, 1], or latents (B, C, h, w) with ``as_latents``.
    """

    picture: Tensor
    prompt: Prompt
    draws: Draws
    levels: Levels
    as_latents: bool = False


@dataclass
class Distilled:
    """What a step says of its pictures: ``losses`` by name, and what they were made from."""

    latents: Tensor
    noised: Noised
    teacher: Tensor
    grad_norm: Tensor
    losses: dict[str, Tensor] = field(default_factory=dict)


def given(tensor: Tensor | None) -> Tensor:
    """A tensor that this step must have."""
    assert tensor is not None
    return tensor


def n_branches(scale: float | Tensor) -> int:
    """Samples a view of a guided prediction: the branch guided to, and another unless s is 1."""
    return 1 if isinstance(scale, float) and scale == 1.0 else 2


def combine_branches(out: Tensor, scale: float | Tensor) -> Tensor:
    """``u + s (c - u)`` of a batch with the half c first, or c alone when s is 1."""
    if n_branches(scale) == 1:
        return out
    guided, other = out.chunk(2)
    return other + scale * (guided - other)
