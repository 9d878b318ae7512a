"""Which host, which threestudio, which extension: decided without importing any of them."""

from __future__ import annotations

import os
import sys

import pytest
from omegaconf import OmegaConf

from eeg_encoder.errors import InputError
from threestudio_eeg import host
from threestudio_eeg.launching import checkout
from threestudio_eeg.launching.catalogue import (
    EXTENSIONS,
    UPSTREAM_ALONE,
    extension_of,
    where_to_get,
)
from threestudio_eeg.launching.checkout import find_threestudio, threestudio_at, version_in
from threestudio_eeg.launching.checks import parts_of
from threestudio_eeg.launching.choice import choose_host
from threestudio_eeg.launching.devices import VISIBLE, check_one_gpu, visible_devices
from threestudio_eeg.launching.extensions import Registrations

from .fake_threestudio import fake_threestudio


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch):
    monkeypatch.delenv(host.VARIABLE, raising=False)
    monkeypatch.delenv(checkout.VARIABLE, raising=False)
    monkeypatch.setattr(checkout, "_installed", lambda: None)


@pytest.fixture
def root(tmp_path):
    return fake_threestudio(tmp_path / "threestudio-main")


def test_a_checkout_is_recognised(root):
    found = threestudio_at(root)
    assert (found.root, found.version, found.script) == (root, "0.2.3", root / "launch.py")
    assert found.tested
    assert checkout.warning_of(found) is None
    assert "threestudio" not in sys.modules or not sys.modules["threestudio"].__file__.startswith(
        str(root)
    )


def test_the_package_alone_is_recognised(tmp_path):
    found = threestudio_at(fake_threestudio(tmp_path, package_only=True))
    assert found.script is None
    assert str(found).endswith("(package only)")


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("nowhere", "no such folder"),
        ("file", "a file"),
        ("empty", "a folder without threestudio/__init__.py"),
        ("threestudio-main/threestudio", "the package itself"),
    ],
)
def test_what_is_no_threestudio(root, tmp_path, path, found, monkeypatch):
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=f"{path}: threestudio: found {found}"):
        threestudio_at(tmp_path / path)
    monkeypatch.setenv(checkout.VARIABLE, str(tmp_path / path))
    with pytest.raises(InputError, match=f"THREESTUDIO_ROOT=.*found {found}"):
        find_threestudio()


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("__version__ = '0.2.3'", "0.2.3"),
        ("raise ImportError\n__version__ = '1'", "1"),
        ("x = 1", "unknown"),
        ("__version__ =", "unknown"),
    ],
)
def test_the_version_is_read_not_run(tmp_path, text, version):
    (tmp_path / "__init__.py").write_text(text)
    assert version_in(tmp_path / "__init__.py") == version


def test_a_version_never_seen(tmp_path):
    found = threestudio_at(fake_threestudio(tmp_path, version="0.3.0"))
    assert "0.3.0" in checkout.warning_of(found)
    assert "tested: 0.2.3" in checkout.warning_of(found)


def test_the_first_that_says_something_decides(root, monkeypatch):
    def choice(*words):
        chosen = choose_host(*words)
        assert (chosen.name == "upstream") == (chosen.threestudio is not None)
        return chosen.name, chosen.why

    assert choice()[0] == "builtin"
    monkeypatch.setattr(checkout, "_installed", lambda: threestudio_at(root))
    assert choice() == ("upstream", "threestudio is installed")
    monkeypatch.setenv(checkout.VARIABLE, str(root))
    assert choice() == ("upstream", checkout.VARIABLE)
    monkeypatch.setenv(host.VARIABLE, "builtin")
    assert choice() == ("builtin", host.VARIABLE)
    assert choice(None, root) == ("upstream", "--threestudio")
    assert choice("upstream") == ("upstream", "--host")
    assert choice("builtin") == ("builtin", "--host")


def test_bad_choices(root, monkeypatch):
    with pytest.raises(InputError, match="--host: found downstream"):
        choose_host("downstream")
    with pytest.raises(InputError, match="--threestudio: found .* beside --host builtin"):
        choose_host("builtin", root)
    with pytest.raises(InputError, match="upstream, expected|no threestudio"):
        choose_host("upstream")
    monkeypatch.setenv(host.VARIABLE, "dreamstudio")
    with pytest.raises(InputError, match="THREESTUDIO_EEG_HOST: found dreamstudio"):
        choose_host()


@pytest.mark.parametrize(
    ("name", "extension"),
    [
        ("gaussian-splatting", "threestudio-3dgs"),
        ("diff-gaussian-rasterizer-advanced", "threestudio-3dgs"),
        ("mvdream-multiview-diffusion-guidance", "threestudio-mvdream"),
        ("fourdfy-system", "threestudio-4dfy"),
        ("hifa-sampler", "threestudio-diffusers-guidance"),
        ("tetrahedra-sdf-grid-geodream", "threestudio-geodream"),
        ("gaussiandreamer-system", "threestudio-gaussiandreamer"),
        ("eeg-vsd-guidanse", None),
        ("implicit-volume", None),
    ],
)
def test_known_extensions(name, extension):
    found = extension_of(name)
    assert (found and found.name) == extension


