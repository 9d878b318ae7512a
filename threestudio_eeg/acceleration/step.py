"""A guidance step with its gradients as one recording."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
        self._side: torch.cuda.Stream | None = None

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

        On a GPU the weights' losses are computed beside the scores and the pictures' gradient: the
        kernels of one picture fill a part of it. Where they cannot, or memory counts, they come
        after it, so that activations of both are not in memory at once.
        """
        guidance = self._guidance
        step = replace(step, picture=step.picture.detach().requires_grad_())
        with torch.enable_grad(), torch.autocast(guidance.device.type, enabled=False):
            latents = guidance.latents_of(step)
            if not guidance.losses_are_apart:
                return {**self._of_picture(step, latents), **self._of_weights(step, latents)}
            with self._beside() as join:
                out = self._of_weights(step, latents)
            out.update(self._of_picture(step, latents))
            join()
        return out

    def _of_picture(self, step: Any, latents: Tensor) -> dict[str, Tensor]:
        done = self._guidance.compare(step, latents)
        out, losses = {"grad_norm": done.grad_norm}, done.losses
        while losses:
            name, loss = losses.popitem()
            out[name] = loss.detach()
            out[f"to_picture.{name}"] = flat_gradient(
                loss, [step.picture], keep_graph=len(losses) > 0
            )
        return out

    def _of_weights(self, step: Any, latents: Tensor) -> dict[str, Tensor]:
        guidance, out = self._guidance, {}
        half = guidance.pipeline.dtype == torch.float16
        losses = guidance.extra_losses(latents.detach(), step.prompt, step.draws)
        for name, loss in losses.items():
            out[name] = loss.detach()
            out[f"to_weights.{name}"] = flat_gradient(
                loss, guidance.trained_parameters(), HALF_PRECISION_SCALE if half else 1.0
            )
        return out

    @contextmanager
    def _beside(self) -> Iterator[Callable[[], None]]:
        """What the device may do at the same time as what follows, until the join.

        Tensors that are used here must live until then.
        """
        if self._guidance.device.type != "cuda":
            yield lambda: None
            return
        main = torch.cuda.current_stream()
        if self._side is None:
            self._side = torch.cuda.Stream()
        side = self._side
        side.wait_stream(main)
        with torch.cuda.stream(side):
            yield lambda: main.wait_stream(side)
