"""Every command of docs/honest-evaluation.md runs as it stands, one after the other."""

from __future__ import annotations

import json
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import eeg_encoder.cli
import threestudio_eeg
import threestudio_eeg.cli

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "honest-evaluation.md"
APPS = {"eeg-encoder": eeg_encoder.cli.app, "threestudio-eeg": threestudio_eeg.cli.app}
PRIOR = str(Path(threestudio_eeg.__path__[0]) / "phantom" / "prior")


def commands() -> list[str]:
    """Lines of the page's blocks, continued ones joined."""
    blocks = re.findall(r"```bash\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    return [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]


def run(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run one command in this process."""
    name, *words = shlex.split(line.replace("$PRIOR", PRIOR))
    if name == "python":
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", [str(ROOT / words[0]), *words[1:]])
            patch.setattr(sys, "path", [*sys.path])
            runpy.run_path(str(ROOT / words[0]), run_name="__main__")
        return
    result = CliRunner().invoke(APPS[name], words)
    assert result.exit_code == 0, f"{line}\n{result.output}"


def test_the_commands_of_the_tutorial_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    lines = [line for line in commands() if not line.startswith("PRIOR=")]
    assert len(lines) == 7
    for line in lines:
        run(line, monkeypatch)
    assert (tmp_path / "overview" / "overview.png").is_file()
    table = json.loads((tmp_path / "table.json").read_text())
    assert [row["subject"] for row in table["rows"]] == [1, 2, "all"]
    assert table["provenance"]["seeds"] == [0, 1]
    drift = json.loads((tmp_path / "drift.json").read_text())
    assert drift["provenance"]["protocol"]["control"]["name"] == "drift"
    drawn = {file.stem for file in (tmp_path / "plots").iterdir()}
    assert drawn >= {"over_time", "saliency", "similarity"}


def test_the_page_names_every_protocol_and_control():
    from eeg_encoder.protocols import CONTROLS, PROTOCOLS

    page = PAGE.read_text(encoding="utf-8")
    for name in {*CONTROLS, *PROTOCOLS} - {"naive"}:
        assert f"`{name}`" in page, name
