"""Losses, each with its formula and source."""

from __future__ import annotations

import math
from typing import Any

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


def merl_stage_1(
    views: Tensor,
    signals: Tensor,
    hidden: Tensor,
    *,
    self_weight: float = 1.0,
    cross_weight: float = 0.5,
    mse_weight: float = 0.0,
    temperature: float = 0.1,
    granularity: str = "channel",
) -> dict[str, Tensor]:
    """Loss of the first stage: :func:`merl_loss` and, optionally, the error of hidden samples.

    ``mse_weight = 0`` is the published loss, which compares directions only and so leaves
    amplitudes free.

    Parameters
    ----------
    views
        (2, B, C, T), two reconstructions under independent masks.
    signals
        (B, C, T)
    hidden
        (2, B, T) bool.

    Returns
    -------
    dict
        ``loss``, ``contrast``, ``mse``; scalars.
    """
    contrast = merl_loss(
        views[0],
        views[1],
        signals,
        self_weight=self_weight,
        cross_weight=cross_weight,
        temperature=temperature,
        granularity=granularity,
    )
    mse = 0.5 * (
        masked_mse(views[0], signals, hidden[0]) + masked_mse(views[1], signals, hidden[1])
    )
    return {"loss": contrast + mse_weight * mse, "contrast": contrast, "mse": mse}


def signal_patches(signals: Tensor, patch: int) -> Tensor:
    """(B, C, T) to (B, T / patch, patch C), time-major: the decoder's order."""
    b, _, t = signals.shape
    return signals.transpose(1, 2).reshape(b, t // patch, -1)


def masked_patch_mse(drawn: Tensor, target: Tensor, hidden: Tensor) -> Tensor:
    """Mean over hidden patches of the mean squared error of a patch.

    Parameters
    ----------
    drawn, target
        (B, n, d)
    hidden
        (B, n) bool.
    """
    return masked_mse(drawn.transpose(1, 2), target.transpose(1, 2), hidden)


def merl_stage_2(
    answer: Any,
    eeg_patches: Tensor,
    picture_patches: Tensor,
    *,
    eeg_weight: float = 0.25,
    picture_weight: float = 1.5,
) -> dict[str, Tensor]:
    """``eeg_weight * L_eeg + picture_weight * L_picture``, each an error over hidden patches.

    MERL-2 of 3D-Telepathy with its weights 0.25 and 1.5; see
    :class:`eeg_encoder.models.cross_modal.JointAutoencoder`.

    Parameters
    ----------
    answer
        A :class:`eeg_encoder.models.cross_modal.JointAnswer`.
    eeg_patches
        (B, n, patch C), see :func:`signal_patches`.
    picture_patches
        (B, m, 3 p p), see :meth:`ImageAutoencoder.patches`.

    Returns
    -------
    dict
        ``loss``, ``eeg``, ``picture``; scalars.
    """
    eeg = masked_patch_mse(answer.eeg, eeg_patches, answer.eeg_hidden)
    picture = masked_patch_mse(answer.pixels, picture_patches, answer.pixels_hidden)
    return {"loss": eeg_weight * eeg + picture_weight * picture, "eeg": eeg, "picture": picture}


def reconstruction_correlation(drawn: Tensor, target: Tensor, hidden: Tensor) -> Tensor:
    """(B,) Pearson correlation of prediction and target over each sample's hidden patches.

    The published code correlates a prediction with another of its own patches instead.

    Parameters
    ----------
    drawn, target
        (B, n, d)
    hidden
        (B, n) bool.
    """
    weight = hidden[..., None].expand_as(drawn).flatten(1).float()
    x, y = drawn.flatten(1).float(), target.flatten(1).float()
    count = weight.sum(1, keepdim=True).clamp_min(1)
    x = (x - (x * weight).sum(1, keepdim=True) / count) * weight
    y = (y - (y * weight).sum(1, keepdim=True) / count) * weight
    return F.cosine_similarity(x, y, dim=1)


def mean_view(views: Tensor) -> Tensor:
    """Unit mean (S, P) of the unit embeddings of several views (S, V, P) of each picture.

    Blurred, noisy and low-resolution views averaged are a better target for EEG than the sharp
    picture (NeuroBridge, AAAI 2026: four views for one, 62.1 for 50.9 %).
    """
    return F.normalize(F.normalize(views.float(), dim=2).mean(dim=1), dim=1)


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
            (B, P); ``image`` may be (B, V, P), several views of each picture: see
            :func:`mean_view`.
        same
            (B, B) bool: pairs that show the same stimulus, left out of the negatives.

        Returns
        -------
        Tensor
            Scalar; ln B at equal similarity.
        """
        eeg, image = eeg.float(), image.float()
        if image.ndim == 3:
            image = mean_view(image)
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
