"""Launching on the embedded host: the same checks, before anything is made."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf
from typer.testing import CliRunner

from threestudio_eeg import host
from threestudio_eeg.builtin.config import compose
from threestudio_eeg.cli import app
from threestudio_eeg.launching.overlays import experiment_for, write_experiment

runner = CliRunner()


@pytest.fixture(autouse=True)
def embedded(monkeypatch):
    monkeypatch.setenv(host.VARIABLE, "builtin")


def launch(tmp_path, *words):
    command = ["launch", "--config", "phantom/text.yaml", "--train", "--device", "cpu"]
    return runner.invoke(app, [*command, f"exp_root_dir={tmp_path / 'out'}", *words])


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("system.geometry.radios=1", ["geometry (implicit-volume)", "radios", "radius"]),
        ("system.geometry_type=gaussian-splatting-io", ["threestudio-3dgs", "--host upstream"]),
        ("system.renderer_type=nerf-volume-render", ["nobody registered", "nerf-volume-renderer"]),
        ("system.renderer_type=patch-renderer", ["'patch-renderer', which nobody"]),
        ("data.heigth=8", ["data (random-camera-datamodule)", "heigth", "height"]),
        ("system.geometry.weights=???", ["weights: found ???, expected a value"]),
        ("system.geometry=${nothing}", ["nothing"]),
    ],
)
def test_bad_experiments_are_one_line_and_leave_nothing(tmp_path, word, expected):
    result = launch(tmp_path, word)
    assert result.exit_code == 2, result.output
    assert result.stdout == "host: builtin\n"
    (line,) = result.stderr.splitlines()
    for part in expected:
        assert part in line
    assert not (tmp_path / "out").exists()


def test_both_hosts_lay_overlays_on_each_other_alike(tmp_path):
    lower, upper = tmp_path / "a.yaml", tmp_path / "b.yaml"
    lower.write_text(
        "name: x\ntag: ${system.geometry_type}\nexp_root_dir: out\nsystem_type: s\nsystem:\n"
        "  geometry_type: implicit-volume\n  geometry: {density_bias: blob, radius: 2.0}\n"
    )
    upper.write_text("system:\n  geometry_type: implicit-sdf\n  geometry: {sdf_bias: sphere}\n")
    words = ["system.geometry.radius=${add:1,2}"]
    ours = compose(lower, upper, cli_args=words)
    theirs = experiment_for(tmp_path / "root", tmp_path, [lower, upper], words)
    assert theirs.pop("exp_root_dir") == str(tmp_path / "out")
    assert ours.pop("exp_root_dir") == "out"
    assert OmegaConf.to_yaml(ours) == OmegaConf.to_yaml(theirs)
    assert "density_bias" not in theirs.system.geometry
    file = write_experiment(tmp_path, theirs, [lower, upper], words, "a command")
    assert file.name == "a+b.yaml"
    assert OmegaConf.to_yaml(OmegaConf.load(file)) == OmegaConf.to_yaml(theirs)


def test_threestudios_resolvers_are_not_taken_before_it_registers_them(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("seed: ${add:1,2}\n")
    experiment_for(tmp_path, tmp_path, [file], [])
    assert not OmegaConf.has_resolver("add")


@pytest.mark.parametrize("mode", ["--train", "--export"])
def test_the_host_line_is_printed_and_a_path_contradicts_it(tmp_path, mode):
    command = ["launch", "--host", "builtin", "--threestudio", str(tmp_path), mode]
    result = runner.invoke(app, [*command, "--config", "phantom/text.yaml"])
    assert result.exit_code == 2
    assert "nothing beside --host builtin" in result.stderr
