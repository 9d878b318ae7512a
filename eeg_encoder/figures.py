"""Figures of an encoder folder on the test split of a recording."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .embedding import first_repetitions
from .errors import InputError
from .evaluation import evaluate
from .image_space import embed_pictures
from .pretrained import from_pretrained
from .recordings.perceivelab import load_perceivelab, load_splits
from .recordings.splits import check_split
from .recordings.trials import TrialSet
from .training import resolve_device


def load_for(recording: str | Path, config: dict[str, Any]) -> TrialSet:
    """Load a recording with the window and scale that an encoder was trained with."""
    first, last = config.get("window", (20, 460))
    return load_perceivelab(recording, window=(first, last), scale=config.get("scale", 1.0))


def recording_figures(
    recording: str | Path,
    encoder: str | Path,
    pictures: str | Path,
    pipeline: str | Path,
    splits: str | Path,
    *,
    repetitions: int | None = None,
    device: str = "auto",
    seed: int = 0,
) -> dict[str, Any]:
    """Evaluate an encoder folder; see :func:`eeg_encoder.evaluation.evaluate`.

    Figures are given for ``averaged`` trials and for ``single`` ones; ``recalled`` are those of the
    embeddings after the encoder's memory, which condition the diffusion model. A
    ``simulation.json`` beside the recording is copied into the protocol, which marks the figures as
    simulated.

    Raises
    ------
    InputError
        For bad input files or a test split without trials.
    """
    device = resolve_device(device)
    pretrained = from_pretrained(encoder)
    trials = load_for(recording, pretrained.config)
    parts = load_splits(splits, trials.total)
    protocol = check_split(trials, parts, where=splits, allow_within_block=True)
    train, test = trials.at(parts["train"]), trials.at(parts["test"])
    if not len(test):
        raise InputError(splits, "test", "no trials", "at least one")
    if repetitions is not None:
        test = first_repetitions(test, repetitions)
    counts = np.bincount(test.groups())
    train_ids, first = np.unique(train.stimuli, return_index=True)
    test_ids = np.unique(test.stimuli)
    train_embeddings = embed_pictures(pipeline, pictures, train_ids.tolist(), device=device)
    test_embeddings = embed_pictures(pipeline, pictures, test_ids.tolist(), device=device)
    gallery = dict(zip(test_ids.tolist(), test_embeddings, strict=True))
    record = _simulation(Path(recording))
    result: dict[str, Any] = {}
    whole, single = torch.from_numpy(counts), torch.ones(len(test))
    for name, chosen, averaged in (("averaged", test.average(), whole), ("single", test, single)):
        score = partial(
            evaluate,
            stimuli=chosen.stimuli,
            labels=chosen.labels,
            gallery=gallery,
            train_embeddings=train_embeddings,
            train_labels=train.labels[first],
            n_categories=len(trials.label_names),
            seed=seed,
        )
        found = pretrained.embed(chosen, device=device)
        result[name] = score(found)
        if pretrained.memory is not None:
            result[name]["recalled"] = score(
                pretrained.recall(found, pretrained.weigh(chosen, averaged))
            )
    result["protocol"] = {
        **protocol,
        "recording": Path(recording).name,
        "encoder": pretrained.weights_hash,
        "gallery": "exact test pictures",
        "repetitions": [int(counts.min()), int(counts.max())],
        "subjects": np.unique(test.subjects).tolist(),
        **record,
    }
    return result


def _simulation(recording: Path) -> dict[str, Any]:
    file = recording.with_name("simulation.json")
    if not file.is_file():
        return {}
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(file, "file", error, "JSON") from error
    return {"simulated": True, "snr_db": record.get("snr_db"), "simulation": record}
