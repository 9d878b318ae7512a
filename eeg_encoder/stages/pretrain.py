"""Stage 1: masked contrast on training trials, without labels or pictures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..models.layers import random_mask
from ..objectives import GRANULARITIES, merl_stage_1
from .batches import Augmentation, BankLoader, Batch, TrialBank, WholeLoader
from .masking import reconstructor
from .recorded import Passes, record
from .running import Running, fit, optimiser
from .stage import Stage


@dataclass
class PretrainConfig:
    """Settings of stage 1; 0 epochs leave it out.

    ``self_weight``, ``cross_weight``, ``temperature`` and ``granularity`` are MERL-1's (see
    :func:`eeg_encoder.objectives.merl_loss`); ``mse_weight`` adds the mean squared error of the
    hidden samples, without which amplitudes are free. ``shift`` is the augmentation's largest shift
    in samples. ``warmup`` is a share of all steps. ``patience`` stops after so many validations
    without a lower loss, where there are validation trials; 0 never does. ``graphs`` records the
    passes as CUDA graphs where they can be: the masked autoencoder without a subject layer, on one
    GPU. Small batches gain from it.
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
    shift: int = 2
    patience: int = 0
    graphs: bool = False

    def __post_init__(self) -> None:
        if self.granularity not in GRANULARITIES:
            raise InputError("pretrain", "granularity", self.granularity, "channel or signal")
        if not 0 < self.mask_ratio < 1:
            raise InputError("pretrain", "mask_ratio", self.mask_ratio, "between 0 and 1")


class Pretraining(Stage):
    """Two maskings of the same signal through the same encoder and decoder."""

    def __init__(
        self,
        encoder: nn.Module,
        config: PretrainConfig,
        steps: int,
        seed: int,
        order: torch.Generator,
    ) -> None:
        super().__init__(seed, order)
        self.encoder, self.config, self.steps = encoder, config, steps
        self.drawing = reconstructor(encoder)
        self.augment = Augmentation(channel_dropout=0.0, shift=config.shift, noise=0.0)
        self._losses: list[Tensor] = []
        self._passes: Passes | None = None

    @property
    def kept(self) -> nn.Module:
        """The encoder."""
        return self.encoder

    def training_step(self, batch: Batch, _: int) -> Tensor:
        """Weighted sum of the contrasts and the masked error."""
        signals = self.augment(batch.signals, self.generator)
        if self._can_record(signals):
            found = self._recorded(signals)
        else:
            found = self._losses_of(signals, batch.subjects, self.generator)
        self.log("contrast", found["contrast"], prog_bar=True, on_epoch=True)
        self.log("mse", found["mse"], prog_bar=True, on_epoch=True)
        return found["loss"]

    def on_validation_epoch_start(self) -> None:
        """The same masks at every validation."""
        self._losses.clear()
        self._fixed = self.fixed_generator()

    def validation_step(self, batch: Batch, _: int) -> None:
        """The training loss, without augmentation."""
        if len(batch.signals) > 1:
            found = self._losses_of(batch.signals, batch.subjects, self._fixed)
            self._losses.append(found["loss"])

    def on_validation_epoch_end(self) -> None:
        """Mean loss."""
        if self._losses:
            self.log("val_loss", torch.stack(self._losses).mean(), prog_bar=True)

    def configure_optimizers(self) -> Any:
        """AdamW with warm-up and cosine."""
        c = self.config
        return optimiser(
            self, lr=c.lr, weight_decay=c.weight_decay, steps=self.steps, warmup=c.warmup
        )

    def _losses_of(
        self, signals: Tensor, subjects: Tensor, generator: torch.Generator
    ) -> dict[str, Tensor]:
        both = torch.cat([signals, signals]), torch.cat([subjects, subjects])
        drawn, hidden = self.drawing.reconstruct(*both, self.config.mask_ratio, generator)
        return self._weighted(torch.stack(drawn.chunk(2)), signals, torch.stack(hidden.chunk(2)))

    def _can_record(self, signals: Tensor) -> bool:
        return (
            self.config.graphs
            and signals.is_cuda
            and self.trainer.world_size == 1
            and hasattr(self.drawing, "redraw")
            and self.drawing.correction is None
        )

    def _recorded(self, signals: Tensor) -> dict[str, Tensor]:
        """As :meth:`_losses_of`, by passes that are recorded at the first call."""
        tokens, ratio = self.drawing.n_tokens, self.config.mask_ratio
        hidden = random_mask(
            2 * len(signals), tokens, ratio, device=signals.device, generator=self.generator
        )
        if self._passes is None:
            passes = Passes(self.drawing, int(tokens * (1 - ratio)), self._weighted)
            self.__dict__["_passes"] = record(passes, signals, hidden)
        assert self._passes is not None
        loss, contrast, mse = self._passes(signals, hidden)
        return {"loss": loss, "contrast": contrast.clone(), "mse": mse.clone()}

    def _weighted(self, views: Tensor, signals: Tensor, hidden: Tensor) -> dict[str, Tensor]:
        c = self.config
        return merl_stage_1(
            views,
            signals,
            hidden,
            self_weight=c.self_weight,
            cross_weight=c.cross_weight,
            mse_weight=c.mse_weight,
            temperature=c.temperature,
            granularity=c.granularity,
        )


def pretrain(
    encoder: Any,
    bank: TrialBank,
    config: PretrainConfig,
    running: Running,
    *,
    seed: int,
    val: TrialBank | None = None,
) -> None:
    """Pre-train ``encoder`` in place on a bank of training trials; ``val`` is for early stopping
    and the log."""
    order = torch.Generator(bank.signals.device)
    loader = BankLoader(bank, config.batch_size, order, running.devices)
    module = Pretraining(encoder, config, config.epochs * len(loader), seed, order)
    loaders: list[Any] = [loader]
    if val is not None:
        loaders.append(WholeLoader(val, config.batch_size))
    fit(module, "pretrain", config.epochs, running, *loaders, patience=config.patience)
