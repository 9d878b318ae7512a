"""What every stage's Lightning module shares: reseeding, the best weights, slim checkpoints."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn


class Stage(LightningModule):
    """A training stage.

    Randomness is a function of (seed, epoch, process), so that a resumed run draws what an
    uninterrupted one would have drawn. Checkpoints hold what is trained, not frozen networks.

    Parameters
    ----------
    seed
        Of the masks, augmentation, noise and dropout.
    order
        Generator of the training loader, the same in every process.
    """

    strict_loading = False

    def __init__(self, seed: int, order: torch.Generator) -> None:
        super().__init__()
        self.seed, self.order = seed, order
        self._generator: torch.Generator | None = None
        self.best: dict[str, Tensor] | None = None
        self.best_score = float("-inf")

    @property
    def kept(self) -> nn.Module:
        """The module whose best weights are remembered."""
        raise NotImplementedError

    @property
    def generator(self) -> torch.Generator:
        """Generator on the stage's device."""
        if self._generator is None:
            self._generator = torch.Generator(self.device)
        return self._generator

    def on_train_epoch_start(self) -> None:
        """Reseed everything that is random."""
        epoch = self.current_epoch
        self.order.manual_seed(_mixed(self.seed, epoch, 0))
        own = _mixed(self.seed, epoch, 1 + self.global_rank)
        self.generator.manual_seed(own)
        torch.manual_seed(own)

    def fixed_generator(self) -> torch.Generator:
        """A new generator, the same at every validation."""
        return torch.Generator(self.device).manual_seed(_mixed(self.seed, 0, 1 << 20))

    def keep_if_best(self, score: float) -> None:
        """Remember what is trained when ``score`` is the highest so far."""
        if score > self.best_score:
            self.best_score = score
            trained = {**dict(self.kept.named_buffers()), **_trained(self.kept)}
            self.best = {name: value.detach().cpu().clone() for name, value in trained.items()}

    def take_best(self, select: str) -> str:
        """Put the best weights back if ``select`` is ``best`` and there are any; say what was
        taken."""
        if select != "best" or self.best is None:
            return "last"
        self.kept.load_state_dict(self.best, strict=False)
        return "best"

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave frozen weights out; add the best ones."""
        frozen = {name for name, p in self.named_parameters() if not p.requires_grad}
        checkpoint["state_dict"] = {
            name: value for name, value in checkpoint["state_dict"].items() if name not in frozen
        }
        checkpoint["best"] = {"score": self.best_score, "weights": self.best}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the best weights back."""
        self.best_score = checkpoint["best"]["score"]
        self.best = checkpoint["best"]["weights"]
        wanted = {name for name, p in self.named_parameters() if p.requires_grad}
        found = checkpoint["state_dict"]
        missing = sorted(wanted - set(found))
        if missing:
            raise KeyError(f"no {missing[0]}")


class ExponentialAverage(Callback):
    """Average of the trained weights, used for validation and kept at the end.

    After each step, average = decay average + (1 - decay) weights, with decay no more than
    (1 + n) / (10 + n) after n steps.

    Parameters
    ----------
    decay
        Between 0 and 1.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.steps = 0
        self.average: dict[str, Tensor] = {}
        self._own: dict[str, Tensor] = {}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start from the weights, or from a checkpoint's average."""
        weights = _trained(pl_module)
        if not self.average:
            self.average = {name: p.detach().clone() for name, p in weights.items()}
        self.average = {name: self.average[name].to(p) for name, p in weights.items()}

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *_: Any, **__: Any
    ) -> None:
        """Move the average towards the weights."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        weights = _trained(pl_module)
        torch._foreach_lerp_(
            list(self.average.values()), [weights[n].detach() for n in self.average], 1 - decay
        )

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validate the average."""
        self._own = {name: p.detach().clone() for name, p in _trained(pl_module).items()}
        _set(pl_module, self.average)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on training the weights."""
        _set(pl_module, self._own)
        self._own = {}

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the average."""
        _set(pl_module, self.average)

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {
            "steps": self.steps,
            "average": {name: value.cpu() for name, value in self.average.items()},
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """From the checkpoint."""
        self.steps, self.average = state_dict["steps"], state_dict["average"]


def averaging(decay: float) -> list[Callback]:
    """:class:`ExponentialAverage` for a decay above 0, else nothing."""
    return [ExponentialAverage(decay)] if decay > 0 else []


def _mixed(*numbers: int) -> int:
    """One seed of several numbers, well mixed."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _trained(module: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


@torch.no_grad()
def _set(module: nn.Module, values: dict[str, Tensor]) -> None:
    for name, parameter in _trained(module).items():
        parameter.copy_(values[name])
