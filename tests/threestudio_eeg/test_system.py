from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from tests.tiny import tiny_conditioning, tiny_pipeline
from threestudio_eeg import plugin
from threestudio_eeg.builtin.base import device_scope
from threestudio_eeg.builtin.registry import find

CAMERAS = {"batch_size": 2, "height": 16, "width": 16, "eval_height": 16, "eval_width": 16}
GRID = {"otype": "HashGrid", "n_levels": 2, "n_features_per_level": 2, "log2_hashmap_size": 9}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tiny_pipeline(tmp_path_factory.mktemp("pipeline") / "tiny")
    return folder, tiny_conditioning(folder.parent / "eeg.safetensors", folder)


def fit(folder: Path, file: Path, trial_dir: Path, guidance: str, losses: dict[str, float]) -> Any:
    plugin.register_all()
    pl.seed_everything(0)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    pipeline = {"pretrained_model_name_or_path": str(folder)}
    with device_scope("cpu"):
        system = find("eeg-prolificdreamer-system")(
            {
                "geometry_type": "implicit-volume",
                "geometry": {
                    "normal_type": None,
                    "pos_encoding_config": {**GRID, "base_resolution": 6, "per_level_scale": 1.5},
                },
                "material_type": "no-material",
                "material": {"requires_normal": False},
                "background_type": "solid-color-background",
                "renderer_type": "nerf-volume-renderer",
                "renderer": {"num_samples_per_ray": 8},
                "guidance_type": guidance,
                "guidance": pipeline,
                "prompt_processor_type": "eeg-prompt-processor",
                "prompt_processor": {**pipeline, "conditioning": str(file), "trial": 1},
                "loss": losses,
                "optimizer": {"name": "AdamW", "args": {"lr": 0.01}},
            }
        )
        data = find("random-camera-datamodule")(CAMERAS)
    system.set_save_dir(trial_dir / "save")
    trainer = pl.Trainer(
        max_steps=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
    )
    trainer.fit(system, datamodule=data)
    return system


def test_vsd_trains_field_and_lora_and_leaves_a_record(
    inputs: tuple[Path, Path], tmp_path: Path
) -> None:
    folder, file = inputs
    system = fit(
        folder, file, tmp_path, "eeg-vsd-guidance", {"lambda_vsd": 1.0, "lambda_lora": 1.0}
    )
    record = json.loads((tmp_path / "conditioning.json").read_text())
    assert record["host"] == "builtin"
    assert record["trial"]["id"] == "trial-1"
    assert record["conditioning_sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    ups = [p for n, p in system.guidance.named_parameters() if ".up." in n]
    assert all(torch.any(up != 0) for up in ups)
    saved = [name for name in system.state_dict() if name.startswith("guidance.")]
    assert len(saved) == len(list(system.guidance.parameters()))
    assert not any("unet" in name or "vae" in name for name in system.state_dict())


def test_sds_runs_in_the_same_system(inputs: tuple[Path, Path], tmp_path: Path) -> None:
    system = fit(*inputs, tmp_path, "eeg-sds-guidance", {"lambda_sds": 1.0})
    assert system.global_step == 2
