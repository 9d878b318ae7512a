"""The passes of masked pre-training recorded as CUDA graphs.

A step at the published batch of ten is thousands of small kernels, and most of its time goes into
launching them. Recorded once, forward and backward pass are one launch each.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Losses = Callable[[Tensor, Tensor, Tensor], dict[str, Tensor]]


class Passes(nn.Module):
    """Signals under two maskings to losses, by tensors alone.

    Parameters
    ----------
    network
        With ``redraw``: :class:`eeg_encoder.models.masked_autoencoder.MaskedAutoencoder`.
    visible
        Tokens that a masking leaves in each row.
    losses
        Of views (2, B, C, T), signals (B, C, T) and hidden samples (2, B, T).
    """

    def __init__(self, network: Any, visible: int, losses: Losses) -> None:
        super().__init__()
        self.network, self.visible, self.losses = network, visible, losses

    def forward(self, signals: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Signals (B, C, T) and hidden tokens (2 B, n) to loss, contrast and masked error."""
        both = torch.cat([signals, signals])
        drawn = self.network.redraw(both, None, hidden, self.visible)
        samples = hidden.repeat_interleave(self.network.patch, dim=1)
        found = self.losses(torch.stack(drawn.chunk(2)), signals, torch.stack(samples.chunk(2)))
        return found["loss"], found["contrast"].detach(), found["mse"].detach()


def record(passes: Passes, signals: Tensor, hidden: Tensor) -> Passes:
    """The same module, its passes recorded for tensors of these shapes, in the precision that is
    set where this is called. It must be called in training mode, as it was recorded."""
    precision = torch.autocast(
        "cuda",
        dtype=torch.get_autocast_dtype("cuda"),
        enabled=torch.is_autocast_enabled("cuda"),
        cache_enabled=False,
    )
    with precision:
        examples = (signals.clone(), hidden.clone())
        torch.cuda.make_graphed_callables(passes, examples, allow_unused_input=True)
    return passes
