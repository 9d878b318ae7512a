"""A pipeline of random networks, in the shipped prior's layout, small enough for any test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

WORDS = ["a", "red", "mug", "chair", "blue", ",", "front", "side", "back", "overhead", "view"]


def tiny_unet(**config: Any) -> Any:
    """A U-Net for latents 8x8, attention in its outer blocks; a config changes its sizes."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        **{
            "sample_size": 8,
            "block_out_channels": (32, 32),
            "layers_per_block": 1,
            "norm_num_groups": 8,
            "cross_attention_dim": 32,
            "attention_head_dim": 8,
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
            **config,
        }
    )


def tiny_pipeline(folder: Path, *, seed: int = 0, view_tokens: bool = True, **unet: Any) -> Path:
    """Write a pipeline: latents 8x8, pictures 16x16, context 8 (+2 view tokens) of width 32."""
    from diffusers import AutoencoderKL, DDPMScheduler
    from transformers import (
        CLIPTextConfig,
        CLIPTextModelWithProjection,
        CLIPVisionConfig,
        CLIPVisionModelWithProjection,
    )

    from threestudio_eeg.phantom.networks import new_image_projection, new_tokenizer
    from threestudio_eeg.view_encoder import ViewEncoder

    torch.manual_seed(seed)
    tokenizer = new_tokenizer([" ".join(WORDS)], length=8, folder=folder / "tokenizer")
    tiny_unet(**unet).save_pretrained(folder / "unet")
    AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=16,
        scaling_factor=0.5,
    ).save_pretrained(folder / "vae")
    DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False
    ).save_pretrained(folder / "scheduler")
    CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=4,
            max_position_embeddings=8,
            projection_dim=16,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    ).save_pretrained(folder / "text_encoder")
    CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=4,
            image_size=16,
            patch_size=8,
            projection_dim=16,
        )
    ).save_pretrained(folder / "image_encoder")
    new_image_projection(folder / "image_projection", embedding=16, width=32, n_tokens=8)
    if view_tokens:
        ViewEncoder(32, n_tokens=2, hidden=16).save_pretrained(folder / "view_encoder")
    return folder


def tiny_conditioning(path: Path, pipeline: Path, n: int = 3, seed: int = 0) -> Path:
    """Write a conditioning file of ``n`` random trials for :func:`tiny_pipeline`'s folder."""
    from eeg_encoder.conditioning import (
        Conditioning,
        Trial,
        pipeline_fingerprint,
        save_conditioning,
    )

    generator = torch.Generator().manual_seed(seed)
    save_conditioning(
        path,
        Conditioning(
            tokens=torch.randn(n, 8, 32, generator=generator),
            null_tokens=torch.randn(8, 32, generator=generator),
            pooled=torch.nn.functional.normalize(torch.randn(n, 16, generator=generator), dim=1),
            trials=[
                Trial(id=f"trial-{i}", subject=1, stimulus=f"n90000001_{i}", label="mug")
                for i in range(n)
            ],
            base_model=pipeline_fingerprint(pipeline),
            encoder="0" * 64,
            preprocessing={},
            protocol={"split": "test"},
        ),
    )
    return path
