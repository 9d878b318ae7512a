"""The guidances that ``vsd_step.py`` times: ours, eager diffusers, and upstream's."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from threestudio_eeg.builtin.base import device_scope
from threestudio_eeg.pipeline import load_pipeline, phantom_prior

Losses = Callable[[Tensor], dict[str, Tensor]]
"""From renders (B, H, W, 3) to the losses of a guidance."""

TOKENS = 77
IN_MEMORY = Path("/dev/shm")


@dataclass(frozen=True)
class Size:
    """Networks' configs by part, without any the phantom's prior as it ships; width of a token.

    ``small`` has the shapes that threestudio fixes (512, 64, 1280) and little else.
    """

    unet: dict[str, Any]
    vae: dict[str, Any]
    context: int


SIZES = {
    "sd15": Size(
        {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8},
        {
            "sample_size": 512,
            "block_out_channels": (128, 256, 512, 512),
            "layers_per_block": 2,
            "latent_channels": 4,
            "down_block_types": ("DownEncoderBlock2D",) * 4,
            "up_block_types": ("UpDecoderBlock2D",) * 4,
        },
        768,
    ),
    "phantom": Size({}, {}, 256),
    "tiny": Size(
        {
            "sample_size": 8,
            "block_out_channels": (32, 32),
            "layers_per_block": 1,
            "norm_num_groups": 8,
            "cross_attention_dim": 32,
            "attention_head_dim": 8,
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        },
        {
            "sample_size": 16,
            "block_out_channels": (8, 8),
            "latent_channels": 4,
            "norm_num_groups": 4,
            "down_block_types": ("DownEncoderBlock2D",) * 2,
            "up_block_types": ("UpDecoderBlock2D",) * 2,
        },
        32,
    ),
    "small": Size(
        {
            "sample_size": 64,
            "block_out_channels": (32, 64),
            "layers_per_block": 1,
            "cross_attention_dim": 32,
            "attention_head_dim": 4,
            "time_embedding_dim": 1280,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        },
        {
            "sample_size": 512,
            "block_out_channels": (4, 4, 8, 8),
            "latent_channels": 4,
            "norm_num_groups": 4,
            "down_block_types": ("DownEncoderBlock2D",) * 4,
            "up_block_types": ("UpDecoderBlock2D",) * 4,
        },
        32,
    ),
}


@contextmanager
def pipeline_of(size: str, given: Path | None, device: str) -> Iterator[Path]:
    """A pipeline's folder: the given one, or one made for now, in memory where that is a folder."""
    if given is not None:
        yield given
        return
    with tempfile.TemporaryDirectory(dir=IN_MEMORY if IN_MEMORY.is_dir() else None) as folder:
        yield make_pipeline(size, Path(folder) / "pipeline", device)


