"""Dataclasses of tensors, nested, as flat lists and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from torch import Tensor

Tree = TypeVar("Tree")


def leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (path, value) for every field that is no dataclass itself, in order."""
    for field in dataclasses.fields(tree):
        value, name = getattr(tree, field.name), f"{path}{field.name}"
        if dataclasses.is_dataclass(value):
            yield from leaves(value, name + ".")
        else:
            yield name, value


def tensors_of(tree: Any) -> dict[str, Tensor]:
    """Return the tensors by path."""
    return {path: value for path, value in leaves(tree) if isinstance(value, Tensor)}


def signature(tree: Any) -> tuple[Any, ...]:
    """Return what a recording depends on: shapes and types of tensors, values of all else."""
    return tuple(
        (path, tuple(value.shape), value.dtype) if isinstance(value, Tensor) else (path, value)
        for path, value in leaves(tree)
    )


def with_tensors(tree: Tree, tensors: Mapping[str, Tensor], path: str = "") -> Tree:
    """Return the tree with other tensors at the same paths."""
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(tree):  # type: ignore[arg-type]
        value, name = getattr(tree, field.name), f"{path}{field.name}"
        if dataclasses.is_dataclass(value):
            changes[field.name] = with_tensors(value, tensors, name + ".")
        elif isinstance(value, Tensor):
            changes[field.name] = tensors[name]
    return dataclasses.replace(tree, **changes)  # type: ignore[type-var]
