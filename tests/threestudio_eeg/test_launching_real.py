"""Launching inside the real threestudio: run with THREESTUDIO_ROOT and its requirements."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.tiny import tiny_conditioning, tiny_pipeline
from threestudio_eeg import compat
from threestudio_eeg.experiments import experiment_config
from threestudio_eeg.launching.checkout import VARIABLE

from .tiny_stable_diffusion import make_tiny_stable_diffusion

ROOT = Path(os.environ.get(VARIABLE, ""))
pytestmark = [
    pytest.mark.upstream,
    pytest.mark.skipif(not os.environ.get(VARIABLE), reason="needs THREESTUDIO_ROOT"),
    pytest.mark.skipif(
        bool(compat.missing_requirements()), reason="needs threestudio-eeg[upstream]"
    ),
]

PART = "pretrained_model_name_or_path"
SMALL = (
    "trainer.max_steps=2",
    "trainer.val_check_interval=1",
    "trainer.enable_progress_bar=false",
    "data.width=16",
    "data.height=16",
    "data.batch_size=1",
    "data.resolution_milestones=[]",
    "data.eval_width=24",
    "data.eval_height=24",
    "data.n_val_views=1",
    "data.n_test_views=4",
    "system.renderer.num_samples_per_ray=16",
    "use_timestamp=false",
)
SMALL_GRID = "system.geometry.pos_encoding_config.log2_hashmap_size=12"
MESH = (
    "system.exporter_type=mesh-exporter",
    "system.exporter.fmt=obj",
    "system.geometry.isosurface_method=mc-cpu",
    "system.geometry.isosurface_resolution=16",
    "system.geometry.isosurface_threshold=1.0",
)


def start(root, here, *words, **options):
    command = [sys.executable, "-m", "threestudio_eeg.cli", "launch", "--host", "upstream"]
    command += ["--threestudio", str(root), "--device", "cpu", *map(str, words)]
    packages = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(packages), "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(
        command,
        cwd=here,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def launch(root, here, *words):
    process = start(root, here, *words)
    stdout, stderr = process.communicate(timeout=600)
    assert process.returncode == 0, stdout[-3000:] + stderr[-3000:]
    return Path(stdout.rpartition("trial: ")[2].strip())


def step_of(checkpoint):
    return torch.load(checkpoint, weights_only=True)["global_step"]


@pytest.fixture(scope="module")
def eeg(tmp_path_factory):
    """Words that set a small EEG experiment up."""
    folder = tmp_path_factory.mktemp("eeg")
    pipeline = tiny_pipeline(folder / "pipeline")
    conditioning = tiny_conditioning(folder / "test.safetensors", pipeline)
    key = "system.prompt_processor"
    return (f"{key}.{PART}={pipeline}", f"{key}.conditioning={conditioning}", f"{key}.trial=1")


def test_threestudios_own_config_trains_resumes_and_exports(tmp_path):
    model = make_tiny_stable_diffusion(tmp_path / "sd")
    words = [
        *SMALL,
        SMALL_GRID,
        "system.prompt_processor.prompt=hamburger",
        f"system.prompt_processor.{PART}={model}",
        f"system.guidance.{PART}=sd",
        f"system.guidance.{PART}_lora={model}",
        "system.guidance.half_precision_weights=false",
    ]
    trial = launch(ROOT, tmp_path, "--config", "configs/prolificdreamer.yaml", "--train", *words)
    assert trial == tmp_path / "outputs" / "prolificdreamer" / "hamburger"
    assert (trial / "save" / "it2-test.mp4").is_file()
    remedies = json.loads((trial / "launch.json").read_text())["remedies"]
    assert "lora-processors" in remedies
    parsed, last = trial / "configs" / "parsed.yaml", trial / "ckpts" / "last.ckpt"
    more = ("--config", parsed, f"resume={last}")
    assert launch(ROOT, tmp_path, *more, "--train", "trainer.max_steps=3") == trial
    assert step_of(last) == 3
    assert launch(ROOT, tmp_path, *more, "--export", *MESH) == trial
    assert (trial / "save" / "it3-export" / "model.obj").stat().st_size > 0


@pytest.mark.parametrize("overlays", [(), ("representation/volume-grid.yaml",)], ids=str)
def test_an_eeg_config_trains_with_and_without_an_overlay(eeg, tmp_path, overlays):
    layers = [
        word for name in ("eeg-prolificdreamer.yaml", *overlays) for word in ("--config", name)
    ]
    words = [*SMALL, *eeg, *(["system.geometry.grid_size=[8,8,8]"] if overlays else [SMALL_GRID])]
    trial = launch(ROOT, tmp_path, *layers, "--train", *words)
    assert json.loads((trial / "conditioning.json").read_text())["trial"]["id"] == "trial-1"
    assert json.loads((trial / "provenance.json").read_text())["host"] == "upstream"
    assert step_of(trial / "ckpts" / "last.ckpt") == 2
    assert str(experiment_config("eeg-prolificdreamer.yaml")) in (trial / "cmd.txt").read_text()


def test_the_installed_package_alone_trains_tests_and_exports(eeg, tmp_path):
    site = tmp_path / "site"
    for name in ("threestudio", "extern"):
        shutil.copytree(ROOT / name, site / name)
    here = tmp_path / "here"
    here.mkdir()
    words = ["--config", "eeg-prolificdreamer.yaml", "--train", *SMALL, SMALL_GRID, *eeg]
    trial = launch(site, here, *words)
    assert trial.is_relative_to(here / "outputs")
    assert (trial / "save" / "it2-test.mp4").is_file()
    parsed, last = trial / "configs" / "parsed.yaml", trial / "ckpts" / "last.ckpt"
    more = ("--config", parsed, f"resume={last}")
    assert launch(site, here, *more, "--export", *MESH) == trial
    assert (trial / "save" / "it2-export" / "model.obj").is_file()
    assert launch(site, here, *more, "--train", "trainer.max_steps=3") == trial
    assert step_of(last) == 3
    assert not (here / "custom").exists()


def test_ctrl_c_ends_with_a_checkpoint_and_the_command_that_goes_on(eeg, tmp_path):
    words = ["--config", "eeg-prolificdreamer.yaml", "--train", *SMALL, SMALL_GRID, *eeg]
    words += ["trainer.max_steps=100000", "trainer.val_check_interval=100000"]
    process = start(ROOT, tmp_path, *words)
    try:
        deadline = time.monotonic() + 300
        while not list(tmp_path.rglob("conditioning.json")):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.5)
        time.sleep(5)
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == 130, stderr
    (last,) = tmp_path.rglob("last.ckpt")
    step = step_of(last)
    assert f"the last checkpoint is of step {step}; to go on: " in stdout
    advice = shlex.split(stdout.rpartition("to go on: ")[2].splitlines()[0])
    assert advice[:2] == ["threestudio-eeg", "launch"]
    further = [word for word in advice[2:] if word not in ("--host", "upstream")]
    trial = launch(ROOT, tmp_path, *further, f"trainer.max_steps={step + 1}")
    assert trial == last.parent.parent
    assert step_of(last) == step + 1


def test_linked_into_a_copy_the_plain_launcher_loads_us(tmp_path):
    """``custom/`` is read as threestudio reads it; its packages stand in by our launcher."""
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("threestudio", "extern", "configs", "load"):
        (copy / name).symlink_to(ROOT / name)
    shutil.copy(ROOT / "launch.py", copy)
    cli = [sys.executable, "-m", "threestudio_eeg.cli"]
    subprocess.run([*cli, "link", str(copy)], check=True, cwd=Path(__file__).parents[2])
    process = start(copy, tmp_path, "--config", "phantom/eeg.yaml", "--test", "data_type=nothing")
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 2
    assert "custom/threestudio-eeg" in stdout, "threestudio's table of import times"
    assert "IMPORT FAILED" not in stdout
    assert "data_type: found 'nothing', which nobody registered" in stderr


def test_the_demo_runs_inside_threestudio(tmp_path):
    """The same judge and report on an object that threestudio made."""
    command = [sys.executable, "-m", "threestudio_eeg.cli", "demo", "--out", "demo", "--steps", "6"]
    command += ["--device", "cpu", "data.width=16", "data.height=16", "data.n_test_views=4"]
    command += ["data.eval_width=32", "data.eval_height=32", "data.batch_size=1"]
    command += ["system.geometry.isosurface_threshold=1.0"]
    packages = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(packages)}
    environment["THREESTUDIO_EEG_HOST"] = "upstream"
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, timeout=600)
    (run,) = (tmp_path / "demo" / "run").iterdir()
    assert json.loads((run / "provenance.json").read_text())["host"] == "upstream"
    figures = json.loads((tmp_path / "demo" / "metrics.json").read_text())
    assert {"category_right", "fscore", "chamfer"} <= set(figures)
    assert (tmp_path / "demo" / "report.html").is_file()
