"""The commands of docs/inside-threestudio.md: they exist, and inside threestudio they run."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from tests.tiny import tiny_conditioning, tiny_pipeline
from threestudio_eeg import compat
from threestudio_eeg.builtin.config import compose
from threestudio_eeg.builtin.registry import find, load_builtin
from threestudio_eeg.cli import app
from threestudio_eeg.experiments import experiment_config
from threestudio_eeg.launching.checkout import VARIABLE
from threestudio_eeg.launching.checks import Registry, check_experiment

REPOSITORY = Path(__file__).parents[2]
PAGE = (REPOSITORY / "docs" / "inside-threestudio.md").read_text(encoding="utf-8")
SMALL = shlex.split("""
    trainer.max_steps=2 trainer.val_check_interval=1 trainer.enable_progress_bar=false
    data.width=16 data.height=16 data.batch_size=1 data.resolution_milestones=[]
    data.eval_width=16 data.eval_height=16 data.n_val_views=1 data.n_test_views=4
    system.renderer.num_samples_per_ray=16 use_timestamp=false
    system.geometry.pos_encoding_config.log2_hashmap_size=12
""")
SMALL_DEMO = shlex.split("""
    --steps 6 --device cpu data.width=16 data.height=16 data.eval_width=16
    data.eval_height=16 data.n_test_views=4 data.batch_size=1
    system.geometry.isosurface_threshold=1.0
""")


def commands() -> list[list[str]]:
    """Command lines of the page's blocks that call ``threestudio-eeg``, in order."""
    blocks = re.findall(r"^```\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [words for words in map(shlex.split, lines) if "threestudio-eeg" in words]


def ours(words: list[str]) -> tuple[dict[str, str], list[str]]:
    """Split a command line into its environment and the arguments of ``threestudio-eeg``."""
    at = words.index("threestudio-eeg")
    return dict(word.split("=", 1) for word in words[:at]), words[at + 1 :]


COMMANDS = [ours(words) for words in commands()]

OTHERS = {"RUN/configs/parsed.yaml", "EXPERIMENT.yaml", "configs/prolificdreamer.yaml"}
"""The user's, and threestudio's."""
NAMED = sorted(set(re.findall(r"[\w/-]*\w\.yaml", PAGE)) - OTHERS)


def test_the_page_has_commands():
    kinds = {words[0] for _, words in COMMANDS}
    assert kinds == {"doctor", "launch", "demo", "link", "unlink"}


@pytest.mark.parametrize("name", NAMED)
def test_files_that_are_named_are_there(name):
    assert experiment_config(name).is_file()


@pytest.mark.parametrize(
    "words", [words for _, words in COMMANDS if words[0] == "launch"], ids=" ".join
)
def test_experiments_are_accepted(words, monkeypatch):
    from threestudio_eeg.launching import choice, command

    given = {}

    def launch_on(chosen, mode, configs, overrides, **options):
        given.update(mode=mode, configs=configs, overrides=overrides)

    upstream = SimpleNamespace(threestudio="a checkout")
    monkeypatch.setattr(choice, "choose_host", lambda asked, path: upstream)
    monkeypatch.setattr(command, "launch_on", launch_on)
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    if any("RUN" in str(config) for config in given["configs"]):
        return
    files = [experiment_config(name) for name in given["configs"]]
    config = compose(*files, cli_args=given["overrides"])
    check_experiment("page", config, Registry(load_builtin(), find))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Where a reader is: an own folder with a checkout, a pipeline and a conditioning file."""
    root = os.environ.get(VARIABLE)
    if not root or compat.missing_requirements():
        pytest.skip("needs THREESTUDIO_ROOT and threestudio-eeg[upstream]")
    folder = tmp_path_factory.mktemp("page")
    checkout = folder / "THREESTUDIO"
    (checkout / "custom").mkdir(parents=True)
    for name in ("threestudio", "extern", "configs", "load"):
        (checkout / name).symlink_to(Path(root) / name)
    shutil.copy(Path(root) / "launch.py", checkout)
    tiny_conditioning(folder / "test.safetensors", tiny_pipeline(folder / "PIPELINE"))
    return folder


@pytest.mark.upstream
def test_every_command_runs_in_order(place):
    packages = [str(REPOSITORY), os.environ.get("PYTHONPATH", "")]
    trials: list[str] = []
    for variables, words in COMMANDS:
        command = [word.replace("RUN/", f"{trials[0]}/") if trials else word for word in words]
        if words[0] in ("launch", "doctor"):
            command += ["--device", "cpu"]
        if "--train" in words:
            resumes = any(word.startswith("resume=") for word in words)
            command += ["trainer.max_steps=3"] if resumes else SMALL
        if words[0] == "demo":
            command += SMALL_DEMO
        if "--export" in words:
            command += ["system.geometry.isosurface_resolution=16"]
        done = subprocess.run(
            [sys.executable, "-m", "threestudio_eeg.cli", *command],
            cwd=place,
            env={**os.environ, **variables, "PYTHONPATH": os.pathsep.join(packages)},
            capture_output=True,
            text=True,
            timeout=900,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}{done.stderr[-3000:]}"
        if words[0] == "launch":
            trials.append(done.stdout.rpartition("trial: ")[2].strip())
    first = Path(trials[0])
    assert (first / "conditioning.json").is_file()
    assert (first / "launch.json").is_file()
    assert list(first.glob("save/*-export/model.obj"))
    assert not (place / "THREESTUDIO" / "custom" / "threestudio-eeg").exists()
