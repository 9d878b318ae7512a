"""The prior's training stages: VAE, CLIP towers, U-Net with image projection and view encoder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from eeg_encoder.image_space import picture_embeddings, text_tokens

from ..view_encoder import ViewEncoder
from . import networks
from .bank import PictureBank, all_captions
from .training import fit

Log = Callable[[str], None]


def train_vae(bank: PictureBank, *, steps: int, batch: int, seed: int, log: Log) -> Any:
    """KL autoencoder: L1 on pixels and on their differences, KL weight 1e-5.

    Sets ``scaling_factor`` so that latents have unit variance.
    """
    device = bank.rgba.device
    vae = networks.vae().to(device, memory_format=torch.channels_last)
    generator = torch.Generator(device).manual_seed(seed)

    def loss_of(step: int) -> Tensor:
        _, _, rgb = bank.draw(batch, generator)
        x = rgb * 2 - 1
        posterior = vae.encode(x).latent_dist
        y = vae.decode(posterior.sample(generator=generator)).sample
        edges = sum((y.diff(dim=d) - x.diff(dim=d)).abs().mean() for d in (2, 3))
        return (y - x).abs().mean() + edges + 1e-5 * posterior.kl().mean()

    final = fit("VAE", [vae], loss_of, steps=steps, learning_rate=1e-3, average=0.998, log=log)
    vae.eval().requires_grad_(False)
    latents = torch.cat(
        [vae.encode(bank.draw(batch, generator)[2] * 2 - 1).latent_dist.sample() for _ in range(8)]
    )
    vae.register_to_config(scaling_factor=float(1.0 / latents.std()))
    log(f"VAE: loss {final:.4f}, scaling factor {vae.config.scaling_factor:.4f}")
    return vae


@dataclass
class Towers:
    """CLIP's two towers and the tokenizer."""

    tokenizer: Any
    text: Any
    image: Any


def train_clip(
    bank: PictureBank, tokenizer: Any, *, steps: int, batch: int, seed: int, log: Log
) -> Towers:
    """Contrast pictures with captions (equal captions count as matches), and a random view of an
    instance with its stimulus view, so that the embedding knows the instance and not only its name.
    """
    device = bank.rgba.device
    text, image = networks.text_encoder(tokenizer).to(device), networks.image_encoder().to(device)
    scale = torch.nn.ParameterList([torch.tensor(2.3)]).to(device)
    ids = tokenizer(
        all_captions(),
        padding="max_length",
        max_length=tokenizer.model_max_length,
        return_tensors="pt",
    ).input_ids.to(device)
    generator = torch.Generator(device).manual_seed(seed)

    def loss_of(step: int) -> Tensor:
        instance, view, rgb = bank.draw(batch, generator)
        front = bank.stimulus_view(batch, generator)
        background = torch.rand(batch, 3, generator=generator, device=device)
        pictures = torch.cat([rgb, bank.pictures(instance, front, background)])
        captions = torch.cat(
            [
                bank.caption_index(instance, bank.word[instance, view]),
                bank.caption_index(instance, torch.zeros_like(view)),
            ]
        )
        seen = picture_embeddings(image, pictures).float()
        said = F.normalize(text(ids[captions]).text_embeds.float(), dim=-1)
        logits = scale[0].exp().clamp(max=50) * seen @ said.T
        same = (captions[:, None] == captions[None]).float()
        match = -(F.log_softmax(logits, 1) * same).sum(1) / same.sum(1)
        match = match - (F.log_softmax(logits, 0) * same).sum(0) / same.sum(0)
        views = seen[:batch] @ seen[batch:].T / 0.1
        itself = torch.arange(batch, device=device)
        own = F.cross_entropy(views, itself) + F.cross_entropy(views.T, itself)
        return match.mean() / 2 + own / 4

    fit("CLIP", [text, image, scale], loss_of, steps=steps, learning_rate=1e-3, log=log)
    text.eval().requires_grad_(False)
    image.eval().requires_grad_(False)
    return Towers(tokenizer, text, image)


@dataclass
class LatentBank:
    """What the U-Net trains on: latents (I, V, K, 4, S, S) of every picture on K random
    backgrounds, stimulus embeddings (I, M, P), caption tokens (C, L, D) and the empty caption's."""

    latents: Tensor
    embeddings: Tensor
    captions: Tensor
    null: Tensor


