"""Losses, each with its formula and source."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .errors import InputError

GRANULARITIES = ("channel", "signal")


def masked_contrast(
    view: Tensor,
    positive: Tensor,
    *,
    temperature: float = 0.1,
    granularity: str = "channel",
) -> Tensor:
    """Contrast of a reconstruction with its signal or with another reconstruction of it.

    With r = view, x = positive, n(u) = u / |u| along time and s(u, v) = n(u) . n(v):

        L = mean over channels c and samples i of
            -log( e^{s(r_ic, x_ic)/t} / (e^{s(r_ic, x_ic)/t} + sum_{j != i} e^{s(r_ic, r_jc)/t}) )

    The negatives are the other samples' reconstructions of the same view, and gradients flow
    through them. MERL-1 of 3D-Telepathy (arXiv 2506.21843): the self-contrast has the signal as the
    positive, the cross-contrast the second view's reconstruction.

    Parameters
    ----------
    view, positive
        (B, C, T)
    temperature
        t
    granularity
        ``channel`` as above; ``signal`` flattens channels and time into one vector.

    Returns
    -------
    Tensor
        Scalar; ln B when all similarities are equal.
    """
    if granularity not in GRANULARITIES:
        raise InputError("objective", "granularity", granularity, "channel or signal")
    if granularity == "signal":
        view, positive = view.flatten(1)[:, None], positive.flatten(1)[:, None]
    view = F.normalize(view.float(), dim=2).transpose(0, 1)
    positive = F.normalize(positive.float(), dim=2).transpose(0, 1)
    own = (view * positive).sum(dim=2) / temperature
    others = torch.matmul(view, view.transpose(1, 2)) / temperature
    itself = torch.eye(view.shape[1], dtype=torch.bool, device=view.device)
    logits = torch.where(itself, own[..., None], others)
    return (logits.logsumexp(dim=2) - own).mean()


def merl_loss(
    view_1: Tensor,
    view_2: Tensor,
    signals: Tensor,
    *,
    self_weight: float = 1.0,
    cross_weight: float = 0.5,
    temperature: float = 0.1,
    granularity: str = "channel",
) -> Tensor:
    """``self_weight * L_self(view_1, signals) + cross_weight * L_cross(view_1, view_2)``.

    MERL-1 of 3D-Telepathy with its weights 1 and 0.5; see :func:`masked_contrast`.
    """
    settings = {"temperature": temperature, "granularity": granularity}
    own = masked_contrast(view_1, signals, **settings)  # type: ignore[arg-type]
    return self_weight * own + cross_weight * masked_contrast(view_1, view_2, **settings)  # type: ignore[arg-type]


def masked_mse(reconstruction: Tensor, signals: Tensor, hidden: Tensor) -> Tensor:
    """Mean squared error over the hidden samples.

    Parameters
    ----------
    reconstruction, signals
        (B, C, T)
    hidden
        (B, T) bool.
    """
    error = ((reconstruction.float() - signals.float()) ** 2).mean(dim=1)
    return (error * hidden).sum() / hidden.sum().clamp_min(1)


class InfoNCE(nn.Module):
    """Symmetric InfoNCE between EEG and image embeddings with a learnt, clamped scale.

    Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML
    2021, with the logarithm of the scale clamped. Normalising the image side only is the better
    choice for EEG in NeuroBridge (AAAI 2026).

    Parameters
    ----------
    scale
        Initial scale of the logits.
    max_scale
        Upper bound.
    normalise
        ``image``, ``both`` or ``none``.
    """

    def __init__(
        self, scale: float = 10.0, max_scale: float = 100.0, normalise: str = "image"
    ) -> None:
        super().__init__()
        if normalise not in ("image", "both", "none"):
            raise InputError("objective", "normalise", normalise, "image, both or none")
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale)))
        self.max_log_scale = math.log(max_scale)
        self.normalise = normalise

    @property
    def scale(self) -> Tensor:
        """Scale in use, at most ``max_scale``."""
        return self.log_scale.clamp(0.0, self.max_log_scale).exp()

    def forward(self, eeg: Tensor, image: Tensor, same: Tensor | None = None) -> Tensor:
        """Loss of matching rows.

        Parameters
        ----------
        eeg, image
            (B, P)
        same
            (B, B) bool: pairs that show the same stimulus, left out of the negatives.

        Returns
        -------
        Tensor
            Scalar; ln B at equal similarity.
        """
        eeg, image = eeg.float(), image.float()
        if self.normalise != "none":
            image = F.normalize(image, dim=1)
        if self.normalise == "both":
            eeg = F.normalize(eeg, dim=1)
        logits = self.scale * eeg @ image.T
        target = torch.arange(len(eeg), device=eeg.device)
        if same is not None:
            other = same & ~torch.eye(len(eeg), dtype=torch.bool, device=eeg.device)
            logits = logits.masked_fill(other, -torch.inf)
        return 0.5 * (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target))
