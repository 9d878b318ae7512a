"""Base classes of everything that a config file can name."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

import torch
from omegaconf import MISSING, DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import nn

from eeg_encoder.errors import InputError

from .quick_config import quick
from .registry import name_of, suggestion

_chosen_device: torch.device | None = None


def get_device() -> torch.device:
    """Return the device for new modules: the one of :func:`device_scope`, else CUDA, else CPU."""
    if _chosen_device is not None:
        return _chosen_device
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


@contextmanager
def device_scope(device: str | torch.device) -> Iterator[torch.device]:
    """Make :func:`get_device` answer ``device`` inside the block."""
    global _chosen_device
    before, _chosen_device = _chosen_device, torch.device(device)
    try:
        yield _chosen_device
    finally:
        _chosen_device = before


def parse_structured(fields: Any, cfg: Any = None, where: str | None = None) -> Any:
    """Check a config against a dataclass and fill in its defaults.

    Parameters
    ----------
    fields
        A dataclass type.
    cfg
        A mapping or ``DictConfig``. A list in a field typed as a number is a schedule for
        :func:`.config.C` and passes.
    where
        What the errors call this config.

    Returns
    -------
    DictConfig
        Structured by ``fields``.

    Raises
    ------
    InputError
        For an unknown key, a value of the wrong type, or a mandatory key that is missing.
    """
    where = where or f"config of {fields.__qualname__.removesuffix('.Config')}"
    values = _as_mapping(cfg, where)
    known = [field.name for field in dataclasses.fields(fields) if field.init]
    hints = get_type_hints(fields)
    for key, value in values.items():
        if key not in known:
            raise InputError(where, str(key), "an unknown key", suggestion(str(key), known))
        if isinstance(value, ListConfig) and hints[key] in (str, bool, str | None):
            raise InputError(where, str(key), f"the list {value}", "a single value")
    try:
        structured = OmegaConf.structured(fields(**values))
    except (OmegaConfBaseException, TypeError) as error:
        raise _config_error(where, error) from error
    missing = sorted(OmegaConf.missing_keys(structured))
    if missing:
        raise InputError(where, missing[0], MISSING, "a value")
    return structured


def own_config(owner: Any, cfg: Any) -> Any:
    """A part's config, checked against its ``Config`` and quick to read."""
    return quick(parse_structured(owner.Config, cfg, f"config of {name_of(type(owner))}"))


def _as_mapping(cfg: Any, where: str) -> dict[str, Any]:
    node = OmegaConf.create({}) if cfg is None else cfg
    if dataclasses.is_dataclass(node):
        node = OmegaConf.structured(node)
    elif isinstance(node, Mapping):
        node = OmegaConf.create(dict(node))
    if not isinstance(node, DictConfig):
        raise InputError(where, "config", type(cfg).__name__, "a mapping of keys to values")
    try:
        return {str(k): MISSING if OmegaConf.is_missing(node, k) else node[k] for k in node}
    except OmegaConfBaseException as error:
        raise _config_error(where, error) from error


def _config_error(where: str, error: Exception) -> InputError:
    key = getattr(error, "full_key", None) or "config"
    message = getattr(error, "msg", None) or str(error)
    return InputError(where, str(key), message.splitlines()[0], "a value of the field's type")


class Updateable:
    """Anything with a state that follows the training step."""

    def do_update_step(self, epoch: int, global_step: int, on_load_weights: bool = False) -> None:
        """Call ``update_step`` once on every part that is reachable, children first."""
        for part in updateable_parts(self):
            part.update_step(epoch, global_step, on_load_weights)

    def do_update_step_end(self, epoch: int, global_step: int) -> None:
        """Call ``update_step_end`` once on every part that is reachable, children first."""
        for part in updateable_parts(self):
            part.update_step_end(epoch, global_step)

    def update_step(self, epoch: int, global_step: int, on_load_weights: bool = False) -> None:
        """Follow the step about to begin; override where needed. Must be idempotent."""

    def update_step_end(self, epoch: int, global_step: int) -> None:
        """Follow the step just ended; override where needed."""


def updateable_parts(root: Any) -> list[Updateable]:
    """List what is reachable through public attributes, children first, each object once."""
    return list(_walk(root, set()))


