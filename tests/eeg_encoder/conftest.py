"""A small simulated recording, its pictures and a tiny pipeline, made once a session."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from eeg_encoder.recordings.perceivelab import write_perceivelab, write_splits
from eeg_encoder.recordings.simulation import SimulationConfig, simulate
from eeg_encoder.recordings.splits import split_by_stimulus
from eeg_encoder.recordings.trials import TrialSet

CATEGORIES = ["n90000001", "n90000002", "n90000003"]


@dataclass
class World:
    """Files of a small recording."""

    folder: Path
    recording: Path
    splits: Path
    pictures: Path
    pipeline: Path
    trials: TrialSet


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def small_trials(**knobs) -> TrialSet:
    """Simulated trials: 3 categories of 6 stimuli in 12 dimensions, 16 channels unless told."""
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(3, 12))
    labels = np.repeat(np.arange(3), 6)
    embeddings = centres[labels] + 0.5 * generator.normal(size=(18, 12))
    ids = [f"{CATEGORIES[label]}_{i}" for i, label in enumerate(labels)]
    config = SimulationConfig(**{"channels": 16, "repetitions": 2, "subjects": 1, **knobs})
    return simulate(torch.from_numpy(embeddings), labels, CATEGORIES, ids, config=config)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    from PIL import Image

    from tests.tiny import tiny_pipeline

    folder = tmp_path_factory.mktemp("world")
    trials = small_trials(channels=128, snr_db=0.0)
    write_perceivelab(folder / "eeg.pth", trials)
    splits = split_by_stimulus(trials, fractions=(4, 1, 1))
    write_splits(folder / "splits.pth", splits)
    generator = np.random.default_rng(0)
    for stimulus in np.unique(trials.stimuli):
        wnid = str(stimulus).rpartition("_")[0]
        (folder / "pictures" / wnid).mkdir(parents=True, exist_ok=True)
        rgb = generator.integers(0, 255, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(rgb).save(folder / "pictures" / wnid / f"{stimulus}.JPEG")
    pipeline = tiny_pipeline(folder / "pipeline")
    return World(
        folder, folder / "eeg.pth", folder / "splits.pth", folder / "pictures", pipeline, trials
    )
