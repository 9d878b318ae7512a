"""Configs that are quick to read say what slow ones say."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from threestudio_eeg.builtin.quick_config import quick


@dataclass
class Fields:
    radius: float = 0.65
    name: str | None = None
    copy: bool = True
    schedule: Any = field(default_factory=lambda: [0, 1.0, 2.0, 10])


def made() -> Any:
    return quick(OmegaConf.structured(Fields()))


def test_plain_values_are_kept_beside_the_nodes_and_nothing_else() -> None:
    config = made()
    assert {k for k in vars(config) if not k.startswith("_")} == {"radius", "name"}
    assert (config.radius, config.name, config.copy) != (0.65, None, True)  # copy is a method
    assert config["copy"] is True
    assert isinstance(config, DictConfig)
    assert list(config.schedule) == [0, 1.0, 2.0, 10]
    assert OmegaConf.to_container(config) == OmegaConf.to_container(OmegaConf.structured(Fields()))


@pytest.mark.parametrize("by_item", [True, False])
def test_a_value_that_is_set_is_the_one_that_is_read(by_item: bool) -> None:
    config = made()
    if by_item:
        config["radius"] = 2
    else:
        config.radius = 2
    assert config.radius == config["radius"] == 2.0
    assert copy.deepcopy(config).radius == 2.0


def test_unknown_keys_and_wrong_types_are_errors_still() -> None:
    config = made()
    with pytest.raises(AttributeError):
        config.radios  # noqa: B018
    with pytest.raises(OmegaConfBaseException):
        config.radius = "far"
    assert config.radius == 0.65
