"""What a signal says of each remembered picture: a linear encoding model, read backwards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..recipes.encoding_model import principal, shrink_singular_values
from ..recipes.separable_noise import separable_whitening

TEMPERATURES = (1.0, 2.0, 4.0, 8.0, 16.0)
BIN_SECONDS = 0.04
MOST_FEATURES = 4096
SHRINKAGE = 0.3


class PictureEvidence(nn.Module):
    """Log-likelihood of a signal under each of a set of pictures, for each person.

    With z the whitened principal components of a picture's embedding and x the signal of one trial
    in bins of 40 ms, x = m + B^T z + e with e ~ N(0, S). Only the directions of x that depend on
    the picture are kept: with W = S^(-1/2) and the singular value decomposition of W B^T shrunk as
    in :func:`.shrink_singular_values`, R of them. So with y their values,

        log p(x | z) = n (y . p(z) - |p(z)|^2 / 2) + const,

    n being the number of trials that were averaged. The model's noise is not quite the signal's
    (what the embedding does not explain does not average out), hence a temperature, chosen on
    validation trials.

    Parameters
    ----------
    subjects
        Their numbers, S of them. Of others the evidence is 0 for every picture.
    features
        D = channels times bins.
    rank
        R, the largest over the subjects.
    embedding
        P
    step
        Samples averaged to a bin.
    temperature
        Divides the log-likelihood.

    References
    ----------
    Kay, Naselaris, Prenger, Gallant, "Identifying natural images from human brain activity", Nature
    2008.
    """

    projection: Tensor
    offset: Tensor
    predict: Tensor
    centre: Tensor

    def __init__(
        self,
        subjects: Sequence[int],
        features: int,
        rank: int,
        embedding: int,
        step: int,
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        self.subjects, self.step, self.temperature = list(subjects), step, temperature
        people = len(self.subjects)
        self.register_buffer("projection", torch.zeros(people, rank, features))
        self.register_buffer("offset", torch.zeros(people, rank))
        self.register_buffer("predict", torch.zeros(people, embedding, rank))
        self.register_buffer("centre", torch.zeros(people, embedding))

    @classmethod
    def fitted(
        cls,
        signals: Tensor,
        embeddings: Tensor,
        subjects: Tensor,
        *,
        sfreq: float,
        shrinkage: float = SHRINKAGE,
    ) -> PictureEvidence | None:
        """Fit on single training trials; None where every person has too few to tell noise.

        Parameters
        ----------
        signals
            (N, C, T) preprocessed.
        embeddings
            (N, P) unit embeddings of the pictures shown.
        subjects
            (N,) numbers.
        sfreq
            Of the signals, in hertz.
        shrinkage
            Of the noise covariance towards a separable one.
        """
        step = _step(signals.shape[1], signals.shape[2], sfreq)
        fits = {}
        for number in sorted({int(n) for n in subjects}):
            rows = (subjects == number).nonzero()[:, 0]
            fit = _fit_one(_bins(signals[rows], step), embeddings[rows], shrinkage)
            if fit is not None:
                fits[number] = fit
        if not fits:
            return None
        rank = max(len(fit.offset) for fit in fits.values())
        first = next(iter(fits.values()))
        evidence = cls(list(fits), first.projection.shape[1], rank, len(first.centre), step)
        for row, fit in enumerate(fits.values()):
            r = len(fit.offset)
            evidence.projection[row, :r] = fit.projection
            evidence.offset[row, :r] = fit.offset
            evidence.predict[row, :, :r] = fit.predict
            evidence.centre[row] = fit.centre
        return evidence

    def forward(
        self, signals: Tensor, subjects: Tensor, averaged: Tensor, pictures: Tensor
    ) -> Tensor:
        """Evidence (B, M) for pictures (M, P), up to a constant of each row.

        Parameters
        ----------
        signals
            (B, C, T) preprocessed, each the average of ``averaged`` (B,) trials.
        subjects
            (B,) numbers.
        """
        found = _bins(signals, self.step).flatten(1)
        scores = found.new_zeros(len(signals), len(pictures))
        for row, number in enumerate(self.subjects):
            own = subjects == number
            y = found[own] @ self.projection[row].T - self.offset[row]
            expected = (pictures - self.centre[row]) @ self.predict[row]
            scores[own] = y @ expected.T - 0.5 * expected.square().sum(1)
        return averaged[:, None] * scores / self.temperature

    def sizes(self) -> dict[str, object]:
        """Arguments that make an empty one of this size."""
        _, rank, features = self.projection.shape
        return {
            "subjects": self.subjects,
            "features": features,
            "rank": rank,
            "embedding": self.centre.shape[1],
            "step": self.step,
            "temperature": self.temperature,
        }


@dataclass
class _Fit:
    projection: Tensor
    offset: Tensor
    predict: Tensor
    centre: Tensor


def _fit_one(x: Tensor, embeddings: Tensor, shrinkage: float) -> _Fit | None:
    """Fit one person's model to binned trials (N, C, T)."""
    centre = embeddings.mean(0)
    basis, _ = principal(embeddings - centre, 0)
    z = (embeddings - centre) @ basis
    freedom = len(x) - z.shape[1] - 1
    if freedom < 2 * max(x.shape[1:]):
        return None
    flat = x.flatten(1)
    mean = flat.mean(0)
    fitted = z.T @ (flat - mean) / len(x)
    left_over = (flat - mean - z @ fitted).reshape(x.shape)
    whiten = separable_whitening(left_over, freedom, shrinkage)
    plain = fitted @ whiten.T
    shrunk, rank = shrink_singular_values(plain, len(x))
    if not rank:
        return None
    left, values, right = torch.linalg.svd(shrunk, full_matrices=False)
    projection = right[:rank] @ whiten
    return _Fit(projection, projection @ mean, basis @ (left * values)[:, :rank], centre)


def _step(channels: int, samples: int, sfreq: float) -> int:
    step = max(1, round(BIN_SECONDS * sfreq))
    while channels * (samples // step) > MOST_FEATURES:
        step += 1
    return min(step, samples)


def _bins(signals: Tensor, step: int) -> Tensor:
    whole = signals[..., : signals.shape[-1] // step * step].float()
    return whole.unflatten(-1, (-1, step)).mean(-1)
