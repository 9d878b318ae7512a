"""Checkpoints whose optimizer settings are omegaconf lists, under ``weights_only=True``.

Such a list (Adam's betas, a scheduler's milestones) takes the whole configuration it came from into
the checkpoint: omegaconf's containers, and the names of threestudio's config classes. Both can be
read without running any code of the file: the containers are data, and a name becomes ``dict``.
"""

from __future__ import annotations

import collections
import functools
import importlib
import pickle
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from . import patching
from .remedy import Remedy


def reason(device: str) -> str | None:
    allowed = set(torch.serialization.get_safe_globals())
    if all(item in allowed for item in _classes()):
        return "torch.load was told of omegaconf's classes"
    return "torch.load refuses the omegaconf values in checkpoints of older versions"


def apply(device: str) -> None:
    _allow(_classes())


def _allow(items: list[Any]) -> None:
    """Add to what ``torch.load(weights_only=True)`` may meet, to be undone."""
    before = torch.serialization.get_safe_globals()

    def restore() -> None:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)

    patching.on_undo(restore)
    torch.serialization.add_safe_globals(items)


def _classes() -> list[Any]:
    """What a pickled omegaconf container is made of; none of it runs code when it is loaded."""
    from omegaconf import DictConfig, ListConfig, base, nodes

    values = [
        nodes.AnyNode,
        nodes.BooleanNode,
        nodes.BytesNode,
        nodes.FloatNode,
        nodes.IntegerNode,
        nodes.StringNode,
    ]
    plain: list[Any] = [dict, list, int, float, str, bool, collections.defaultdict]
    plain += [typing.Any, typing.Dict, typing.List, typing.Tuple]  # noqa: UP006
    return [DictConfig, ListConfig, base.ContainerMetadata, base.Metadata, *values, *plain]


REMEDY = Remedy(
    name="checkpoint-classes",
    stands_in_for="torch.load of the time when it unpickled everything: omegaconf's plain "
    "containers are allowed, nothing else.",
    reason=reason,
    apply=apply,
    hint="not needed for checkpoints that this version wrote",
)


@dataclass(frozen=True)
class _Name:
    """What the name of a class of threestudio becomes: nothing that can be called."""

    path: str


def config_of(owner: Any, name: str) -> type:
    """What ``getattr(threestudio's class, "Config")`` becomes in a checkpoint: ``dict``.

    Raises
    ------
    pickle.UnpicklingError
        For any other attribute, and for attributes of anything else.
    """
    if type(owner) is not _Name or name != "Config":
        raise pickle.UnpicklingError(f"a checkpoint asks for {name} of {owner}")
    return dict


def reason_configs(device: str) -> str | None:
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 7):
        return None  # names cannot be given another meaning there
    return "torch.load refuses the config classes' names in checkpoints that hold omegaconf lists"


def apply_configs(device: str) -> None:
    threestudio = importlib.import_module("threestudio")
    names = {name for cls in threestudio.__modules__.values() for name in _names(cls)}
    _allow([(config_of, "builtins.getattr"), *((_Name(name), name) for name in names)])
    register = _allowing(threestudio.register)
    patching.set_attribute(threestudio, "register", register)


def _names(cls: type) -> Iterator[str]:
    """Full names of a class and of those it inherits a ``Config`` from."""
    for one in cls.__mro__:
        if "Config" in vars(one):
            yield f"{one.__module__}.{one.__qualname__}"


def _allowing(register: Any) -> Any:
    """``register`` that allows the names of extensions' classes too."""

    @functools.wraps(register)
    def wrapped(name: str) -> Any:
        def decorate(cls: type) -> type:
            _allow([(_Name(path), path) for path in _names(cls)])
            return register(name)(cls)

        return decorate

    return wrapped


CONFIGS_REMEDY = Remedy(
    name="checkpoint-configs",
    stands_in_for="threestudio's config classes, whose names are in checkpoints with a scheduler "
    "or old betas: plain dictionaries.",
    reason=reason_configs,
    apply=apply_configs,
    hint="not needed for configs without a list in their optimizer or scheduler",
    after_import=True,
)
