from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from eeg_encoder.errors import InputError
from threestudio_eeg import host

FAKE = {
    "__init__.py": "def register(name): return lambda cls: cls\nfind = dict.get\n",
    "utils/__init__.py": "",
    "utils/base.py": "class BaseModule: pass\nclass BaseObject: pass\n",
}


@pytest.fixture
def fresh_choice():
    host.choose.cache_clear()
    yield
    host.choose.cache_clear()


@pytest.mark.usefixtures("fresh_choice")
def test_builtin_by_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    from threestudio_eeg.builtin import base, registry

    monkeypatch.setenv(host.VARIABLE, "builtin")
    assert host.name == "builtin"
    assert host.register is registry.register
    assert host.BaseModule is base.BaseModule


@pytest.mark.usefixtures("fresh_choice")
def test_unknown_host_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(host.VARIABLE, "dreamstudio")
    with pytest.raises(InputError, match="THREESTUDIO_EEG_HOST: found dreamstudio"):
        host.choose()


@pytest.mark.usefixtures("fresh_choice")
def test_missing_upstream_is_an_error_only_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "threestudio", None)
    monkeypatch.setattr(host, "_installed", lambda: True)
    monkeypatch.setenv(host.VARIABLE, "upstream")
    with pytest.raises(InputError, match="expected a threestudio to import"):
        host.choose()
    monkeypatch.delenv(host.VARIABLE)
    with pytest.warns(UserWarning, match="using the embedded host"):
        assert host.choose() == "builtin"


@pytest.mark.parametrize(("variable", "expected"), [("", "upstream"), ("builtin", "builtin")])
def test_an_importable_threestudio_is_the_default(
    tmp_path: Path, variable: str, expected: str
) -> None:
    for name, text in FAKE.items():
        (tmp_path / "threestudio" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "threestudio" / name).write_text(text)
    script = "from threestudio_eeg import host; print(host.name, host.BaseModule.__module__)"
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={"PYTHONPATH": f"{root}:{tmp_path}", host.VARIABLE: variable, "PATH": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    modules = {"upstream": "threestudio.utils.base", "builtin": "threestudio_eeg.builtin.base"}
    assert done.stdout.split() == [expected, modules[expected]]


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        host.no_such_name  # noqa: B018
