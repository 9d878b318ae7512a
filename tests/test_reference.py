from __future__ import annotations

import inspect
import runpy
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "docs" / "build_reference.py"


@pytest.fixture(scope="module")
def script() -> dict:
    return runpy.run_path(str(SCRIPT))


def test_every_public_name_is_covered(script: dict) -> None:
    from eeg_encoder import conditioning, files
    from threestudio_eeg.evaluation import views
    from threestudio_eeg.report import page

    pages = "\n".join(script["build"]().values())
    for module in (conditioning, files, views, page):
        assert f"## `{module.__name__}`" in pages
        for name, value in vars(module).items():
            own = getattr(value, "__module__", None) == module.__name__
            if own and not name.startswith("_") and (inspect.isclass(value) or callable(value)):
                kind = "class " if inspect.isclass(value) else ""
                assert f"### `{kind}{name}" in pages, (module.__name__, name)
    assert "_asset" not in pages


def test_pages_are_written_and_then_up_to_date(script: dict, tmp_path, capsys) -> None:
    (tmp_path / "gone.md").write_text("old")
    assert script["main"](tmp_path, check=True) == 1
    assert "gone.md" in capsys.readouterr().out
    assert script["main"](tmp_path) == 0
    assert not (tmp_path / "gone.md").exists()
    assert script["main"](tmp_path, check=True) == 0
    listed = (tmp_path / "README.md").read_text()
    for file in tmp_path.glob("*.*.md"):
        assert f"({file.name})" in listed
