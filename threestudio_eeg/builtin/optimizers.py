"""Optimisers and schedules as config files write them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import nn
from torch.optim import lr_scheduler

from eeg_encoder.errors import InputError

from .registry import suggestion


def plain(config: Any) -> Any:
    """Return a config as plain Python containers: these may enter a checkpoint."""
    return OmegaConf.to_container(config, resolve=True) if OmegaConf.is_config(config) else config


def make_optimizer(
    config: Any, model: nn.Module, more: Sequence[dict[str, Any]] = ()
) -> torch.optim.Optimizer:
    """Build ``{name, args, params: {dotted.attribute: {lr, ...}}}``.

    Without ``params`` all parameters of ``model`` make one group. Parameters that need no gradient
    are left out. ``more`` are groups besides those of ``params``, each with its parameters.

    Raises
    ------
    InputError
        For an optimiser, attribute or argument that does not exist, overlapping groups, or a
        learning rate that is not a number, such as a schedule.
    """
    settings = plain(config)
    name = settings.get("name")
    known = sorted(k for k, v in vars(torch.optim).items() if isinstance(v, type))
    if name not in known:
        raise InputError("system.optimizer", "name", name, suggestion(str(name), known))
    _check_rate(settings.get("args", {}), "args")
    args = {k: tuple(v) if isinstance(v, list) else v for k, v in settings.get("args", {}).items()}
    groups = [*_groups(settings.get("params"), model), *more]
    try:
        optimizer: torch.optim.Optimizer = getattr(torch.optim, name)(groups, **args)
    except (TypeError, ValueError) as error:
        raise InputError("system.optimizer", name, error, "arguments that it takes") from error
    _step_in_one_launch(optimizer)
    return optimizer


def _step_in_one_launch(optimizer: torch.optim.Optimizer) -> None:
    """Let Adam update all parameters in one call, unless its arguments say otherwise.

    For the hundreds of small tensors of a LoRA, the usual step takes the host milliseconds.
    """
    if not isinstance(optimizer, torch.optim.Adam | torch.optim.AdamW):
        return
    for group in optimizer.param_groups:
        free = group.get("fused") is None and group.get("foreach") is None
        free = free and not group.get("differentiable")
        if free and all(_has_one_launch(p) for p in group["params"]):
            group["fused"], group["foreach"] = True, False


def _has_one_launch(parameter: torch.Tensor) -> bool:
    return parameter.device.type in ("cpu", "cuda") and parameter.is_floating_point()


def _groups(params: dict[str, Any] | None, model: nn.Module) -> list[dict[str, Any]]:
    if params is None:
        trainable = [p for p in model.parameters() if p.requires_grad]
        return [{"params": trainable}]
    for dotted, options in params.items():
        _check_rate(options or {}, f"params.{dotted}")
    return [
        {"params": _parameters(model, dotted), "name": dotted, **(options or {})}
        for dotted, options in params.items()
    ]


def _check_rate(options: Mapping[str, Any], where: str) -> None:
    """Refuse a rate that is no number: torch looks at those of groups at the first step only."""
    rate = options.get("lr", 0.0)
    number = isinstance(rate, int | float) and not isinstance(rate, bool)
    if not (number and math.isfinite(rate) and rate >= 0):
        expected = "a number from 0; one that changes is written as system.scheduler"
        raise InputError("system.optimizer", f"{where}.lr", repr(rate), expected)


def _parameters(model: nn.Module, dotted: str) -> list[nn.Parameter]:
    part: Any = model
    for attribute in dotted.split("."):
        if not hasattr(part, attribute):
            names = [name for name, _ in part.named_children()] if hasattr(part, "_modules") else []
            raise InputError(
                "system.optimizer", f"params.{dotted}", attribute, suggestion(attribute, names)
            )
        part = getattr(part, attribute)
    if isinstance(part, nn.Parameter):
        return [part]
    if isinstance(part, nn.Module):
        return [p for p in part.parameters() if p.requires_grad]
    raise InputError(
        "system.optimizer", f"params.{dotted}", type(part).__name__, "a module with parameters"
    )


def make_scheduler(config: Any, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Build ``{name, interval, args}``, or a SequentialLR or ChainedScheduler of such.

    Returns
    -------
    dict
        ``scheduler`` and ``interval`` ("epoch" or "step"), as Lightning takes them.
    """
    settings = plain(config)
    return {
        "scheduler": _scheduler(settings, optimizer),
        "interval": settings.get("interval", "epoch"),
    }


def _scheduler(settings: dict[str, Any], optimizer: torch.optim.Optimizer) -> Any:
    name = settings.get("name")
    known = sorted(k for k, v in vars(lr_scheduler).items() if isinstance(v, type))
    if name not in known:
        raise InputError("system.scheduler", "name", name, suggestion(str(name), known))
    children = [_scheduler(child, optimizer) for child in settings.get("schedulers", [])]
    try:
        if name == "SequentialLR":
            return lr_scheduler.SequentialLR(optimizer, children, settings["milestones"])
        if name == "ChainedScheduler":
            return lr_scheduler.ChainedScheduler(children)
        return getattr(lr_scheduler, str(name))(optimizer, **settings.get("args", {}))
    except (TypeError, ValueError, KeyError) as error:
        raise InputError("system.scheduler", str(name), error, "arguments that it takes") from error
