"""How every stage runs: one Lightning trainer, one optimiser, logs, checkpoints."""

from __future__ import annotations

import inspect
import logging
import math
import os
import shutil
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch import nn

from ..errors import InputError

CHECKPOINT = "last"


@dataclass
class Running:
    """Where and how a stage runs.

    Parameters
    ----------
    device
        ``cpu`` or ``cuda``.
    precision
        Lightning's name: ``32-true`` or ``bf16-mixed``.
    logs
        Folder of the CSV and TensorBoard logs, or None.
    progress
        Show a progress bar.
    devices
        How many; with more than one, gradients are averaged by DistributedDataParallel, and each
        process takes its share of the batches.
    checkpoints
        Folder for the state after each epoch, or None. A finished stage leaves none.
    resume
        Go on from that state.
    clip
        Largest norm of the gradient.
    """

    device: str = "cpu"
    precision: str = "32-true"
    logs: Path | None = None
    progress: bool = True
    devices: int = 1
    checkpoints: Path | None = None
    resume: bool = False
    clip: float = 1.0

    def take_device(self) -> None:
        """Make this process's GPU the current one, so that ``cuda`` means it."""
        if self.device == "cuda" and self.devices > 1:
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))


def is_first_process() -> bool:
    """Whether this process writes files; the others of a distributed run do not."""
    return int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", 0))) == 0


def fit(
    module: LightningModule,
    name: str,
    epochs: int,
    running: Running,
    *loaders: Any,
    callbacks: Iterable[Callback] = (),
    patience: int = 0,
    watched: tuple[str, str] = ("val_loss", "min"),
    every: int = 1,
) -> None:
    """Train ``module`` for ``epochs`` on loaders (training, validation) that yield device batches.

    Parameters
    ----------
    patience
        Stop after this many validations without a better ``watched`` value; 0 for never. Needs a
        validation loader.
    watched
        Logged value, and ``min`` or ``max``.
    every
        Epochs from one validation to the next.

    Raises
    ------
    InputError
        For a checkpoint that is not this stage's.
    KeyboardInterrupt
        On Ctrl-C, which Lightning turns into an exit of its own.
    """
    if epochs < 1:
        return
    hooks = list(callbacks)
    if patience and len(loaders) > 1:
        hooks.append(EarlyStopping(watched[0], mode=watched[1], patience=patience))
    folder = running.checkpoints / name if running.checkpoints else None
    if folder is not None:
        hooks.append(
            ModelCheckpoint(
                folder,
                filename=CHECKPOINT,
                save_on_train_epoch_end=True,
                enable_version_counter=False,
            )
        )
    quiet = logging.getLogger("lightning.pytorch")
    level = quiet.level
    quiet.setLevel(logging.ERROR)
    trainer = Trainer(
        accelerator="gpu" if running.device.startswith("cuda") else "cpu",
        devices=running.devices,
        strategy="ddp_find_unused_parameters_true" if running.devices > 1 else "auto",
        precision=running.precision,  # type: ignore[arg-type]
        max_epochs=epochs,
        logger=_loggers(running.logs, name),
        callbacks=hooks,
        log_every_n_steps=10,
        gradient_clip_val=running.clip,
        check_val_every_n_epoch=every,
        enable_checkpointing=folder is not None,
        enable_model_summary=False,
        enable_progress_bar=running.progress,
        num_sanity_val_steps=0,
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _fit(trainer, module, loaders, _state(folder, running.resume))
    except SystemExit:
        if not trainer.interrupted:
            raise
    finally:
        quiet.setLevel(level)
    if trainer.interrupted:
        raise KeyboardInterrupt
    if folder is not None and is_first_process():
        shutil.rmtree(folder, ignore_errors=True)
        if not any(folder.parent.iterdir()):
            folder.parent.rmdir()


def optimiser(
    module: nn.Module, *, lr: float, weight_decay: float, steps: int, warmup: float
) -> dict[str, Any]:
    """AdamW without decay of one-dimensional weights; warm-up, then half a cosine, by step.

    Parameters
    ----------
    steps
        Of the whole training.
    warmup
        Share of them.
    """
    trained = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    adam = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95))
    rising = max(1, round(steps * warmup))

    def factor(step: int) -> float:
        if step < rising:
            return (step + 1) / rising
        done = min(1.0, (step - rising) / max(1, steps - rising))
        return 0.5 * (1 + math.cos(math.pi * done))

    schedule = torch.optim.lr_scheduler.LambdaLR(adam, factor)
    return {"optimizer": adam, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def _loggers(logs: Path | None, name: str) -> Any:
    if logs is None:
        return False
    csv = CSVLogger(str(logs), name=name, version="")
    return [csv, TensorBoardLogger(str(logs), name=name, version="")]


def _state(folder: Path | None, resume: bool) -> Path | None:
    """The checkpoint to go on from; a new run starts without one."""
    if folder is None:
        return None
    file = folder / f"{CHECKPOINT}.ckpt"
    if not resume and is_first_process():
        file.unlink(missing_ok=True)
    return file if resume and file.is_file() else None


def _fit(trainer: Trainer, module: LightningModule, loaders: Any, state: Path | None) -> None:
    if state is None:
        trainer.fit(module, *loaders)
        return
    options: dict[str, Any] = {"ckpt_path": str(state)}
    if "weights_only" in inspect.signature(trainer.fit).parameters:
        options["weights_only"] = True
    try:
        trainer.fit(module, *loaders, **options)
    except (RuntimeError, KeyError, EOFError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        reason = " ".join(str(error).split())[:160]
        raise InputError(state, "checkpoint", reason, "a state of this stage") from error
