"""Recording to conditioning file to figures, through the command line."""

from __future__ import annotations

import errno
import json
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from eeg_encoder.cli import app
from eeg_encoder.conditioning import load_conditioning, pipeline_fingerprint
from eeg_encoder.errors import InputError
from eeg_encoder.figures import recording_figures
from eeg_encoder.image_space import empty_caption_tokens
from eeg_encoder.pretrained import file_hash, from_pretrained, save_pretrained
from eeg_encoder.recordings.perceivelab import load_splits, write_perceivelab, write_splits
from eeg_encoder.training import load_train_config

from .conftest import small_trials

runner = CliRunner()


def overrides(world, out):
    return [
        f"recording={world.recording}",
        f"splits={world.splits}",
        f"pictures={world.pictures}",
        f"pipeline={world.pipeline}",
        f"out={out}",
        "device=cpu",
        "progress=false",
        "pretrain.epochs=1",
        "pretrain.batch_size=6",
        "align.epochs=3",
        "align.batch_size=6",
        "model.width=32",
        "model.depth=1",
    ]


@pytest.fixture(scope="module")
def encoder(world):
    out = world.folder / "encoder"
    result = runner.invoke(app, ["train", "--config", "phantom.yaml", *overrides(world, out)])
    assert result.exit_code == 0, result.output
    return out


def run(*arguments):
    return runner.invoke(app, [str(argument) for argument in arguments])


def test_the_folder_is_complete(encoder, world):
    for name in ("config.json", "model.safetensors", "preprocessing.json", "card.md"):
        assert (encoder / name).is_file()
    config = json.loads((encoder / "config.json").read_text())
    assert config["base_model"] == pipeline_fingerprint(world.pipeline)
    assert -1 <= config["validation"]["cosine"] <= 1
    assert (encoder / "logs" / "align" / "metrics.csv").is_file()
    pretrained = from_pretrained(encoder)
    assert torch.isfinite(pretrained.tokens.null_tokens).all()
    torch.testing.assert_close(
        pretrained.tokens.null_tokens, empty_caption_tokens(world.pipeline), atol=2e-3, rtol=2e-3
    )


