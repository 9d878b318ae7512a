"""Training loop shared by the prior's stages: AdamW, warm-up, cosine, averaged weights, bf16."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn


def fit(
    name: str,
    modules: Iterable[nn.Module],
    loss_of: Callable[[int], Tensor],
    *,
    steps: int,
    learning_rate: float,
    average: float | None = None,
    warm_up: int = 200,
    weight_decay: float = 1e-2,
    log: Callable[[str], None] = print,
) -> float:
    """Minimise ``loss_of(step)`` over the modules' parameters; return the mean of the last losses.

    The rate warms up linearly and falls to zero along half a cosine. With ``average`` the modules
    end with the exponential moving average of their weights at that decay.
    """
    from rich.progress import track

    nets = list(modules)
    parameters = [p for net in nets for p in net.parameters() if p.requires_grad]
    device = parameters[0].device
    optimiser = torch.optim.AdamW(
        parameters, learning_rate, weight_decay=weight_decay, fused=device.type == "cuda"
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser,
        lambda step: min((step + 1) / warm_up, 0.5 * (1 + math.cos(math.pi * step / steps))),
    )
    averaged = [p.detach().clone() for p in parameters] if average else []
    losses: list[Tensor] = []
    for step in track(range(steps), description=name, transient=True):
        optimiser.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = loss_of(step)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        schedule.step()
        if average:
            decay = min(average, (step + 1) / (step + 10))
            torch._foreach_lerp_(averaged, [p.detach() for p in parameters], 1 - decay)
        losses.append(loss.detach())
        if (step + 1) % max(steps // 8, 1) == 0:
            log(f"{name} {step + 1}/{steps}: {torch.stack(losses[-50:]).mean().item():.4f}")
    for parameter, value in zip(parameters, averaged, strict=False):
        parameter.data.copy_(value)
    return float(torch.stack(losses[-200:]).mean())
