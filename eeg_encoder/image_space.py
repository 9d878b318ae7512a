"""The frozen networks of a pipeline folder that give the encoder its targets and its tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .errors import InputError
from .recordings.perceivelab import picture_path

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@torch.no_grad()
def embed_pictures(
    pipeline: str | Path,
    pictures: str | Path,
    stimuli: Sequence[str],
    *,
    device: str | torch.device = "cpu",
    batch: int = 256,
) -> Tensor:
    """Unit image embeddings (S, P) of the stimuli's pictures by the pipeline's image tower.

    Parameters
    ----------
    pipeline
        Folder with ``image_encoder``, a CLIPVisionModelWithProjection.
    pictures
        ImageNet-style folder.
    stimuli
        S picture ids.

    Raises
    ------
    InputError
        When a picture is missing or unreadable, or the tower cannot be loaded.
    """
    from transformers import CLIPVisionModelWithProjection

    paths = [picture_path(pictures, stimulus) for stimulus in stimuli]
    tower = _load(CLIPVisionModelWithProjection, Path(pipeline), "image_encoder").to(device)
    size = tower.config.image_size
    embeddings = []
    for start in range(0, len(paths), batch):
        pixels = np.stack([_picture(path, size) for path in paths[start : start + batch]])
        rgb = torch.from_numpy(pixels).to(device).permute(0, 3, 1, 2).float() / 255
        embeddings.append(picture_embeddings(tower, rgb).cpu())
    return torch.cat(embeddings)


def picture_embeddings(image_encoder: Any, rgb: Tensor) -> Tensor:
    """Unit embeddings (B, P) by a CLIP image tower of pictures (B, 3, H, W) in [0, 1]."""
    size = image_encoder.config.image_size
    weight = image_encoder.visual_projection.weight
    if rgb.shape[-2:] != (size, size):
        rgb = F.interpolate(rgb, (size, size), mode="bilinear", antialias=True, align_corners=False)
    mean, std = (torch.tensor(v, device=rgb.device).view(1, 3, 1, 1) for v in (CLIP_MEAN, CLIP_STD))
    pixels = ((rgb - mean) / std).to(weight)
    return F.normalize(image_encoder(pixel_values=pixels).image_embeds, dim=-1)


def text_tokens(tokenizer: Any, text_encoder: Any, texts: Sequence[str]) -> Tensor:
    """Last hidden states (B, L, D) of captions padded to the tokenizer's full length L."""
    ids = tokenizer(
        list(texts),
        padding="max_length",
        truncation=True,
        max_length=tokenizer.model_max_length,
        return_tensors="pt",
    ).input_ids
    return text_encoder(ids.to(text_encoder.device)).last_hidden_state


@torch.no_grad()
def empty_caption_tokens(pipeline: str | Path) -> Tensor:
    """Tokens (L, D) of the empty caption: the unconditional branch.

    Raises
    ------
    InputError
        When the text encoder or its tokenizer cannot be loaded.
    """
    from transformers import CLIPTextModel, CLIPTokenizer

    tokenizer = _load(CLIPTokenizer, Path(pipeline), "tokenizer")
    encoder = _load(CLIPTextModel, Path(pipeline), "text_encoder")
    return text_tokens(tokenizer, encoder, [""])[0].float()


def image_projection_weights(pipeline: str | Path) -> dict[str, Tensor]:
    """Weights of the pipeline's image projection (diffusers' ``ImageProjection``), float32.

    Keys ``image_embeds.weight`` (L*D, P), ``image_embeds.bias``, ``norm.weight`` (D,) and
    ``norm.bias``.

    Raises
    ------
    InputError
        When the pipeline has none.
    """
    from safetensors.torch import load_file

    file = Path(pipeline) / "image_projection" / "diffusion_pytorch_model.safetensors"
    try:
        weights = {name: value.float() for name, value in load_file(str(file)).items()}
        return {name: weights[name] for name in PROJECTION_KEYS}
    except Exception as error:
        reason = f"{type(error).__name__} {str(error).splitlines()[0]}"
        expected = "weights of an image projection (image embedding to tokens)"
        raise InputError(file, "file", reason, expected) from error


PROJECTION_KEYS = ("image_embeds.weight", "image_embeds.bias", "norm.weight", "norm.bias")


def _load(kind: Any, pipeline: Path, part: str) -> Any:
    from .quiet import quiet_libraries

    folder = pipeline / part
    if not folder.is_dir():
        raise InputError(pipeline, part, "nothing", f"a {kind.__name__} folder")
    try:
        with quiet_libraries():
            network = kind.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        reason = str(error).strip().splitlines()[0][:120]
        raise InputError(folder, "weights", reason, f"a {kind.__name__}") from error
    return network.float().eval().requires_grad_(False) if hasattr(network, "eval") else network


def _picture(path: Path, size: int) -> np.ndarray:
    from PIL import Image

    try:
        with Image.open(path) as image:
            rgb = image.convert("RGB")
            if rgb.size != (size, size):
                rgb = rgb.resize((size, size), Image.Resampling.BILINEAR)
            return np.asarray(rgb)
    except OSError as error:
        raise InputError(path, "picture", error, "a picture that can be read") from error
