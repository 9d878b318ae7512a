"""An experiment on the tiny pipeline that trains in a second: its YAML file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

GRID = {
    "otype": "HashGrid",
    "n_levels": 2,
    "n_features_per_level": 2,
    "log2_hashmap_size": 9,
    "base_resolution": 6,
    "per_level_scale": 1.5,
}


def tiny_experiment(file: Path, pipeline: Path, steps: int = 4, **guidance: Any) -> Path:
    """Write the file; the conditioning and the trial are left to the command line."""
    source = {"pretrained_model_name_or_path": str(pipeline)}
    sides = {"height": 16, "width": 16, "eval_height": 16, "eval_width": 16}
    content = {
        "name": "tiny",
        "tag": "x",
        "seed": 0,
        "data_type": "random-camera-datamodule",
        "data": {"batch_size": 2, **sides, "n_val_views": 1, "n_test_views": 2},
        "system_type": "eeg-prolificdreamer-system",
        "system": {
            "geometry_type": "implicit-volume",
            "geometry": {
                "normal_type": None,
                "pos_encoding_config": GRID,
                "isosurface_resolution": 16,
                "isosurface_method": "mc-cpu",
                "isosurface_threshold": 0.5,
            },
            "material_type": "no-material",
            "material": {"requires_normal": False},
            "background_type": "solid-color-background",
            "background": {"random_aug": True, "random_aug_prob": 0.5},
            "renderer_type": "nerf-volume-renderer",
            "renderer": {"num_samples_per_ray": 8},
            "guidance_type": "eeg-vsd-guidance",
            "guidance": {**source, **guidance},
            "prompt_processor_type": "eeg-prompt-processor",
            "prompt_processor": {**source, "conditioning": "???", "trial": 0},
            "loss": {"lambda_vsd": 1.0, "lambda_lora": 1.0, "lambda_opaque": 0.1},
            "optimizer": {
                "name": "AdamW",
                "args": {"lr": 0.01, "eps": 1e-3},
                "params": {"geometry": {}, "guidance": {"lr": 0.003}},
            },
        },
        "trainer": {"max_steps": steps, "log_every_n_steps": 1, "val_check_interval": 100},
        "checkpoint": {"every_n_train_steps": 2},
    }
    OmegaConf.save(OmegaConf.create(content), file)
    return file
