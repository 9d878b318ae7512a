"""Identification by an encoding model: which picture would have evoked this signal?"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InputError


@dataclass
class EncodingModel:
    """Linear-Gaussian model of the signal given the picture's embedding, read backwards.

    With z the whitened principal components of a picture's embedding and x its flattened, averaged
    signal,

        x = m + B^T z + e,   e ~ N(0, S),   z ~ N(0, I).

    B is the least-squares map. S is the covariance of what it leaves, over electrodes and samples
    together. In units of that noise, W = S^(-1/2), the map W B^T has the singular values of the
    true map plus those of a noise matrix, which are shrunk as is optimal for a low-rank matrix in
    white noise; directions below the noise vanish. A picture's score is its log-likelihood,

        log p(x | z) = (W (x - m)) . (W B^T z) - |W B^T z|^2 / 2 + const,

    the Bayes rule of identification when the model holds, and the embedding is the posterior mean
    of z. Each trial is scored by itself: nothing is learnt from test trials or from the gallery.

    Ridge regression from signal to embedding asks for the squared error of the embedding instead,
    in which the few directions of large variance count most; identification needs all of them.

    Parameters
    ----------
    mean
        (D,) mean signal.
    whiten
        (D, D) lower triangular L, S = L L^T.
    map
        (K, D) rows of the shrunk map W B^T, transposed.
    centre
        (P,) mean embedding.
    basis
        (P, K): z = (embedding - centre) @ basis.
    deviations
        (K,) standard deviation of each component.
    averaged
        Repetitions averaged in a training signal.
    rank
        Directions left after shrinking.
    last, step
        Samples of the signal that are used, from the first one, and how many are averaged to one.

    References
    ----------
    Kay, Naselaris, Prenger, Gallant, "Identifying natural images from human brain activity", Nature
    2008. Gavish, Donoho, "Optimal shrinkage of singular values", IEEE Transactions on Information
    Theory 2017, equation 7 (Frobenius loss).
    """

    mean: Tensor
    whiten: Tensor
    map: Tensor
    centre: Tensor
    basis: Tensor
    deviations: Tensor
    averaged: float
    rank: int
    last: int
    step: int

    @classmethod
    def fit(
        cls,
        signals: Tensor,
        embeddings: Tensor,
        *,
        averaged: float = 1.0,
        components: int = 0,
        shrinkage: float = 0.02,
        last: int = 0,
        step: int = 1,
    ) -> EncodingModel:
        """Fit on training signals, one row a picture.

        Parameters
        ----------
        signals
            (N, C, T) preprocessed, averaged over the repetitions of a picture.
        embeddings
            (N, P) of the pictures.
        averaged
            Repetitions in each average; sets how much later averages are trusted.
        components
            K; 0 for all whose standard deviation is above a thousandth of the largest, at most a
            quarter of N.
        shrinkage
            Weight of the mean variance on the diagonal of S.
        last
            Samples used; 0 for all.
        step
            Samples averaged to one.

        Raises
        ------
        InputError
            When the rows do not match, or are too few to tell signal from noise.
        """
        if len(signals) != len(embeddings):
            found = f"{len(signals)} signals, {len(embeddings)} embeddings"
            raise InputError("encoding model", "rows", found, "as many")
        if len(signals) < 16:
            raise InputError("encoding model", "rows", len(signals), "16 or more")
        last = last or signals.shape[2]
        x, embeddings = _features(signals, last, step), embeddings.to(signals.device).float()
        mean, centre = x.mean(0), embeddings.mean(0)
        x = x - mean
        basis, deviations = principal(embeddings - centre, components)
        z = (embeddings - centre) @ basis
        fitted = z.T @ x / len(x)
        left = x - z @ fitted
        covariance = left.T @ left / max(1, len(x) - z.shape[1])
        level = covariance.diagonal().mean()
        covariance *= 1 - shrinkage
        covariance.diagonal().add_(shrinkage * level)
        whiten = torch.linalg.cholesky(covariance)
        plain = torch.linalg.solve_triangular(whiten, fitted.T, upper=False).T
        shrunk, rank = shrink_singular_values(plain, len(x))
        return cls(mean, whiten, shrunk, centre, basis, deviations, averaged, rank, last, step)

    @classmethod
    def fit_selected(
        cls,
        signals: Tensor,
        embeddings: Tensor,
        *,
        averaged: float = 1.0,
        components: Sequence[int] = (0, 100, 50, 25),
        spans: Sequence[float] = (1.0, 0.6),
        steps: Sequence[int] = (1, 2),
        held_out: int = 500,
        shrinkage: float = 0.02,
    ) -> EncodingModel:
        """Fit with the settings that identify held-out training pictures best.

        Parameters
        ----------
        components, spans, steps
            Tried together: K; the share of the signal used, from its start; samples averaged.
        held_out
            The last rows, at most a fifth of all, are identified among themselves by a model of the
            others; the mean log-probability of the right picture decides. The model returned is
            fitted on all rows.
        """
        held = min(held_out, len(signals) // 5)
        fit, rest = slice(0, len(signals) - held), slice(len(signals) - held, None)
        grid = [
            {"components": k, "last": round(span * signals.shape[2]), "step": step}
            for k, span, step in itertools.product(components, spans, steps)
        ]
        common = {"averaged": averaged, "shrinkage": shrinkage}

        def quality(settings: dict[str, int]) -> float:
            model = cls.fit(signals[fit], embeddings[fit], **common, **settings)  # type: ignore[arg-type]
            scores = model.scores(signals[rest], embeddings[rest])
            return float(scores.log_softmax(1).diagonal().mean())

        return cls.fit(signals, embeddings, **common, **max(grid, key=quality))  # type: ignore[arg-type]

    def scores(self, signals: Tensor, gallery: Tensor) -> Tensor:
        """Log-likelihood (N, S), up to a constant of each row, of each picture of a gallery.

        Parameters
        ----------
        signals
            (N, C, T), averaged over any number of repetitions: its noise scales all scores alike.
        gallery
            (S, P) embeddings.
        """
        predicted = (gallery.to(self.centre) - self.centre) @ self.basis @ self.map
        return self._whitened(signals) @ predicted.T - 0.5 * (predicted**2).sum(1)

    def embed(self, signals: Tensor, *, averaged: float | None = None) -> Tensor:
        """Posterior mean embedding (N, P).

        Parameters
        ----------
        averaged
            Repetitions in each signal; default: as in training.
        """
        trust = (self.averaged if averaged is None else averaged) / self.averaged
        precision = trust * self.map @ self.map.T + torch.eye(len(self.map)).to(self.map)
        found = trust * self._whitened(signals) @ self.map.T
        z = torch.linalg.solve(precision, found.T).T
        return self.centre + (z * self.deviations**2) @ self.basis.T

    def _whitened(self, signals: Tensor) -> Tensor:
        x = _features(signals.to(self.mean), self.last, self.step) - self.mean
        return torch.linalg.solve_triangular(self.whiten, x.T, upper=False).T


def shrink_singular_values(estimate: Tensor, samples: int) -> tuple[Tensor, int]:
    """Least-squares estimate (K, D) under unit noise, its singular values shrunk optimally.

    The estimate from ``samples`` rows of unit-variance regressors is the map plus a matrix of noise
    with entries of variance 1 / samples. With y a singular value in units of sqrt(D / samples) and
    b = K / D (K <= D), it becomes sqrt((y^2 - b - 1)^2 - 4 b) / y, or 0 below 1 + sqrt(b).

    Returns
    -------
    tuple
        The shrunk matrix and its rank.
    """
    left, values, right = torch.linalg.svd(estimate, full_matrices=False)
    small, large = sorted(estimate.shape)
    ratio, unit = small / large, (large / samples) ** 0.5
    y = (values / unit).clamp_min(1e-12)
    shrunk = ((y**2 - ratio - 1) ** 2 - 4 * ratio).clamp_min(0).sqrt() / y
    shrunk = torch.where(y > 1 + ratio**0.5, shrunk, 0.0) * unit
    return (left * shrunk) @ right, int((shrunk > 0).sum())


def _features(signals: Tensor, last: int, step: int) -> Tensor:
    whole = signals[..., : last // step * step].float()
    return whole.unflatten(-1, (-1, step)).mean(-1).flatten(1)


def principal(centred: Tensor, components: int) -> tuple[Tensor, Tensor]:
    """Whitening basis (P, K) of centred embeddings (N, P), and the K standard deviations.

    ``components`` 0 keeps those above a thousandth of the largest, at most a quarter of N.
    """
    _, values, rows = torch.linalg.svd(centred, full_matrices=False)
    deviations = values / len(centred) ** 0.5
    kept = int((deviations > 1e-3 * deviations[0]).sum())
    kept = min(components or kept, kept, max(1, len(centred) // 4))
    return rows[:kept].T / deviations[:kept], deviations[:kept]
