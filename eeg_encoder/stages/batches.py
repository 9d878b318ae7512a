"""Trials held on the training device, and batches made there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..preprocessing.augmentation import Augmentation
from ..recordings.trials import TrialSet

__all__ = ["Augmentation", "BankLoader", "Batch", "TrialBank", "WholeLoader"]


@dataclass
class Batch:
    """Signals (B, C, T), subjects (B,), stimulus rows (B,) and the number of averaged trials."""

    signals: Tensor
    subjects: Tensor
    stimuli: Tensor
    averaged: Tensor


@dataclass
class TrialBank:
    """Preprocessed trials grouped by subject and stimulus, all on one device.

    Parameters
    ----------
    signals
        (N, C, T)
    members
        (G, R) rows of each group, filled up with -1.
    subjects, stimuli
        (G,) subject number, and row in ``stimulus_ids``.
    stimulus_ids
        Picture ids.
    """

    signals: Tensor
    members: Tensor
    subjects: Tensor
    stimuli: Tensor
    stimulus_ids: list[str]

    @classmethod
    def of(cls, trials: TrialSet, signals: np.ndarray, device: str | torch.device) -> TrialBank:
        """Group trials whose preprocessed signals are ``signals`` (N, C, T)."""
        group = trials.groups()
        count = np.bincount(group)
        members = np.full((len(count), count.max()), -1, dtype=np.int64)
        order = np.argsort(group, kind="stable")
        slot = np.arange(len(group)) - np.repeat(np.cumsum(count) - count, count)
        members[group[order], slot] = order
        first = members[:, 0]
        ids, stimulus = np.unique(trials.stimuli[first], return_inverse=True)
        return cls(
            signals=torch.from_numpy(signals).to(device),
            members=torch.from_numpy(members).to(device),
            subjects=torch.from_numpy(trials.subjects[first]).to(device),
            stimuli=torch.from_numpy(stimulus.reshape(-1)).to(device),
            stimulus_ids=[str(name) for name in ids],
        )

    def __len__(self) -> int:
        return len(self.members)

    def batch(self, groups: Tensor, generator: torch.Generator | None = None) -> Batch:
        """Mean of all trials of each group, or of a random number of random ones.

        Parameters
        ----------
        groups
            (B,) rows.
        generator
            Given: draw 1 to R trials of each group, uniformly; else take all.
        """
        members = self.members[groups]
        present = members >= 0
        taken = present.sum(dim=1)
        if generator is not None:
            draw = torch.rand(members.shape, device=members.device, generator=generator)
            rank = draw.masked_fill(~present, 2.0).argsort(dim=1).argsort(dim=1)
            share = torch.rand(len(members), device=members.device, generator=generator)
            taken = (share * taken).long() + 1
            present = present & (rank < taken[:, None])
        total = self.signals.new_zeros(len(members), *self.signals.shape[1:])
        for slot in range(members.shape[1]):
            weight = (present[:, slot] / taken).to(total)
            total += weight[:, None, None] * self.signals[members[:, slot].clamp_min(0)]
        return Batch(total, self.subjects[groups], self.stimuli[groups], taken)


class BankLoader:
    """Shuffled batches of a bank; what Lightning iterates over. The last short batch is dropped
    unless it is the only one.

    Parameters
    ----------
    bank
        Trials.
    batch_size
        Of each process.
    generator
        Of order and repetitions, on the bank's device; the same in every process.
    processes
        Of a distributed run; each takes every ``processes``-th batch.
    """

    def __init__(
        self, bank: TrialBank, batch_size: int, generator: torch.Generator, processes: int = 1
    ) -> None:
        self.bank, self.generator, self.processes = bank, generator, processes
        self.batch_size = max(1, min(batch_size, len(bank) // processes))

    def __len__(self) -> int:
        return len(self.bank) // (self.batch_size * self.processes)

    def __iter__(self) -> Iterator[Batch]:
        order = torch.randperm(
            len(self.bank), device=self.generator.device, generator=self.generator
        )
        rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
        for number in range(len(self)):
            start = (number * self.processes + rank) * self.batch_size
            yield self.bank.batch(order[start : start + self.batch_size], self.generator)


class WholeLoader:
    """All groups of a bank in order, every trial of each averaged."""

    def __init__(self, bank: TrialBank, batch_size: int) -> None:
        self.bank, self.batch_size = bank, batch_size

    def __len__(self) -> int:
        return -(-len(self.bank) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        rows = torch.arange(len(self.bank), device=self.bank.members.device)
        for groups in rows.split(self.batch_size):
            yield self.bank.batch(groups)
