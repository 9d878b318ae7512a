"""Pictures sampled from a pipeline, and what the judge says of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from eeg_encoder.errors import InputError

from ..pipeline import Pipeline
from .categories import CATEGORIES, COLOURS
from .objects import Instance, caption, held_out_instances, make_instances, solids_of
from .pictures import (
    Cameras,
    over,
    random_cameras,
    render,
    side_index,
    stimulus_cameras,
    view_word,
)

PROTOCOLS = ("caption", "picture", "held-out pair")
CHUNK = 125


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
    protocol: str = "caption",
    n: int = 500,
    guidance_scale: float = 3.0,
    steps: int = 50,
    seed: int = 0,
) -> dict[str, float]:
    """Sample ``n`` pictures from random cameras; shares whose category, colour and side the judge
    names right.

    Parameters
    ----------
    protocol
        ``"caption"``: captions of test objects with the view's word. ``"picture"``: the embedding
        of a test object's stimulus picture. ``"held-out pair"``: captions whose category never had
        that colour in training.

    Raises
    ------
    InputError
        For ``"picture"`` and a pipeline without image encoder or image projection.
    """
    shown = held_out_instances(seed) if protocol == "held-out pair" else _test_instances(seed)
    instances = [shown[i % len(shown)] for i in range(n)]
    cameras = random_cameras(n, torch.Generator().manual_seed(seed))
    tokens_of = _picture_tokens if protocol == "picture" else _caption_tokens
    pictures = []
    for start in range(0, n, CHUNK):
        part, seen = instances[start : start + CHUNK], cameras.select(slice(start, start + CHUNK))
        pictures.append(
            sample(
                pipeline,
                tokens_of(pipeline, part, seen, seed + start),
                seen,
                guidance_scale=guidance_scale,
                steps=steps,
                seed=seed + start,
            )
        )
    answers = judge.probabilities(torch.cat(pictures))
    truth = {
        "category": torch.tensor([CATEGORIES.index(i.category) for i in instances]),
        "colour": torch.tensor([list(COLOURS).index(i.colour) for i in instances]),
        "side": side_index(cameras.azimuth),
    }
    return {
        name: float((answers[name].argmax(-1).cpu() == truth[name]).float().mean())
        for name in truth
    }


def _test_instances(seed: int) -> list[Instance]:
    return make_instances("test", 25, seed)


def _caption_tokens(
    pipeline: Pipeline, instances: Sequence[Instance], cameras: Cameras, seed: int
) -> Tensor:
    places = zip(cameras.elevation.tolist(), cameras.azimuth.tolist(), strict=True)
    captions = [
        caption(instance.category, instance.colour, view_word(elevation, azimuth))
        for instance, (elevation, azimuth) in zip(instances, places, strict=True)
    ]
    return pipeline.encode_text(captions)


@torch.no_grad()
def _picture_tokens(
    pipeline: Pipeline, instances: Sequence[Instance], cameras: Cameras, seed: int
) -> Tensor:
    for part in ("image_encoder", "image_projection"):
        if getattr(pipeline, part) is None:
            raise InputError(pipeline.path, part, "nothing", "a folder of that name")
    generator = torch.Generator().manual_seed(seed)
    seen = stimulus_cameras(len(instances), generator).to(pipeline.device)
    rgba = render(solids_of(instances).to(pipeline.device), seen, pipeline.image_size)
    gray = torch.full((len(instances), 3), 0.85, device=pipeline.device)
    return pipeline.image_projection(pipeline.encode_pictures(over(rgba, gray)))
