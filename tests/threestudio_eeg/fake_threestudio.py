"""A folder that looks like a checkout of threestudio, small enough to train in a second.

It has what the launcher touches: the registry, the reading of configs, callbacks, a system and a
datamodule for Lightning, and a ``launch.py`` that writes down how it was called.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

FILES = {
    "threestudio/__init__.py": """
__version__ = "0.2.3"
__modules__ = {}


def register(name):
    def decorate(cls):
        if name in __modules__:
            raise ValueError(f"{name} is taken")
        __modules__[name] = cls
        return cls

    return decorate


def find(name):
    main, _, subs = name.partition(":")
    if subs:
        return type(name, tuple(__modules__[n] for n in [*subs.split(","), main]), {})
    return __modules__[name]


from . import data, systems
""",
    "threestudio/utils/__init__.py": "",
    "threestudio/utils/config.py": """
import os
from dataclasses import dataclass, field
from typing import Any, Optional

from omegaconf import OmegaConf

OmegaConf.register_new_resolver("add", lambda a, b: a + b)


@dataclass
class ExperimentConfig:
    name: str = "default"
    tag: str = ""
    seed: int = 0
    use_timestamp: bool = True
    timestamp: Optional[str] = None
    exp_root_dir: str = "outputs"
    exp_dir: str = ""
    trial_name: str = ""
    trial_dir: str = ""
    n_gpus: int = 1
    resume: Optional[str] = None
    data_type: str = ""
    data: dict = field(default_factory=dict)
    system_type: str = ""
    system: dict = field(default_factory=dict)
    trainer: dict = field(default_factory=dict)
    checkpoint: dict = field(default_factory=dict)

    def __post_init__(self):
        self.trial_name = self.tag + (self.timestamp or "")
        self.exp_dir = os.path.join(self.exp_root_dir, self.name)
        self.trial_dir = os.path.join(self.exp_dir, self.trial_name)
        os.makedirs(self.trial_dir, exist_ok=True)


def load_config(*yamls, cli_args=[], **kwargs):
    layers = [OmegaConf.load(file) for file in yamls]
    config = OmegaConf.merge(*layers, OmegaConf.from_cli(cli_args), kwargs)
    OmegaConf.resolve(config)
    return parse_structured(ExperimentConfig, config)


def parse_structured(fields: Any, cfg=None):
    return OmegaConf.structured(fields(**cfg))
""",
    "threestudio/utils/misc.py": """
import torch


def get_rank():
    return 0


def get_device():
    return torch.device("cpu")


def C(value, epoch, step):
    return value
""",
    "threestudio/utils/base.py": """
from dataclasses import dataclass
from typing import Optional

from torch import nn


class BaseObject:
    @dataclass
    class Config:
        pass


class BaseModule(nn.Module):
    @dataclass
    class Config:
        weights: Optional[str] = None
""",
    "threestudio/utils/callbacks.py": """
import os
import shutil

from omegaconf import OmegaConf
from pytorch_lightning.callbacks import Callback, TQDMProgressBar as CustomProgressBar


class ConfigSnapshotCallback(Callback):
    def __init__(self, path, config, folder, use_version):
        self.path, self.config, self.folder = path, config, folder

    def on_fit_start(self, trainer, system):
        os.makedirs(self.folder, exist_ok=True)
        OmegaConf.save(self.config, os.path.join(self.folder, "parsed.yaml"))
        shutil.copyfile(self.path, os.path.join(self.folder, "raw.yaml"))
""",
    "threestudio/models/__init__.py": "",
    "threestudio/models/prompt_processors/__init__.py": "",
    "threestudio/models/prompt_processors/base.py": """
from dataclasses import dataclass

from ...utils.base import BaseObject


@dataclass
class DirectionConfig:
    name: str


@dataclass
class PromptProcessorOutput:
    text_embeddings: object


class PromptProcessor(BaseObject):
    @dataclass
    class Config(BaseObject.Config):
        prompt: str = ""
""",
    "threestudio/data.py": """
from dataclasses import dataclass

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from . import register
from .utils.config import parse_structured


@dataclass
class LinesConfig:
    length: int = 4


