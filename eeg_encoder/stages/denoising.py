"""What the stages that learn by a diffusion model's noise prediction share."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .batches import Batch
from .diffusion import Denoiser, PictureLatents, drop_tokens
from .stage import Stage


class DenoisingStage(Stage):
    """Noise prediction under EEG, with a share of samples under the null tokens.

    Parameters
    ----------
    denoiser
        The pipeline's networks.
    train_latents, val_latents
        Latents of the pictures, by stimulus.
    seed, order
        As of :class:`.Stage`.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        train_latents: PictureLatents,
        val_latents: PictureLatents | None,
        seed: int,
        order: torch.Generator,
    ) -> None:
        super().__init__(seed, order)
        self.denoiser = denoiser
        self.train_latents, self.val_latents = train_latents, val_latents
        self.seen = self.dropped = 0
        self._losses: list[Tensor] = []

    def with_dropout(self, tokens: Tensor, null_tokens: Tensor, share: float) -> Tensor:
        """Tokens (B, L, D), a random share of the rows replaced by ``null_tokens`` (L, D)."""
        tokens, dropped = drop_tokens(tokens, null_tokens, share, self.generator)
        self.seen, self.dropped = self.seen + len(dropped), self.dropped + int(dropped.sum())
        return tokens

    def train_noise(self, tokens: Tensor, batch: Batch, unet: nn.Module | None) -> Tensor:
        """Loss of the noise prediction under ``tokens`` (B, L, D), logged."""
        latents = self.train_latents.draw(batch.stimuli, self.generator)
        loss = self.denoiser.loss(latents, tokens, self.generator, unet)
        self.log("noise", loss, prog_bar=True, on_epoch=True, on_step=False)
        return loss

    def on_validation_epoch_start(self) -> None:
        """The same times and noise at every validation."""
        self._losses.clear()
        self._fixed = self.fixed_generator()

    def validate(self, tokens: Tensor, batch: Batch, unet: nn.Module | None) -> None:
        """Note the loss under ``tokens`` (B, L, D)."""
        assert self.val_latents is not None
        latents = self.val_latents.draw(batch.stimuli, self._fixed)
        self._losses.append(self.denoiser.loss(latents, tokens, self._fixed, unet))

    def on_validation_epoch_end(self) -> None:
        """Mean loss; keep the weights of the lowest."""
        loss = torch.stack(self._losses).mean()
        self.log("val_loss", loss, prog_bar=True)
        self.keep_if_best(-float(loss))
