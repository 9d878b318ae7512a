"""Refuse an experiment whose module names or keys nobody knows, before anything is made of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

from omegaconf import MISSING, DictConfig, OmegaConf

from eeg_encoder.errors import InputError

from ..builtin.registry import suggestion
from .catalogue import where_to_get

TOP_PARTS = ("data", "system")
SYSTEM_PARTS = (
    "geometry",
    "material",
    "background",
    "renderer",
    "guidance",
    "prompt_processor",
    "exporter",
)
NESTED_PARTS = ("base_renderer",)


@dataclass(frozen=True)
class Registry:
    """The modules of the active host.

    Parameters
    ----------
    names
        What is registered.
    find
        Maps ``main`` or ``main:sub1,sub2`` to a class.
    custom
        Where extensions are, or ``None`` where the host has none.
    """

    names: Collection[str]
    find: Callable[[str], Any]
    custom: Path | None = None


@dataclass(frozen=True)
class Part:
    """A module that an experiment names: its key (``system.geometry_type``), name and config."""

    key: str
    name: str
    config: Any

    @property
    def section(self) -> str:
        return self.key.removesuffix("_type")


def check_experiment(where: str, config: DictConfig, registry: Registry) -> None:
    """Check every module name, and every key of a module whose config class can be seen.

    Raises
    ------
    InputError
        For the first name that nobody registered, with the extension that has it where it is
        known; for the first key that the chosen module does not have, or that still lacks a value.
    """
    for part in parts_of(config):
        for name in _single_names(part.name):
            if name not in registry.names:
                close = suggestion(name, sorted(registry.names))
                expected = where_to_get(name, registry.custom) or close
                raise InputError(where, part.key, f"{name!r}, which nobody registered", expected)
        fields = config_class(registry.find(part.name))
        if fields is not None and isinstance(part.config, DictConfig):
            _check_keys(f"{where}: {part.section} ({part.name})", part.config, fields)


def parts_of(config: DictConfig) -> Iterator[Part]:
    """List the modules an experiment names, in the order in which they are made."""
    system = _get(config, "system")
    for part in TOP_PARTS:
        yield from _part(config, part, "")
    if not isinstance(system, DictConfig):
        return
    parts = [key.removesuffix("_type") for key in map(str, system) if key.endswith("_type")]
    for part in [*SYSTEM_PARTS, *(p for p in parts if p not in SYSTEM_PARTS and p in system)]:
        yield from _part(system, part, "system.")
        section = _get(system, part)
        for nested in NESTED_PARTS if isinstance(section, DictConfig) else ():
            yield from _part(section, nested, f"system.{part}.")


def config_class(cls: Any) -> Any | None:
    """Return the dataclass that checks a module's config, where the class shows it."""
    fields = getattr(cls, "Config", None)
    if not dataclasses.is_dataclass(fields):
        try:
            fields = get_type_hints(cls).get("cfg")
        except (NameError, TypeError):  # an annotation that only a type checker can read
            return None
    return fields if dataclasses.is_dataclass(fields) else None


def unknown_key(where: str, key: str, fields: Any) -> InputError:
    known = [field.name for field in dataclasses.fields(fields) if field.init]
    return InputError(where, key, "an unknown key", suggestion(key, known))


def _check_keys(where: str, config: DictConfig, fields: Any) -> None:
    known = {field.name for field in dataclasses.fields(fields) if field.init}
    for key in map(str, config):
        if key not in known:
            raise unknown_key(where, key, fields)
        if OmegaConf.is_missing(config, key):
            raise InputError(where, key, MISSING, "a value")


def _part(config: DictConfig, part: str, prefix: str) -> Iterator[Part]:
    name = _get(config, f"{part}_type")
    if isinstance(name, str) and name:
        yield Part(f"{prefix}{part}_type", name, _get(config, part))


def _get(config: DictConfig, key: str) -> Any:
    if key not in config or OmegaConf.is_missing(config, key):
        return None
    return config[key]


def _single_names(name: str) -> list[str]:
    main, _, mixins = name.partition(":")
    return [main, *(mixins.split(",") if mixins else [])]
