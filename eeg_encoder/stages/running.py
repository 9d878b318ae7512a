"""How every stage runs: one Lightning trainer, one optimiser, a CSV log."""

from __future__ import annotations

import logging
import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from torch import nn


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
        Folder of the CSV logs, or None.
    progress
        Show a progress bar.
    """

    device: str = "cpu"
    precision: str = "32-true"
    logs: Path | None = None
    progress: bool = True


def fit(module: LightningModule, name: str, epochs: int, running: Running, *loaders: Any) -> None:
    """Train ``module`` for ``epochs`` on loaders (training, validation) that yield device batches.

    Raises
    ------
    KeyboardInterrupt
        On Ctrl-C, which Lightning turns into an exit of its own.
    """
    if epochs < 1:
        return
    logger = CSVLogger(str(running.logs), name=name, version="") if running.logs else False
    quiet = logging.getLogger("lightning.pytorch")
    level = quiet.level
    quiet.setLevel(logging.ERROR)
    trainer = Trainer(
        accelerator="gpu" if running.device.startswith("cuda") else "cpu",
        devices=1,
        precision=running.precision,  # type: ignore[arg-type]
        max_epochs=epochs,
        logger=logger,
        log_every_n_steps=10,
        gradient_clip_val=1.0,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=running.progress,
        num_sanity_val_steps=0,
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer.fit(module, *loaders)
    except SystemExit:
        if not trainer.interrupted:
            raise
    finally:
        quiet.setLevel(level)
    if trainer.interrupted:
        raise KeyboardInterrupt


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
