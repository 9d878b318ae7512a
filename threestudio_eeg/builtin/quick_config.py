"""Configs whose plain values are found as fast as any attribute.

Parts read some ninety settings a training step, and OmegaConf takes up to 0.1 ms for each: more
than the kernels of a small render.
"""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig

PLAIN = (bool, int, float, str, type(None))


class QuickConfig(DictConfig):
    """A ``DictConfig`` that keeps its numbers, words and ``None`` beside its nodes.

    Setting a key drops what was kept of it.
    """

    def __setattr__(self, key: str, value: Any) -> None:
        self._forget(key)
        super().__setattr__(key, value)

    def __setitem__(self, key: Any, value: Any) -> None:
        self._forget(str(key))
        super().__setitem__(key, value)

    def _forget(self, key: str) -> None:
        if not key.startswith("_"):
            self.__dict__.pop(key, None)


def quick(config: Any) -> Any:
    """Turn a ``DictConfig`` into a quick one, in place."""
    object.__setattr__(config, "__class__", QuickConfig)
    for key in config.keys():  # noqa: SIM118
        if isinstance(key, str) and key.isidentifier() and not hasattr(DictConfig, key):
            value = config[key]
            if isinstance(value, PLAIN):
                config.__dict__[key] = value
    return config
