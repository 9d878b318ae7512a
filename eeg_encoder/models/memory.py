"""Training pictures remembered, to bring a decoded embedding back among embeddings of pictures."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

TEMPERATURES = (0.02, 0.03, 0.05, 0.08, 0.12, 0.2)


class PictureMemory(nn.Module):
    """Posterior mean of an embedding with the training pictures as its prior.

    A regression from noisy EEG ends between the pictures it cannot tell apart, where no picture is,
    and a diffusion model conditioned there makes neither. Attention over the training pictures'
    embeddings, softmax(cosine / temperature), is the mean of the posterior under a von Mises-Fisher
    error of concentration 1/temperature; it is one step of a modern Hopfield network (Ramsauer et
    al., arXiv 2008.02217, equation 3). It uses training pictures only: an inductive step.

    Parameters
    ----------
    pictures
        M, the number of training pictures.
    embedding
        P
    temperature
        Of the softmax over cosines.
    """

    pictures: Tensor

    def __init__(self, pictures: int, embedding: int, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature
        self.register_buffer("pictures", torch.zeros(pictures, embedding))

    @classmethod
    def of(cls, pictures: Tensor, temperature: float) -> PictureMemory:
        """Memory of embeddings (M, P)."""
        memory = cls(len(pictures), pictures.shape[1], temperature)
        memory.pictures.copy_(F.normalize(pictures, dim=1))
        return memory

    @classmethod
    def fitted(
        cls,
        pictures: Tensor,
        found: Tensor,
        target: Tensor,
        temperatures: Sequence[float] = TEMPERATURES,
        *,
        evidence: Tensor | None = None,
    ) -> PictureMemory:
        """The temperature whose answers to ``found`` (N, P) are nearest ``target`` (N, P), both of
        validation trials, by mean cosine."""
        return cls.of(
            pictures,
            max(
                temperatures,
                key=lambda t: cls.of(pictures, t).nearness(found, target, evidence),
            ),
        )

    def nearness(self, found: Tensor, target: Tensor, evidence: Tensor | None = None) -> float:
        """Mean cosine between the answers to ``found`` (N, P) and ``target`` (N, P)."""
        return float(F.cosine_similarity(self(found, evidence), target).mean())

    def forward(self, embedding: Tensor, evidence: Tensor | None = None) -> Tensor:
        """Unit embeddings (B, P) to unit embeddings (B, P).

        ``evidence`` (B, M), a log-likelihood of every picture (:class:`.PictureEvidence`), is added
        to the exponent.
        """
        exponent = embedding @ self.pictures.T / self.temperature
        if evidence is not None:
            exponent = exponent + evidence
        return F.normalize(exponent.softmax(dim=1) @ self.pictures, dim=1)

    def sizes(self) -> dict[str, float]:
        """Arguments that make an empty memory of this size."""
        n, width = self.pictures.shape
        return {"pictures": n, "embedding": width, "temperature": self.temperature}