@torch.no_grad()
def encode_bank(
    bank: PictureBank, vae: Any, towers: Towers, *, seed: int, copies: int = 2
) -> LatentBank:
    """Pass the whole bank through the frozen VAE and towers once."""
    device = bank.rgba.device
    generator = torch.Generator(device).manual_seed(seed)
    n, n_views = bank.rgba.shape[:2]
    latents, embeddings = [], []
    for rows in torch.arange(n, device=device).split(64):
        instance = rows.repeat_interleave(n_views * copies)
        view = torch.arange(n_views, device=device).repeat_interleave(copies).repeat(len(rows))
        background = torch.rand(len(instance), 3, generator=generator, device=device)
        rgb = bank.pictures(instance, view, background)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            z = vae.encode(rgb * 2 - 1).latent_dist.sample(generator=generator)
        z = (z.float() * vae.config.scaling_factor).to(torch.float16)
        latents.append(z.view(len(rows), n_views, copies, *z.shape[1:]))
        rgb = rgb.view(len(rows), n_views, copies, *rgb.shape[1:])[:, -bank.n_stimuli :]
        seen = picture_embeddings(towers.image, rgb.flatten(0, 2))
        embeddings.append(seen.view(len(rows), bank.n_stimuli * copies, -1))
    captions = torch.cat(
        [
            text_tokens(towers.tokenizer, towers.text, chunk)
            for chunk in _batches(all_captions(), 250)
        ]
    )
    null = text_tokens(towers.tokenizer, towers.text, [""])[0]
    return LatentBank(torch.cat(latents), torch.cat(embeddings), captions, null)


@dataclass
class Denoiser:
    """The U-Net and the two small networks trained with it."""

    unet: Any
    projection: Any
    views: ViewEncoder


def train_unet(
    bank: PictureBank, data: LatentBank, *, steps: int, batch: int, seed: int, log: Log
) -> Denoiser:
    """Noise prediction under captions or image embeddings, and camera tokens.

    Of the samples 38 % see a caption (half with its view word), 50 % the embedding of a stimulus
    picture of the same instance, blurred by isotropic noise (unCLIP's noise augmentation; up to a
    cosine of 0.64 with the clean one) so that a decoder's imperfect embedding is in distribution,
    and 12 % the empty caption. Camera tokens are dropped for 12 %.
    """
    device = bank.rgba.device
    net = Denoiser(
        networks.unet().to(device, memory_format=torch.channels_last),
        networks.image_projection().to(device),
        ViewEncoder(networks.WIDTH).to(device),
    )
    alphas = networks.scheduler().alphas_cumprod.to(device)
    generator = torch.Generator(device).manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, device=device)

    def context(instance: Tensor, view: Tensor) -> Tensor:
        worded = bank.word[instance, view] * (uniform(batch) < 0.5)
        caption = data.captions[bank.caption_index(instance, worded)]
        which = bank.integers(data.embeddings.shape[1], batch, generator)
        seen = blur(data.embeddings[instance, which], 1.2 * uniform(batch, 1), generator)
        kind = uniform(batch, 1, 1)
        prompt = torch.where(kind < 0.38, caption, net.projection(seen).to(caption))
        prompt = torch.where(kind > 0.88, data.null, prompt)
        camera = net.views(
            bank.elevation[instance, view],
            bank.azimuth[instance, view],
            bank.distance[instance, view],
        )
        camera = torch.where(uniform(batch, 1, 1) < 0.12, net.views.null_tokens, camera)
        return torch.cat([prompt, camera.to(prompt)], dim=1)

    def loss_of(step: int) -> Tensor:
        instance = bank.integers(len(data.latents), batch, generator)
        view = bank.integers(bank.n_views, batch, generator)
        copy = bank.integers(data.latents.shape[2], batch, generator)
        x0 = data.latents[instance, view, copy].float()
        t = torch.randint(len(alphas), (batch,), generator=generator, device=device)
        noise = torch.randn(x0.shape, generator=generator, device=device)
        a = alphas[t].view(-1, 1, 1, 1)
        xt = (a.sqrt() * x0 + (1 - a).sqrt() * noise).contiguous(memory_format=torch.channels_last)
        guess = net.unet(xt, t, context(instance, view)).sample
        return F.mse_loss(guess.float(), noise)

    final = fit(
        "U-Net",
        [net.unet, net.projection, net.views],
        loss_of,
        steps=steps,
        learning_rate=6e-4,
        average=0.999,
        log=log,
    )
    log(f"U-Net: loss {final:.4f}")
    return net


def blur(embedding: Tensor, strength: Tensor, generator: torch.Generator) -> Tensor:
    """Unit embeddings (B, P) with isotropic noise; cosine to the clean one is 1/√(1+strength²)."""
    noise = torch.randn(embedding.shape, generator=generator, device=embedding.device)
    return F.normalize(embedding + strength * noise / embedding.shape[1] ** 0.5, dim=-1)


def _batches(items: list[str], size: int) -> list[list[str]]:
    return [items[i : i + size] for i in range(0, len(items), size)]
