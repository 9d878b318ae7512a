"""Who trains a guidance's weights: the system's optimiser, or one of its own.

Some of threestudio's systems (dreamfusion, magic3d, fantasia3d, ...) make their guidance when
training starts. That is after their optimiser was built and after a checkpoint was restored, so
they neither train nor restore weights of a guidance.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from eeg_encoder.errors import InputError

from .late_number import LateNumber

PATIENCE = 16


class OwnOptimizer:
    """Weights with an optimiser of their own, outside of the system's and of its state dict.

    Parameters
    ----------
    config
        ``{name: AdamW, args: {lr: 1e-4}}``, a class of ``torch.optim``.
    module
        What is trained.
    where
        What errors and warnings call the owner.

    Attributes
    ----------
    kept
        Whether somebody puts :meth:`state_dict` into the checkpoints, as ``eeg-system`` does.

    Raises
    ------
    InputError
        For an optimiser or arguments that torch does not have.
    """

    def __init__(self, config: Any, module: nn.Module, where: str) -> None:
        self.module, self.where, self.kept = module, where, False
        self.optimizer = _build(config, module, where)
        self._warned = False

    def step(self, loss: Tensor) -> Tensor:
        """Follow the gradient of ``loss`` once; with several processes, their mean gradient."""
        if not torch.is_grad_enabled():
            return loss
        self._warn_once()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        _average_gradients(self.module)
        self.optimizer.step()
        return loss.detach()

    def state_dict(self) -> dict[str, Any]:
        """Weights and the optimiser's state: tensors and plain containers."""
        return {"module": self.module.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        try:
            self.module.load_state_dict(state["module"])
            self.optimizer.load_state_dict(state["optimizer"])
        except (RuntimeError, ValueError, KeyError) as error:
            reason = " ".join(str(error).split())
            raise InputError(
                self.where, "checkpoint", reason, "weights of the same config"
            ) from error

    def _warn_once(self) -> None:
        if not self.kept and not self._warned:
            warnings.warn(
                f"{self.where}: a resumed run will start with a new LoRA; to keep it in the "
                "checkpoints, add the mixin: system_type: NAME:eeg-system",
                stacklevel=2,
            )
        self._warned = True


class UntrainedWatch:
    """Notice that no optimiser ever steps on a module's parameters.

    An optimiser's step changes a tensor in place, which raises the tensor's version counter; not
    so one that torch calls fused, or one that has slices of the tensor for parameters. So where
    the counter stands still the values are compared once in :data:`PATIENCE` steps. On a CUDA
    device the answer is looked at once it has arrived, so an error comes a few steps late.

    Parameters
    ----------
    module
        What should be trained; its first parameter is looked at.
    where
        What the error calls the owner.
    """

    def __init__(self, module: nn.Module, where: str) -> None:
        self.where = where
        self._parameter = next(module.parameters())
        self._before: Tensor | None = None
        self._moved: LateNumber | None = None
        self._step, self._version, self._idle = -1, -1, 0

    def look(self, step: int) -> None:
        """Look once per training step.

        Raises
        ------
        InputError
            When nothing was trained in the last 16 steps. (A gradient scaler may skip a few.)
        """
        if step == self._step:
            return
        version, known = self._parameter._version, self._version
        self._step, self._version = step, version
        if version != known:
            self._begin_again()
            return
        if self._before is None:
            self._before = self._parameter.detach().clone()
        self._idle += 1
        if self._idle < PATIENCE:
            return
        if self._moved is None:
            self._moved = LateNumber((self._before != self._parameter.detach()).any())
        if self._moved.has_arrived():
            self._judge(float(self._moved) > 0)

    def _judge(self, moved: bool) -> None:
        if not moved:
            raise InputError(
                self.where,
                "LoRA",
                f"no optimiser that trains it, in {PATIENCE} steps",
                "system.optimizer.params.guidance={lr: 1e-4}; or, in a system that makes its "
                "guidance late, guidance.lora_optimizer={name: AdamW, args: {lr: 1e-4}}",
            )
        self._begin_again()

    def _begin_again(self) -> None:
        self._idle, self._before, self._moved = 0, None, None


def _build(config: Any, module: nn.Module, where: str) -> torch.optim.Optimizer:
    given = OmegaConf.to_container(config, resolve=True) if OmegaConf.is_config(config) else config
    expected = "{name: AdamW, args: {lr: 1e-4}}"
    if not isinstance(given, Mapping) or not set(given) <= {"name", "args"}:
        raise InputError(where, "lora_optimizer", given, expected)
    kind = getattr(torch.optim, str(given.get("name")), None)
    args: dict[str, Any] = {
        str(k): tuple(v) if isinstance(v, list) else v for k, v in given.get("args", {}).items()
    }
    try:
        if not (isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)):
            raise TypeError(f"no optimiser of torch: {given.get('name')}")
        return kind([p for p in module.parameters() if p.requires_grad], **args)
    except (TypeError, ValueError) as error:
        raise InputError(where, "lora_optimizer", error, expected) from error


def _average_gradients(module: nn.Module) -> None:
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return
    for parameter in module.parameters():
        if parameter.grad is not None:
            distributed.all_reduce(parameter.grad)
            parameter.grad /= distributed.get_world_size()
