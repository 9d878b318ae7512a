import pickle
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from omegaconf import DictConfig, ListConfig, OmegaConf

from threestudio_eeg import compat
from threestudio_eeg.compat import checkpoints


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "old.ckpt"
    config = OmegaConf.create({"betas": [0.9, 0.99], "name": "Adan", "nested": {"on": True}})
    torch.save({"betas": config.betas, "config": config, "w": torch.ones(2)}, path)
    return path


def test_refused_without_and_read_with(checkpoint):
    assert checkpoints.reason("cuda")
    with pytest.raises(pickle.UnpicklingError):
        torch.load(checkpoint, weights_only=True)
    checkpoints.apply("cuda")
    found = torch.load(checkpoint, weights_only=True)
    assert isinstance(found["betas"], ListConfig)
    assert isinstance(found["config"], DictConfig)
    assert found["betas"] == [0.9, 0.99]
    assert found["config"].nested.on is True


def test_nothing_else_is_let_in(tmp_path):
    checkpoints.apply("cuda")
    torch.save({"x": _Evil()}, tmp_path / "evil.ckpt")
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "evil.ckpt", weights_only=True)


def test_taken_back(checkpoint):
    before = set(torch.serialization.get_safe_globals())
    checkpoints.apply("cuda")
    compat.deactivate()
    assert set(torch.serialization.get_safe_globals()) == before
    with pytest.raises(pickle.UnpicklingError):
        torch.load(checkpoint, weights_only=True)


class _Evil:
    def __reduce__(self):
        return (eval, ("1 + 1",))


class System:
    @dataclass
    class Config:
        optimizer: dict = field(default_factory=dict)
        scheduler: Any = None


class Derived(System):
    """Inherits the config of another class, as many systems of threestudio do."""


class Stranger:
    @dataclass
    class Config:
        optimizer: dict = field(default_factory=dict)


@pytest.fixture
def host(fake):
    modules = {}

    def register(name):
        return lambda cls: modules.setdefault(name, cls)

    package = fake("threestudio", __modules__=modules, register=register)
    modules["derived"] = Derived
    checkpoints.apply("cuda")
    checkpoints.apply_configs("cuda")
    return package


def saved(folder, config_class):
    """A list out of a structured config, which takes the config with it."""
    config = OmegaConf.structured(config_class(optimizer={"args": {"betas": [0.9, 0.99]}}))
    torch.save({"betas": config.optimizer.args.betas}, folder / "list.ckpt")
    return folder / "list.ckpt"


def test_a_list_out_of_a_system_is_read(host, tmp_path):
    betas = torch.load(saved(tmp_path, System.Config), weights_only=True)["betas"]
    assert betas == [0.9, 0.99]
    root = betas._get_root()
    assert root.optimizer.args.betas == betas
    assert root.scheduler is None
    assert root._metadata.object_type is dict


def test_an_extension_that_registers_later_is_read_too(host, tmp_path):
    path = saved(tmp_path, Stranger.Config)
    with pytest.raises(pickle.UnpicklingError, match="Stranger"):
        torch.load(path, weights_only=True)
    assert host.register("stranger")(Stranger) is Stranger
    assert host.__modules__["stranger"] is Stranger
    assert torch.load(path, weights_only=True)["betas"] == [0.9, 0.99]


@pytest.mark.parametrize(
    "asked",
    [(System, "__init_subclass__"), (dict, "Config"), (torch.nn.Module, "load_state_dict")],
)
def test_no_other_attribute_can_be_had(host, tmp_path, asked):
    torch.save({"x": _Attribute(*asked)}, tmp_path / "evil.ckpt")
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "evil.ckpt", weights_only=True)


def test_a_name_cannot_be_called(host, tmp_path):
    torch.save({"x": _Call()}, tmp_path / "evil.ckpt")
    with pytest.raises(TypeError, match="not callable"):
        torch.load(tmp_path / "evil.ckpt", weights_only=True)


class _Attribute:
    def __init__(self, *asked):
        self.asked = asked

    def __reduce__(self):
        return (getattr, self.asked)


class _Call:
    def __reduce__(self):
        return (System, ())
