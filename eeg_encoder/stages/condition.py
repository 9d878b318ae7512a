"""EEG to a diffusion model's context, by the loss of its own noise prediction."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Optional

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import InputError
from ..models.context_head import ContextHead, build_context_head, eeg_tokens, token_sizes
from .adapters import add_lora
from .batches import Augmentation, BankLoader, Batch, TrialBank, WholeLoader
from .denoising import DenoisingStage
from .diffusion import Denoiser, PictureLatents
from .running import Running, fit, optimiser
from .stage import averaging

ADAPTATIONS = ("frozen", "lora")


@dataclass
class ConditionConfig:
    """Settings of the conditioning stage.

    ``head`` is ``queries`` or ``linear`` (published), ``head_settings`` its arguments.
    ``null_dropout`` is the share of samples that train without EEG. ``adapt`` is ``frozen`` (the
    U-Net as it is) or ``lora`` of ``rank`` on its cross-attention. ``train_encoder`` trains the
    encoder too. ``clip_weight`` adds one minus the cosine of the encoder's embedding to the
    picture's; 0 as published. ``crop`` is the share of training pictures that are cropped.
    ``select`` and ``patience`` go by the validation loss, at fixed times and noise.
    """

    epochs: int = 100
    batch_size: int = 32
    lr: float = 1e-4
    weight_decay: float = 0.01
    warmup: float = 0.05
    head: str = "queries"
    head_settings: dict[str, Any] = field(default_factory=dict)
    null_dropout: float = 0.1
    adapt: str = "frozen"
    rank: int = 16
    train_encoder: bool = True
    clip_weight: float = 0.0
    crop: float = 0.0
    channel_dropout: float = 0.1
    shift: int = 2
    noise: float = 0.1
    ema: float = 0.999
    select: str = "best"
    patience: int = 0

    def __post_init__(self) -> None:
        if self.adapt not in ADAPTATIONS:
            raise InputError("condition", "adapt", self.adapt, "frozen or lora")
        if not 0 <= self.null_dropout < 1:
            raise InputError("condition", "null_dropout", self.null_dropout, "0 up to 1")
        if self.select not in ("best", "last"):
            raise InputError("condition", "select", self.select, "best or last")


class Conditioner(nn.Module):
    """An encoder and the head that makes context of its tokens."""

    def __init__(self, encoder: nn.Module, head: ContextHead) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head

    def forward(self, signals: Tensor, subjects: Tensor | None) -> Tensor:
        """(B, C, T) to context (B, L, D)."""
        return self.head(eeg_tokens(self.encoder, signals, subjects))


def conditioner(encoder: nn.Module, denoiser: Denoiser, config: ConditionConfig) -> Conditioner:
    """A conditioner of the pipeline's sizes.

    Raises
    ------
    InputError
        For a head or setting that does not exist.
    """
    n_tokens, width = denoiser.null_tokens.shape
    head = build_context_head(
        config.head,
        **token_sizes(encoder),
        n_tokens=int(n_tokens),
        width=int(width),
        **config.head_settings,
    )
    head.null_tokens.copy_(denoiser.null_tokens)
    encoder.requires_grad_(config.train_encoder)
    return Conditioner(encoder, head.to(denoiser.null_tokens.device))


class ConditionedDenoising(DenoisingStage):
    """Noise prediction under EEG, with a share of samples under the null tokens."""

    def __init__(
        self,
        model: Conditioner,
        denoiser: Denoiser,
        config: ConditionConfig,
        train_latents: PictureLatents,
        val_latents: PictureLatents | None,
        targets: Tensor | None,
        steps: int,
        seed: int,
        order: torch.Generator,
    ) -> None:
        super().__init__(denoiser, train_latents, val_latents, seed, order)
        self.model, self.config, self.steps = model, config, steps
        self.targets = targets
        self.adapted: nn.Module | None = None
        if config.adapt == "lora":
            self.adapted = add_lora(denoiser.unet, config.rank)
        self.augment = Augmentation(config.channel_dropout, config.shift, config.noise)

    @property
    def kept(self) -> nn.Module:
        """Encoder and head."""
        return self.model

    def training_step(self, batch: Batch, _: int) -> Tensor:
        """Noise prediction, and the cosine to the picture's embedding where it is weighed."""
        signals = self.augment(batch.signals, self.generator)
        tokens = self.model(signals, batch.subjects)
        tokens = self.with_dropout(tokens, self.model.head.null_tokens, self.config.null_dropout)
        loss = self.train_noise(tokens, batch, self.adapted)
        if self.config.clip_weight and self.targets is not None:
            found = self.model.encoder(signals, batch.subjects).float()
            cosine = F.cosine_similarity(found, self.targets[batch.stimuli]).mean()
            self.log("cosine", cosine, prog_bar=True, on_epoch=True, on_step=False)
            loss = loss + self.config.clip_weight * (1 - cosine)
        return loss

    def validation_step(self, batch: Batch, _: int) -> None:
        """Noise prediction under EEG."""
        self.validate(self.model(batch.signals, batch.subjects), batch, self.adapted)

    def configure_optimizers(self) -> Any:
        """AdamW with warm-up and cosine."""
        c = self.config
        return optimiser(
            self, lr=c.lr, weight_decay=c.weight_decay, steps=self.steps, warmup=c.warmup
        )


def condition(
    model: Conditioner,
    denoiser: Denoiser,
    train: TrialBank,
    train_pictures: Tensor,
    val: TrialBank | None,
    val_pictures: Tensor | None,
    config: ConditionConfig,
    running: Running,
    *,
    seed: int,
    targets: Optional[Tensor] = None,  # noqa: UP045
) -> dict[str, Any]:
    """Train ``model`` in place.

    Parameters
    ----------
    train_pictures, val_pictures
        (S, 3, H, W) uint8 of each bank's ``stimulus_ids``, of the pipeline's size.
    targets
        (S, P) embeddings of the training pictures, for ``clip_weight``.

    Returns
    -------
    dict
        ``selected`` (epoch rule); ``val_loss``, the lowest; ``null_share``, the share of samples
        that were dropped; ``adapted``, the U-Net with its LoRA, or None.
    """
    order = torch.Generator(train.signals.device)
    loader = BankLoader(train, config.batch_size, order, running.devices)
    module = ConditionedDenoising(
        model,
        denoiser,
        config,
        PictureLatents(denoiser, train_pictures, config.crop),
        None if val_pictures is None else PictureLatents(denoiser, val_pictures),
        None if targets is None else targets.to(train.signals.device),
        config.epochs * len(loader),
        seed,
        order,
    )
    loaders: list[Any] = [loader]
    if val is not None:
        loaders.append(WholeLoader(val, config.batch_size))
    fit(
        module,
        "condition",
        config.epochs,
        running,
        *loaders,
        callbacks=averaging(config.ema),
        patience=config.patience,
    )
    lowest = None if module.best is None else round(-module.best_score, 5)
    return {
        "selected": module.take_best(config.select if config.adapt == "frozen" else "last"),
        "val_loss": lowest,
        "null_share": round(module.dropped / max(1, module.seen), 4),
        "adapted": module.adapted,
    }
