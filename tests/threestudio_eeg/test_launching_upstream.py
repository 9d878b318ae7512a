"""Launching inside a (small, fake) threestudio: what its launch.py sees, and what comes back."""

from __future__ import annotations

import functools
import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from typer.testing import CliRunner

from threestudio_eeg.cli import app

from .fake_threestudio import fake_threestudio, fresh_host, toy_config  # noqa: F401

runner = CliRunner()
pytestmark = pytest.mark.usefixtures("fresh_host")


@pytest.fixture
def root(tmp_path):
    return fake_threestudio(tmp_path / "threestudio-main")


@pytest.fixture
def here(tmp_path, monkeypatch):
    folder = tmp_path / "here"
    toy_config(folder)
    monkeypatch.chdir(folder)
    return folder


def launch(root, *words, mode="--train", config="toy.yaml"):
    command = ["launch", "--host", "upstream", "--threestudio", root, "--device", "cpu"]
    return runner.invoke(app, [str(w) for w in (*command, "--config", config, mode, *words)])


def trained(result, here, trial="line"):
    assert result.exit_code == 0, result.output + repr(result.exception)
    return here / "outputs" / "toy" / trial


def fails(result, *words):
    assert result.exit_code == 2, result.output + repr(result.exception)
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("error: "), result.stderr
    for word in words:
        assert str(word) in last
    return last


def seen(trial):
    return json.loads((trial / "seen.json").read_text())


def test_launch_py_runs_unmodified_in_its_own_folder(root, here):
    before = (sys.argv, os.environ.get("CUDA_VISIBLE_DEVICES"), (root / "launch.py").read_bytes())
    result = launch(root, "seed=3")
    trial = trained(result, here)
    what = seen(trial)
    assert what["name"] == "__main__"
    assert what["cwd"] == str(root)
    assert what["argv"][0] == str(root / "launch.py")
    assert what["argv"][1::2] == ["--config", "--train", "0"]
    assert Path(what["argv"][2]).name == "toy.yaml"
    assert what["extras"] == []
    assert what["gpus"] == "-1"
    assert "eeg-vsd-guidance" in what["modules"]
    after = (sys.argv, os.environ.get("CUDA_VISIBLE_DEVICES"), (root / "launch.py").read_bytes())
    assert after == before
    assert Path.cwd() == here
    lines = result.output.splitlines()
    assert lines[0] == f"host: upstream threestudio 0.2.3 at {root}; remedies: none"
    assert lines[-1] == f"trial: {trial}"


DRIVER = """
import sys
from threestudio_eeg import compat

def activate(device, *, threestudio):
    import os
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "-1", "set before anything looks at the devices"
    assert "threestudio" not in sys.modules
    sys.path.insert(0, str(threestudio))
    return []

compat.activate, compat.after_import = activate, list
from threestudio_eeg.cli import app
app()
"""


