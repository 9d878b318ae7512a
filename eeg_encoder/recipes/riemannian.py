"""Two classes from single trials: covariances of evoked responses on their manifold."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from ..errors import InputError
from ..preprocessing.filters import band_pass


class Decoder(Protocol):
    """What decoders of two classes do."""

    def fit(self, signals: np.ndarray, labels: np.ndarray) -> Any:
        """Learn from trials (N, C, T) and labels (N,), 0 or 1."""

    def decide(self, signals: np.ndarray) -> np.ndarray:
        """(N,) evidence for class 1 over class 0."""


@dataclass
class ErpCovariances:
    """Covariance of a trial and the classes' mean responses, in the tangent space.

    xDAWN filters (the ``filters`` spatial filters of each class whose mean response is strongest in
    relation to all activity) are applied to the trial and to the class means; the covariance of all
    of them together holds the trial's power and how it goes along with each response. Its matrix
    logarithm at the mean of the training trials, upper triangle, is a vector for linear models.

    Parameters
    ----------
    filters
        For each class; 0 takes the electrodes themselves.
    shrinkage
        Towards the scaled identity.

    References
    ----------
    Rivet et al., "xDAWN algorithm to enhance evoked potentials", IEEE Transactions on Biomedical
    Engineering 2009; Barachant, Congedo, "A plug & play P300 BCI using information geometry", arXiv
    1409.0107; log-Euclidean mean after Arsigny et al., 2007.
    """

    filters: int = 2
    shrinkage: float = 0.05
    responses: list[np.ndarray] = field(default_factory=list)
    spatial: list[np.ndarray] = field(default_factory=list)
    centre: np.ndarray = field(default_factory=lambda: np.empty((0, 0)))

    def fit(self, signals: np.ndarray, labels: np.ndarray) -> ErpCovariances:
        """Learn filters, mean responses and the centre from trials (N, C, T)."""
        from scipy.linalg import eigh

        channels = signals.shape[1]
        power = np.einsum("nct,ndt->cd", signals, signals) / len(signals)
        power += 1e-6 * np.trace(power) / channels * np.eye(channels)
        self.responses, self.spatial = [], []
        for value in np.unique(labels):
            response = signals[labels == value].mean(axis=0)
            filters = np.eye(channels)
            if self.filters:
                filters = eigh(response @ response.T, power)[1][:, ::-1][:, : self.filters]
            self.spatial.append(filters)
            self.responses.append(filters.T @ response)
        if not self.filters:
            self.spatial = self.spatial[:1]
        mean_log = _logarithm(self.covariances(signals)).mean(axis=0)
        values, vectors = np.linalg.eigh(mean_log)
        self.centre = (vectors * np.exp(-values / 2)) @ vectors.T
        return self

    def covariances(self, signals: np.ndarray) -> np.ndarray:
        """(N, M, M) of trials together with the responses."""
        rows = [np.broadcast_to(r, (len(signals), *r.shape)) for r in self.responses]
        rows += [np.einsum("cf,nct->nft", filters, signals) for filters in self.spatial]
        joint = np.concatenate(rows, axis=1)
        found = np.einsum("nct,ndt->ncd", joint, joint) / joint.shape[2]
        level = np.trace(found, axis1=1, axis2=2) / found.shape[1]
        identity = np.eye(found.shape[1])
        return (1 - self.shrinkage) * found + self.shrinkage * level[:, None, None] * identity

    def transform(self, signals: np.ndarray) -> np.ndarray:
        """(N, M (M + 1) / 2) tangent vectors."""
        logs = _logarithm(self.centre @ self.covariances(signals) @ self.centre)
        row, column = np.triu_indices(logs.shape[1])
        return logs[:, row, column] * np.where(row == column, 1.0, 2**0.5)


class RiemannianDecoder:
    """:class:`ErpCovariances`, then logistic regression.

    Parameters
    ----------
    filters
        As there.
    penalty
        Inverse of the L2 strength (scikit-learn's C).
    """

    def __init__(self, filters: int = 2, penalty: float = 0.05) -> None:
        self.features, self.penalty = ErpCovariances(filters), penalty

    def fit(self, signals: np.ndarray, labels: np.ndarray) -> RiemannianDecoder:
        """Learn from trials (N, C, T) and labels (N,), 0 or 1."""
        vectors = self.features.fit(signals, labels).transform(signals)
        self.linear = _logistic(self.penalty).fit(vectors, labels)
        return self

    def decide(self, signals: np.ndarray) -> np.ndarray:
        """(N,) log odds of class 1."""
        return self.linear.decision_function(self.features.transform(signals))


class LinearDecoder:
    """Linear discriminant analysis of short time averages, Ledoit-Wolf shrinkage.

    Parameters
    ----------
    step
        Samples averaged.

    References
    ----------
    Blankertz et al., "Single-trial analysis and classification of ERP components", NeuroImage 2011.
    """

    def __init__(self, step: int = 8) -> None:
        self.step = step

    def fit(self, signals: np.ndarray, labels: np.ndarray) -> LinearDecoder:
        """Learn from trials (N, C, T) and labels (N,), 0 or 1."""
        from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

        model = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")
        self.linear = model.fit(self._averages(signals), labels)
        return self

    def decide(self, signals: np.ndarray) -> np.ndarray:
        """(N,) log odds of class 1."""
        return self.linear.decision_function(self._averages(signals))

    def _averages(self, signals: np.ndarray) -> np.ndarray:
        whole = signals.shape[2] // self.step * self.step
        cut = signals[:, :, :whole].reshape(*signals.shape[:2], -1, self.step)
        return cut.mean(axis=3).reshape(len(signals), -1)


@dataclass
class RiemannianCommittee:
    """Mean of Riemannian and linear decoders in different bands and windows.

    The members err differently, so their mean is better than any of them and none needs to be
    selected. Samples beyond ``clip`` robust deviations of their channel are clipped first.

    Parameters
    ----------
    sfreq
        Hertz.
    filters
        A :class:`RiemannianDecoder` for each number, band and window.
    bands
        Pass bands in hertz; None is the signal as it is.
    windows
        Seconds from the first sample, first and last; None is the whole signal.
    step
        Of the :class:`LinearDecoder` for each band and window, samples; 0 for none.
    clip
        Robust standard deviations, of the training trials.
    penalty
        As in :class:`RiemannianDecoder`.
    """

    sfreq: float
    filters: Sequence[int] = (1, 2)
    bands: Sequence[tuple[float, float] | None] = (None, (2.0, 20.0))
    windows: Sequence[tuple[float, float] | None] = (None, (0.05, 0.45))
    step: int = 6
    clip: float = 6.0
    penalty: float = 0.05

    def fit(self, signals: np.ndarray, labels: np.ndarray) -> RiemannianCommittee:
        """Learn from trials (N, C, T) and labels (N,), 0 or 1.

        Raises
        ------
        InputError
            When there are not two classes.
        """
        if len(np.unique(labels)) != 2:
            raise InputError("committee", "labels", np.unique(labels).tolist(), "two classes")
        self.limits: list[np.ndarray] = []
        self.members: list[list[tuple[Decoder, float]]] = []
        for view in self._views(signals):
            limit = self.clip * np.median(np.abs(view), axis=(0, 2))[:, None] / 0.6745
            clipped = np.clip(view, -limit, limit)
            decoders = [decoder.fit(clipped, labels) for decoder in self._decoders()]
            self.limits.append(limit)
            self.members.append([(d, float(d.decide(clipped).std()) or 1.0) for d in decoders])
        return self

    def decide(self, signals: np.ndarray) -> np.ndarray:
        """(N,) mean evidence for class 1, each member's scaled to unit spread in training."""
        evidence = [
            decoder.decide(np.clip(view, -limit, limit)) / spread
            for view, limit, members in zip(
                self._views(signals), self.limits, self.members, strict=True
            )
            for decoder, spread in members
        ]
        return np.mean(evidence, axis=0)

    def _decoders(self) -> list[Decoder]:
        linear: list[Decoder] = [LinearDecoder(self.step)] if self.step else []
        return [*(RiemannianDecoder(n, self.penalty) for n in self.filters), *linear]

    def _views(self, signals: np.ndarray) -> Iterator[np.ndarray]:
        signals = np.asarray(signals, np.float64)
        for band in self.bands:
            filtered = signals if band is None else band_pass(signals, self.sfreq, band)
            for window in self.windows:
                first, last = window or (0.0, signals.shape[2] / self.sfreq)
                span = slice(round(first * self.sfreq), round(last * self.sfreq))
                yield filtered[:, :, span].astype(np.float64)


def out_of_sample(
    make: Callable[[], Decoder], signals: np.ndarray, labels: np.ndarray, fold: np.ndarray
) -> np.ndarray:
    """(N,) evidence for each trial from a decoder that was fitted without the trial's fold."""
    found = np.zeros(len(labels))
    for value in np.unique(fold):
        held = fold == value
        found[held] = make().fit(signals[~held], labels[~held]).decide(signals[held])
    return found


def _logarithm(matrices: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(matrices)
    floor = np.maximum(values, 1e-10 * values.max(axis=-1, keepdims=True))
    return (vectors * np.log(floor)[..., None, :]) @ np.swapaxes(vectors, -1, -2)


def _logistic(penalty: float) -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), LogisticRegression(C=penalty, max_iter=1000))
