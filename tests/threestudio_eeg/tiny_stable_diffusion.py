"""A folder laid out as Stable Diffusion's, with its sizes where threestudio fixes them.

Upstream's guidances assume pictures of 512 x 512, latents of 64 x 64 and a time embedding of 1280
numbers, so these three are kept; everything else is as small as it can be. The weights are random.
"""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import torch

WORDS = ["hamburger", "delicious", "front", "side", "back", "overhead", "view", "photo", "of"]
WIDTH = 32
LENGTH = 77


def make_tiny_stable_diffusion(
    folder: Path, *, prediction_type: str = "epsilon", seed: int = 0
) -> Path:
    """Write the pipeline; the same ``seed`` gives the same files. Takes a few seconds.

    Parameters
    ----------
    folder
        Where ``unet vae scheduler tokenizer text_encoder model_index.json`` go.
    prediction_type
        Of the scheduler: ``epsilon``, or ``v_prediction`` as Stable Diffusion 2.1 has.

    Returns
    -------
    Path
        ``folder``.
    """
    from diffusers import DDPMScheduler, StableDiffusionPipeline

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer(folder / "tokenizer")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet, vae, text_encoder = _unet(), _vae(), _text_encoder(tokenizer)
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=DDPMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            steps_offset=1,
            prediction_type=prediction_type,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)
    return folder


def _tokenizer(folder: Path) -> Any:
    """CLIP's kind of byte-pair tokenizer, which knows ``WORDS`` whole and other words by letters.

    Merged by hand, not trained: training breaks ties in an order that changes from run to run.
    """
    from transformers import CLIPTokenizer

    specials = ["<|startoftext|>", "<|endoftext|>"]
    letters = [*string.ascii_lowercase, ","]
    pieces = [*specials, *letters, *(letter + "</w>" for letter in letters)]
    merges = []
    for word in WORDS:
        *first, last = word
        known = first[0]
        for letter in [*first[1:], last + "</w>"]:
            merges.append(f"{known} {letter}")
            known += letter
            pieces.append(known)
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    merges = list(dict.fromkeys(merges))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    start, end = specials
    return CLIPTokenizer(
        str(folder / "vocab.json"),
        str(folder / "merges.txt"),
        bos_token=start,
        eos_token=end,
        unk_token=end,
        pad_token=end,
        model_max_length=LENGTH,
    )


def _unet() -> Any:
    """Latents 4 x 64 x 64 and a time embedding of 1280; eight attention processors."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=64,
        block_out_channels=(32, 64),
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        time_embedding_dim=1280,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )


def _vae() -> Any:
    """Pictures 512 x 512 to latents 4 x 64 x 64."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=512,
    )


def _text_encoder(tokenizer: Any) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=LENGTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
