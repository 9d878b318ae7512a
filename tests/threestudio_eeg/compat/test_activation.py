"""Which remedies are applied, when, and what is wrong input."""

import importlib
import subprocess
import sys

import pytest

from eeg_encoder.errors import InputError
from threestudio_eeg import compat
from threestudio_eeg.compat import activation, requirements
from threestudio_eeg.compat.remedy import Remedy

UNTOUCHED = """
import sys, warnings
import torch
context, filters = torch.cuda.device, warnings.filters[:]
allowed = set(torch.serialization.get_safe_globals())
import threestudio_eeg, threestudio_eeg.compat
heavy = {"diffusers", "transformers", "pytorch_lightning", "lightning", "nerfacc", "matplotlib"}
heavy |= {"tinycudann", "nvdiffrast", "torchvision", "wandb", "threestudio"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
assert torch.cuda.device is context
assert set(torch.serialization.get_safe_globals()) == allowed
assert warnings.filters == filters
assert not threestudio_eeg.compat.active()
"""


@pytest.fixture
def toy(monkeypatch, fake):
    """Three remedies that write down when they are applied; every requirement met."""
    log = []

    def remedy(name, reason, after=False):
        return Remedy(
            name=name,
            stands_in_for="Nothing.",
            reason=lambda device: reason,
            apply=lambda device: log.append((name, device)),
            hint="",
            after_import=after,
        )

    monkeypatch.setattr(
        activation,
        "REMEDIES",
        (remedy("one", "absent"), remedy("works", None), remedy("late", "absent", after=True)),
    )
    monkeypatch.setattr(requirements, "missing_requirements", list)
    monkeypatch.delitem(sys.modules, "threestudio", raising=False)
    return log


def test_importing_changes_nothing():
    subprocess.run([sys.executable, "-c", UNTOUCHED], check=True)


def test_only_what_is_needed_is_applied_and_once(toy, fake):
    (first,) = compat.activate("cpu")
    assert (first.name, first.reason) == ("one", "absent")
    assert compat.activate("cpu") == [first]
    fake("threestudio")
    (late,) = compat.after_import()
    assert compat.after_import() == [late]
    assert toy == [("one", "cpu"), ("late", "cpu")]
    assert compat.active() == [first, late]


def test_deactivated_it_can_be_activated_for_another_device(toy):
    compat.activate("cpu")
    with pytest.raises(InputError, match="device: found cuda, expected cpu"):
        compat.activate("cuda")
    compat.deactivate()
    assert compat.active() == []
    compat.activate("cuda")
    assert toy == [("one", "cpu"), ("one", "cuda")]


def test_a_checkout_comes_first_on_the_path(toy, tmp_path):
    (tmp_path / "threestudio").mkdir()
    (tmp_path / "threestudio" / "__init__.py").write_text("here = 1")
    before = list(sys.path)
    compat.activate("cpu", threestudio=tmp_path)
    assert sys.path == [str(tmp_path.resolve()), *before]
    compat.deactivate()
    assert sys.path == before


def test_a_path_that_is_no_threestudio(toy, tmp_path):
    with pytest.raises(InputError, match="expected a checkout of threestudio"):
        compat.activate("cpu", threestudio=tmp_path)
    assert not toy


def test_an_unknown_device(toy):
    with pytest.raises(InputError, match="device: found mps, expected cpu or cuda"):
        compat.activate("mps")


def test_threestudio_imported_before(toy, fake):
    fake("threestudio")
    with pytest.raises(InputError, match="threestudio imported before"):
        compat.activate("cpu")


def test_required_packages_are_named(toy, monkeypatch):
    monkeypatch.setattr(requirements, "missing_requirements", lambda: ["nerfacc", "einops"])
    with pytest.raises(InputError, match=r"no nerfacc, einops, .*threestudio-eeg\[upstream\]"):
        compat.activate("cpu")


def test_after_import_needs_both(toy):
    with pytest.raises(InputError, match="no activate"):
        compat.after_import()
    compat.activate("cpu")
    with pytest.raises(InputError, match="no threestudio"):
        compat.after_import()


@pytest.mark.parametrize("error", [ImportError("no threestudio.utils.x"), AttributeError("y")])
def test_a_version_never_seen(toy, fake, monkeypatch, error):
    def apply(device):
        raise error

    late = Remedy("late", "Nothing.", lambda device: "needed", apply, "", after_import=True)
    monkeypatch.setattr(activation, "REMEDIES", (late,))
    compat.activate("cpu")
    fake("threestudio", __version__="0.9.0")
    with pytest.raises(InputError, match=r"threestudio: version: found 0\.9\.0 .*expected 0\.2\.3"):
        compat.after_import()


def test_which_packages_are_required(monkeypatch):
    there = {"cv2", "einops"}
    find = importlib.util.find_spec
    monkeypatch.setattr(
        requirements.importlib.util,
        "find_spec",
        lambda name: find("json") if name in there else None,
    )
    assert requirements.missing_requirements() == [
        "jaxtyping",
        "nerfacc",
        "pytorch-lightning",
        "requests",
        "torchmetrics",
        "typeguard",
    ]


@pytest.mark.parametrize("remedy", compat.REMEDIES, ids=lambda remedy: remedy.name)
def test_every_remedy_says_what_it_is(remedy):
    assert remedy.stands_in_for.endswith(".")
    assert remedy.hint
    assert "\n" not in remedy.stands_in_for + remedy.hint


def test_names_are_unique():
    names = [remedy.name for remedy in compat.REMEDIES]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_conditions_change_nothing(device):
    import torch

    context = torch.cuda.device
    for remedy in compat.REMEDIES:
        reason = remedy.reason(device)
        assert reason is None or (reason and "\n" not in reason)
    assert torch.cuda.device is context
    assert not compat.active()


def test_a_remedy_that_fails_takes_the_others_back(toy, monkeypatch):
    from types import SimpleNamespace

    from threestudio_eeg.compat import patching

    owner = SimpleNamespace(x=1)

    def fail(device):
        raise OSError("no disk")

    remedies = [
        Remedy("a", "A.", lambda d: "needed", lambda d: patching.set_attribute(owner, "x", 2), ""),
        Remedy("b", "B.", lambda d: "needed", fail, ""),
    ]
    monkeypatch.setattr(activation, "REMEDIES", remedies)
    with pytest.raises(OSError, match="no disk"):
        compat.activate("cpu")
    assert owner.x == 1
    assert not compat.active()
