"""Make the small prior: pictures, VAE, CLIP towers, U-Net, and the judge beside it.

Stages leave their weights in the output folder and are not run again when those are there, so an
interrupted training goes on with the stage it was in.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from omegaconf import MISSING

from . import networks, stages
from .bank import PictureBank, all_captions, make_bank
from .objects import make_instances

Log = Callable[[str], None]


@dataclass
class StageConfig:
    """Steps and batch size of one training stage."""

    steps: int = MISSING
    batch: int = MISSING


@dataclass
class PriorConfig:
    """Training instances a category, views of each, and the stages; as in ``prior.yaml``."""

    seed: int = 0
    instances: int = MISSING
    views: int = MISSING
    stimuli: int = MISSING
    vae: StageConfig = field(default_factory=StageConfig)
    clip: StageConfig = field(default_factory=StageConfig)
    unet: StageConfig = field(default_factory=StageConfig)
    judge: StageConfig = field(default_factory=StageConfig)


def train_prior(config: Any, out: Path, *, device: str, log: Log = print) -> Path:
    """Train every stage that ``out`` lacks; return ``out / "pipeline"``.

    Parameters
    ----------
    config
        :class:`PriorConfig`, as ``configs/phantom/prior.yaml`` has it.
    out
        ``pipeline/`` (diffusers' layout, half precision) and ``judge/`` are made in it.
    device
        ``"cuda"``; ``"cpu"`` works for a few steps.
    """
    torch.manual_seed(config.seed)
    folder = out / "pipeline"
    tokenizer = networks.new_tokenizer(
        all_captions(), length=networks.LENGTH, folder=folder / "tokenizer"
    )
    networks.scheduler().save_pretrained(folder / "scheduler")
    bank = _bank(config, device, "train", config.instances)
    log(f"pictures: {bank.rgba.shape[0]} objects x {bank.n_views} views")
    _judge(config, bank, out / "judge", device, log)
    vae = _vae(config, bank, folder / "vae", log)
    towers = _towers(config, bank, tokenizer, folder, log)
    _denoiser(config, bank, vae, towers, folder, log)
    write_index(folder)
    return folder


def _bank(config: Any, device: str, split: str, per_category: int) -> PictureBank:
    return make_bank(
        make_instances(split, per_category, config.seed),
        n_random=config.views,
        n_stimuli=config.stimuli,
        size=networks.PICTURE,
        seed=config.seed + 1,
        device=device,
    )


def _judge(config: Any, bank: PictureBank, folder: Path, device: str, log: Log) -> None:
    from ..evaluation.judge import judge_accuracy, train_judge, write_card

    if (folder / "model.safetensors").exists():
        return
    judge = train_judge(bank, **config.judge, seed=config.seed + 2, log=log)
    unseen = _bank(config, device, "val", 20)
    figures = judge_accuracy(judge, unseen, seed=config.seed)
    judge.save_pretrained(folder)
    write_card(folder, {"validation accuracy, unseen instances": figures, "seed": config.seed})
    log(f"judge on unseen instances: {figures}")


def _vae(config: Any, bank: PictureBank, folder: Path, log: Log) -> Any:
    from diffusers import AutoencoderKL

    if not (folder / "config.json").exists():
        vae = stages.train_vae(bank, **config.vae, seed=config.seed + 3, log=log)
        save_half(vae, folder)
    vae = AutoencoderKL.from_pretrained(folder, local_files_only=True)
    return vae.to(bank.rgba.device).eval().requires_grad_(False)


def _towers(config: Any, bank: PictureBank, tokenizer: Any, folder: Path, log: Log) -> Any:
    from transformers import CLIPTextModelWithProjection, CLIPVisionModelWithProjection

    if not (folder / "image_encoder" / "config.json").exists():
        towers = stages.train_clip(bank, tokenizer, **config.clip, seed=config.seed + 4, log=log)
        save_half(towers.text, folder / "text_encoder")
        save_half(towers.image, folder / "image_encoder")
    device = bank.rgba.device
    text: Any = CLIPTextModelWithProjection.from_pretrained(
        folder / "text_encoder", dtype=torch.float32, local_files_only=True
    )
    image: Any = CLIPVisionModelWithProjection.from_pretrained(
        folder / "image_encoder", dtype=torch.float32, local_files_only=True
    )
    return stages.Towers(tokenizer, text.to(device).eval(), image.to(device).eval())


def _denoiser(config, bank: PictureBank, vae, towers, folder: Path, log: Log) -> None:
    if (folder / "unet" / "config.json").exists():
        return
    data = stages.encode_bank(bank, vae, towers, seed=config.seed + 5)
    log(f"latents: {tuple(data.latents.shape)}")
    net = stages.train_unet(bank, data, **config.unet, seed=config.seed + 6, log=log)
    networks.save_image_projection(net.projection, folder / "image_projection", torch.float16)
    net.views.save_pretrained(folder / "view_encoder")
    save_half(net.unet, folder / "unet")


def save_half(module: Any, folder: Path) -> None:
    """Save in half precision, in files of at most 14 MB; the folder appears whole or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
        whole = Path(temporary) / folder.name
        module.half().save_pretrained(whole, max_shard_size="14MB", safe_serialization=True)
        whole.rename(folder)


def write_index(folder: Path) -> None:
    """diffusers' ``model_index.json``, so that ``StableDiffusionPipeline`` opens the folder too."""
    import json

    import diffusers

    index = {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": diffusers.__version__,
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "DDPMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
