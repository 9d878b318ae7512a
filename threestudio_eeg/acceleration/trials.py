"""Prompts of several trials as the prompt of one batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class TrialPrompts:
    """Answers as a prompt processor's output does, for views of several trials in one batch.

    Views are sorted by trial, equally many of each. For a guidance with ``n_trials``.

    Parameters
    ----------
    prompts
        The trials' own outputs, in the order of their views. Their contexts must be equally long.
    """

    def __init__(self, prompts: Sequence[Any]) -> None:
        self.prompts = list(prompts)

    def get_text_embeddings(
        self,
        elevation: Tensor,
        azimuth: Tensor,
        camera_distances: Tensor,
        view_dependent_prompting: bool = True,
    ) -> Tensor:
        """Return (2B, L, D), the conditional half first; angles (B,) in degrees, B for all."""
        n = len(self.prompts)
        views = zip(*(v.chunk(n) for v in (elevation, azimuth, camera_distances)), strict=True)
        halves = [
            prompt.get_text_embeddings(*own, view_dependent_prompting).chunk(2)
            for prompt, own in zip(self.prompts, views, strict=True)
        ]
        return torch.cat([half for side in zip(*halves, strict=True) for half in side])
