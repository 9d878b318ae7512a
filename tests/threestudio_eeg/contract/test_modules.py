"""Configs, schedules, the registry and the walk that tells parts which step it is."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any

import pytest
from omegaconf import OmegaConf

from eeg_encoder.errors import InputError

from .world import World


def new_name(word: str) -> str:
    return f"{word}-{uuid.uuid4().hex}"


def classes(world: World) -> tuple[type, type]:
    """A module and an object with a few fields of each sort."""

    @dataclass
    class ModuleConfig(world.host.BaseModule.Config):
        width: int = 3
        rate: Any = 0.5

    @dataclass
    class ObjectConfig(world.host.BaseObject.Config):
        word: str = "a"

    class Part(world.host.BaseModule):
        Config = ModuleConfig

        def configure(self) -> None:
            self.calls: list[tuple[int, int]] = []

        def update_step(self, epoch: int, global_step: int, on_load_weights: bool = False) -> None:
            self.calls.append((epoch, global_step))

    class Thing(world.host.BaseObject):
        Config = ObjectConfig

        def configure(self) -> None:
            self.configured = True

    return Part, Thing


def test_defaults_and_given_values(world: World) -> None:
    part, thing = classes(world)
    assert part(OmegaConf.create({})).cfg.width == 3
    given = part(OmegaConf.create({"width": 5, "rate": [0, 1.0, 0.0, 10]}))
    assert given.cfg.width == 5
    assert list(given.cfg.rate) == [0, 1.0, 0.0, 10]
    made = thing(OmegaConf.create({"word": "b"}))
    assert (made.cfg.word, made.configured, made.device.type) == ("b", True, "cpu")


@pytest.mark.parametrize("config", [{"widht": 4}, {"width": "wide"}])
def test_bad_configs_are_refused(world: World, config: dict[str, Any]) -> None:
    from omegaconf.errors import OmegaConfBaseException

    with pytest.raises((TypeError, InputError, OmegaConfBaseException)):
        classes(world)[0](OmegaConf.create(config))


@pytest.mark.parametrize(
    ("value", "epoch", "step", "expected"),
    [
        (0.3, 0, 7, 0.3),
        ([1.0, 3.0, 10], 0, 5, 2.0),
        ([5, 1.0, 3.0, 15], 0, 5, 1.0),
        ([5, 1.0, 3.0, 15], 0, 100, 3.0),
        ([5000, 0.98, 0.5, 5001], 0, 4999, 0.98),
        ([5000, 0.98, 0.5, 5001], 0, 5001, 0.5),
        ([0, 1.0, 2.0, 10, 4.0, 20], 0, 15, 3.0),
        ([0, 1.0, 2.0, 4.0], 2, 0, 1.5),
    ],
)
def test_scheduled_values(world: World, value: Any, epoch: int, step: int, expected: float) -> None:
    assert world.host.C(OmegaConf.create({"v": value}).v, epoch, step) == pytest.approx(expected)


def test_a_mixin_overrides_what_it_is_mixed_into(world: World) -> None:
    part, _ = classes(world)
    main, sub = new_name("main"), new_name("sub")
    world.host.register(main)(part)

    class Loud:
        def configure(self) -> None:
            super().configure()  # type: ignore[misc]
            self.loud = True

    world.host.register(sub)(Loud)
    made = world.host.find(f"{main}:{sub}")(OmegaConf.create({"width": 2}))
    assert isinstance(made, part)
    assert (made.loud, made.calls, made.cfg.width) == (True, [], 2)


def test_a_name_is_given_once(world: World) -> None:
    name = new_name("part")
    world.host.register(name)(classes(world)[0])
    with pytest.raises(ValueError, match=name):
        world.host.register(name)(classes(world)[1])


def test_an_unknown_name_is_refused(world: World) -> None:
    with pytest.raises((KeyError, InputError), match="no-such-part"):
        world.host.find("no-such-part")


def test_the_walk_reaches_public_parts_only(world: World) -> None:
    part, _ = classes(world)
    outer, inner, hidden = (part(OmegaConf.create({})) for _ in range(3))
    outer.inner, outer._hidden = inner, hidden
    outer.do_update_step(1, 7)
    assert set(inner.calls) == set(outer.calls) == {(1, 7)}
    assert hidden.calls == []


def test_what_the_extension_registers_is_found(world: World) -> None:
    from threestudio_eeg.plugin import REGISTERED

    for name in REGISTERED:
        assert isinstance(world.host.find(name), type)
