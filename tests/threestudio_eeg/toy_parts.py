"""Registered parts so small that a training step of the host takes milliseconds."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import torch
from omegaconf import OmegaConf

import threestudio_eeg.builtin.exporter
import threestudio_eeg.builtin.prompts
import threestudio_eeg.builtin.systems  # noqa: F401
from threestudio_eeg.builtin.base import BaseModule, BaseObject, Updateable, parse_structured
from threestudio_eeg.builtin.registry import register


@register("toy-geometry")
class ToyGeometry(BaseModule):
    @dataclass
    class Config(BaseModule.Config):
        radius: float = 1.0
        empty: bool = False

    def configure(self) -> None:
        self.network = torch.nn.Linear(3, 4)

    def isosurface(self) -> Any:
        import trimesh

        box = trimesh.creation.box(extents=(2, 1, 0.5))
        vertices = torch.tensor(box.vertices, dtype=torch.float32)
        faces = torch.tensor(box.faces[: 0 if self.cfg.empty else None])
        return SimpleNamespace(v_pos=vertices, t_pos_idx=faces)

    def export(self, points: torch.Tensor, **_: Any) -> dict[str, torch.Tensor]:
        return {"features": points}


@register("toy-material")
class ToyMaterial(BaseModule):
    def export(self, features: torch.Tensor, **_: Any) -> dict[str, torch.Tensor]:
        return {"albedo": (features > 0).float()}


@register("toy-background")
class ToyBackground(BaseModule):
    pass


@register("toy-renderer")
class ToyRenderer(BaseModule):
    def configure(self, geometry: Any, material: Any, background: Any) -> None:
        self.geometry, self.material, self.background = geometry, material, background
        self.updates: list[int] = []

    def update_step(self, epoch: int, global_step: int, on_load_weights: bool = False) -> None:
        self.updates.append(global_step)

    def forward(self, rays_d: torch.Tensor, **_: Any) -> dict[str, torch.Tensor]:
        values = self.geometry.network(rays_d).sigmoid()
        out = {"comp_rgb": values[..., :3], "opacity": values[..., 3:]}
        return {**out, "z_variance": values[..., 3:] ** 2}


@register("toy-prompt-processor")
class ToyPromptProcessor(BaseObject):
    def __call__(self) -> Any:
        return SimpleNamespace(use_perp_neg=False)


@register("toy-guidance")
class ToyGuidance(BaseModule):
    @dataclass
    class Config(BaseModule.Config):
        nan_at: int = -1
        interrupt_at: int = -1

    def configure(self) -> None:
        self.adapter = torch.nn.Linear(3, 3)
        self.step = 0

    def update_step(self, epoch: int, global_step: int, on_load_weights: bool = False) -> None:
        self.step = global_step

    def forward(self, rgb: torch.Tensor, prompt_utils: Any, **_: Any) -> dict[str, Any]:
        import os
        import random
        import signal

        import numpy as np

        if self.step == self.cfg.interrupt_at:
            os.kill(os.getpid(), signal.SIGINT)
        target = torch.rand_like(rgb) * random.random() * np.random.rand()  # noqa: NPY002
        scale = float("nan") if self.step == self.cfg.nan_at else 1.0
        vsd = ((rgb - target) ** 2).mean() * scale
        return {
            "loss_vsd": vsd,
            "loss_lora": (self.adapter(rgb.detach()) ** 2).mean(),
            "grad_norm": vsd.detach(),
        }


class _Cameras(torch.utils.data.IterableDataset, Updateable):
    def __iter__(self) -> Any:
        while True:
            yield {}

    def collate(self, batch: Any) -> dict[str, Any]:
        return {"rays_d": torch.randn(1, 4, 4, 3), "height": 4, "width": 4}


class _Views(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> dict[str, Any]:
        torch.rand(1)
        return {"rays_d": torch.full((5, 7, 3), float(index)), "index": index}


@register("toy-cameras")
class ToyCameras(pl.LightningDataModule):
    @dataclass
    class Config:
        batch_size: int = 1

    def __init__(self, cfg: Any = None) -> None:
        super().__init__()
        self.cfg = parse_structured(self.Config, cfg)

    def train_dataloader(self) -> Any:
        data = _Cameras()
        return torch.utils.data.DataLoader(data, batch_size=1, collate_fn=data.collate)

    def val_dataloader(self) -> Any:
        return torch.utils.data.DataLoader(_Views(), batch_size=1)

    test_dataloader = val_dataloader


@dataclass
class ToyExperiment:
    """Write a YAML file of toy parts under ``folder``."""

    folder: Path
    changes: dict[str, Any] = field(default_factory=dict)

    def write(self) -> Path:
        groups = {"geometry": {"lr": 0.01}, "guidance": {"lr": 0.001}}
        config = OmegaConf.create(
            {
                "name": "toy",
                "tag": "${rmspace:${system.prompt_processor_type},_}",
                "exp_root_dir": str(self.folder / "outputs"),
                "data_type": "toy-cameras",
                "data": {},
                "system_type": "prolificdreamer-system",
                "system": {
                    **{
                        f"{part}_type": f"toy-{part.replace('_', '-')}"
                        for part in (
                            "geometry",
                            "material",
                            "background",
                            "renderer",
                            "guidance",
                            "prompt_processor",
                        )
                    },
                    "geometry": {},
                    "guidance": {},
                    "loss": {
                        "lambda_vsd": 1.0,
                        "lambda_lora": 1.0,
                        "lambda_sparsity": [0, 1.0, 0.1, 10],
                        "lambda_z_variance": 0.1,
                        "lambda_orient": 0.0,
                    },
                    "optimizer": {
                        "name": "AdamW",
                        "args": {"betas": [0.9, 0.99], "eps": 1e-15},
                        "params": groups,
                    },
                },
                "trainer": {"max_steps": 6, "val_check_interval": 2},
                "checkpoint": {},
            }
        )
        for key, value in self.changes.items():
            OmegaConf.update(config, key, value)
        path = self.folder / "toy.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(config, path)
        return path
