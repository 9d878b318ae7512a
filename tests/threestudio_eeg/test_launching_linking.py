"""link and unlink: one file, ours or nothing."""

from __future__ import annotations

import ast

import pytest
from typer.testing import CliRunner

from eeg_encoder.errors import InputError
from threestudio_eeg.cli import app
from threestudio_eeg.launching.checkout import threestudio_at
from threestudio_eeg.launching.linking import FOLDER, MARKER, is_linked, link, shim_of, unlink

from .fake_threestudio import fake_threestudio


@pytest.fixture
def threestudio(tmp_path):
    return threestudio_at(fake_threestudio(tmp_path / "threestudio"))


def test_link_writes_one_file_and_unlink_removes_it(threestudio):
    before = sorted(threestudio.root.rglob("*"))
    shim = shim_of(threestudio)
    assert link(threestudio) == f"linked: {shim}"
    assert link(threestudio) == f"linked already: {shim}"
    assert is_linked(threestudio)
    text = shim.read_text()
    assert text.startswith(MARKER)
    (statement,) = ast.parse(text).body
    assert ast.unparse(statement) == "import threestudio_eeg.plugin"
    assert set(threestudio.root.rglob("*")) - set(before) == {shim, shim.parent}
    (shim.parent / "__pycache__").mkdir()
    assert unlink(threestudio) == f"unlinked: {shim}"
    assert unlink(threestudio).startswith("not linked")
    assert sorted(threestudio.root.rglob("*")) == before


def test_the_folder_does_not_hide_the_package():
    assert FOLDER != "threestudio_eeg"
    assert not FOLDER.isidentifier()


def test_custom_is_made_where_it_is_missing(threestudio):
    (threestudio.extensions / "put_custom_extensions_here").unlink()
    threestudio.extensions.rmdir()
    link(threestudio)
    assert is_linked(threestudio)


def test_an_older_file_of_ours_is_brought_up_to_date(threestudio):
    link(threestudio)
    shim = shim_of(threestudio)
    shim.write_text(f"{MARKER}\nimport threestudio_eeg\n")
    assert link(threestudio).startswith("linked: ")
    assert "plugin" in shim.read_text()


def test_what_is_not_ours_stays(threestudio):
    shim = shim_of(threestudio)
    shim.parent.mkdir()
    for name, text in (("__init__.py", "import theirs\n"), ("other.py", "x = 1\n")):
        file = shim.parent / name
        file.write_text(text)
        for act in (link, unlink):
            with pytest.raises(InputError, match="expected nothing there"):
                act(threestudio)
        assert file.read_text() == text
        file.unlink()


def test_a_link_to_a_folder_elsewhere_is_not_written_through(threestudio, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shim_of(threestudio).parent.symlink_to(elsewhere)
    for act in (link, unlink):
        with pytest.raises(InputError, match="not a folder of ours"):
            act(threestudio)
    assert not list(elsewhere.iterdir())


def test_files_beside_ours_stay(threestudio):
    link(threestudio)
    note = shim_of(threestudio).parent / "note.txt"
    note.write_text("mine")
    assert "its folder stays, with note.txt" in unlink(threestudio)
    assert note.read_text() == "mine"


def test_nothing_loads_a_link_beside_the_package_alone(tmp_path):
    alone = threestudio_at(fake_threestudio(tmp_path / "site", package_only=True))
    with pytest.raises(InputError, match="launch.py: found no such file"):
        link(alone)
    assert not alone.extensions.exists()


@pytest.mark.parametrize("command", ["link", "unlink"])
def test_the_commands_say_what_they_did(threestudio, tmp_path, command):
    runner = CliRunner()
    result = runner.invoke(app, [command, str(threestudio.root)])
    assert result.exit_code == 0
    assert "linked" in result.output
    missing = runner.invoke(app, [command, str(tmp_path / "no")])
    assert missing.exit_code == 2
    assert missing.stderr.startswith("error: ")
    assert len(missing.stderr.splitlines()) == 1
    assert "Example: threestudio-eeg" in runner.invoke(app, [command, "--help"]).output
