"""Tiny networks in the places of those that ship with the phantom: pipeline, encoder, judge."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from eeg_encoder import models
from eeg_encoder.conditioning import pipeline_fingerprint
from eeg_encoder.preprocessing import Preprocessing
from eeg_encoder.pretrained import Pretrained, save_pretrained
from eeg_encoder.recordings.simulation import SimulationConfig, StimulusCode, simulate
from eeg_encoder.training import token_head
from tests.tiny import tiny_pipeline
from threestudio_eeg.evaluation.judge import Judge
from threestudio_eeg.phantom.recording import BASIS

SMALL_FIELD = (
    "data.height=16",
    "data.width=16",
    "data.eval_height=24",
    "data.eval_width=24",
    "data.n_val_views=1",
    "data.n_test_views=2",
    "system.geometry.pos_encoding_config.n_levels=3",
    "system.geometry.isosurface_resolution=24",
    "system.geometry.isosurface_threshold=1.0",
    "system.renderer.num_samples_per_ray=16",
)
"""Overrides with which a training step takes a tenth of a second."""


@dataclass
class World:
    """Folders of random networks that fit each other."""

    pipeline: Path
    encoder: Path
    judge: Path


def make_world(folder: Path) -> World:
    pipeline = tiny_pipeline(folder / "pipeline")
    random_code().save(pipeline / BASIS)
    torch.manual_seed(0)
    Judge(width=32).save_pretrained(folder / "judge")
    return World(pipeline, _encoder(folder / "encoder", pipeline), folder / "judge")


def random_code() -> StimulusCode:
    """What brains respond to in the tiny pipeline's embeddings, without rendering a picture."""
    generator = torch.Generator().manual_seed(0)
    return StimulusCode.fit(torch.randn(40, 16, generator=generator))


def _encoder(folder: Path, pipeline: Path) -> Path:
    embeddings = torch.randn(4, 16, generator=torch.Generator().manual_seed(1))
    config = SimulationConfig(repetitions=4, subjects=1)
    trials = simulate(embeddings, [0, 0, 1, 1], ["a", "b"], list("wxyz"), config=config)
    trials.signals = np.ascontiguousarray(trials.signals[:, :, 20:460])
    preprocessing = Preprocessing(whiten=False).fit(trials)
    settings = {
        "channels": 128,
        "samples": preprocessing.output_samples,
        "embedding": 16,
        "subjects": [1],
        "width": 16,
        "depth": 1,
    }
    torch.manual_seed(0)
    pretrained = Pretrained(
        models.build("compact", **settings),
        token_head(pipeline),
        preprocessing,
        {
            "model": {"name": "compact", "settings": settings},
            "tokens": {"embedding": 16, "n_tokens": 8, "width": 32},
            "base_model": pipeline_fingerprint(pipeline),
            "window": [20, 460],
            "scale": 1.0,
        },
    )
    save_pretrained(folder, pretrained)
    return folder
