"""doctor: what is there, what would be used, what is missing."""

from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

from threestudio_eeg import compat, host
from threestudio_eeg.cli import app
from threestudio_eeg.compat import Remedy
from threestudio_eeg.launching import checkout, doctor

from .fake_threestudio import fake_threestudio

runner = CliRunner()


def needed(name, why):
    return Remedy(name, f"stands in for {name}", lambda device: why(device), lambda _: None, "hint")


REMEDIES = (
    needed("always", lambda device: "always so"),
    needed("on-cpu", lambda device: "no GPU" if device == "cpu" else None),
    needed("never", lambda device: None),
)


@pytest.fixture(autouse=True)
def known_machine(monkeypatch):
    monkeypatch.delenv(host.VARIABLE, raising=False)
    monkeypatch.delenv(checkout.VARIABLE, raising=False)
    monkeypatch.setattr(checkout, "_installed", lambda: None)
    monkeypatch.setattr(compat, "REMEDIES", REMEDIES)
    monkeypatch.setattr(compat, "missing_requirements", list)
    versions = {name: doctor.version(name) for name in doctor.PACKAGES}
    monkeypatch.setattr(doctor, "version", {**versions, "nerfacc": "0.5.3"}.get)


@pytest.fixture
def root(tmp_path):
    return fake_threestudio(tmp_path / "threestudio-main")


def run(*words):
    return runner.invoke(app, ["doctor", *map(str, words), "--device", "cpu"])


def test_the_embedded_host_needs_nothing_of_upstream(monkeypatch):
    monkeypatch.setattr(compat, "missing_requirements", lambda: ["jaxtyping"])
    result = run()
    assert result.exit_code == 0, result.output
    assert "host: builtin (no threestudio is installed, and no path was given)" in result.output
    assert f"torch              {torch.__version__}" in result.output
    assert "remedies" not in result.output
    assert "jaxtyping" not in result.output
    assert "not there, and not needed: tinycudann; get it: https://" in result.output


def test_upstream_is_described_without_being_imported(root):
    (root / "threestudio" / "__init__.py").write_text("__version__ = '0.2.3'\n1 / 0\n")
    (root / "custom" / "threestudio-mvdream").mkdir()
    result = run("--threestudio", root)
    assert result.exit_code == 0, result.output
    assert "host: upstream (--threestudio)" in result.output
    assert "extensions: threestudio-mvdream" in result.output
    assert "linked: no" in result.output
    runner.invoke(app, ["link", str(root)])
    assert "linked: yes" in run("--threestudio", root).output


def test_json_says_the_same(root, monkeypatch):
    monkeypatch.setenv(checkout.VARIABLE, str(root))
    report = json.loads(run("--json").output)
    assert report["healthy"] is True
    assert (report["host"], report["why"]) == ("upstream", checkout.VARIABLE)
    assert report["threestudio"]["version"] == "0.2.3"
    assert report["machine"]["python"].startswith("3.")
    assert {p["name"]: p["version"] for p in report["packages"]}["torch"] == torch.__version__
    assert report["remedies"] == [
        {"name": n, "why": why, "stands_in_for": f"stands in for {n}", "hint": "hint"}
        for n, why in (("always", "always so"), ("on-cpu", "no GPU"))
    ]


def test_something_needed_is_missing(root, monkeypatch):
    monkeypatch.setattr(compat, "missing_requirements", lambda: ["jaxtyping"])
    monkeypatch.setattr(doctor, "version", lambda name: None if name == "nerfacc" else "1")
    result = run("--threestudio", root)
    assert result.exit_code == 1
    assert "missing: nerfacc; get it: pip install nerfacc" in result.output
    assert "missing: jaxtyping; get it: pip install jaxtyping" in result.output


def test_a_version_never_seen_is_said(tmp_path):
    result = run("--threestudio", fake_threestudio(tmp_path, version="0.4.0"))
    assert "warning: threestudio 0.4.0 at" in result.output


@pytest.mark.parametrize("words", [["--threestudio", "nowhere"], ["--host", "x"]])
def test_bad_input_is_one_line(words):
    result = run(*words)
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1


def test_cuda_where_there_is_none(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    result = runner.invoke(app, ["doctor", "--device", "cuda"])
    assert result.exit_code == 2
    assert "no CUDA device" in result.stderr


def test_a_gpu_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "A Graphics Card")
    diagnosis = doctor.examine(device="auto")
    assert diagnosis.device == "cuda"
    assert diagnosis.machine["GPU"] == "A Graphics Card"
