"""From a recording and a trained encoder to a conditioning file's content."""

from __future__ import annotations

from typing import Any

import torch

from .conditioning import Conditioning, Trial
from .errors import InputError
from .pretrained import Pretrained
from .recordings.trials import TrialSet


def embed_trials(
    pretrained: Pretrained,
    trials: TrialSet,
    *,
    average: bool = True,
    repetitions: int | None = None,
    names: dict[str, str] | None = None,
    protocol: dict[str, Any] | None = None,
    device: str | torch.device = "cpu",
) -> Conditioning:
    """Conditioning of a recording's trials.

    Parameters
    ----------
    average
        Average the trials of the same subject and stimulus before encoding.
    repetitions
        At most this many of each; default all. With ``average`` only.
    names
        Words for the label names (WordNet ids).
    protocol
        Stored in the file, beside the number of trials averaged.

    Raises
    ------
    InputError
        When there are no trials or they do not fit the encoder.
    """
    if not len(trials):
        raise InputError("recording", "trials", "none", "at least one to embed")
    counts = [1] * len(trials)
    if average:
        if repetitions is not None:
            trials = first_repetitions(trials, repetitions)
        counts = torch.bincount(torch.from_numpy(trials.groups())).tolist()
        trials = trials.average()
    pooled = pretrained.decode(trials, torch.tensor(counts), device=device)
    if pretrained.context is None:
        tokens = pretrained.to_tokens(pooled)
    else:
        tokens = pretrained.to_context(trials, device=device)
    words = names or {}
    labels = [trials.label_names[label] for label in trials.labels]
    entries = [
        Trial(
            id=_trial_id(trials, row, average),
            subject=int(trials.subjects[row]),
            stimulus=str(trials.stimuli[row]),
            label=words.get(labels[row], labels[row]),
        )
        for row in range(len(trials))
    ]
    null_tokens = pretrained.null_tokens
    assert null_tokens is not None
    return Conditioning(
        tokens=tokens,
        null_tokens=null_tokens,
        pooled=pooled,
        trials=entries,
        base_model=pretrained.config["base_model"],
        encoder=pretrained.weights_hash,
        preprocessing=pretrained.preprocessing.as_dict(matrices=False),
        protocol={
            **(protocol or {}),
            "averaged": average,
            "repetitions": [min(counts), max(counts)],
            "validation": pretrained.config.get("validation", {}),
        },
    )


def first_repetitions(trials: TrialSet, n: int) -> TrialSet:
    """The first ``n`` trials of each subject and stimulus."""
    seen: dict[int, int] = {}
    rows = []
    for row, group in enumerate(trials.groups().tolist()):
        seen[group] = seen.get(group, 0) + 1
        if seen[group] <= n:
            rows.append(row)
    return trials.select(torch.tensor(rows).numpy())


def _trial_id(trials: TrialSet, row: int, average: bool) -> str:
    stem = f"s{trials.subjects[row]}-{trials.stimuli[row]}"
    return stem if average else f"{stem}-t{trials.positions[row]}"
