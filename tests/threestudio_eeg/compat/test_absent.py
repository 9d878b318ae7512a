import sys

import pytest

from eeg_encoder.errors import InputError
from threestudio_eeg.compat import patching
from threestudio_eeg.compat.absent import missing, why_absent


def test_a_module_that_imports_is_there():
    assert why_absent("json.decoder") is None


def test_a_package_that_is_not_installed():
    assert why_absent("no_such_package_x.part") == "no_such_package_x is not installed"


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("raise OSError('no GPU\\nand more')", "(OSError: no GPU)"),
        ("import no_such_package_x", "(ModuleNotFoundError: No module named 'no_such_package_x')"),
    ],
)
def test_a_package_that_breaks_says_how_and_leaves_nothing(tmp_path, monkeypatch, line, found):
    package = tmp_path / "broken_package_x"
    package.mkdir()
    (package / "part.py").write_text("")
    (package / "__init__.py").write_text(f"from . import part\n{line}\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert why_absent("broken_package_x") == f"broken_package_x cannot be imported {found}"
    assert not [name for name in sys.modules if name.startswith("broken_package_x")]


def test_a_module_of_ours_counts_as_absent():
    patching.add_module("no_such_package_x", patching.new_module("no_such_package_x"))
    assert why_absent("no_such_package_x") == "no_such_package_x is not usable here"


def test_a_missing_class_can_be_named_and_not_used():
    cls = missing("pkg", "Thing", "pip install pkg")
    assert isinstance(cls, type)
    assert not hasattr(cls, "__wrapped__")
    for use in (lambda: cls(1), lambda: cls.from_pretrained("x")):
        with pytest.raises(InputError, match=r"pkg: Thing: .* pip install pkg"):
            use()
