"""The small prior's networks, untrained: Stable Diffusion's architecture at 64x64 pixels."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

WIDTH = 256
LENGTH = 16
EMBEDDING = 192
PICTURE = 64


def new_tokenizer(captions: Iterable[str], *, length: int, folder: Path) -> Any:
    """Train a byte-pair tokenizer of CLIP's kind on captions, save it and return it.

    Writes ``vocab.json`` and ``merges.txt``; returns a ``transformers.CLIPTokenizer`` that pads to
    ``length`` tokens.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    specials = ["<|startoftext|>", "<|endoftext|>"]
    trained = Tokenizer(models.BPE(end_of_word_suffix="</w>", continuing_subword_prefix=""))
    trained.pre_tokenizer = pre_tokenizers.Whitespace()
    letters = list("abcdefghijklmnopqrstuvwxyz,")
    trainer = trainers.BpeTrainer(
        vocab_size=2000,
        special_tokens=specials,
        end_of_word_suffix="</w>",
        initial_alphabet=letters,
        show_progress=False,
    )
    trained.train_from_iterator(captions, trainer)
    model = json.loads(trained.to_str())["model"]
    vocabulary = dict(model["vocab"])
    for letter in letters:
        for entry in (letter, letter + "</w>"):
            vocabulary.setdefault(entry, len(vocabulary))
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    tokenizer = CLIPTokenizer(
        str(folder / "vocab.json"),
        str(folder / "merges.txt"),
        bos_token=specials[0],
        eos_token=specials[1],
        unk_token=specials[1],
        pad_token=specials[1],
        model_max_length=length,
    )
    tokenizer.save_pretrained(folder)
    return CLIPTokenizer.from_pretrained(folder, local_files_only=True)


def new_image_projection(folder: Path, *, embedding: int, width: int, n_tokens: int) -> Any:
    """diffusers' ``ImageProjection``, saved with its sizes."""
    module = image_projection(embedding, width, n_tokens)
    save_image_projection(module, folder, torch.float32)
    return module


def image_projection(embedding: int = EMBEDDING, width: int = WIDTH, n_tokens: int = LENGTH) -> Any:
    """Image embedding (B, P) to context tokens (B, L, D): linear map, layer norm (IP-Adapter)."""
    from diffusers.models.embeddings import ImageProjection

    return ImageProjection(
        image_embed_dim=embedding, cross_attention_dim=width, num_image_text_embeds=n_tokens
    )


def save_image_projection(module: Any, folder: Path, dtype: torch.dtype) -> None:
    """Write the projection's sizes and weights in diffusers' naming."""
    from safetensors.torch import save_file

    linear = module.image_embeds
    width = module.norm.normalized_shape[0]
    sizes = {
        "image_embed_dim": linear.in_features,
        "cross_attention_dim": width,
        "num_image_text_embeds": linear.out_features // width,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(sizes, indent=2) + "\n")
    state = {name: value.to(dtype).contiguous() for name, value in module.state_dict().items()}
    save_file(state, folder / "diffusion_pytorch_model.safetensors")


def unet() -> Any:
    """13.6 M parameters: latents 4x16x16, context width 256."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=PICTURE // 4,
        in_channels=4,
        out_channels=4,
        block_out_channels=(96, 160, 224),
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    )


def vae() -> Any:
    """1.7 M parameters: pictures 3x64x64 to latents 4x16x16."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(32, 64, 96),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=16,
        sample_size=PICTURE,
    )


def scheduler() -> Any:
    """Stable Diffusion's noise schedule, noise prediction."""
    from diffusers import DDPMScheduler

    return DDPMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        num_train_timesteps=1000,
        clip_sample=False,
        prediction_type="epsilon",
    )


def text_encoder(tokenizer: Any) -> Any:
    """CLIP's text tower, three layers."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    return CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=LENGTH,
            projection_dim=EMBEDDING,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def image_encoder() -> Any:
    """CLIP's image tower, four layers over 8x8 patches."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    return CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=192,
            intermediate_size=384,
            num_hidden_layers=4,
            num_attention_heads=4,
            image_size=PICTURE,
            patch_size=8,
            projection_dim=EMBEDDING,
        )
    )