def test_the_embedded_host_stays_out_of_the_process(root, here):
    words = ["launch", "--threestudio", root, "--device", "cpu", "--config", "toy.yaml", "--train"]
    command = [sys.executable, "-W", "ignore", "-c", DRIVER, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    what = seen(here / "outputs" / "toy" / "line")
    assert "threestudio_eeg.guidance" in what["imported"]
    for part in ("systems", "renderer", "launch", "geometry"):
        assert f"threestudio_eeg.builtin.{part}" not in what["imported"]


def test_the_trial_says_how_it_was_launched(root, here):
    trial = trained(launch(root, "seed=3"), here)
    record = json.loads((trial / "launch.json").read_text())
    expected = f"threestudio-eeg launch --host upstream --threestudio {root} --device cpu"
    expected += f" --config {here / 'toy.yaml'} --train seed=3"
    assert record["command"] == expected
    assert record["working_folder"] == str(here)
    assert record["threestudio"] == {"version": "0.2.3", "at": str(root)}
    assert record["remedies"] == []
    assert (trial / "cmd.txt").read_text().splitlines() == ["python launch.py", expected]


def test_a_later_stage_leaves_the_record_of_the_one_before_alone(root, here):
    """threestudio reads the earlier stage's config by the function that it reads its own by."""
    first = trained(launch(root), here)
    before = (first / "launch.json").read_text(), (first / "cmd.txt").read_text()
    words = ["tag=second", f"system.geometry_convert_from={first / 'ckpts' / 'last.ckpt'}"]
    result = launch(root, *words)
    second = trained(result, here, "second")
    assert result.output.splitlines()[-1] == f"trial: {second}"
    assert ((first / "launch.json").read_text(), (first / "cmd.txt").read_text()) == before
    assert "tag=second" in json.loads((second / "launch.json").read_text())["command"]
    assert "tag=second" in (second / "cmd.txt").read_text()


def test_overlays_become_one_file_that_says_what_it_is_made_of(root, here):
    over = here / "bent.yaml"
    over.write_text("system:\n  geometry_type: curve\n  geometry:\n    bend: 0.125\n")
    result = launch(root, "--config", over, "seed=${add:1,2}", mode="--train")
    trial = trained(result, here)
    assert Path(seen(trial)["argv"][2]).name == "toy+bent.yaml"
    text = (trial / "configs" / "raw.yaml").read_text()
    comments = [line for line in text.splitlines() if line.startswith("# ")]
    words = ("composed", here / "toy.yaml", over, "seed=${add:1,2} (command line)", "absolute")
    for word in words:
        assert any(str(word).lower() in line.lower() for line in comments), word
    raw, parsed = (OmegaConf.load(trial / "configs" / f"{n}.yaml") for n in ("raw", "parsed"))
    assert raw.system.geometry == {"bend": 0.125}, "the former geometry's keys are gone"
    assert OmegaConf.is_interpolation(raw, "seed")
    assert parsed.seed == 3
    assert not list(here.glob("*+*"))


def test_a_config_of_the_checkout_and_a_shipped_one_are_found(root, here):
    (here / "toy.yaml").unlink()
    trained(launch(root, config="configs/toy.yaml"), here)
    fails(launch(root, config="phantom/egg.yaml"), "phantom/eeg.yaml")


def test_paths_mean_what_they_mean_here(root, here):
    (here / "given.ckpt").write_text("")
    (root / "load").mkdir()
    (root / "load" / "theirs.ckpt").write_text("")
    for path, expected in (
        ("given.ckpt", here / "given.ckpt"),
        ("given.ckpt:geometry", f"{here / 'given.ckpt'}:geometry"),
        ("load/theirs.ckpt", "load/theirs.ckpt"),
        ("nowhere/no.ckpt", here / "nowhere" / "no.ckpt"),
    ):
        trial = trained(launch(root, f"system.weights={path}", "exp_root_dir=outputs"), here)
        parsed = OmegaConf.load(trial / "configs" / "parsed.yaml")
        assert parsed.system.weights == str(expected)
        assert parsed.exp_root_dir == str(here / "outputs")


def test_extensions_in_custom_still_load_and_ours_may_be_there_too(root, here):
    assert runner.invoke(app, ["link", str(root)]).exit_code == 0
    other = root / "custom" / "threestudio-other"
    other.mkdir()
    (other / "__init__.py").write_text(
        "import threestudio\nfrom threestudio.systems import Slope\n"
        "threestudio.register('other-geometry')(type('Other', (Slope,), {}))\n"
    )
    result = launch(root, "system.geometry_type=other-geometry")
    modules = seen(trained(result, here))["modules"]
    assert "other-geometry" in modules
    assert "eeg-prompt-processor" in modules
    assert "Traceback" not in result.output


def test_a_module_run_twice_registers_once(root, here):
    twin = root / "custom" / "twin.py"
    twin.write_text("import threestudio\n@threestudio.register('twin')\nclass Twin: pass\n" * 2)
    trained(launch(root), here)


def test_two_extensions_of_one_name(root, here):
    for name in ("threestudio-one", "threestudio-two"):
        (root / "custom" / name).mkdir()
        text = "import threestudio\n@threestudio.register('shared')\nclass Shared: pass\n"
        (root / "custom" / name / "__init__.py").write_text(text)
    words = ("shared", "threestudio-one.Shared", "threestudio-two.Shared", "_disabled")
    fails(launch(root), *words)
    assert not (here / "outputs").exists()
    (root / "custom" / "threestudio-two").rename(root / "custom" / "threestudio-two_disabled")
    trained(launch(root), here)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["system.geometry_type=slop"], ["system.geometry_type: found 'slop'", "slope"]),
        (
            ["system.geometry_type=gaussian-splatting"],
            [
                "nobody registered",
                "threestudio-3dgs",
                "https://github.com/DSaurus/threestudio-3dgs",
            ],
        ),
        (["system.guidance_type=mvdream-x"], ["threestudio-mvdream"]),
        (["system_type=prolificdreamer-system:no-mixin"], ["system_type", "'no-mixin'"]),
        (["system.geometry.bend=1"], ["geometry (slope)", "bend: found an unknown key", "start"]),
        (["system.geometri.start=1"], ["system", "geometri: found an unknown key", "geometry"]),
        (["data.lenght=2"], ["LinesConfig", "lenght: found an unknown key", "length"]),
        (["system.pause=soon"], ["pause", "soon"]),
        (["seeds=1"], ["seeds: found an unknown key", "seed"]),
        (["system.weights=???"], ["weights: found ???, expected a value"]),
        (["name=${nothing}"], ["nothing"]),
        (["seed"], ["key=value"]),
        (["resume=no.ckpt"], ["here/no.ckpt", "no such file"]),
        (["resume=LAST"], ["no checkpoint"]),
    ],
)
def test_bad_experiments_are_one_line(root, here, words, expected):
    fails(launch(root, *words), *expected)


