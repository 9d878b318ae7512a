"""A host with the extension on it, and experiments small enough to train in a test."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

GRID = {
    "otype": "HashGrid",
    "n_levels": 2,
    "n_features_per_level": 2,
    "log2_hashmap_size": 9,
    "base_resolution": 6,
    "per_level_scale": 1.5,
}
CAMERAS = {
    "batch_size": 2,
    "height": 16,
    "width": 16,
    "eval_height": 16,
    "eval_width": 16,
    "n_val_views": 1,
    "n_test_views": 2,
}


@dataclass
class Inputs:
    """Folders and files: of a pipeline with a view encoder, and of one without."""

    seeing: Path
    seeing_eeg: Path
    plain: Path
    plain_eeg: Path


@dataclass
class World:
    """One host: its names, and parts built by it."""

    host: Any
    inputs: Inputs

    @classmethod
    @contextmanager
    def of(cls, name: str, inputs: Inputs) -> Iterator[World]:
        scope = nullcontext() if name == "upstream" else _cpu()
        if name == "upstream":
            _import_upstream()
        from threestudio_eeg import host, plugin

        with scope:
            assert host.name == name
            plugin.register_all()
            torch.manual_seed(0)
            yield cls(host, inputs)

    def make(self, name: str, config: dict[str, Any] | None = None, **parts: Any) -> Any:
        """Build a registered part."""
        return self.host.find(name)(OmegaConf.create(config or {}), **parts)

    def prompt(self, *, seeing: bool = True, **config: Any) -> Any:
        """An EEG prompt processor of trial 1."""
        return self.make("eeg-prompt-processor", self.prompt_config(seeing, **config))

    def prompt_config(self, seeing: bool = True, **config: Any) -> dict[str, Any]:
        i = self.inputs
        folder, file = (i.seeing, i.seeing_eeg) if seeing else (i.plain, i.plain_eeg)
        paths = {"pretrained_model_name_or_path": str(folder), "conditioning": str(file)}
        return {**paths, "trial": 1, **config}

    def guidance(self, kind: str, **config: Any) -> Any:
        """``eeg-vsd-guidance`` or ``eeg-sds-guidance``."""
        folder = str(self.inputs.seeing)
        config = {"pretrained_model_name_or_path": folder, "sample_steps": 2, **config}
        return self.make(f"eeg-{kind}-guidance", config)

    def experiment(
        self,
        system_type: str,
        guidance_type: str,
        loss: dict[str, Any],
        *,
        geometry_type: str = "implicit-volume",
        resumed: bool = False,
        **guidance: Any,
    ) -> tuple[Any, Any]:
        """A system and its cameras."""
        folder = {"pretrained_model_name_or_path": str(self.inputs.seeing)}
        trained = ["geometry"] + ["guidance"] * ("prolificdreamer" in system_type)
        config = {
            "geometry_type": geometry_type,
            "geometry": {"normal_type": None, "pos_encoding_config": GRID},
            "material_type": "no-material",
            "material": {"requires_normal": False},
            "background_type": "solid-color-background",
            "background": {},
            "renderer_type": "nerf-volume-renderer",
            "renderer": {"num_samples_per_ray": 16},
            "guidance_type": guidance_type,
            "guidance": {**folder, **guidance},
            "prompt_processor_type": "eeg-prompt-processor",
            "prompt_processor": self.prompt_config(),
            "loggers": {"wandb": {"enable": False}},
            "loss": {
                "lambda_orient": 0.0,
                "lambda_sparsity": 0.0,
                "lambda_opaque": 0.0,
                "lambda_z_variance": 0.0,
                **loss,
            },
            "optimizer": {
                "name": "AdamW",
                "args": {"betas": [0.9, 0.99], "eps": 1e-15},
                "params": {name: {"lr": 0.01} for name in trained},
            },
        }
        system = self.host.find(system_type)(OmegaConf.create(config), resumed=resumed)
        return system, self.make("random-camera-datamodule", CAMERAS)

    def train(
        self, experiment: tuple[Any, Any], trial: Path, steps: int, resume: Any = None
    ) -> Any:
        """Train up to ``steps``, with a checkpoint at the end: ``trial/ckpts/last.ckpt``."""
        upstream = self.host.name == "upstream"
        lightning = importlib.import_module(
            "pytorch_lightning" if upstream else "lightning.pytorch"
        )
        lightning.seed_everything(0, verbose=False)
        system, data = experiment
        system.set_save_dir(str(trial / "save") if upstream else trial / "save")
        trainer = lightning.Trainer(
            max_steps=steps,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            limit_val_batches=0,
        )
        trainer.fit(system, datamodule=data, ckpt_path=resume)
        trainer.save_checkpoint(trial / "ckpts" / "last.ckpt")
        return system


def cameras(n: int = 2) -> dict[str, Any]:
    """A batch as threestudio's datamodule makes it, as far as guidances read it."""
    matrices = torch.eye(4).expand(n, 4, 4)
    return {
        "elevation": torch.full((n,), 10.0),
        "azimuth": torch.linspace(0, 180, n),
        "camera_distances": torch.full((n,), 2.0),
        "c2w": matrices,
        "mvp_mtx": matrices,
        "height": 16,
        "width": 16,
    }


def _cpu() -> Any:
    from threestudio_eeg.builtin.base import device_scope

    return device_scope("cpu")


def _import_upstream() -> None:
    import sys

    if "threestudio" in sys.modules:
        return
    from threestudio_eeg import compat

    compat.activate("cpu", threestudio=Path(os.environ["THREESTUDIO_ROOT"]))
    importlib.import_module("threestudio")
    compat.after_import()
