"""The forward noising of a diffusion model, its inverse formulas, and DDIM sampling."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from eeg_encoder.errors import InputError

WEIGHTINGS = ("sds", "uniform", "x0")


@dataclass
class Draws:
    """The random numbers of a step on B views: with them the step is a plain function.

    Attributes
    ----------
    posterior
        (B, C, h, w), picks the sample of the VAE's posterior; None for its mean.
    t, noise
        Timesteps (B,) and noise (B, C, h, w) at which the scores are compared.
    lora_t, lora_noise
        Those at which the LoRA is trained, (kB,) and (kB, C, h, w); None where it shares them.
    lora_camera_kept
        (kB, 1), false where the LoRA is trained without the camera; None to keep all.
    """

    posterior: Tensor | None
    t: Tensor
    noise: Tensor
    lora_t: Tensor | None = None
    lora_noise: Tensor | None = None
    lora_camera_kept: Tensor | None = None


@dataclass
class Noised:
    """Latents (B, C, h, w) with noise added at timesteps ``t`` (B,)."""

    latents: Tensor
    noise: Tensor
    t: Tensor


@dataclass(frozen=True)
class NoiseSchedule:
    """A base model's schedule: ``x_t = sqrt(abar_t) x + sqrt(1 - abar_t) eps``.

    ``alphas_cumprod`` is abar, (T,) float32 on the device of the networks. For Stable Diffusion
    abar_500 = 0.2763 and abar_980 = 0.005844.
    """

    alphas_cumprod: Tensor

    @classmethod
    def of(cls, scheduler: Any, where: object, device: torch.device) -> NoiseSchedule:
        """Read the schedule of a diffusers scheduler.

        Raises
        ------
        InputError
            When the model does not predict the noise.
        """
        prediction = scheduler.config.prediction_type
        if prediction != "epsilon":
            raise InputError(where, "scheduler prediction_type", prediction, "epsilon")
        return cls(scheduler.alphas_cumprod.to(device, torch.float32))

    def __len__(self) -> int:
        return len(self.alphas_cumprod)

    def add_noise(self, latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Noisy latents (B, C, h, w) at timesteps ``t`` (B,)."""
        abar = self._abar(t)
        return abar.sqrt() * latents + (1 - abar).sqrt() * noise

    def clean(self, noisy: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """One-step estimate of the latents (B, C, h, w) from the predicted noise."""
        abar = self._abar(t)
        return (noisy - (1 - abar).sqrt() * noise) / abar.sqrt()

    def weight(self, t: Tensor, strategy: str, ceiling: float | None = None) -> Tensor:
        """Weight w(t), (B, 1, 1, 1), of a difference of predicted noises.

        ``sds`` is ``1 - abar`` (DreamFusion, VSD); ``uniform`` is 1; ``x0`` is
        ``sqrt((1 - abar) / abar)``, with which the weighted difference is that of the one-step
        estimates of the latents. ``ceiling`` bounds the weight from above.
        """
        abar = self._abar(t)
        weight = {
            "sds": lambda: 1 - abar,
            "uniform": lambda: torch.ones_like(abar),
            "x0": lambda: ((1 - abar) / abar).sqrt(),
        }[strategy]()
        return weight if ceiling is None else weight.clamp(max=ceiling)

    def signal_to_noise(self, t: Tensor) -> Tensor:
        """Return ``sqrt(abar / (1 - abar))``, (B, 1, 1, 1)."""
        abar = self._abar(t)
        return (abar / (1 - abar)).sqrt()

    def ddim_step(self, noisy: Tensor, noise: Tensor, t: Tensor, t_next: Tensor) -> Tensor:
        """Move from ``t`` to ``t_next`` (B,), -1 being the clean end (Song et al. 2021, eq. 12)."""
        clean = self.clean(noisy, noise, t)
        abar = torch.where(_column(t_next) < 0, 1.0, self._abar(t_next.clamp(min=0)))
        return abar.sqrt() * clean + (1 - abar).sqrt() * noise

    def ladder(self, start: Tensor, n_steps: int) -> Tensor:
        """Timesteps (n_steps + 1, B) from ``start`` (B,) evenly down to -1, the clean end."""
        fractions = torch.linspace(1, 0, n_steps + 1, device=start.device)[:, None]
        return ((start + 1) * fractions).round().long() - 1

    def denoise(
        self,
        noisy: Tensor,
        start: Tensor,
        n_steps: int,
        predict: Callable[[Tensor, Tensor], Tensor],
    ) -> Tensor:
        """Bring latents at timesteps ``start`` (B,) to the clean end by ``n_steps`` DDIM steps.

        ``predict(noisy, t)`` returns the predicted noise (B, C, h, w).
        """
        rungs = self.ladder(start, n_steps)
        for t, t_next in zip(rungs, rungs[1:], strict=False):
            t = t.clamp(min=0)
            noisy = self.ddim_step(noisy, predict(noisy, t), t, t_next)
        return noisy

    def _abar(self, t: Tensor) -> Tensor:
        return _column(self.alphas_cumprod[t])


def _column(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)
