"""Stage 2: EEG into the image-embedding space, on training pictures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import InputError
from ..objectives import InfoNCE
from .batches import Augmentation, BankLoader, Batch, TrialBank, WholeLoader
from .running import Running, fit, optimiser
from .stage import Stage


@dataclass
class AlignConfig:
    """Settings of stage 2.

    ``contrast_weight`` weighs InfoNCE, ``regression_weight`` the squared distance to the picture's
    embedding (whose minimiser is the conditional mean), ``cosine_weight`` one minus the cosine.
    Contrast and cosine are taken after subtracting the mean training embedding.
    ``select`` is ``last``, or ``best``: the epoch with the best validation cosine. ``patience``
    stops after so many validations without a better one; 0 never does. ``patience``, ``best`` and
    the logged ``val_cosine`` know of validation trials only.
    """

    epochs: int = 60
    batch_size: int = 256
    lr: float = 3e-3
    weight_decay: float = 0.1
    warmup: float = 0.1
    contrast_weight: float = 0.5
    regression_weight: float = 1.0
    cosine_weight: float = 1.0
    normalise: str = "image"
    select: str = "best"
    validate_every: int = 1
    channel_dropout: float = 0.1
    shift: int = 2
    noise: float = 0.1
    patience: int = 0

    def __post_init__(self) -> None:
        if self.select not in ("best", "last"):
            raise InputError("align", "select", self.select, "best or last")


class Alignment(Stage):
    """Contrast and regression to unit image embeddings."""

    def __init__(
        self,
        encoder: Any,
        config: AlignConfig,
        train_targets: Tensor,
        val_targets: Tensor | None,
        steps: int,
        seed: int,
        order: torch.Generator,
    ) -> None:
        super().__init__(seed, order)
        self.encoder, self.config, self.steps = encoder, config, steps
        self.contrast = InfoNCE(normalise=config.normalise)
        self.augment = Augmentation(config.channel_dropout, config.shift, config.noise)
        self.train_targets, self.val_targets = train_targets, val_targets
        self._cosines: list[Tensor] = []

    @property
    def kept(self) -> nn.Module:
        """The encoder."""
        return self.encoder

    def training_step(self, batch: Batch, _: int) -> Tensor:
        """Weighted sum of the three terms."""
        c, mean = self.config, self.encoder.mean_embedding
        target = self.train_targets[batch.stimuli]
        signals = self.augment(batch.signals, self.generator)
        found = self.encoder(signals, batch.subjects).float()
        same = batch.stimuli[:, None] == batch.stimuli
        spread = ((self.train_targets - mean) ** 2).sum(1).mean()
        regression = ((found - target) ** 2).sum(1).mean() / spread
        cosine = F.cosine_similarity(found - mean, target - mean).mean()
        contrast = self.contrast(found - mean, target - mean, same)
        self.log_dict(
            {"contrast": contrast, "regression": regression, "cosine": cosine},
            prog_bar=True,
            on_epoch=True,
            on_step=False,
        )
        return (
            c.contrast_weight * contrast
            + c.regression_weight * regression
            + c.cosine_weight * (1 - cosine)
        )

    def validation_step(self, batch: Batch, _: int) -> None:
        """Collect cosines to the pictures' embeddings, mean subtracted."""
        assert self.val_targets is not None
        found, mean = self.encoder(batch.signals, batch.subjects), self.encoder.mean_embedding
        target = self.val_targets[batch.stimuli]
        self._cosines.append(F.cosine_similarity(found.float() - mean, target - mean))

    def on_validation_epoch_end(self) -> None:
        """Keep the weights when the mean validation cosine is the best so far."""
        cosine = float(torch.cat(self._cosines).mean())
        self._cosines.clear()
        self.log("val_cosine", cosine, prog_bar=True)
        self.keep_if_best(cosine)

    def configure_optimizers(self) -> Any:
        """AdamW with warm-up and cosine."""
        c = self.config
        return optimiser(
            self, lr=c.lr, weight_decay=c.weight_decay, steps=self.steps, warmup=c.warmup
        )


def align(
    encoder: Any,
    train: TrialBank,
    train_targets: Tensor,
    val: TrialBank | None,
    val_targets: Tensor | None,
    config: AlignConfig,
    running: Running,
    *,
    seed: int,
) -> dict[str, Any]:
    """Align ``encoder`` in place.

    Parameters
    ----------
    train_targets, val_targets
        (S, P) unit image embeddings of each bank's ``stimulus_ids``.

    Returns
    -------
    dict
        ``selected`` (epoch rule) and ``val_cosine``, the best validation cosine.
    """
    device = train.signals.device
    order = torch.Generator(device)
    encoder.mean_embedding.copy_(train_targets.mean(0))
    loader = BankLoader(train, config.batch_size, order, running.devices)
    train_targets = train_targets.to(device)
    val_targets = None if val_targets is None else val_targets.to(device)
    steps = config.epochs * len(loader)
    module = Alignment(encoder, config, train_targets, val_targets, steps, seed + 1, order)
    loaders: list[Any] = [loader]
    if val is not None:
        loaders.append(WholeLoader(val, config.batch_size))
    fit(
        module,
        "align",
        config.epochs,
        running,
        *loaders,
        patience=config.patience,
        watched=("val_cosine", "max"),
        every=max(1, min(config.validate_every, config.epochs)),
    )
    chosen = module.take_best(config.select)
    score = module.best_score if module.best is not None else None
    return {
        "selected": chosen,
        "val_cosine_centred": None if score is None else round(score, 4),
    }
