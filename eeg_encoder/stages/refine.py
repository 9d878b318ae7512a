"""Refine U-Net: adapt a pipeline's U-Net to tokens decoded from EEG."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from .adapters import add_lora, free_keys_and_values
from .batches import BankLoader, Batch, TrialBank, WholeLoader
from .denoising import DenoisingStage
from .diffusion import Denoiser, PictureLatents
from .running import Running, fit, optimiser
from .stage import averaging

VARIANTS = ("amortised", "oracle_class")
ADAPT = ("keys_values", "lora", "all")


@dataclass
class RefineConfig:
    """Settings of the refine stage.

    ``adapt`` is ``keys_values`` (of the cross-attention), ``lora`` of ``rank``, or ``all`` weights
    (published). ``null_dropout`` is the share of samples that train without EEG. ``crop`` is the
    share of training pictures that are cropped. ``ema`` is the decay of the average of the weights
    that is kept; 0 keeps the last ones. ``select`` and ``patience`` go by the validation loss.

    ``variant`` is ``amortised``, one adapter for all training pairs, or ``oracle_class``, the
    published one: the tokens of ``stimulus``, constant, with every picture of *its true category*.
    It knows the answer, so nothing that comes of it is a decoding result.
    """

    epochs: int = 20
    batch_size: int = 32
    lr: float = 1e-4
    weight_decay: float = 0.01
    warmup: float = 0.05
    adapt: str = "keys_values"
    rank: int = 16
    null_dropout: float = 0.1
    crop: float = 0.0
    ema: float = 0.999
    select: str = "best"
    patience: int = 0
    variant: str = "amortised"
    stimulus: str = ""

    def __post_init__(self) -> None:
        if self.variant not in VARIANTS:
            raise InputError("refine", "variant", self.variant, f"one of {', '.join(VARIANTS)}")
        if (self.variant == "oracle_class") != bool(self.stimulus):
            found = self.stimulus or "nothing"
            raise InputError("refine", "stimulus", found, "one, with variant=oracle_class only")
        if self.adapt not in ADAPT:
            raise InputError("refine", "adapt", self.adapt, f"one of {', '.join(ADAPT)}")
        if not 0 <= self.null_dropout < 1:
            raise InputError("refine", "null_dropout", self.null_dropout, "0 up to 1")
        if self.select not in ("best", "last"):
            raise InputError("refine", "select", self.select, "best or last")


def adapted(unet: nn.Module, config: RefineConfig) -> nn.Module:
    """The U-Net with what is to be trained set free."""
    if config.adapt == "lora":
        return add_lora(unet, config.rank)
    if config.adapt == "keys_values":
        return free_keys_and_values(unet)
    return unet.requires_grad_(True)


class Refinement(DenoisingStage):
    """Noise prediction by the adapted U-Net under frozen EEG tokens."""

    def __init__(
        self,
        unet: nn.Module,
        denoiser: Denoiser,
        config: RefineConfig,
        tokens_of: Callable[[Tensor, Tensor], Tensor],
        train_latents: PictureLatents,
        val_latents: PictureLatents | None,
        steps: int,
        seed: int,
        order: torch.Generator,
    ) -> None:
        super().__init__(denoiser, train_latents, val_latents, seed, order)
        self.unet, self.config, self.steps = unet, config, steps
        self.tokens_of = tokens_of

    @property
    def kept(self) -> nn.Module:
        """The U-Net."""
        return self.unet

    def training_step(self, batch: Batch, _: int) -> Tensor:
        """Noise prediction, a share of it unconditional."""
        with torch.no_grad():
            tokens = self.tokens_of(batch.signals, batch.subjects)
        tokens = self.with_dropout(tokens, self.denoiser.null_tokens, self.config.null_dropout)
        return self.train_noise(tokens, batch, self.unet)

    def validation_step(self, batch: Batch, _: int) -> None:
        """Noise prediction under EEG."""
        self.validate(self.tokens_of(batch.signals, batch.subjects), batch, self.unet)

    def configure_optimizers(self) -> Any:
        """AdamW with warm-up and cosine."""
        c = self.config
        return optimiser(
            self.unet, lr=c.lr, weight_decay=c.weight_decay, steps=self.steps, warmup=c.warmup
        )


def refine(
    denoiser: Denoiser,
    tokens_of: Callable[[Tensor, Tensor], Tensor],
    train: TrialBank,
    train_pictures: Tensor,
    val: TrialBank | None,
    val_pictures: Tensor | None,
    config: RefineConfig,
    running: Running,
    *,
    seed: int,
) -> tuple[nn.Module, dict[str, Any]]:
    """Adapt the denoiser's U-Net.

    Parameters
    ----------
    tokens_of
        Signals (B, C, T) and subjects (B,) to context tokens (B, L, D); not trained.
    train_pictures, val_pictures
        (S, 3, H, W) uint8 of each bank's ``stimulus_ids``, of the pipeline's size.

    Returns
    -------
    tuple
        The adapted U-Net, and ``selected``, ``val_loss``, ``null_share``, ``trained_parameters``.
    """
    order = torch.Generator(train.signals.device)
    loader = BankLoader(train, config.batch_size, order, running.devices)
    unet = adapted(denoiser.unet, config)
    module = Refinement(
        unet,
        denoiser,
        config,
        tokens_of,
        PictureLatents(denoiser, train_pictures, config.crop),
        None if val_pictures is None else PictureLatents(denoiser, val_pictures),
        config.epochs * len(loader),
        seed,
        order,
    )
    loaders: list[Any] = [loader]
    if val is not None:
        loaders.append(WholeLoader(val, config.batch_size))
    fit(
        module,
        "refine",
        config.epochs,
        running,
        *loaders,
        callbacks=averaging(config.ema),
        patience=config.patience,
    )
    lowest = None if module.best is None else round(-module.best_score, 5)
    return unet, {
        "selected": module.take_best(config.select),
        "val_loss": lowest,
        "null_share": round(module.dropped / max(1, module.seen), 4),
        "trained_parameters": sum(p.numel() for p in unet.parameters() if p.requires_grad),
    }
