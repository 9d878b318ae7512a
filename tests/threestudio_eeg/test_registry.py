import subprocess
import sys

import pytest

from eeg_encoder.errors import InputError
from threestudio_eeg.builtin import registry
from threestudio_eeg.builtin.registry import find, name_of, register


@pytest.fixture(autouse=True)
def empty_registry(monkeypatch):
    monkeypatch.setattr(registry, "_classes", {})
    monkeypatch.setattr(registry, "MODULES", ())


def test_find_returns_what_was_registered():
    cls = register("apple")(type("Apple", (), {}))
    assert find("apple") is cls
    assert name_of(cls) == "apple"


def test_a_name_is_given_once():
    register("apple")(type("Apple", (), {}))
    with pytest.raises(ValueError, match="apple is already registered"):
        register("apple")(type("Other", (), {}))


def test_mixins_override_the_main_class():
    main = register("main")(type("Main", (), {"colour": "red", "shape": "round"}))
    sub1 = register("sub1")(type("Sub1", (), {"colour": "green"}))
    sub2 = register("sub2")(type("Sub2", (), {"colour": "blue"}))
    mixed = find("main:sub1,sub2")
    assert mixed.__mro__[1:4] == (sub1, sub2, main)
    assert (mixed.colour, mixed.shape) == ("green", "round")
    assert name_of(mixed) == "sub1"


def test_an_unknown_name_is_answered_with_close_ones():
    register("implicit-volume")(type("A", (), {}))
    with pytest.raises(InputError, match="'implicit-volum', expected implicit-volume"):
        find("implicit-volum")
    with pytest.raises(InputError, match="'nothing-like-it'"):
        find("implicit-volume:nothing-like-it")


def test_importing_the_package_registers_nothing():
    code = (
        "import threestudio_eeg.builtin, threestudio_eeg.builtin.registry as r, sys;"
        "assert not r._classes and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
