"""Stage 1: masked contrast on training trials, without labels or pictures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from ..objectives import masked_mse, merl_loss
from .batches import Augmentation, BankLoader, Batch, TrialBank
from .running import Running, fit, optimiser


@dataclass
class PretrainConfig:
    """Settings of stage 1; 0 epochs leave it out.

    ``self_weight``, ``cross_weight``, ``temperature`` and ``granularity`` are MERL-1's (see
    :func:`eeg_encoder.objectives.merl_loss`); ``mse_weight`` adds the mean squared error of the
    hidden samples, without which amplitudes are free.
    """

    epochs: int = 40
    batch_size: int = 256
    lr: float = 1e-3
    weight_decay: float = 0.05
    warmup: float = 0.1
    mask_ratio: float = 0.75
    self_weight: float = 1.0
    cross_weight: float = 0.5
    mse_weight: float = 1.0
    temperature: float = 0.1
    granularity: str = "channel"


class Pretraining(LightningModule):
    """Two maskings of the same signal through the same encoder and decoder."""

    def __init__(
        self, encoder: Any, config: PretrainConfig, steps: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.encoder, self.config, self.steps = encoder, config, steps
        self.generator = generator
        self.augment = Augmentation(channel_dropout=0.0, noise=0.0)

    def training_step(self, batch: Batch, _: int) -> Tensor:
        """Weighted sum of the contrasts and the masked error."""
        c = self.config
        signals = self.augment(batch.signals, self.generator)
        drawn, hidden = zip(
            *(
                self.encoder.reconstruct(signals, batch.subjects, c.mask_ratio, self.generator)
                for _ in range(2)
            ),
            strict=True,
        )
        contrast = merl_loss(
            drawn[0],
            drawn[1],
            signals,
            self_weight=c.self_weight,
            cross_weight=c.cross_weight,
            temperature=c.temperature,
            granularity=c.granularity,
        )
        error = 0.5 * sum(masked_mse(d, signals, h) for d, h in zip(drawn, hidden, strict=True))
        self.log_dict({"contrast": contrast, "mse": error}, prog_bar=True, on_epoch=True)
        return contrast + c.mse_weight * error

    def configure_optimizers(self) -> Any:
        """AdamW with warm-up and cosine."""
        c = self.config
        return optimiser(
            self.encoder, lr=c.lr, weight_decay=c.weight_decay, steps=self.steps, warmup=c.warmup
        )


def pretrain(
    encoder: Any, bank: TrialBank, config: PretrainConfig, running: Running, *, seed: int
) -> None:
    """Pre-train ``encoder`` in place on a bank of training trials."""
    generator = torch.Generator(bank.signals.device).manual_seed(seed)
    loader = BankLoader(bank, config.batch_size, generator)
    module = Pretraining(encoder, config, config.epochs * len(loader), generator)
    fit(module, "pretrain", config.epochs, running, loader)
