"""Pictures sampled from a pipeline, and what the judge says of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..pipeline import Pipeline
from .categories import CATEGORIES, COLOURS
from .objects import caption
from .pictures import Cameras, random_cameras, side_index, view_word


@torch.no_grad()
def sample(
    pipeline: Pipeline,
    tokens: Tensor,
    cameras: Cameras | None,
    *,
    steps: int = 50,
    guidance_scale: float = 3.0,
    seed: int = 0,
) -> Tensor:
    """Pictures (B, 3, H, W) in [0, 1] by DDIM under context ``tokens`` (B, L, D).

    Where the pipeline has a view encoder, camera tokens are appended; ``None`` gives the null ones.
    """
    from diffusers import DDIMScheduler

    n = len(tokens)
    scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    scheduler.set_timesteps(steps)
    context = torch.cat(
        [
            _with_views(pipeline, tokens, cameras),
            _with_views(pipeline, pipeline.encode_text([""]).expand(n, -1, -1), None),
        ]
    )
    generator = torch.Generator("cpu").manual_seed(seed)
    size = pipeline.latent_size
    x = torch.randn(n, 4, size, size, generator=generator).to(pipeline.device)
    for t in scheduler.timesteps:
        guess = pipeline.unet(torch.cat([x, x]), t.to(x.device), context).sample
        with_prompt, without = guess.chunk(2)
        guided = without + guidance_scale * (with_prompt - without)
        x = scheduler.step(guided, t, x).prev_sample
    return (pipeline.vae.decode(x / pipeline.scaling_factor).sample / 2 + 0.5).clamp(0, 1)


def _with_views(pipeline: Pipeline, tokens: Tensor, cameras: Cameras | None) -> Tensor:
    views = pipeline.view_encoder
    if views is None:
        return tokens
    if cameras is None:
        extra = views.null_tokens.expand(len(tokens), -1, -1)
    else:
        extra = views(*(value.to(pipeline.device) for value in vars(cameras).values()))
    return torch.cat([tokens, extra.to(tokens)], dim=1)


def judge_samples(
    pipeline: Pipeline,
    judge: Any,
    *,
    n: int = 500,
    guidance_scale: float = 3.0,
    steps: int = 50,
    seed: int = 0,
) -> dict[str, float]:
    """Sample ``n`` captioned pictures from random cameras; shares that the judge names right.

    Captions go round the categories and colours and carry the view's word.
    """
    generator = torch.Generator().manual_seed(seed)
    cameras = random_cameras(n, generator)
    pairs = [(i % len(CATEGORIES), (i // len(CATEGORIES)) % len(COLOURS)) for i in range(n)]
    pictures = torch.cat(
        [
            sample(
                pipeline,
                pipeline.encode_text(
                    _captions(pairs[i : i + 125], cameras.select(slice(i, i + 125)))
                ),
                cameras.select(slice(i, i + 125)),
                guidance_scale=guidance_scale,
                steps=steps,
                seed=seed + i,
            )
            for i in range(0, n, 125)
        ]
    )
    answers = {name: p.argmax(-1).cpu() for name, p in judge.probabilities(pictures).items()}
    truth = {
        "category": torch.tensor([pair[0] for pair in pairs]),
        "colour": torch.tensor([pair[1] for pair in pairs]),
        "side": side_index(cameras.azimuth),
    }
    return {name: float((answers[name] == truth[name]).float().mean()) for name in truth}


def _captions(pairs: Sequence[tuple[int, int]], cameras: Cameras) -> list[str]:
    colours = list(COLOURS)
    return [
        caption(CATEGORIES[category], colours[colour], view_word(float(e), float(a)))
        for (category, colour), e, a in zip(pairs, cameras.elevation, cameras.azimuth, strict=True)
    ]
