"""Bad input on the command lines: one line that says what is wrong, and nothing half-written."""

from __future__ import annotations

import dataclasses
import errno
import os
import re
import resource
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from typer.testing import CliRunner

from eeg_encoder.cli import app as encoder_app
from eeg_encoder.conditioning import load_conditioning, save_conditioning
from tests.tiny import tiny_conditioning, tiny_pipeline
from threestudio_eeg.cli import app

ROOT = Path(__file__).resolve().parent.parent
LINE = re.compile(r"error: (?P<where>.+?): (?P<field>.+?): found .+, expected .+\n")
IMAGES = [f"n90000001_{i}" for i in range(6)]
Change = Callable[[dict[str, Any]], Any]
runner = CliRunner()


@pytest.fixture(autouse=True)
def _embedded_host(monkeypatch) -> None:
    monkeypatch.setenv("THREESTUDIO_EEG_HOST", "builtin")


@dataclasses.dataclass
class World:
    """Good files, to spoil one at a time."""

    folder: Path
    recording: Path
    splits: Path
    pictures: Path
    pipeline: Path
    conditioning: Path
    experiment: Path


def content() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    return {
        "dataset": [
            {
                "eeg": torch.randn(128, 500, generator=generator),
                "image": i,
                "label": i % 2,
                "subject": 1,
            }
            for i in range(6)
        ],
        "labels": ["n90000001", "n90000002"],
        "images": IMAGES,
    }


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    from PIL import Image

    folder = tmp_path_factory.mktemp("world")
    torch.save(content(), folder / "eeg.pth")
    parts = {"train": [0, 1, 2, 3], "val": [4], "test": [5]}
    torch.save({"splits": [parts]}, folder / "splits.pth")
    (folder / "pictures" / "n90000001").mkdir(parents=True)
    for name in IMAGES[:-2]:
        rgb = np.full((16, 16, 3), 90, np.uint8)
        Image.fromarray(rgb).save(folder / "pictures" / "n90000001" / f"{name}.JPEG")
    pipeline = tiny_pipeline(folder / "pipeline")
    conditioning = tiny_conditioning(folder / "eeg.safetensors", pipeline)
    return World(
        folder,
        folder / "eeg.pth",
        folder / "splits.pth",
        folder / "pictures",
        pipeline,
        conditioning,
        write_experiment(folder / "tiny.yaml", pipeline, conditioning),
    )


def write_experiment(path: Path, pipeline: Path, conditioning: Path) -> Path:
    teacher = {"pretrained_model_name_or_path": str(pipeline)}
    encoding = {
        "otype": "HashGrid",
        "n_levels": 2,
        "n_features_per_level": 2,
        "log2_hashmap_size": 8,
        "base_resolution": 4,
        "per_level_scale": 1.5,
    }
    config = {
        "name": "tiny",
        "exp_root_dir": "outputs",
        "data_type": "random-camera-datamodule",
        "data": {
            "height": 8,
            "width": 8,
            "eval_height": 8,
            "eval_width": 8,
            "n_test_views": 2,
        },
        "system_type": "eeg-prolificdreamer-system",
        "system": {
            "geometry_type": "implicit-volume",
            "geometry": {"normal_type": None, "pos_encoding_config": encoding},
            "material_type": "no-material",
            "background_type": "solid-color-background",
            "renderer_type": "nerf-volume-renderer",
            "renderer": {"num_samples_per_ray": 8},
            "prompt_processor_type": "eeg-prompt-processor",
            "prompt_processor": {**teacher, "conditioning": str(conditioning)},
            "guidance_type": "eeg-vsd-guidance",
            "guidance": teacher,
            "loss": {"lambda_vsd": 1.0, "lambda_lora": 1.0},
            "optimizer": {"name": "AdamW", "args": {"lr": 0.001}},
        },
        "trainer": {"max_steps": 4, "val_check_interval": 1000},
        "checkpoint": {"every_n_train_steps": 2},
    }
    OmegaConf.save(OmegaConf.create(config), path)
    return path


