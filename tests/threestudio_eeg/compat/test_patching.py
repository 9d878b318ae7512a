import importlib
import importlib.util
import sys
import warnings
from types import SimpleNamespace

import pytest

from threestudio_eeg.compat import patching


def test_attributes_come_back_in_reverse_order():
    owner = SimpleNamespace(kept=1)
    patching.set_attribute(owner, "kept", 2)
    patching.set_attribute(owner, "kept", 3)
    patching.set_attribute(owner, "new", 4)
    assert vars(owner) == {"kept": 3, "new": 4}
    patching.undo_all()
    assert vars(owner) == {"kept": 1}


def test_an_inherited_attribute_is_not_left_on_the_subclass():
    class Base:
        value = 1

    class Child(Base):
        pass

    patching.set_attribute(Child, "value", 2)
    patching.undo_all()
    assert "value" not in vars(Child)


def test_a_module_is_added_and_taken_away():
    patching.add_module("no_such_a", patching.new_module("no_such_a"))
    patching.add_module("no_such_a.b", patching.new_module("no_such_a.b", x=1))
    module = importlib.import_module("no_such_a.b")
    assert module.x == 1
    assert sys.modules["no_such_a"].b is module
    assert importlib.util.find_spec("no_such_a") is not None
    assert patching.is_stand_in("no_such_a.b")
    patching.undo_all()
    assert not {"no_such_a", "no_such_a.b"} & set(sys.modules)
    assert not patching.is_stand_in("no_such_a.b")


def test_a_name_is_replaced_where_it_is_the_same_object(fake):
    old, other = object(), object()
    inside, outside = fake("pkg_x", f=old), fake("pkg_xy", f=old)
    child, different = fake("pkg_x.child", f=old), fake("pkg_x.different", f=other)
    assert patching.replace_in_modules("pkg_x", "f", old, 1) == ["pkg_x", "pkg_x.child"]
    assert (inside.f, child.f, different.f, outside.f) == (1, 1, other, old)
    patching.undo_all()
    assert (inside.f, child.f) == (old, old)


def test_warning_filters_come_back():
    before = warnings.filters[:]
    patching.ignore_warning("x", UserWarning, "y")
    assert warnings.filters != before
    patching.undo_all()
    assert warnings.filters == before


def test_a_change_of_another_kind_is_undone():
    steps = []
    patching.on_undo(lambda: steps.append(1))
    patching.undo_all()
    patching.undo_all()
    assert steps == [1]


@pytest.mark.parametrize("name", ["json", "os.path"])
def test_a_replaced_module_comes_back(name):
    before = sys.modules[name]
    patching.add_module(name, patching.new_module(name))
    assert sys.modules[name] is not before
    patching.undo_all()
    assert sys.modules[name] is before
