"""The command line: what it makes, what it says of bad input, how fast it helps."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from typer.testing import CliRunner

from eeg_encoder.errors import InputError
from tests.tiny import tiny_conditioning
from threestudio_eeg.cli import app
from threestudio_eeg.experiments import experiment_config

from .phantom_world import SMALL_FIELD, make_world

runner = CliRunner()


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setenv("THREESTUDIO_EEG_HOST", "builtin")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("cli"))


def run(*arguments):
    return runner.invoke(app, [str(argument) for argument in arguments])


def fails(result, *words):
    assert result.exit_code == 2, result.output
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    for word in words:
        assert str(word) in lines[0]


COMMANDS = (
    ["demo"],
    ["launch"],
    ["evaluate"],
    ["link"],
    ["unlink"],
    ["doctor"],
    *([c] for c in ("views", "images", "control", "compare")),
    *(["phantom", c] for c in ("recording", "objects", "pictures", "basis", "train-prior")),
    ["phantom", "judge-prior"],
)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_shows_an_example(command):
    result = run(*command, "--help")
    assert result.exit_code == 0
    assert "Example" in result.output
    assert "threestudio-eeg" in result.output


def test_help_is_fast():
    started = time.monotonic()
    command = [sys.executable, "-X", "importtime", "-m", "threestudio_eeg.cli", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    for heavy in (" torch", " numpy", " lightning"):
        assert f"|{heavy}\n" not in done.stderr
    assert time.monotonic() - started < 10


def words(world, out):
    part = "pretrained_model_name_or_path"
    return [
        *SMALL_FIELD,
        f"system.prompt_processor.{part}={world.pipeline}",
        f"system.guidance.{part}={world.pipeline}",
        f"exp_root_dir={out}",
        "use_timestamp=false",
        "trainer.max_steps=2",
        "trainer.enable_progress_bar=false",
    ]


@pytest.fixture(scope="module")
def trial(world, tmp_path_factory):
    out = tmp_path_factory.mktemp("trial")
    conditioning = tiny_conditioning(out / "c.safetensors", world.pipeline)
    result = run(
        *("launch", "--config", "phantom/eeg.yaml", "--train", "--device", "cpu"),
        *words(world, out),
        f"system.prompt_processor.conditioning={conditioning}",
        "system.prompt_processor.trial=trial-1",
    )
    assert result.exit_code == 0, result.output
    return out / "phantom-eeg" / "trial-1"


def test_launch_trains_and_films(trial):
    assert (trial / "ckpts" / "last.ckpt").is_file()
    assert (trial / "save" / "it2-test.mp4").is_file()
    assert json.loads((trial / "conditioning.json").read_text())["trial"]["id"] == "trial-1"


def test_launch_exports_and_goes_on(trial):
    config, last = trial / "configs" / "parsed.yaml", trial / "ckpts" / "last.ckpt"
    for mode, word in (("--export", "system.exporter.fmt=glb"), ("--validate", "seed=0")):
        result = run("launch", "--config", config, mode, f"resume={last}", word, "--device", "cpu")
        assert result.exit_code == 0, result.output
        assert f"trial: {trial}" in result.output
    assert (trial / "save" / "it2-export" / "model.glb").is_file()


def test_evaluate_a_run_without_a_truth(trial, world):
    networks = ("--pipeline", world.pipeline, "--judge", world.judge, "--device", "cpu")
    result = run("evaluate", trial, *networks)
    assert result.exit_code == 0, result.output
    metrics = json.loads((trial / "evaluation" / "metrics.json").read_text())
    assert metrics["stimulus"] == "n90000001_1"
    assert "category" in metrics
    assert "fscore" not in metrics
    assert (trial / "evaluation" / "object.glb").is_file()
    fails(run("evaluate", trial, *networks, "--objects", trial / "no.json"), "no.json")


def test_evaluate_needs_a_run(world, tmp_path):
    fails(run("evaluate", tmp_path, "--pipeline", world.pipeline), "configs/parsed.yaml")


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--config", "phantom/eeg.yaml"], "no mode"),
        (["--config", "phantom/eeg.yaml", "--train", "--test"], "--train and --test"),
        (["--config", "phantom/egg.yaml", "--train"], "phantom/eeg.yaml, phantom/"),
        (["--config", "phantom/eeg.yaml", "--train"], "conditioning"),
        (["--config", "phantom/text.yaml", "--train", "system.lss.x=1"], "lss"),
        (["--config", "phantom/text.yaml", "--train", "trainer.max_step=1"], "max_steps"),
        (["--config", "phantom/text.yaml", "--train", "seed"], "key=value"),
        (["--config", "phantom/text.yaml", "--train", "system_type=x"], "system"),
        (["--config", "phantom/text.yaml", "--test"], "resume"),
        (["--config", "phantom/text.yaml", "--train", "--device", "tpu"], "cpu, cuda or auto"),
    ],
)
def test_bad_launches_are_one_line(world, tmp_path, arguments, word):
    part = "pretrained_model_name_or_path"
    more = [f"system.{room}.{part}={world.pipeline}" for room in ("prompt_processor", "guidance")]
    fails(run("launch", *arguments, *more, f"exp_root_dir={tmp_path}"), word)


def test_bad_conditioning_is_one_line(world, tmp_path):
    from tests.tiny import tiny_pipeline

    other = tiny_pipeline(tmp_path / "other", cross_attention_dim=64)
    file = tiny_conditioning(tmp_path / "c.safetensors", other)

    def launch(*more):
        return run(
            *("launch", "--config", "phantom/eeg.yaml", "--train", "--device", "cpu"),
            *words(world, tmp_path),
            *more,
        )

    key = "system.prompt_processor"
    fails(launch(f"{key}.conditioning={tmp_path}/no.safetensors"), "no.safetensors")
    fails(launch(f"{key}.conditioning={file}"), "base_model")
    good = tiny_conditioning(tmp_path / "good.safetensors", world.pipeline)
    fails(launch(f"{key}.conditioning={good}", f"{key}.trial=7"), "trial", "0 to 2")
    good.write_bytes(good.read_bytes()[:-100])
    fails(launch(f"{key}.conditioning={good}"), "good.safetensors")


def test_the_demo_says_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr("threestudio_eeg.pipeline.phantom_prior", lambda: tmp_path / "prior")
    fails(run("demo", "--out", tmp_path / "out", "--device", "cpu"), "prior", "unet/config.json")
    fails(run("demo", "--out", tmp_path / "out", "--trial", "40"), "trial: found 40")
    (tmp_path / "file").write_text("")
    fails(run("demo", "--out", tmp_path / "file" / "out"), "a folder that can be written")


def test_the_demo_prints_how_to_go_on(tmp_path, monkeypatch):
    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr("threestudio_eeg.demo.run_demo", interrupt)
    result = run("demo", "--out", tmp_path / "out", "--trial", "3")
    assert result.exit_code == 130
    assert f"demo --trial 3 --out {tmp_path / 'out'}" in result.stderr
    assert "--resume" in result.stderr


def test_recordings(world, tmp_path):
    result = run(
        *("phantom", "recording", "--out", tmp_path, "--train", 1, "--val", 1, "--test", 1),
        *("--repetitions", 1, "--test-repetitions", 2, "--subjects", 1, "--sessions", 1),
        *("--category", "mug", "--snr", -20, "--pipeline", world.pipeline, "--device", "cpu"),
    )
    assert result.exit_code == 0, result.output
    assert "3 stimuli" in result.output
    record = json.loads((tmp_path / "simulation.json").read_text())
    assert record["snr_db"] == -20
    assert record["objects"] == {"train": 1, "val": 1, "test": 1}


def test_the_defaults_of_recordings_are_the_simulators():
    import inspect

    from eeg_encoder.recordings.simulation import SimulationConfig
    from threestudio_eeg.cli import phantom_recording
    from threestudio_eeg.demo import REPETITIONS

    given = {n: p.default for n, p in inspect.signature(phantom_recording).parameters.items()}
    config = SimulationConfig()
    assert given["snr"] == config.snr_db
    for name in ("repetitions", "subjects", "sessions", "order", "seed"):
        assert given[name] == getattr(config, name), name
    assert given["test_repetitions"] == REPETITIONS


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["recording", "--order", "slow"], "rapid or block"),
        (["recording", "--test", "1000"], "0 to 100"),
        (["recording", "--category", "gnu"], "gnu"),
        (["objects", "--fmt", "stl"], "stl"),
        (["objects", "--split", "all"], "train, val, test"),
        (["pictures", "--category", "gnu"], "gnu"),
        (["train-prior", "--config", "nothing.yaml"], "phantom/prior.yaml"),
        (["train-prior", "vea.steps=1"], "phantom/prior.yaml: vea: found an unknown key"),
        (["train-prior", "unet.step=1"], "unet: step: found an unknown key"),
        (["train-prior", "unet.steps=many"], "unet: steps"),
    ],
)
def test_bad_phantom_commands_are_one_line(world, tmp_path, arguments, word):
    more = ["--pipeline", world.pipeline] if arguments[0] == "recording" else []
    fails(run("phantom", *arguments, *more, "--out", tmp_path / "out"), word)


def test_objects_and_pictures(tmp_path):
    result = run("phantom", "objects", "--out", tmp_path / "o", "--category", "bed", "--n", 1)
    assert result.exit_code == 0, result.output
    assert len(list((tmp_path / "o").glob("*.ply"))) == 1
    result = run(
        *("phantom", "pictures", "--out", tmp_path / "p", "--category", "bed", "--n", 1),
        *("--views", 2, "--size", 16, "--device", "cpu"),
    )
    assert result.exit_code == 0, result.output
    assert "2 pictures" in result.output


def test_train_prior_hands_over_its_config_and_keeps_the_basis(tmp_path, monkeypatch):
    asked = {}

    def train(config, out, *, device, log):
        asked.update(steps=config.unet.steps, seed=config.seed, device=device)
        (out / "pipeline").mkdir()
        return out / "pipeline"

    def write(folder, *, device):
        (Path(folder) / "eeg_basis.safetensors").write_bytes(b"")

    monkeypatch.setattr("threestudio_eeg.phantom.prior.train_prior", train)
    monkeypatch.setattr("threestudio_eeg.phantom.recording.write_stimulus_code", write)
    result = run("phantom", "train-prior", "--out", tmp_path, "--device", "cpu", "unet.steps=7")
    assert result.exit_code == 0, result.output
    assert asked == {"steps": 7, "seed": 0, "device": "cpu"}
    assert (tmp_path / "pipeline" / "eeg_basis.safetensors").exists()


def test_judge_prior_scores_every_protocol(world):
    from threestudio_eeg.phantom.sampling import PROTOCOLS

    ask = ("phantom", "judge-prior", "--pipeline", world.pipeline, "--device", "cpu", "--number")
    result = run(*ask, 2)
    assert result.exit_code == 0, result.output
    lines = result.stdout.strip().splitlines()
    share = r"(0\.000|0\.500|1\.000)"
    for protocol, line in zip(PROTOCOLS, lines, strict=True):
        wanted = rf"{protocol}: category {share}, colour {share}, side {share} of 2"
        assert re.fullmatch(wanted, line), line
    assert run(*ask, 2).stdout == result.stdout
    assert run(*ask, 0).exit_code == 2


def test_a_type_changed_on_the_command_line_leaves_the_tag_alone(tmp_path):
    changed = "system.prompt_processor_type=stable-diffusion-prompt-processor"
    ask = ("launch", "--config", "phantom/eeg.yaml", "--train", "--device", "cpu")
    fails(run(*ask, "tag=x", f"exp_root_dir={tmp_path}", f"{changed}-x"), f"{changed[29:]}-x")
    fails(run(*ask, f"exp_root_dir={tmp_path}", changed), "tag")


def test_the_text_baseline_differs_in_the_prompt_alone():
    eeg, text = (OmegaConf.load(experiment_config(f"phantom/{n}.yaml")) for n in ("eeg", "text"))
    for config in (eeg, text):
        for key in ("name", "tag"):
            del config[key]
        for key in ("prompt_processor_type", "prompt_processor"):
            del config.system[key]
    assert eeg == text


def test_the_phantoms_cameras_are_those_of_its_pictures():
    from threestudio_eeg.phantom.pictures import DISTANCE, ELEVATION, FOVY
    from threestudio_eeg.phantom.solids import RADIUS

    config = OmegaConf.load(experiment_config("phantom/eeg.yaml"))
    data = config.data
    assert tuple(data.camera_distance_range) == DISTANCE
    assert tuple(data.elevation_range) == ELEVATION
    assert tuple(data.fovy_range) == (FOVY, FOVY) == (data.eval_fovy_deg,) * 2
    assert data.camera_perturb == data.center_perturb == data.up_perturb == 0
    assert config.system.geometry.radius == config.system.renderer.radius > RADIUS


def test_an_unknown_config_is_named_as_it_was_given():
    with pytest.raises(InputError, match=r"phantom/x\.yaml: config: found no such file"):
        experiment_config("phantom/x.yaml")
    with pytest.raises(InputError, match=r"/nowhere/x\.yaml"):
        experiment_config("/nowhere/x.yaml")