def test_embed_writes_a_conditioning_file(encoder, world):
    out = world.folder / "test.safetensors"
    result = run(
        "embed", world.recording, "--encoder", encoder, "--splits", world.splits, "--out", out,
        "--pictures", world.pictures, "--device", "cpu",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    conditioning = load_conditioning(out)
    parts = load_splits(world.splits, len(world.trials))
    assert len(conditioning) == len(np.unique(world.trials.stimuli[parts["test"]]))
    torch.testing.assert_close(conditioning.pooled.norm(dim=1), torch.ones(len(conditioning)))
    assert conditioning.tokens.shape[1:] == conditioning.null_tokens.shape
    assert conditioning.encoder == file_hash(encoder / "model.safetensors")
    assert conditioning.protocol["averaged"]
    assert conditioning.protocol["part"] == "test"
    assert conditioning.protocol["repetitions"] == [2, 2]

    single = world.folder / "single.safetensors"
    run("embed", world.recording, "--encoder", encoder, "--splits", world.splits, "--out", single,
        "--no-average", "--device", "cpu")  # fmt: skip
    again = load_conditioning(single)
    assert len(again) == len(parts["test"])
    assert len({trial.id for trial in again.trials}) == len(again)


def test_evaluate_reports_beside_a_control(encoder, world):
    out = world.folder / "figures.json"
    shutil.copy(world.recording, world.folder / "copy.pth")
    (world.folder / "simulation.json").write_text('{"snr_db": 0.0}')
    result = run(
        "evaluate", world.recording, "--encoder", encoder, "--pictures", world.pictures,
        "--pipeline", world.pipeline, "--splits", world.splits, "--out", out, "--device", "cpu",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    figures = json.loads(out.read_text())
    for part in ("averaged", "single"):
        for result in (figures[part], figures[part]["recalled"]):
            assert result["trials"] == figures[part]["trials"]
            for source in ("eeg", "shuffled"):
                assert 0 <= result[source]["category_top1"] <= 1
        assert figures[part]["recalled"]["eeg"]["cosine"] != figures[part]["eeg"]["cosine"]
    assert figures["protocol"]["simulated"]
    assert figures["protocol"]["snr_db"] == 0.0


def test_without_a_memory_nothing_is_recalled(encoder, world, tmp_path):
    pretrained = from_pretrained(encoder)
    pretrained.memory = None
    save_pretrained(tmp_path / "plain", pretrained)
    figures = recording_figures(
        world.recording, tmp_path / "plain", world.pictures, world.pipeline, world.splits,
        device="cpu",
    )  # fmt: skip
    assert "recalled" not in figures["averaged"]
    assert "recalled" not in figures["single"]


def test_inspect(world):
    result = run("inspect", world.recording, "--splits", world.splits)
    assert result.exit_code == 0, result.output
    assert "design: rapid" in result.output


def fails(result, *words):
    assert result.exit_code == 2, result.output
    text = result.stderr
    assert text.startswith("error: ")
    assert len(text.strip().splitlines()) == 1
    for word in words:
        assert str(word) in text


def test_bad_input_is_one_line(encoder, world, tmp_path):
    out = tmp_path / "out.safetensors"
    fails(run("embed", tmp_path / "none.pth", "--encoder", encoder, "--out", out), "none.pth")
    fails(run("embed", world.recording, "--encoder", tmp_path, "--out", out), "config.json")
    fails(
        run("embed", world.recording, "--encoder", encoder, "--out", out, "--split", "all",
            "--pictures", tmp_path),
        "picture",
    )  # fmt: skip
    write_perceivelab(tmp_path / "other.pth", small_trials(channels=64))
    fails(run("embed", tmp_path / "other.pth", "--encoder", encoder, "--out", out), "128 channels")
    blocked = tmp_path / "file"
    blocked.write_text("")
    fails(
        run("embed", world.recording, "--encoder", encoder, "--out", blocked / "out.safetensors"),
        "a folder that can be written",
    )
    assert not out.exists()


@pytest.mark.parametrize(
    ("override", "word"),
    [
        ("align.epoch=3", "epoch"),
        ("align.epochs=many", "align.epochs"),
        ("align.select=test", "best or last"),
        ("model.name=gpt", "compact"),
        ("device=tpu", "auto, cpu or cuda"),
        ("epochs", "key=value"),
    ],
)
def test_bad_settings_are_one_line(world, tmp_path, override, word):
    result = run("train", *overrides(world, tmp_path / "encoder"), override)
    fails(result, word)
    assert not (tmp_path / "encoder" / "model.safetensors").exists()


def test_required_keys_and_configs_are_named(tmp_path):
    fails(run("train"), "found nothing")
    fails(run("train", "--config", "nothing.yaml"), "phantom.yaml")
    (tmp_path / "bad.yaml").write_text("pretrain: [1, 2")
    with pytest.raises(InputError, match="bad.yaml"):
        load_train_config(tmp_path / "bad.yaml")


def test_a_leaking_split_is_refused(world, tmp_path):
    n = len(world.trials)
    write_splits(tmp_path / "s.pth", {"train": range(n // 2), "val": [], "test": range(n // 2, n)})
    arguments = overrides(world, tmp_path / "encoder")
    arguments[1] = f"splits={tmp_path / 's.pth'}"
    fails(run("train", *arguments), "also in train")


def test_damaged_weights_are_named(encoder, tmp_path):
    folder = shutil.copytree(encoder, tmp_path / "encoder")
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:-50])
    with pytest.raises(InputError, match=r"model\.safetensors: weights"):
        from_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "model.safetensors").write_bytes(weights)
    config["model"]["settings"]["width"] = 64
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="weights"):
        from_pretrained(folder)
    config["version"] = 9
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="version: found 9"):
        from_pretrained(folder)


def test_interrupted_training_writes_no_encoder(world, tmp_path, monkeypatch):
    from eeg_encoder.stages.align import Alignment

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Alignment, "training_step", interrupt)
    result = run("train", *overrides(world, tmp_path / "encoder"))
    assert result.exit_code == 130
    assert "interrupted" in result.stderr
    assert not (tmp_path / "encoder" / "model.safetensors").exists()


def test_full_disk_leaves_nothing_behind(encoder, world, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    out = tmp_path / "out.safetensors"
    fails(run("embed", world.recording, "--encoder", encoder, "--out", out), "No space left")
    assert not list(tmp_path.iterdir())


def test_half_precision_trains(world, tmp_path):
    result = run("train", *overrides(world, tmp_path / "encoder"), "precision=bf16-mixed")
    assert result.exit_code == 0, result.output


def test_training_is_deterministic(encoder, world, tmp_path):
    result = runner.invoke(app, ["train", *overrides(world, tmp_path / "again")])
    assert result.exit_code == 0, result.output
    assert file_hash(tmp_path / "again" / "model.safetensors") == file_hash(
        encoder / "model.safetensors"
    )


def test_help_is_fast_and_shows_examples():
    started = time.monotonic()
    command = [sys.executable, "-X", "importtime", "-m", "eeg_encoder.cli", "embed", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "Example" in done.stdout
    assert " torch" not in done.stderr
    assert time.monotonic() - started < 10