def make_pipeline(size: str, folder: Path, device: str) -> Path:
    """Write a pipeline of random weights in float16, or return the phantom's."""
    if size == "phantom":
        return phantom_prior()
    from diffusers import (
        AutoencoderKL,
        DDPMScheduler,
        StableDiffusionPipeline,
        UNet2DConditionModel,
    )
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    with torch.device(device):
        unet = UNet2DConditionModel(**SIZES[size].unet)
        vae = AutoencoderKL(**SIZES[size].vae)
    text = CLIPTextConfig(
        hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=4
    )
    StableDiffusionPipeline(
        unet=unet.half(),
        vae=vae.half(),
        text_encoder=CLIPTextModel(text).half(),
        tokenizer=None,
        scheduler=DDPMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            steps_offset=1,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder


class FixedPrompt:
    """Random contexts, the same at every call."""

    use_perp_neg = False

    def __init__(self, batch: int, width: int, device: str) -> None:
        generator = torch.Generator().manual_seed(1)
        self.tokens = torch.randn(2 * batch, TOKENS, width, generator=generator).to(device)

    def get_text_embeddings(self, *views: Any, **options: Any) -> Tensor:
        """Return (2B, 77, D), whatever the views."""
        return self.tokens


@dataclass(frozen=True)
class World:
    """What a guidance is timed on."""

    folder: Path
    batch: int
    device: str
    dtype: torch.dtype
    prompt: FixedPrompt
    views: dict[str, Tensor]

    @classmethod
    def of(cls, size: str, folder: Path, batch: int, device: str, dtype: torch.dtype) -> World:
        """Random cameras and contexts for ``batch`` views."""
        generator = torch.Generator().manual_seed(2)
        cameras = torch.randn(batch, 4, 4, generator=generator).to(device)
        angles = torch.zeros(batch, device=device)
        views = dict.fromkeys(("elevation", "azimuth", "camera_distances"), angles)
        prompt = FixedPrompt(batch, SIZES[size].context, device)
        return cls(
            folder, batch, device, dtype, prompt, {**views, "c2w": cameras, "mvp_mtx": cameras}
        )

    def render(self, side: int) -> Tensor:
        """Pictures (B, H, W, 3) that want a gradient."""
        generator = torch.Generator().manual_seed(3)
        rgb = torch.rand(self.batch, side, side, 3, generator=generator)
        return rgb.to(self.device).requires_grad_()


def ours(world: World, **config: Any) -> tuple[Losses, Any]:
    """This project's VSD guidance; with its LoRA away from its start."""
    from threestudio_eeg.guidance import VSDGuidance

    precision = {
        "half_precision_weights": world.dtype == torch.float16,
        "bfloat16_weights": world.dtype == torch.bfloat16,
    }
    torch.manual_seed(0)
    with device_scope(world.device):
        guidance = VSDGuidance(
            {"pretrained_model_name_or_path": str(world.folder), **precision, **config}
        )
    perturb(guidance.parameters())
    return lambda rgb: guidance(rgb, world.prompt, **world.views), guidance


def perturb(parameters: Any) -> None:
    """Move trainable weights away from their start, where half of the gradients are zero."""
    generator = torch.Generator().manual_seed(4)
    for parameter in parameters:
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data.add_(0.02 * noise.to(parameter))


def plain_diffusers(world: World) -> tuple[Losses, Any]:
    """VSD as one would write it with diffusers and peft: eager, one network for both scores.

    As threestudio does it: the teacher guided (2B), the LoRA with and without camera (2B), the
    LoRA's training pass (B), the VAE.
    """
    from diffusers.models.embeddings import TimestepEmbedding
    from peft import LoraConfig

    parts = ("unet", "vae", "scheduler")
    pipeline = load_pipeline(world.folder, device=world.device, dtype=world.dtype, parts=parts)
    unet, vae = pipeline.unet, pipeline.vae
    lora = LoraConfig(
        r=4, lora_alpha=4, target_modules=["to_q", "to_k", "to_v", "to_out.0"],
        init_lora_weights="gaussian",
    )  # fmt: skip
    unet.add_adapter(lora)
    trained = torch.nn.ModuleList([m for n, m in unet.named_modules() if n.endswith("default")])
    trained.append(TimestepEmbedding(16, unet.time_embedding.linear_1.out_features))
    trained.to(world.device, torch.float32)
    camera_embedding = trained[-1]
    abar = pipeline.scheduler.alphas_cumprod.to(world.device)
    low, high = int(0.02 * len(abar)), int(0.98 * len(abar))

    def predict(noisy: Tensor, t: Tensor, context: Tensor) -> Tensor:
        arguments = (noisy.to(world.dtype), t, context.to(world.dtype))
        return unet(*arguments, class_labels=camera_of.get("now")).sample.float()

    camera_of: dict[str, Tensor] = {}

    @contextmanager
    def adapted(camera: Tensor) -> Any:
        unet.enable_adapters()
        unet.class_embedding, camera_of["now"] = camera_embedding, camera
        yield
        unet.class_embedding = None
        camera_of.clear()

    def noisy_at(latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        a = abar[t].view(-1, 1, 1, 1)
        return a.sqrt() * latents + (1 - a).sqrt() * noise

    def step(rgb: Tensor) -> dict[str, Tensor]:
        n, camera = len(rgb), world.views["c2w"].flatten(1)
        context = world.prompt.get_text_embeddings()
        side = pipeline.image_size
        picture = F.interpolate(rgb.permute(0, 3, 1, 2), (side, side), mode="bilinear")
        posterior = vae.encode((picture * 2 - 1).to(world.dtype)).latent_dist
        latents = posterior.sample().float() * pipeline.scaling_factor
        with torch.no_grad():
            t = torch.randint(low, high + 1, (n,), device=world.device)
            noise = torch.randn_like(latents)
            noisy = noisy_at(latents, noise, t)
            unet.disable_adapters()
            twice = torch.cat([noisy] * 2), torch.cat([t] * 2)
            conditional, unconditional = predict(*twice, context).chunk(2)
            teacher = unconditional + 7.5 * (conditional - unconditional)
            with adapted(torch.cat([camera, torch.zeros_like(camera)])):
                own = predict(*twice, context[:n].repeat(2, 1, 1))
            with_camera, without = own.chunk(2)
            believed = without + 1.0 * (with_camera - without)
            weight = (1 - abar[t]).view(-1, 1, 1, 1)
            grad = torch.nan_to_num(weight * (teacher - believed))
        target = (latents - grad).detach()
        t = torch.randint(0, len(abar), (n,), device=world.device)
        noise = torch.randn_like(latents)
        with adapted(camera):
            predicted = predict(noisy_at(latents.detach(), noise, t), t, context[:n])
        return {
            "loss_vsd": 0.5 * F.mse_loss(latents, target, reduction="sum") / n,
            "loss_lora": F.mse_loss(predicted, noise),
        }

    return step, trained


def upstream(world: World) -> tuple[Losses, Any]:
    """threestudio's own VSD guidance, unmodified, from the checkout in ``THREESTUDIO_ROOT``."""
    from threestudio_eeg import compat

    root = Path(os.environ["THREESTUDIO_ROOT"])
    compat.activate(device=world.device, threestudio=root)
    sys.path.insert(0, str(root))
    import threestudio

    compat.after_import()
    name = "stable-diffusion-vsd-guidance"
    import threestudio.models.guidance.stable_diffusion_vsd_guidance  # noqa: F401

    guidance = threestudio.find(name)(
        {
            "pretrained_model_name_or_path": str(world.folder),
            "pretrained_model_name_or_path_lora": str(world.folder),
            "guidance_scale": 7.5,
            "half_precision_weights": world.dtype == torch.float16,
        }
    )
    return lambda rgb: guidance(rgb, world.prompt, **world.views), guidance
