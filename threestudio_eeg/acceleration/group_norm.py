"""Group normalisation with what stands around it, channels innermost: the torch code.

A VAE's encoder at 512 x 512 is bound by memory, and spends more of its time in normalising and
activating than in its convolutions; a U-Net's many small pictures are bound by the number of
kernels. :mod:`.group_norm_triton` is :func:`reference` for a GPU: it reads a picture twice and
writes it once, and convolutions get the channels innermost, as tensor cores want them.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


def reference(
    x: Tensor,
    groups: int,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    added: Tensor | None = None,
    activate: bool = True,
) -> Tensor:
    """``silu(group_norm(x + added))`` of pictures (B, C, H, W).

    ``added`` (B, C) or None is the same for all pixels; without ``activate`` there is no SiLU.
    """
    if added is not None:
        x = x + added[:, :, None, None]
    out = F.group_norm(x, groups, weight, bias, eps)
    return F.silu(out) if activate else out


def normalise(
    norm: nn.GroupNorm, x: Tensor, added: Tensor | None = None, activate: bool = True
) -> Tensor:
    """:func:`reference` by a frozen module's weights on a GPU, the channels innermost in memory.

    Gradients go to the pictures and to ``added``.
    """
    from .group_norm_triton import group_norm

    return group_norm(x, norm.num_groups, norm.weight, norm.bias, norm.eps, added, activate)


class NormSiLU(nn.Module):
    """A frozen group normalisation, and the SiLU behind it, for pictures (B, C, H, W)."""

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        """The same as the two modules, the channels innermost in memory."""
        return normalise(self.norm, x)
