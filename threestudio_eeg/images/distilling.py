"""Score distillation on pictures: particles of latents or of pixels, pulled by SDS or VSD."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .cameras import PictureCameras
from .sampling import initial_noise

PIXEL_SPREAD = 0.1


@dataclass(frozen=True)
class Distilled:
    """Pictures (B, H, W, 3) in [0, 1], and the norm of the gradient at some of the steps."""

    pictures: Tensor
    curve: list[dict[str, float]]


class Particles(nn.Module):
    """What is optimised: one latent, or one picture in logits, for each camera.

    Parameters
    ----------
    guidance
        Its pipeline says the sizes.
    cameras
        The views of a particle start alike.
    space
        ``latent``: (B, C, h, w), from standard normal noise. ``pixel``: (B, 3, H, W) logits near
        zero, encoded by the VAE at every step.
    """

    def __init__(self, guidance: Any, cameras: PictureCameras, space: str, seed: int) -> None:
        super().__init__()
        self.as_latents = space == "latent"
        if self.as_latents:
            start = initial_noise(guidance, cameras, seed)
        else:
            generator = torch.Generator("cpu").manual_seed(seed)
            side, n = guidance.pipeline.image_size, len(cameras) // cameras.n_views
            start = PIXEL_SPREAD * torch.randn(n, 3, side, side, generator=generator)
            start = start.repeat_interleave(cameras.n_views, dim=0).to(guidance.pipeline.device)
        self.values = nn.Parameter(start)

    def forward(self) -> Tensor:
        """What the guidance looks at, channels last: latents, or pictures in [0, 1]."""
        shown = self.values if self.as_latents else self.values.sigmoid()
        return shown.permute(0, 2, 3, 1)


def distil_pictures(
    guidance: Any,
    prompt_utils: Any,
    cameras: PictureCameras,
    *,
    steps: int,
    space: str = "latent",
    lr: float = 0.03,
    lora_lr: float = 1e-3,
    seed: int = 0,
    on_step: Callable[[], None] = lambda: None,
) -> Distilled:
    """Optimise pictures until the guidance leaves them alone.

    References
    ----------
    Wang et al., "ProlificDreamer", NeurIPS 2023, algorithm 1, with the renderer left out.
    """
    torch.manual_seed(seed)
    particles = Particles(guidance, cameras, space, seed)
    groups = [{"params": list(particles.parameters()), "lr": lr}]
    trained = [p for p in guidance.parameters() if p.requires_grad]
    if trained:
        groups.append({"params": trained, "lr": lora_lr})
    optimizer = torch.optim.Adam(groups, betas=(0.9, 0.99))
    curve: list[dict[str, float]] = []
    for step in range(steps):
        guidance.update_step(0, step)
        out = guidance(
            particles(), prompt_utils, rgb_as_latents=particles.as_latents, **cameras.as_batch()
        )
        optimizer.zero_grad(set_to_none=True)
        torch.stack([v for name, v in out.items() if name.startswith("loss_")]).sum().backward()
        optimizer.step()
        if step % max(1, steps // 100) == 0:
            curve.append({"step": step, "grad_norm": float(out["grad_norm"])})
        on_step()
    return Distilled(_pictures(guidance, particles), curve)


@torch.no_grad()
def _pictures(guidance: Any, particles: Particles) -> Tensor:
    if not particles.as_latents:
        return particles().detach()
    parts = [guidance.decode(part) for part in particles.values.split(32)]
    return torch.cat(parts).permute(0, 2, 3, 1)
