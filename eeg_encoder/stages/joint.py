"""Stage 2 of MERL: masked EEG and masked pictures, each drawn with the help of the other."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..image_space import CLIP_MEAN, CLIP_STD
from ..models.cross_modal import JointAnswer, JointAutoencoder
from ..models.image_autoencoder import ImageAutoencoder, load_tower
from ..objectives import merl_stage_2, reconstruction_correlation, signal_patches
from ..quiet import quiet_libraries
from .batches import Augmentation, BankLoader, Batch, TrialBank, WholeLoader
from .pictures import random_crops
from .running import Running, fit, optimiser
from .stage import Stage, averaging

HUB_TOWERS = {"vit-mae": "facebook/vit-mae-base", "clip": "openai/clip-vit-large-patch14"}


@dataclass
class JointConfig:
    """Settings of the joint stage.

    ``eeg_weight`` and ``picture_weight`` weigh the errors over hidden patches, ``mask_ratio`` and
    ``picture_mask_ratio`` are the shares hidden. ``tower`` is ``pipeline`` (the image tower of the
    pipeline folder), ``vit-mae`` or ``clip`` (the hub's cache; downloaded only with
    ``download=true``), or a folder. ``blocks`` and ``heads`` are of the cross-attention,
    ``decoder_*`` of the picture decoder; ``faithful`` leaves residuals out as published. ``crop``
    is the share of training pictures that are cropped. ``select`` and ``patience`` go by the
    validation loss.
    """

    epochs: int = 60
    batch_size: int = 4
    lr: float = 5.3e-5
    weight_decay: float = 0.05
    warmup: float = 2 / 60
    eeg_weight: float = 0.25
    picture_weight: float = 1.5
    mask_ratio: float = 0.75
    picture_mask_ratio: float = 0.5
    tower: str = "pipeline"
    download: bool = False
    blocks: int = 3
    heads: int = 12
    decoder_width: int = 512
    decoder_depth: int = 6
    decoder_heads: int = 16
    faithful: bool = False
    crop: float = 0.5
    shift: int = 0
    ema: float = 0.0
    select: str = "best"
    patience: int = 0

    def __post_init__(self) -> None:
        for name in ("mask_ratio", "picture_mask_ratio"):
            if not 0 < getattr(self, name) < 1:
                raise InputError("joint", name, getattr(self, name), "between 0 and 1")
        if self.select not in ("best", "last"):
            raise InputError("joint", "select", self.select, "best or last")


def named_tower(name: str, pipeline: str | Path, download: bool = False) -> nn.Module:
    """A frozen image tower by name: ``pipeline``, ``vit-mae``, ``clip``, or a folder.

    Raises
    ------
    InputError
        When it is not there, or is not a ViT-MAE or CLIP tower.
    """
    if name == "pipeline":
        return _tower(Path(pipeline) / "image_encoder")
    if name not in HUB_TOWERS:
        if not Path(name).is_dir():
            known = ", ".join(("pipeline", *HUB_TOWERS))
            raise InputError("joint", "tower", name, f"one of {known}, or a folder")
        return _tower(name)
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(HUB_TOWERS[name], local_files_only=not download)
    except Exception as error:
        reason = " ".join(str(error).split())[:120]
        expected = f"{HUB_TOWERS[name]} in the hub's cache, a folder, or joint.download=true"
        raise InputError("joint", f"tower {name}", reason, expected) from error
    return _tower(folder)


def _tower(folder: str | Path) -> nn.Module:
    with quiet_libraries():
        return load_tower(str(folder)).float()


def joint_autoencoder(eeg: Any, tower: nn.Module, config: JointConfig) -> JointAutoencoder:
    """EEG encoder and image tower with what joins them.

    Raises
    ------
    InputError
        When the encoder is not a masked autoencoder.
    """
    if not hasattr(eeg, "decoder") or not hasattr(eeg, "draw"):
        raise InputError("joint", "encoder", type(eeg).__name__, "a masked_autoencoder")
    kind = tower.config.model_type  # type: ignore[union-attr]
    colours: dict[str, Any] = (
        {} if kind == "vit_mae" else {"mean": CLIP_MEAN, "deviation": CLIP_STD}
    )
    picture = ImageAutoencoder(
        tower, config.decoder_width, config.decoder_depth, config.decoder_heads, **colours
    )
    return JointAutoencoder(eeg, picture, config.blocks, config.heads, config.faithful)


class JointReconstruction(Stage):
    """The joint loss on trials and the pictures that were shown."""

    def __init__(
        self,
        model: JointAutoencoder,
        config: JointConfig,
        train_pictures: Tensor,
        val_pictures: Tensor | None,
        steps: int,
        seed: int,
        order: torch.Generator,
    ) -> None:
        super().__init__(seed, order)
        self.model, self.config, self.steps = model, config, steps
        self.train_pictures, self.val_pictures = train_pictures, val_pictures
        self.augment = Augmentation(channel_dropout=0.0, shift=config.shift, noise=0.0)
        self._found: list[Tensor] = []

    @property
    def kept(self) -> nn.Module:
        """Both autoencoders."""
        return self.model

    def training_step(self, batch: Batch, _: int) -> Tensor:
        """Weighted sum of the two errors."""
        rgb = self.train_pictures[batch.stimuli].float() / 255
        rgb = random_crops(rgb, self.config.crop, self.generator)
        signals = self.augment(batch.signals, self.generator)
        found = self._step(signals, batch.subjects, rgb, self.generator)[0]
        self.log_dict(found, prog_bar=True, on_epoch=True, on_step=False)
        return found["loss"]

    def on_validation_epoch_start(self) -> None:
        """The same masks at every validation."""
        self._found.clear()
        self._fixed = self.fixed_generator()

    def validation_step(self, batch: Batch, _: int) -> None:
        """Loss, and the correlation of what was drawn with what was hidden."""
        assert self.val_pictures is not None
        rgb = self.val_pictures[batch.stimuli].float() / 255
        found, answer, eeg, picture = self._step(batch.signals, batch.subjects, rgb, self._fixed)
        correlations = (
            reconstruction_correlation(answer.eeg, eeg, answer.eeg_hidden),
            reconstruction_correlation(answer.pixels, picture, answer.pixels_hidden),
        )
        self._found.append(torch.stack([found["loss"], *(c.mean() for c in correlations)]))

    def on_validation_epoch_end(self) -> None:
        """Means; keep the weights of the lowest loss."""
        loss, eeg, picture = torch.stack(self._found).mean(0)
        self.log_dict(
            {"val_loss": loss, "val_eeg_correlation": eeg, "val_picture_correlation": picture},
            prog_bar=True,
        )
        self.keep_if_best(-float(loss))

    def configure_optimizers(self) -> Any:
        """AdamW with warm-up and cosine."""
        c = self.config
        return optimiser(
            self.model, lr=c.lr, weight_decay=c.weight_decay, steps=self.steps, warmup=c.warmup
        )

    def _step(
        self, signals: Tensor, subjects: Tensor, rgb: Tensor, generator: torch.Generator
    ) -> tuple[dict[str, Tensor], JointAnswer, Tensor, Tensor]:
        c, model = self.config, self.model
        answer = model(
            signals,
            rgb,
            subjects,
            ratio=c.mask_ratio,
            picture_ratio=c.picture_mask_ratio,
            generator=generator,
        )
        eeg = signal_patches(signals, model.eeg.patch)
        picture = model.picture.patches(rgb)
        losses = merl_stage_2(
            answer, eeg, picture, eeg_weight=c.eeg_weight, picture_weight=c.picture_weight
        )
        return losses, answer, eeg, picture


def join(
    model: JointAutoencoder,
    train: TrialBank,
    train_pictures: Tensor,
    val: TrialBank | None,
    val_pictures: Tensor | None,
    config: JointConfig,
    running: Running,
    *,
    seed: int,
) -> dict[str, Any]:
    """Train both autoencoders in place.

    Parameters
    ----------
    train_pictures, val_pictures
        (S, 3, H, W) uint8 of each bank's ``stimulus_ids``.

    Returns
    -------
    dict
        ``selected`` (epoch rule) and ``val_loss``, the lowest.
    """
    order = torch.Generator(train.signals.device)
    loader = BankLoader(train, config.batch_size, order, running.devices)
    module = JointReconstruction(
        model, config, train_pictures, val_pictures, config.epochs * len(loader), seed, order
    )
    loaders: list[Any] = [loader]
    if val is not None:
        loaders.append(WholeLoader(val, config.batch_size))
    fit(
        module,
        "joint",
        config.epochs,
        running,
        *loaders,
        callbacks=averaging(config.ema),
        patience=config.patience,
    )
    lowest = None if module.best is None else round(-module.best_score, 5)
    return {"selected": module.take_best(config.select), "val_loss": lowest}