def test_extensions_claim_only_what_the_embedded_host_takes_over_from_them():
    """It has 3D Gaussians of its own, under the names of the extension, so that files fit both."""
    from threestudio_eeg.builtin.registry import load_builtin

    names = load_builtin()
    assert names
    assert {found.name for found in map(extension_of, names) if found} <= {"threestudio-3dgs"}
    assert not set(UPSTREAM_ALONE) & set(names)
    assert len({one.name for one in EXTENSIONS}) == len(EXTENSIONS)


def test_where_to_get_a_module(tmp_path):
    name, address = "mvdream-system", "https://github.com/DSaurus/threestudio-mvdream"
    assert where_to_get("slope", tmp_path) is None
    assert "--host upstream" in where_to_get(name, None)
    assert where_to_get(name, tmp_path).endswith(f"in {tmp_path}, from {address}")
    (tmp_path / "threestudio-mvdream").mkdir()
    assert "import failed" in where_to_get(name, tmp_path)
    (tmp_path / "threestudio-mvdream").rename(tmp_path / "threestudio-mvdream_disabled")
    assert "is disabled" in where_to_get(name, tmp_path)


def test_parts_are_found_wherever_threestudio_makes_one():
    config = OmegaConf.create(
        {
            "data_type": "cameras",
            "system_type": "magic",
            "system": {
                "geometry_type": "volume",
                "geometry": {"normal_type": "pred"},
                "renderer_type": "patch",
                "renderer": {"base_renderer_type": "nerf", "base_renderer": {"radius": 1}},
                "guidance_type": "unified",
                "guidance": {"guidance_type": "sds", "control_type": "canny"},
                "guidance_3d_type": "zero123",
                "guidance_3d": {},
                "material_type": "",
                "exporter_type": "mesh",
            },
        }
    )
    assert {part.key: part.name for part in parts_of(config)} == {
        "data_type": "cameras",
        "system_type": "magic",
        "system.geometry_type": "volume",
        "system.renderer_type": "patch",
        "system.renderer.base_renderer_type": "nerf",
        "system.guidance_type": "unified",
        "system.guidance_3d_type": "zero123",
        "system.exporter_type": "mesh",
    }


def test_registering_twice_and_registering_another():
    modules: dict[str, type] = {}

    def register(name):
        def decorate(cls):
            if name in modules:
                raise ValueError(name)
            modules[name] = cls
            return cls

        return decorate

    def make(place):
        return type("Apple", (), {"__module__": place, "__qualname__": "Apple"})

    guarded, first, again, other = Registrations(modules, register), *map(make, "aab")
    assert guarded("apple")(first) is first
    assert guarded("apple")(again) is again
    assert modules == {"apple": first}
    guarded.check("custom")
    with pytest.raises(ValueError, match="apple"):
        guarded("apple")(other)
    with pytest.raises(InputError, match=r"apple: found two modules .* a\.Apple and b\.Apple"):
        guarded.check("custom")


def test_one_gpu_is_shown_and_taken_back(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.delenv(VISIBLE, raising=False)
    with visible_devices("auto", "3") as device:
        assert (device, os.environ[VISIBLE]) == ("cuda", "3")
        check_one_gpu()
    assert VISIBLE not in os.environ
    with visible_devices("cpu", "3") as device:
        assert (device, os.environ[VISIBLE]) == ("cpu", "-1")
    monkeypatch.setenv(VISIBLE, "1")
    with visible_devices("cuda", "3"):
        assert os.environ[VISIBLE] == "1"
    assert os.environ[VISIBLE] == "1"


def test_several_gpus_start_together_or_not_at_all(monkeypatch):
    monkeypatch.setenv(VISIBLE, "0,1")
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    monkeypatch.delenv("SLURM_NTASKS", raising=False)
    with pytest.raises(InputError, match="torchrun --nproc-per-node 2"):
        check_one_gpu()
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    check_one_gpu()


def test_the_host_is_settled_once(monkeypatch):
    host.choose.cache_clear()
    monkeypatch.setenv(host.VARIABLE, "")
    host.settle("builtin")
    assert host.choose() == "builtin"
    host.settle("builtin")
    with pytest.raises(InputError, match="builtin, in use"):
        host.settle("upstream")
    host.choose.cache_clear()


def test_the_demo_follows_the_environment(root, monkeypatch):
    from threestudio_eeg import demo
    from threestudio_eeg.launching import upstream

    launched = []
    monkeypatch.setattr(upstream, "launch_upstream", lambda one: launched.append(one) or "trial")
    monkeypatch.setenv(checkout.VARIABLE, str(root))
    monkeypatch.setenv(host.VARIABLE, "upstream")
    assert demo._train(root / "a.yaml", ["seed=1"], "cpu", quiet=True) == "trial"
    (launch,) = launched
    assert launch.threestudio.root == root
    assert [*launch.overrides] == ["seed=1", "trainer.enable_progress_bar=false"]
