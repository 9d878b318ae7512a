"""A guidance step with its gradients as one recording."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .gradients import flat_gradient, with_gradient
from .graphs import Recordings

HALF_PRECISION_SCALE = 4096.0
"""What the LoRA's loss, a mean over thousands of latents, is multiplied by in float16."""


class RecordedStep:
    """Runs a guidance's step by replaying it.

    Recorded are encoding, noising, scores, losses, and the losses' gradients to the pictures and
    to the trained weights. Left outside are the random numbers and the schedules' values, which
    are inputs, and what the host does with the losses: they come with a graph whose backward pass
    hands out the stored gradients, so any system, optimiser and gradient scaler works on.

    Parameters
    ----------
    guidance
        A :class:`threestudio_eeg.guidance.ScoreDistillation`.
    """

    def __init__(self, guidance: Any) -> None:
        self._guidance = guidance
        self._recordings = Recordings(self.losses_and_gradients, guidance.device)

    def __call__(self, step: Any) -> dict[str, Any]:
        """Losses by name, with their graphs, and ``grad_norm``."""
        weights = self._guidance.trained_parameters()
        inputs = replace(step, levels=step.levels.on(self._guidance.device))
        places = tuple(weight.data_ptr() for weight in weights)
        out = self._recordings.run(inputs, key=places)
        losses: dict[str, Any] = {"grad_norm": out["grad_norm"].clone()}
        for name in (name for name in out if name.startswith("loss_")):
            if f"to_picture.{name}" in out:
                losses[name] = with_gradient(out[name], out[f"to_picture.{name}"], [step.picture])
            else:
                losses[name] = with_gradient(out[name], out[f"to_weights.{name}"], weights)
        return losses

    def losses_and_gradients(self, step: Any) -> dict[str, Tensor]:
        """Return the losses and, as ``to_picture.*`` and ``to_weights.*``, their flat gradients.

        The pictures' gradient is taken before the weights' losses are computed, so activations of
        both are not in memory at once.
        """
        guidance = self._guidance
        picture = step.picture.detach().requires_grad_()
        with torch.enable_grad(), torch.autocast(guidance.device.type, enabled=False):
            done = guidance.distil(replace(step, picture=picture))
            out = {"grad_norm": done.grad_norm}
            latents, losses = done.latents.detach(), done.losses
            del done
            while losses:
                name, loss = losses.popitem()
                out[name] = loss.detach()
                out[f"to_picture.{name}"] = flat_gradient(
                    loss, [picture], keep_graph=len(losses) > 0
                )
            del loss
            extra = guidance.extra_losses(latents, step.prompt, step.draws)
            half = guidance.pipeline.dtype == torch.float16
            for name, loss in extra.items():
                out[name] = loss.detach()
                out[f"to_weights.{name}"] = flat_gradient(
                    loss, guidance.trained_parameters(), HALF_PRECISION_SCALE if half else 1.0
                )
        return out
