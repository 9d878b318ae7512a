"""The networks of a diffusers folder that a noise-prediction loss needs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..conditioning import pipeline_fingerprint
from ..errors import InputError
from ..image_space import empty_caption_tokens
from ..quiet import quiet_libraries
from .pictures import random_crops

VIEW_WEIGHTS = Path("view_encoder", "diffusion_pytorch_model.safetensors")


@dataclass
class Denoiser:
    """A pipeline's U-Net with the VAE and noise schedule that it was trained with.

    Not a module: stages register the U-Net themselves where they train it.

    Parameters
    ----------
    unet, vae, schedule
        diffusers' networks, frozen, and its DDPM schedule.
    null_tokens
        (L, D) of the empty caption.
    view_tokens
        (K, D) that say nothing of the camera; (0, D) for a pipeline without a view encoder.
    image_size
        Side of the pictures in pixels.
    """

    unet: Any
    vae: Any
    schedule: Any
    null_tokens: Tensor
    view_tokens: Tensor
    image_size: int

    @torch.no_grad()
    def moments(self, rgb: Tensor) -> Tensor:
        """VAE posterior of pictures (B, 3, H, W) in [0, 1]: mean and deviation (B, 2 c, h, w),
        scaled."""
        posterior = self.vae.encode((rgb * 2 - 1).to(self.vae.dtype)).latent_dist
        found = torch.cat([posterior.mean, posterior.std], dim=1).float()
        return found * float(self.vae.config.scaling_factor)

    def context(self, tokens: Tensor) -> Tensor:
        """Tokens (B, L, D) with the view tokens behind them, as the U-Net was trained."""
        views = self.view_tokens.to(tokens).expand(len(tokens), -1, -1)
        return torch.cat([tokens, views], dim=1)

    def loss(
        self, latents: Tensor, tokens: Tensor, generator: torch.Generator, unet: Any = None
    ) -> Tensor:
        """Mean squared error of the prediction at random times and noise.

        E |f(sqrt(a_t) x + sqrt(1 - a_t) e, t, c) - y|^2 with t uniform, e normal, and y what the
        base model predicts: e, or the velocity sqrt(a_t) e - sqrt(1 - a_t) x (Ho et al., 2020;
        Salimans and Ho, 2022).

        Parameters
        ----------
        latents
            x, (B, c, h, w), scaled.
        tokens
            c, (B, L, D)
        unet
            In place of the frozen one.
        """
        steps = int(self.schedule.config.num_train_timesteps)
        device = latents.device
        t = torch.randint(steps, (len(latents),), device=device, generator=generator)
        noise = torch.randn(latents.shape, device=device, generator=generator)
        noisy = self.schedule.add_noise(latents, noise, t)
        predict = self.unet if unet is None else unet
        found = predict(noisy, t, encoder_hidden_states=self.context(tokens)).sample
        if self.schedule.config.prediction_type == "v_prediction":
            noise = self.schedule.get_velocity(latents, noise, t)
        return F.mse_loss(found.float(), noise)


def load_denoiser(pipeline: str | Path, device: str | torch.device) -> Denoiser:
    """Load from a folder in diffusers' layout; never from the network.

    Raises
    ------
    InputError
        When the folder is no pipeline or a part cannot be read, or it predicts samples.
    """
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel

    folder = Path(pipeline)
    pipeline_fingerprint(folder)
    unet, vae = (
        _network(kind, folder / part, device)
        for kind, part in ((UNet2DConditionModel, "unet"), (AutoencoderKL, "vae"))
    )
    schedule = _network(DDPMScheduler, folder / "scheduler")
    if schedule.config.prediction_type not in ("epsilon", "v_prediction"):
        found = schedule.config.prediction_type
        raise InputError(folder / "scheduler", "prediction_type", found, "epsilon or v_prediction")
    null = empty_caption_tokens(folder).to(device)
    if null.shape[1] != unet.config.cross_attention_dim:
        expected = f"{unet.config.cross_attention_dim}, the U-Net's cross_attention_dim"
        raise InputError(folder / "text_encoder", "width", null.shape[1], expected)
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    return Denoiser(
        unet=unet,
        vae=vae,
        schedule=schedule,
        null_tokens=null,
        view_tokens=_view_tokens(folder, null),
        image_size=int(unet.config.sample_size) * factor,
    )


class PictureLatents:
    """Latents of training pictures, drawn from the VAE's posterior.

    Without cropping the posteriors are computed once.

    Parameters
    ----------
    denoiser
        With the VAE.
    pictures
        (S, 3, H, W) uint8.
    crop
        Share of the pictures drawn that are cropped; see :func:`.pictures.random_crops`.
    """

    def __init__(self, denoiser: Denoiser, pictures: Tensor, crop: float = 0.0) -> None:
        self.denoiser, self.pictures, self.crop = denoiser, pictures, crop
        self.moments: Tensor | None = None
        if not crop:
            chunks = [denoiser.moments(c.float() / 255) for c in pictures.split(16)]
            self.moments = torch.cat(chunks)

    def draw(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """(B, c, h, w) of the pictures at ``rows``."""
        if self.moments is not None:
            found = self.moments[rows]
        else:
            rgb = self.pictures[rows].float() / 255
            found = self.denoiser.moments(random_crops(rgb, self.crop, generator))
        mean, deviation = found.chunk(2, dim=1)
        noise = torch.randn(mean.shape, device=mean.device, generator=generator)
        return mean + deviation * noise


def drop_tokens(
    tokens: Tensor, null: Tensor, share: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Replace the tokens of a random share of samples by the unconditional ones.

    Returns
    -------
    tuple
        Tokens (B, L, D), and which were dropped, (B,) bool.
    """
    dropped = torch.rand(len(tokens), device=tokens.device, generator=generator) < share
    return torch.where(dropped[:, None, None], null.to(tokens), tokens), dropped


def _network(kind: Any, folder: Path, device: str | torch.device = "cpu") -> Any:
    try:
        with quiet_libraries():
            network = kind.from_pretrained(folder, local_files_only=True)
            if isinstance(network, torch.nn.Module):
                network = network.float().to(device).eval().requires_grad_(False)
    except Exception as error:
        reason = (" ".join(str(error).split()) or type(error).__name__)[:160]
        raise InputError(folder, "weights", reason, f"a {kind.__name__} folder") from error
    return network


def _view_tokens(folder: Path, null: Tensor) -> Tensor:
    from safetensors.torch import load_file

    file = folder / VIEW_WEIGHTS
    if not file.is_file():
        return null[:0]
    try:
        tokens = load_file(str(file))["null_tokens"].to(null)
    except Exception as error:
        reason = f"{type(error).__name__} {' '.join(str(error).split())[:120]}"
        raise InputError(file, "null_tokens", reason, "tokens of a view encoder") from error
    if tokens.shape[1] != null.shape[1]:
        raise InputError(file, "null_tokens", f"width {tokens.shape[1]}", f"{null.shape[1]}")
    return tokens
