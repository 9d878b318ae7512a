"""Runs of the unmodified launch.py, so small that a CPU does one in half a minute."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from threestudio_eeg.compat import missing_requirements

ROOT = os.environ.get("THREESTUDIO_ROOT", "")
DRIVER = Path(__file__).with_name("upstream_driver.py")
MISSING = missing_requirements()
MARKS = [
    pytest.mark.upstream,
    pytest.mark.skipif(not ROOT, reason="THREESTUDIO_ROOT is not set"),
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}"),
]
SMALL = [
    "trainer.max_steps=2",
    "trainer.val_check_interval=1",
    "data.width=16",
    "data.height=16",
    "data.batch_size=1",
    "data.eval_width=32",
    "data.eval_height=32",
    "data.n_test_views=4",
    "checkpoint.every_n_train_steps=1",
    "use_timestamp=false",
    "tag=trial",
    "system.prompt_processor.prompt=hamburger",
    "system.guidance.half_precision_weights=false",
]
EXPORT = [
    "system.exporter_type=mesh-exporter",
    "system.exporter.fmt=obj",
    "system.geometry.isosurface_method=mc-cpu",
    "system.geometry.isosurface_resolution=32",
]


def run(*command: object, cwd: Path) -> str:
    """Run Python on something, and return what it printed."""
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    return done.stdout


def launch(folder: Path, config: str, mode: str, *options: str) -> Path:
    """Run launch.py on a config of the checkout, and return the trial's folder."""
    path = Path(ROOT) / "configs" / config
    run(DRIVER, "cpu", ROOT, "--config", path, mode, *SMALL, *options, cwd=folder)
    (trial,) = folder.glob("outputs/*/trial")
    return trial


def models(model: Path, *, lora: bool = False) -> list[str]:
    """Options that name the pipeline folder wherever one is named."""
    names = ["prompt_processor.pretrained_model_name_or_path"]
    names += ["guidance.pretrained_model_name_or_path"]
    names += ["guidance.pretrained_model_name_or_path_lora"] if lora else []
    return [f"system.{name}={model}" for name in names]
