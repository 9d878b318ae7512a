"""docs/from-epochs-to-object.md from top to bottom, with a tiny pipeline and short training."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import mne
import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from eeg_encoder.cli import app as encoder_app
from tests.tiny import tiny_pipeline
from threestudio_eeg.cli import app as object_app

from .phantom_world import SMALL_FIELD

PAGE = (Path(__file__).parents[2] / "docs" / "from-epochs-to-object.md").read_text("utf-8")
BLOCKS = re.findall(r"^```(python|bash)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
SHORT = {
    "train": ["pretrain.epochs=1", "align.epochs=1", "model.width=16", "model.depth=1",
              "progress=false", "device=cpu"],
    "launch": [*SMALL_FIELD, "trainer.max_steps=2", "trainer.enable_progress_bar=false",
               "--device", "cpu"],
    "images": ["--steps", "2", "--device", "cpu"],
    "views": ["--size", "16", "--device", "cpu"],
    "compare": ["--size", "16", "--device", "cpu"],
    "control": ["--device", "cpu"],
    "evaluate": ["--device", "cpu"],
    "embed": ["--device", "cpu"],
}  # fmt: skip
"""What each command gets besides, to be short."""

CATEGORIES, PICTURES, REPETITIONS = ("chair", "mug"), 5, 4


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """A folder with what the page says a lab has, and as the working directory."""
    monkeypatch.setenv("THREESTUDIO_EEG_HOST", "builtin")
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)
    tiny_pipeline(tmp_path / "PIPELINE")
    random = np.random.default_rng(0)
    names = [f"{category}_{number}" for category in CATEGORIES for number in range(PICTURES)]
    for name in names:
        folder = tmp_path / "pictures" / name.rpartition("_")[0]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (16, 16, 3), np.uint8)).save(folder / f"{name}.png")
    order = random.permutation(np.repeat(np.arange(len(names)), REPETITIONS))
    info = mne.create_info([f"E{i}" for i in range(8)], 250.0, "eeg")
    events = np.stack([np.arange(len(order)) * 300, 0 * order, order + 1], axis=1)
    epochs = mne.EpochsArray(
        random.normal(0, 1e-5, (len(order), 8, 125)),
        info,
        events,
        tmin=0.0,
        event_id={name: number + 1 for number, name in enumerate(names)},
        verbose="error",
    )
    epochs.save("mine-epo.fif", verbose="error")
    return tmp_path


def run(line: str) -> None:
    program, command, *words = shlex.split(line)
    app = {"eeg-encoder": encoder_app, "threestudio-eeg": object_app}[program]
    result = CliRunner().invoke(app, [command, *words, *SHORT.get(command, [])])
    assert result.exit_code == 0, f"{line}\n{result.output}\n{result.exception!r}"


def test_the_page_has_commands_of_every_stage():
    text = " ".join(body for kind, body in BLOCKS if kind == "bash")
    commands = set(re.findall(r"(?:eeg-encoder|threestudio-eeg) (\w+)", text))
    assert commands >= {*SHORT, "inspect"}
    assert len([kind for kind, _ in BLOCKS if kind == "python"]) == 2


def test_every_block_runs_in_order(lab):
    for kind, body in BLOCKS:
        if kind == "python":
            exec(compile(body, "page", "exec"), {})
        else:
            for line in body.strip().splitlines():
                run(line)
    split = json.loads((lab / "split.json").read_text())
    assert len(split["test"]) == 2 * REPETITIONS
    table = json.loads((lab / "comparison" / "comparison.json").read_text())
    assert set(table["conditions"]) == {"image", "eeg", "shuffled"}
    assert table["differences"]["similarity"]["image"]["n"] == 1
    cameras = json.loads((lab / "views" / "cameras.json").read_text())
    assert len(cameras["views"]) == 24
    for name in ("figures.json", "class.safetensors", "views/views.mp4", "views-of-0/grid.png"):
        assert (lab / name).is_file()
