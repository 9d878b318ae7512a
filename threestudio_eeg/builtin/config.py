"""Experiment files: YAML layers, overrides from the command line, resolvers, scheduled values."""

from __future__ import annotations

import math
import os
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from eeg_encoder.errors import InputError

from .base import parse_structured

_OVERRIDE = re.compile(r"^[A-Za-z_][\w-]*(\.[\w-]+|\[\d+\])*=", re.DOTALL)
_LONGEST_TAG = 100
EVERY_SYSTEM = ("loggers", "loss", "optimizer", "scheduler", "weights", "exporter")


@dataclass
class ExperimentConfig:
    """The top level of an experiment file; ``trial_dir`` is ``exp_root_dir/name/tag@timestamp``."""

    name: str = "default"
    description: str = ""
    tag: str = ""
    seed: int = 0
    use_timestamp: bool = True
    timestamp: str | None = None
    exp_root_dir: str = "outputs"

    exp_dir: str = ""
    trial_name: str = ""
    trial_dir: str = ""
    n_gpus: int = 1

    resume: str | None = None

    data_type: str = ""
    data: dict = field(default_factory=dict)
    system_type: str = ""
    system: dict = field(default_factory=dict)
    trainer: dict = field(default_factory=dict)
    checkpoint: dict = field(default_factory=dict)


def compose(*yamls: str | Path, cli_args: Sequence[str] = ()) -> DictConfig:
    """Lay YAML files and ``key=value`` overrides on each other, interpolations unresolved.

    Later files win over earlier ones, and overrides over files. A layer that changes
    ``<part>_type`` starts ``<part>`` afresh, and drops its groups of the optimiser: the keys of the
    former module would be unknown to the new one. (A change of the mixins alone, ``main:sub``,
    keeps them.) Another ``system_type`` keeps the parts, losses and optimiser.

    Raises
    ------
    InputError
        For a file that is missing or no YAML mapping, or an override that is not ``key=value``.
    """
    register_resolvers()
    merged: DictConfig = OmegaConf.create({})
    for path in yamls:
        merged = _overlay(merged, _read_yaml(path))
    return _overlay(merged, parse_overrides(cli_args))


def load_config(*yamls: str | Path, cli_args: Sequence[str] = ()) -> Any:
    """Compose and resolve YAML files and overrides into an :class:`ExperimentConfig`.

    Raises
    ------
    InputError
        As :func:`compose`, and for an unknown key, a value of the wrong type, or an interpolation
        that cannot be resolved.
    """
    merged = compose(*yamls, cli_args=cli_args)
    where = " + ".join(str(path) for path in yamls) or "config"
    given = _unresolved(merged)
    for required in ("data_type", "system_type"):
        if given.get(required) in (None, "", "???"):
            raise InputError(where, required, "nothing", "the name of a registered module")
    try:
        OmegaConf.resolve(merged)
    except (OmegaConfBaseException, ArithmeticError, TypeError) as error:
        key = getattr(error, "full_key", None) or "interpolation"
        raise InputError(
            where, str(key), str(error).splitlines()[0], "one that resolves"
        ) from error
    config = parse_structured(ExperimentConfig, merged, where)
    _name_trial(config)
    return config


def parse_overrides(overrides: Sequence[str]) -> DictConfig:
    """Read ``key=value`` words, the values as YAML.

    Raises
    ------
    InputError
        When a word is not of this form or its value is no YAML.
    """
    for word in overrides:
        if not _OVERRIDE.match(word):
            raise InputError("command line", "override", repr(word), "key=value (system.seed=1)")
    try:
        return OmegaConf.from_cli(list(overrides))
    except (OmegaConfBaseException, YAMLError, ValueError) as error:
        reason = str(error).splitlines()[0]
        found = f"{' '.join(overrides)} ({reason})"
        raise InputError(
            "command line", "override", found, "key=value, the value in YAML"
        ) from error


def dump_config(path: str | Path, config: Any) -> None:
    """Write a config as YAML, whole or not at all."""
    from eeg_encoder.files import whole_file

    with whole_file(path) as temporary:
        OmegaConf.save(config=config, f=temporary)


def _read_yaml(path: str | Path) -> DictConfig:
    if not Path(path).is_file():
        raise InputError(path, "config", "no such file", "a YAML file")
    try:
        layer = OmegaConf.load(path)
    except (OmegaConfBaseException, YAMLError, UnicodeDecodeError, OSError) as error:
        raise InputError(path, "config", " ".join(str(error).split()), "a YAML file") from error
    if not isinstance(layer, DictConfig):
        raise InputError(path, "config", "a list", "a mapping of keys to values")
    return layer


def _overlay(lower: DictConfig, upper: DictConfig) -> DictConfig:
    _forget_replaced_parts(lower, upper)
    try:
        merged = OmegaConf.merge(lower, upper)
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or "config"
        raise InputError("config", str(key), str(error).splitlines()[0], "the same kind") from error
    assert isinstance(merged, DictConfig)
    return merged


def _forget_replaced_parts(lower: DictConfig, upper: DictConfig) -> None:
    new, old = _unresolved(upper), _unresolved(lower)
    for name in [str(key) for key in new]:
        if OmegaConf.is_missing(upper, name) or OmegaConf.is_interpolation(upper, name):
            continue
        value, before = new[name], old.get(name)
        if isinstance(value, dict) and isinstance(before, dict):
            if name in lower:
                _forget_replaced_parts(lower[name], upper[name])
        elif name.endswith("_type") and before is not None and _main(value) != _main(before):
            _forget_part(lower, name.removesuffix("_type"))