def test_an_extension_that_is_there_but_broken_is_named(root, here):
    broken = root / "custom" / "threestudio-3dgs"
    broken.mkdir()
    (broken / "__init__.py").write_text("import no_such_package\n")
    line = fails(launch(root, "system.geometry_type=gaussian-splatting"), "import failed")
    assert str(broken) in line
    broken.rename(f"{broken}_disabled")
    fails(launch(root, "system.geometry_type=gaussian-splatting"), "it is disabled")


def test_a_broken_threestudio_is_one_line(root, here):
    (root / "threestudio" / "__init__.py").write_text("__version__ = '0.2.3'\nimport no_such\n")
    fails(launch(root), root, "ModuleNotFoundError", "doctor")


def test_one_threestudio_a_process(root, here, tmp_path):
    trained(launch(root), here)
    fails(launch(fake_threestudio(tmp_path / "second")), "one threestudio a process")
    result = runner.invoke(app, ["launch", "--host", "builtin", "--config", "toy.yaml", "--train"])
    fails(result, "upstream, in use")


def test_cuda_where_there_is_none(root, here, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    command = ["launch", "--threestudio", str(root), "--config", "toy.yaml", "--train"]
    fails(runner.invoke(app, [*command, "--device", "cuda"]), "no CUDA device")
    fails(runner.invoke(app, [*command, "--gpu", "0,1"]), "2 GPUs (0,1)", "torchrun")


def test_a_version_never_seen_is_a_warning(tmp_path, here):
    result = launch(fake_threestudio(tmp_path / "new", version="0.9.0"))
    trained(result, here)
    assert "warning: threestudio 0.9.0 at" in result.stderr
    assert "tested: 0.2.3" in result.stderr


def test_resuming_goes_on_in_the_trials_folder(root, here):
    trial = trained(launch(root), here)
    last = trial / "ckpts" / "last.ckpt"
    result = launch(root, "resume=outputs/toy/line/ckpts/last.ckpt", "name=other", mode="--export")
    assert trained(result, here) == trial
    assert (trial / "save" / "it3-export").is_file() or (trial / "save" / "it0-export").is_file()
    assert not (here / "outputs" / "other").exists()
    trained(launch(root, "resume=LAST", "trainer.max_steps=5"), here)
    assert torch.load(last, weights_only=True)["global_step"] == 5


def test_ctrl_c_keeps_a_checkpoint_and_says_how_to_go_on(root, here, monkeypatch):
    import pytorch_lightning as pl

    class Impatient(pl.Trainer):
        def __init__(self, *args, callbacks=(), **kwargs):
            press = pl.callbacks.LambdaCallback(
                on_train_batch_start=lambda *_: signal.raise_signal(signal.SIGINT)
            )
            super().__init__(*args, callbacks=[*callbacks, press], **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(pl, "Trainer", Impatient)
        result = launch(root, "trainer.max_steps=1000000")
    assert result.exit_code == 130
    trial = here / "outputs" / "toy" / "line"
    last = trial / "ckpts" / "last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == 1
    assert not list((trial).glob("save/*test*")), "no film of an interrupted run"
    (line,) = [text for text in result.output.splitlines() if "to go on: " in text]
    advice = shlex.split(line.partition("to go on: ")[2])
    assert advice[:4] == ["threestudio-eeg", "launch", "--host", "upstream"]
    further = runner.invoke(app, [*advice[1:], "trainer.max_steps=3"])
    assert trained(further, here) == trial
    assert torch.load(last, weights_only=True)["global_step"] == 3
    assert not list(last.parent.glob("last-*"))


def test_a_crash_leaves_a_checkpoint(root, here, monkeypatch):
    import pytorch_lightning as pl

    from threestudio_eeg.launching import resuming

    class Crashing(pl.Trainer):
        def __init__(self, *args, callbacks=(), **kwargs):
            def crash(trainer, *_):
                if trainer.global_step == 2:
                    raise RuntimeError("out of memory")

            bang = pl.callbacks.LambdaCallback(on_train_batch_start=crash)
            super().__init__(*args, callbacks=[*callbacks, bang], **kwargs)

    monkeypatch.setattr(pl, "Trainer", Crashing)
    often = functools.partial(resuming.callback, every_s=0.0)
    monkeypatch.setattr(resuming, "callback", often)
    result = launch(root)
    assert isinstance(result.exception, RuntimeError)
    assert "the last checkpoint is of step 2; to go on: threestudio-eeg launch" in result.output
    path = here / "outputs" / "toy" / "line" / "ckpts" / "last.ckpt"
    assert torch.load(path, weights_only=True)["global_step"] == 2


@pytest.fixture
def package(tmp_path):
    return fake_threestudio(tmp_path / "site", package_only=True)


def test_the_package_alone_trains_resumes_tests_and_exports(package, here):
    custom = here / "custom" / "threestudio-mine"
    custom.mkdir(parents=True)
    (custom / "__init__.py").write_text(
        "import threestudio\nfrom threestudio.systems import Slope\n"
        "threestudio.register('mine')(type('Mine', (Slope,), {}))\n"
    )
    (here / "custom" / "broken.py").write_text("import no_such_package\n")
    result = launch(package, "system.geometry_type=mine")
    trial = trained(result, here)
    assert "(package only)" in result.output
    assert "broken.py could not be imported: ModuleNotFoundError" in result.stderr
    assert (trial / "save" / "it3-test").is_file()
    assert (trial / "csv_logs" / "version_0").is_dir()
    assert (trial / "tb_logs" / "version_0").is_dir()
    assert "Composed by" in (trial / "configs" / "raw.yaml").read_text()
    assert "threestudio-eeg launch" in (trial / "cmd.txt").read_text()
    last = trial / "ckpts" / "last.ckpt"
    for mode, file in (("--validate", "val"), ("--test", "test"), ("--export", "export")):
        result = launch(package, f"resume={last}", mode=mode, config=trial / "configs/parsed.yaml")
        assert trained(result, here) == trial
        assert (trial / "save" / f"it3-{file}").is_file()
    again = launch(package, f"resume={last}", "trainer.max_steps=5", "system.geometry_type=mine")
    assert trained(again, here) == trial
    assert (trial / "save" / "it5-test").is_file()


def test_both_ways_train_the_same_weights(package, root, here):
    """Ours does what the script does: same seed, same data, same steps."""
    whole = trained(launch(root, "tag=script", "seed=7"), here, "script")
    (root / "launch.py").unlink()
    part = trained(launch(root, "tag=package", "seed=7"), here, "package")
    files = [trial / "ckpts" / "last.ckpt" for trial in (whole, part)]
    one, other = (torch.load(f, weights_only=True)["state_dict"]["weight"] for f in files)
    assert one.abs().sum() > 0
    assert torch.equal(one, other)


def test_a_checkpoint_that_is_none_is_one_line(package, here):
    (here / "bad.ckpt").write_text("nothing")
    fails(launch(package, "resume=bad.ckpt", mode="--test"), "bad.ckpt", "checkpoint")