def _walk(root: Any, seen: set[int]) -> Iterator[Updateable]:
    if id(root) in seen:
        return
    seen.add(id(root))
    for child in _children(root):
        if isinstance(child, Updateable | nn.ModuleList | nn.ModuleDict):
            yield from _walk(child, seen)
    if isinstance(root, Updateable):
        yield root


def _children(root: Any) -> Iterator[Any]:
    for name, value in vars(root).items():
        if not name.startswith("_"):
            yield value
    for name, module in getattr(root, "_modules", {}).items():
        if not name.startswith("_"):
            yield module


def update_if_possible(
    part: Any, epoch: int, global_step: int, on_load_weights: bool = False
) -> None:
    """Update a part that may or may not follow the step (a data set, for instance)."""
    if isinstance(part, Updateable):
        part.do_update_step(epoch, global_step, on_load_weights)


def update_end_if_possible(part: Any, epoch: int, global_step: int) -> None:
    """End the step of a part that may or may not follow it."""
    if isinstance(part, Updateable):
        part.do_update_step_end(epoch, global_step)


class BaseObject(Updateable):
    """A configured object with no weights of its own in the checkpoint."""

    @dataclass
    class Config:
        pass

    cfg: Any

    def __init__(self, cfg: Any = None, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        self.cfg = own_config(self, cfg)
        self.device = get_device()
        self.configure(*args, **kwargs)

    def configure(self, *args: Any, **kwargs: Any) -> None:
        """Build the object; ``self.cfg`` and ``self.device`` are set."""


class BaseModule(nn.Module, Updateable):
    """A configured ``nn.Module``; ``weights="path:module"`` loads it from a trial's checkpoint."""

    @dataclass
    class Config:
        weights: str | None = None

    cfg: Any

    def __init__(self, cfg: Any = None, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        self.cfg = own_config(self, cfg)
        self.device = get_device()
        self.configure(*args, **kwargs)
        if self.cfg.weights is not None:
            self._load_weights(self.cfg.weights)

    def configure(self, *args: Any, **kwargs: Any) -> None:
        """Build the module; ``self.cfg`` and ``self.device`` are set."""

    def _load_weights(self, source: str) -> None:
        path, _, module = source.rpartition(":")
        if not path or not module:
            raise InputError(
                name_of(type(self)),
                "weights",
                source,
                "path:module, for instance last.ckpt:geometry",
            )
        state, epoch, global_step = load_module_weights(path, module_name=module)
        try:
            self.load_state_dict(state)
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise InputError(path, module, reason, "the weights of the same module") from error
        self.do_update_step(epoch, global_step, on_load_weights=True)


def load_checkpoint(path: str | Path, map_location: Any = "cpu") -> dict[str, Any]:
    """Read a Lightning checkpoint without unpickling anything but tensors and plain containers.

    Raises
    ------
    InputError
        When the file is missing, truncated, or not a checkpoint.
    """
    expected = "a checkpoint that a trial wrote (ckpts/last.ckpt)"
    if not Path(path).is_file():
        raise InputError(path, "checkpoint", "no such file", expected)
    try:
        checkpoint = torch.load(path, map_location=map_location, weights_only=True)
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(path, "checkpoint", reason, expected) from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise InputError(path, "state_dict", "nothing", expected)
    return checkpoint


def load_module_weights(
    path: str | Path,
    module_name: str | None = None,
    ignore_modules: list[str] | None = None,
    map_location: Any = "cpu",
) -> tuple[dict[str, torch.Tensor], int, int]:
    """Return (state dict, epoch, global step) of a checkpoint, or of one module in it.

    Raises
    ------
    InputError
        When the checkpoint cannot be read or holds no such module.
    """
    checkpoint = load_checkpoint(path, map_location)
    state: dict[str, torch.Tensor] = checkpoint["state_dict"]
    if module_name is not None:
        prefix = module_name + "."
        found = {
            key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)
        }
        if not found:
            modules = sorted({key.split(".")[0] for key in state})
            raise InputError(path, "module", module_name, suggestion(module_name, modules))
        state = found
    for ignored in ignore_modules or []:
        state = {k: v for k, v in state.items() if k != ignored and not k.startswith(ignored + ".")}
    return state, int(checkpoint.get("epoch", 0)), int(checkpoint.get("global_step", 0))