class LinesDataModule(pl.LightningDataModule):
    def __init__(self, cfg=None):
        super().__init__()
        self.settings = parse_structured(LinesConfig, cfg)

    def train_dataloader(self):
        return DataLoader(torch.randn(10000, self.settings.length))

    def test_dataloader(self):
        return DataLoader(torch.randn(2, self.settings.length))

    val_dataloader = predict_dataloader = test_dataloader


register("lines-datamodule")(LinesDataModule)
""",
    "threestudio/systems/__init__.py": '''
from dataclasses import dataclass, field

import torch

from .. import find, register
from ..utils.base import BaseModule, BaseObject
from ..utils.config import parse_structured
from .base import BaseLift3DSystem


@register("mesh-exporter")
class MeshExporter(BaseObject):
    pass


@register("slope")
class Slope(BaseModule):
    @dataclass
    class Config(BaseModule.Config):
        start: float = 0.5


@register("curve")
class Curve(Slope):
    @dataclass
    class Config(BaseModule.Config):
        bend: float = 0.5


@register("prolificdreamer-system")
class Toy(BaseLift3DSystem):
    """Learns the sum of a line's numbers; writes what it is told to."""
''',
    "threestudio/systems/base.py": """
import os
import time
from dataclasses import dataclass, field
from typing import Optional

import pytorch_lightning as pl
import torch

import threestudio

from ..utils.config import parse_structured


class BaseLift3DSystem(pl.LightningModule):
    @dataclass
    class Config:
        geometry_type: str = ""
        geometry: dict = field(default_factory=dict)
        guidance_type: str = ""
        guidance: dict = field(default_factory=dict)
        renderer_type: str = ""
        renderer: dict = field(default_factory=dict)
        geometry_convert_from: Optional[str] = None
        weights: Optional[str] = None
        pause: float = 0.0

    def __init__(self, cfg, resumed=False):
        super().__init__()
        self.cfg = parse_structured(self.Config, cfg)
        geometry = threestudio.find(self.cfg.geometry_type)
        self.settings = parse_structured(geometry.Config, self.cfg.geometry)
        self.weight = torch.nn.Parameter(torch.zeros(4))
        self.resumed, self.status = resumed, None
        if self.cfg.geometry_convert_from:
            from threestudio.utils.config import load_config

            folder = os.path.dirname(self.cfg.geometry_convert_from)
            load_config(os.path.join(folder, "../configs/parsed.yaml"))

    def set_save_dir(self, folder):
        self.folder = folder

    def get_loggers(self):
        return []

    def set_resume_status(self, epoch, step):
        self.status = step

    def training_step(self, batch, index):
        time.sleep(self.cfg.pause)
        return ((batch @ self.weight) - batch.sum(-1)).square().mean()

    def _write(self, name):
        os.makedirs(self.folder, exist_ok=True)
        step = self.global_step if self.status is None else self.status
        with open(os.path.join(self.folder, f"it{step}-{name}"), "a") as file:
            file.write(f"{self.weight.tolist()}\\n")

    def validation_step(self, batch, index):
        self._write("val")

    def test_step(self, batch, index):
        self._write("test")

    def predict_step(self, batch, index):
        self._write("export")

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)
""",
    "custom/put_custom_extensions_here": "",
    "configs/toy.yaml": """
name: toy
tag: line
use_timestamp: false
data_type: lines-datamodule
system_type: prolificdreamer-system
system:
  geometry_type: slope
  geometry:
    start: 0.25
trainer:
  max_steps: 3
  num_sanity_val_steps: 0
  val_check_interval: 10000
  enable_progress_bar: false
  enable_model_summary: false
checkpoint:
  save_last: true
  save_top_k: -1
  every_n_train_steps: ${trainer.max_steps}
""",
}

LAUNCH = """
import argparse
import importlib.util
import json
import os
import sys
import traceback

parser = argparse.ArgumentParser()
parser.add_argument("--config", required=True)
parser.add_argument("--gpu", default="0")
for mode in ("train", "validate", "test", "export"):
    parser.add_argument(f"--{mode}", action="store_true")
args, extras = parser.parse_known_args()

for entry in os.listdir("custom"):
    path = os.path.join("custom", entry)
    start = os.path.join(path, "__init__.py") if os.path.isdir(path) else path
    if entry.endswith("_disabled") or not start.endswith(".py"):
        continue
    spec = importlib.util.spec_from_file_location(entry, start)
    module = sys.modules[entry] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception:
        traceback.print_exc()

import threestudio
from pytorch_lightning import Trainer, seed_everything
from pytorch_lightning.callbacks import ModelCheckpoint
from threestudio.utils.callbacks import ConfigSnapshotCallback, CustomProgressBar
from threestudio.utils.config import load_config

cfg = load_config(args.config, cli_args=extras, n_gpus=1)
with open(os.path.join(cfg.trial_dir, "seen.json"), "w") as file:
    seen = {
        "argv": sys.argv,
        "cwd": os.getcwd(),
        "name": __name__,
        "config": open(args.config).read(),
        "modules": sorted(threestudio.__modules__),
        "imported": [n for n in sys.modules if n.startswith("threestudio_eeg.")],
        "gpus": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "extras": extras,
    }
    json.dump(seen, file)
seed_everything(cfg.seed, workers=True)
data = threestudio.find(cfg.data_type)(cfg.data)
system = threestudio.find(cfg.system_type)(cfg.system, resumed=cfg.resume is not None)
system.set_save_dir(os.path.join(cfg.trial_dir, "save"))
callbacks = []
if args.train:
    ckpts = os.path.join(cfg.trial_dir, "ckpts")
    callbacks = [ModelCheckpoint(dirpath=ckpts, **cfg.checkpoint)]
    configs = os.path.join(cfg.trial_dir, "configs")
    callbacks += [ConfigSnapshotCallback(args.config, cfg, configs, use_version=False)]
    callbacks += [CustomProgressBar()]
    with open(os.path.join(cfg.trial_dir, "cmd.txt"), "w") as file:
        file.write("python launch.py\\n")
trainer = Trainer(callbacks=callbacks, logger=False, accelerator="cpu", devices=1, **cfg.trainer)
if args.train:
    trainer.fit(system, datamodule=data, ckpt_path=cfg.resume)
    trainer.test(system, datamodule=data, verbose=False)
elif args.export:
    trainer.predict(system, datamodule=data, ckpt_path=cfg.resume)
else:
    trainer.test(system, datamodule=data, ckpt_path=cfg.resume, verbose=False)
"""


def fake_threestudio(folder: Path, *, package_only: bool = False, version: str = "0.2.3") -> Path:
    """Write the checkout, or only the package as pip installs it, and return its folder."""
    for name, text in {**FILES, "launch.py": LAUNCH}.items():
        if package_only and not name.startswith("threestudio/"):
            continue
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.lstrip("\n").replace("0.2.3", version), encoding="utf-8")
    return folder


def toy_config(folder: Path) -> Path:
    """Write the experiment that the fake can run."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "toy.yaml"
    path.write_text(FILES["configs/toy.yaml"].lstrip("\n"), encoding="utf-8")
    return path


OURS = ("plugin", "prompt_processor", "guidance", "system")


@pytest.fixture
def fresh_host(monkeypatch):
    """A process in which no host was chosen and no threestudio imported; put back afterwards."""
    import threestudio_eeg
    from threestudio_eeg import compat, host
    from threestudio_eeg.builtin.config import register_resolvers, release_resolvers

    def forget():
        for name in list(sys.modules):
            own = name.partition("threestudio_eeg.")[2] in OURS
            if name == "threestudio" or name.startswith("threestudio.") or own:
                del sys.modules[name]

    def activate(device, *, threestudio):
        sys.path.insert(0, str(threestudio))
        return []

    before, path = dict(sys.modules), list(sys.path)
    forget()
    host.choose.cache_clear()
    release_resolvers()
    monkeypatch.setattr(compat, "activate", activate)
    monkeypatch.setattr(compat, "after_import", list)
    monkeypatch.delenv("THREESTUDIO_ROOT", raising=False)
    monkeypatch.setenv(host.VARIABLE, "")
    yield
    forget()
    sys.modules.update(before)
    for name in OURS:
        vars(threestudio_eeg).pop(name, None)
        if f"threestudio_eeg.{name}" in before:
            setattr(threestudio_eeg, name, before[f"threestudio_eeg.{name}"])
    sys.path[:] = path
    host.choose.cache_clear()
    release_resolvers()
    register_resolvers()