def files_in(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def refused(cli: Any, *arguments: object, where: object, field: str, words: str = "") -> None:
    """Run a command and check the line it ends with."""
    result = runner.invoke(cli, [str(argument) for argument in arguments])
    assert result.exit_code == 2, result.output
    match = LINE.fullmatch(result.stderr)
    assert match, result.stderr
    assert str(where) in match["where"], result.stderr
    assert field in f"{match['field']}:", result.stderr
    assert words in result.stderr, result.stderr


def spoil(change: Change) -> dict[str, Any]:
    value = content()
    change(value)
    return value


def replace_eeg(number: int, eeg: torch.Tensor) -> Change:
    return lambda c: c["dataset"][number].update(eeg=eeg)


def set_sample(value: float, channel: int) -> Change:
    def change(c: dict[str, Any]) -> None:
        c["dataset"][1]["eeg"][channel] = value

    return change


@pytest.mark.parametrize(
    ("change", "field", "words"),
    [
        (replace_eeg(2, torch.randn(64, 500)), "dataset[2].eeg:", "128 channels"),
        (lambda c: [e.update(eeg=e["eeg"][:, :300]) for e in c["dataset"]], "dataset:", "460"),
        (lambda c: [e.update(eeg=e["eeg"].repeat(1, 3)) for e in c["dataset"]], "dataset:", "600"),
        (set_sample(float("nan"), 7), "dataset[1].eeg[7]:", "NaN or infinity"),
        (set_sample(0.25, 9), "dataset[1].eeg[9]:", "flat channel"),
        (
            lambda c: c["dataset"][3].update(label=2),
            "dataset[3].label:",
            "found 2, expected 0 to 1",
        ),
        (lambda c: c["dataset"][4].update(image=-1), "dataset[4].image:", "found -1"),
        (lambda c: c.pop("images"), "images:", "found nothing"),
        (lambda c: c["dataset"].clear(), "dataset:", "empty list"),
    ],
)
def test_a_recording_with_bad_content(tmp_path, change, field, words):
    torch.save(spoil(change), tmp_path / "bad.pth")
    before = files_in(tmp_path)
    refused(encoder_app, "inspect", tmp_path / "bad.pth", where="bad.pth", field=field, words=words)
    assert files_in(tmp_path) == before


@pytest.mark.parametrize("kind", ["missing", "truncated", "foreign", "a folder"])
def test_a_recording_or_split_file_that_is_none(world, tmp_path, kind):
    bad = tmp_path / "bad.pth"
    if kind == "truncated":
        bad.write_bytes(world.recording.read_bytes()[:5000])
    elif kind == "foreign":
        bad.write_text("subject,label\n1,2\n")
    elif kind == "a folder":
        bad.mkdir()
    refused(encoder_app, "inspect", bad, where=bad, field="file:")
    refused(
        encoder_app, "inspect", world.recording, "--splits", bad, where=bad, field="file:"
    )  # fmt: skip


@pytest.mark.parametrize(
    ("parts", "field", "words"),
    [
        ({"train": [0, 1], "val": [2], "test": [6]}, "splits[0].test[0]:", "found 6"),
        ({"train": [0, -1], "val": [2], "test": [3]}, "splits[0].train[1]:", "found -1"),
        ({"train": [0, 1], "val": [2]}, "splits[0].test:", "nothing"),
        ({"train": [0, 1], "val": [1], "test": [2]}, "splits[0].val[0]:", "also in train"),
    ],
)
def test_a_split_that_does_not_fit(world, tmp_path, parts, field, words):
    torch.save({"splits": [parts]}, tmp_path / "s.pth")
    refused(
        encoder_app, "inspect", world.recording, "--splits", tmp_path / "s.pth",
        where="s.pth", field=field, words=words,
    )  # fmt: skip


def train_encoder(world: World, out: Path, *more: str) -> list[str]:
    good = {
        "recording": world.recording,
        "splits": world.splits,
        "pictures": world.pictures,
        "pipeline": world.pipeline,
        "out": out,
        "device": "cpu",
        "progress": "false",
        "allow_within_block": "true",
    }
    return ["train", *(f"{key}={value}" for key, value in good.items()), *more]


@pytest.mark.parametrize(
    ("change", "where", "field", "words"),
    [
        ("recording=none.pth", "none.pth", "file:", "nothing"),
        ("splits=none.pth", "none.pth", "file:", "nothing"),
        ("pipeline=none", "none", "image_encoder", "nothing"),
        ("pretrain.epoch=3", "phantom.yaml", "epoch", ""),
        ("window=[20,900]", "eeg.pth", "window:", "20:900"),
    ],
)
def test_training_an_encoder_on_bad_settings(world, tmp_path, change, where, field, words):
    out = tmp_path / "encoder"
    arguments = train_encoder(world, out, change)
    refused(encoder_app, *arguments, where=where, field=field, words=words)
    assert not (out / "model.safetensors").exists()


def test_a_stimulus_without_a_picture(world, tmp_path):
    refused(
        encoder_app, *train_encoder(world, tmp_path / "encoder"),
        where="pictures/n90000001", field="picture:", words=IMAGES[4],
    )  # fmt: skip
    assert not (tmp_path / "encoder" / "model.safetensors").exists()


def launch(world: World, folder: Path, *more: object) -> list[object]:
    arguments = ["launch", "--config", world.experiment, "--train", "--device", "cpu"]
    return [
        *arguments,
        f"exp_root_dir={folder / 'outputs'}",
        "trainer.enable_progress_bar=false",
        *more,
    ]


def conditioned_on(file: Path) -> str:
    return f"system.prompt_processor.conditioning={file}"


def no_training_took_place(folder: Path) -> None:
    names = [path.name for path in folder.rglob("*") if path.is_file()]
    assert not [name for name in names if name.endswith((".ckpt", ".png", ".mp4"))]
    assert not [name for name in names if name.startswith(".")]


def another_version(world: World, file: Path) -> None:
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    with safe_open(str(world.conditioning), "pt") as opened:
        header = {**opened.metadata(), "version": "7"}
    save_file(load_file(world.conditioning), file, metadata=header)


def another_base_model(world: World, file: Path) -> None:
    conditioning = load_conditioning(world.conditioning)
    save_conditioning(file, dataclasses.replace(conditioning, base_model="other:0123456789ab"))


def another_width(world: World, file: Path) -> None:
    conditioning = load_conditioning(world.conditioning)
    tokens, null = torch.randn(3, 8, 48), torch.randn(8, 48)
    save_conditioning(file, dataclasses.replace(conditioning, tokens=tokens, null_tokens=null))


def not_finite(world: World, file: Path) -> None:
    raw = bytearray(world.conditioning.read_bytes())
    raw[-4:] = np.float32("nan").tobytes()
    file.write_bytes(raw)


def foreign_tensors(world: World, file: Path) -> None:
    from safetensors.torch import save_file

    save_file({"tokens": torch.zeros(2)}, file)


@pytest.mark.parametrize(
    ("make", "field", "words"),
    [
        (lambda world, file: None, "file:", "nothing"),
        (lambda w, f: f.write_bytes(w.conditioning.read_bytes()[:-100]), "file:", "safetensors"),
        (lambda w, f: f.write_text("tokens"), "file:", "safetensors"),
        (foreign_tensors, "format:", "threestudio-eeg conditioning"),
        (another_version, "version:", "found 7, expected 1"),
        (another_base_model, "base_model:", "other:0123456789ab"),
        (another_width, "width of tokens:", "found 48, expected 32"),
        (not_finite, ":", "NaN or infinity"),
    ],
)
def test_a_conditioning_file_that_does_not_fit(world, tmp_path, make, field, words):
    bad = tmp_path / "bad.safetensors"
    make(world, bad)
    refused(
        app, *launch(world, tmp_path, conditioned_on(bad)),
        where="bad.safetensors", field=field, words=words,
    )  # fmt: skip
    no_training_took_place(tmp_path)


@pytest.mark.parametrize(
    ("override", "where", "field", "words"),
    [
        ("sead=1", "", "sead:", "seed"),
        ("seed", "command line", "override:", "key=value"),
        ("seed=[1", "command line", "override:", "YAML"),
        ("seed=many", "", "seed:", "many"),
        ("data.hieght=8", "tiny.yaml", "hieght:", "height"),
        ("data.batch_size=[1,2]", "random-camera-datamodule", "batch_size:", "2 value(s)"),
        ("system.guidance.guidance_scal=3", "tiny.yaml", "guidance_scal:", "guidance_scale"),
        ("system.geometry_type=implicit-volum", "tiny.yaml", "geometry_type:", "implicit-volume"),
        (
            "system_type=eeg-prolificdreamer",
            "tiny.yaml",
            "system_type:",
            "eeg-prolificdreamer-system",
        ),
        ("system.prompt_processor.trial=3", "eeg.safetensors", "trial:", "0 to 2"),
        ("system.prompt_processor.trial=mug-7", "eeg.safetensors", "trial:", "trial-0"),
        ("system.loss.lambda_lora=null", "system.loss", "lambda_lora:", "a weight for loss_lora"),
        ("system.guidance.pretrained_model_name_or_path=none", "none", "unet/config.json:", ""),
        ("trainer.max_step=3", "config", "trainer.max_step:", "max_steps"),
        ("resume=none.ckpt", "none.ckpt", "checkpoint:", "no such file"),
    ],
)
def test_an_experiment_with_bad_settings(world, tmp_path, override, where, field, words):
    refused(app, *launch(world, tmp_path, override), where=where, field=field, words=words)
    no_training_took_place(tmp_path)


def test_the_shipped_experiment_asks_for_a_conditioning_file(tmp_path):
    refused(
        app, "launch", "--config", "phantom/eeg.yaml", "--train", f"exp_root_dir={tmp_path}",
        where="eeg.yaml", field="conditioning:", words="a value",
    )  # fmt: skip
    assert not files_in(tmp_path)


def test_an_experiment_file_that_is_none(world, tmp_path):
    refused(
        app, "launch", "--config", "none.yaml", "--train",
        where="none.yaml", field="config:", words="phantom/eeg.yaml",
    )  # fmt: skip
    (tmp_path / "bad.yaml").write_text("system: [1, 2")
    refused(
        app, "launch", "--config", tmp_path / "bad.yaml", "--train",
        where="bad.yaml", field="config:",
    )  # fmt: skip


@pytest.mark.parametrize("modes", [[], ["--train", "--test"]])
def test_exactly_one_mode(world, modes):
    refused(
        app, "launch", "--config", world.experiment, *modes, where="command line", field="mode:"
    )


@pytest.mark.parametrize(
    ("arguments", "field", "words"),
    [
        (["demo", "--trial", "40"], "trial:", "0 to 39"),
        (["demo", "--device", "tpu"], "device:", "auto, cpu or cuda"),
        (["phantom", "objects", "--category", "dragon"], "category:", "mug"),
        (["phantom", "objects", "--split", "best"], "split:", "train, val, test"),
        (["phantom", "objects", "--fmt", "stl"], "fmt:", "ply"),
        (["phantom", "pictures", "--n", "100000"], "objects a category:", "0 to"),
        (["phantom", "recording", "--order", "random"], "order:", "rapid or block"),
        (["phantom", "recording", "--pipeline", "none"], "unet/config.json:", "nothing"),
        (["phantom", "train-prior", "--config", "none.yaml"], "config:", "prior.yaml"),
        (["phantom", "train-prior", "seed"], "override:", "key=value"),
    ],
)
def test_the_phantom_with_bad_settings(tmp_path, arguments, field, words):
    out = tmp_path / "out"
    refused(app, *arguments, "--out", out, where="", field=field, words=words)
    assert not out.exists() or not files_in(out)


def test_a_folder_that_is_no_trial_is_not_evaluated(tmp_path):
    refused(
        app, "evaluate", tmp_path, "--out", tmp_path / "out",
        where=tmp_path, field="configs/parsed.yaml:",
    )  # fmt: skip


@pytest.mark.parametrize(
    "command",
    [
        "demo",
        "phantom objects --n 1 --category mug",
        "phantom pictures --n 1 --category mug --views 1",
        "phantom train-prior --device cpu",
    ],
)
def test_a_folder_that_cannot_be_written(tmp_path, command):
    blocked = tmp_path / "file"
    blocked.write_text("mine")
    out = blocked / "out"
    refused(app, *command.split(), "--out", out, where=blocked, field="folder:", words="written")
    assert files_in(tmp_path) == {"file": b"mine"}


def test_an_encoder_or_a_trial_that_cannot_be_written(world, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("mine")
    for cli, arguments in (
        (encoder_app, train_encoder(world, blocked / "encoder")),
        (app, launch(world, blocked)),
    ):
        refused(cli, *arguments, where=blocked, field="folder:")
    assert files_in(tmp_path) == {"file": b"mine"}


def no_room(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("broken", ["os.replace", "pathlib.Path.write_text"])
def test_a_full_disk_leaves_nothing_half_written(tmp_path, monkeypatch, broken):
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(broken, no_room)
    refused(
        app, "phantom", "objects", "--n", "1", "--category", "mug", "--resolution", "24",
        "--out", tmp_path / "out",
        where=tmp_path, field="write:", words="No space left",
    )  # fmt: skip
    assert not list((tmp_path / "out").glob(".*"))
    assert not (tmp_path / "out" / "objects.json").exists()


def test_a_disk_too_full_for_a_library_s_log(world, tmp_path, monkeypatch):
    from lightning.pytorch.loggers import CSVLogger

    monkeypatch.setattr(CSVLogger, "log_metrics", no_room)
    logged = "trainer.log_every_n_steps=1"
    refused(app, *launch(world, tmp_path, logged), where="disk", field="write:", words="No space")


def command_line(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "threestudio_eeg.cli", *(str(a) for a in arguments)]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def small_files_only() -> None:
    """What a full disk does: no file may grow beyond 20 kB (EFBIG in place of ENOSPC)."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))


def test_a_disk_that_fills_up_while_training(world, tmp_path):
    done = subprocess.run(
        command_line(*launch(world, tmp_path)),
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
        env=environment(),
        preexec_fn=small_files_only,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert LINE.fullmatch(done.stderr), done.stderr
    assert ".ckpt: checkpoint:" in done.stderr
    no_training_took_place(tmp_path)


def test_ctrl_c_stops_with_a_checkpoint_from_which_training_goes_on(world, tmp_path):
    steps = "trainer.max_steps=100000"
    process = subprocess.Popen(
        command_line(*launch(world, tmp_path, steps)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=environment(),
    )
    try:
        wait_for(lambda: list(tmp_path.rglob("last.ckpt")), process)
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, stderr
    assert stderr == "interrupted\n"
    (last,) = tmp_path.rglob("last.ckpt")
    stopped = torch.load(last, weights_only=True)["global_step"]
    assert f"stopped after step {stopped}; to go on: " in stdout
    advice = shlex.split(stdout.rpartition("to go on: ")[2].splitlines()[0])
    assert advice[:2] == ["threestudio-eeg", "launch"]

    further = [*advice[1:], "--device", "cpu", f"trainer.max_steps={stopped + 2}"]
    result = runner.invoke(app, further)
    assert result.exit_code == 0, result.output
    assert list(tmp_path.rglob("last.ckpt")) == [last]
    assert torch.load(last, weights_only=True)["global_step"] == stopped + 2
    assert list(tmp_path.rglob(f"it{stopped + 2}-test.mp4"))


def wait_for(condition: Callable[[], Any], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 90
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