def _forget_part(config: DictConfig, part: str) -> None:
    """Drop a part's fields and its optimiser groups; of a system, what is not of every system."""
    if part == "system" and isinstance(config.get(part), DictConfig):
        system = config[part]
        for key in [str(key) for key in system]:
            if not (key in EVERY_SYSTEM or key.endswith("_type") or f"{key}_type" in system):
                del system[key]
        return
    if part in config:
        del config[part]
    groups = OmegaConf.select(config, "optimizer.params", default=None) or {}
    for group in [str(group) for group in groups]:
        if group == part or group.startswith(f"{part}."):
            del groups[group]


def _unresolved(config: DictConfig) -> dict[Any, Any]:
    """Keys and values as written: an interpolation may point at what a later layer brings."""
    return dict(OmegaConf.to_container(config, resolve=False))  # type: ignore[arg-type]


def _main(module_name: Any) -> str:
    return str(module_name).partition(":")[0].strip()


def _name_trial(config: Any) -> None:
    config.tag = re.sub(r"[/\\:\s]+", "_", config.tag)[:_LONGEST_TAG]
    if config.use_timestamp and config.timestamp is None and config.n_gpus <= 1:
        config.timestamp = datetime.now().strftime("@%Y%m%d-%H%M%S")
    config.trial_name = (config.tag + (config.timestamp or "")) or "trial"
    config.exp_dir = os.path.join(config.exp_root_dir, config.name)
    config.trial_dir = os.path.join(config.exp_dir, config.trial_name)


def register_resolvers() -> None:
    """Make threestudio's resolvers known to OmegaConf (``${add:1,2}``); safe to call again."""
    register = getattr(OmegaConf, "register_new_resolver", None) or OmegaConf.register_resolver
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*register_new_resolver")
        for name, resolver in _resolvers().items():
            register(name, resolver, replace=True)


def release_resolvers() -> None:
    """Forget them again: threestudio registers its own once, and refuses names that are taken."""
    for name in _resolvers():
        OmegaConf.clear_resolver(name)


def _resolvers() -> dict[str, Callable[..., Any]]:
    return {
        "calc_exp_lr_decay_rate": lambda factor, n: factor ** (1.0 / n),
        "add": lambda a, b: a + b,
        "sub": lambda a, b: a - b,
        "mul": lambda a, b: a * b,
        "div": lambda a, b: a / b,
        "idiv": lambda a, b: a // b,
        "basename": lambda path: os.path.basename(path),
        "rmspace": lambda text, substitute: str(text).replace(" ", substitute),
        "gt0": lambda value: value > 0,
        "cmaxgt0": lambda value: C_max(value) > 0,
        "cmaxgt0orcmaxgt0": lambda a, b: C_max(a) > 0 or C_max(b) > 0,
        "not": lambda value: not value,
    }


def C(value: Any, epoch: int, global_step: int, interpolation: str = "linear") -> float:
    """Evaluate a scheduled value.

    Parameters
    ----------
    value
        A number; or ``[v0, v1, end]``, a ramp from 0 to ``end``; or ``[start, v0, v1, end]``; or
        piecewise ``[s0, v0, v1, s1, v2, s2, ...]`` through (s0, v0), (s1, v1), (s2, v2), ... It is
        constant outside. Where the last position is an int, positions count steps; where it is a
        float, epochs. Equal positions make a jump.
    epoch, global_step
        Where training is.
    interpolation
        ``linear``, or ``exp`` (linear in the logarithm; positive values only).

    Raises
    ------
    InputError
        For any other form.
    """
    if _is_number(value):
        return value
    knots = _knots(value)
    position = float(global_step if isinstance(knots[-1][0], int) else epoch)
    if position < knots[0][0]:
        return knots[0][1]
    for (x0, y0), (x1, y1) in zip(knots, knots[1:], strict=False):
        if position < x1:
            return _between(y0, y1, (position - x0) / (x1 - x0), interpolation, value)
    return knots[-1][1]


def C_max(value: Any) -> float:
    """Return the largest value that a schedule takes."""
    return value if _is_number(value) else max(y for _, y in _knots(value))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _knots(value: Any) -> list[tuple[float, float]]:
    expected = "a number, [v0, v1, end], [start, v0, v1, end] or [s0, v0, v1, s1, v2, s2, ...]"
    sequence = isinstance(value, list | tuple | ListConfig)
    items = list(value) if sequence else []
    if len(items) == 3:
        items = [0, *items]
    if len(items) < 4 or len(items) % 2 or not all(_is_number(item) for item in items):
        found = list(value) if sequence else repr(value)
        raise InputError("schedule", "value", found, expected)
    knots = [(items[0], items[1])]
    knots += [(items[i + 1], items[i]) for i in range(2, len(items), 2)]
    if any(later[0] < earlier[0] for earlier, later in zip(knots, knots[1:], strict=False)):
        raise InputError("schedule", "positions", list(value), "positions that do not decrease")
    return knots


def _between(y0: float, y1: float, fraction: float, interpolation: str, value: Any) -> float:
    if interpolation == "linear":
        return y0 + (y1 - y0) * fraction
    if interpolation == "exp":
        if min(y0, y1) <= 0:
            raise InputError("schedule", "value", list(value), "positive values for exp")
        return math.exp(math.log(y0) * (1 - fraction) + math.log(y1) * fraction)
    raise InputError("schedule", "interpolation", interpolation, "linear or exp")
