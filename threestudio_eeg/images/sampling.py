"""Pictures drawn from a pipeline's U-Net by DDIM, under a prompt and cameras."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .cameras import PictureCameras

CHUNK = 32


def initial_noise(guidance: Any, cameras: PictureCameras, seed: int) -> Tensor:
    """Standard normal latents (B, C, h, w), drawn on the CPU; views of a particle share theirs."""
    generator = torch.Generator("cpu").manual_seed(seed)
    pipeline = guidance.pipeline
    side, channels = pipeline.latent_size, pipeline.unet.config.in_channels
    n_particles = len(cameras) // cameras.n_views
    noise = torch.randn(n_particles, channels, side, side, generator=generator)
    return noise.repeat_interleave(cameras.n_views, dim=0).to(pipeline.device)


@torch.no_grad()
def sample_pictures(
    guidance: Any,
    prompt_utils: Any,
    cameras: PictureCameras,
    *,
    steps: int = 50,
    seed: int = 0,
    on_step: Callable[[], None] = lambda: None,
) -> Tensor:
    """Pictures (B, H, W, 3) in [0, 1].

    Parameters
    ----------
    guidance
        An :class:`..guidance.ScoreDistillation`: its teacher, guidance scale and schedule.
    prompt_utils
        A prompt processor's output.
    steps
        Of DDIM.
    on_step
        Called after each step of each chunk of :data:`CHUNK` pictures.
    """
    noise = initial_noise(guidance, cameras, seed)
    pictures = []
    for start in range(0, len(cameras), CHUNK):
        rows = slice(start, start + CHUNK)
        batch = cameras.as_batch(rows)
        views = (batch["elevation"], batch["azimuth"], batch["camera_distances"])
        context = guidance.prompt(prompt_utils, views, batch).guided

        def predict(noisy: Tensor, t: Tensor, context: Tensor = context) -> Tensor:
            on_step()
            return guidance.teacher(noisy, t, context)

        chunk = noise[rows]
        last = torch.full((len(chunk),), len(guidance.schedule) - 1, device=chunk.device)
        clean = guidance.schedule.denoise(chunk, last, steps, predict)
        pictures.append(guidance.decode(clean).permute(0, 2, 3, 1))
    return torch.cat(pictures)
