"""The command line of the benchmarks that make objects: options that several of them have."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from eeg_encoder.errors import InputError

OPTIONS: dict[str, dict[str, Any]] = {
    "conditioning": {"type": Path, "required": True, "help": "of the test trials"},
    "objects": {"type": Path, "required": True, "help": "objects.json of a recording"},
    "out": {"type": Path, "required": True},
    "trials": {"type": int, "help": "test objects, even over categories"},
    "skip": {"type": int, "default": 0, "help": "leave out so many objects first"},
    "subject": {"type": int, "default": 1},
    "workers": {"type": int},
    "override": {"action": "append", "default": [], "metavar": "KEY=VALUE"},
    "pipeline": {"default": "phantom"},
    "judge": {},
    "device": {"default": "auto"},
    "size": {"type": int, "default": 128, "help": "side of the views, pixels"},
}


def described(words: str | None) -> argparse.ArgumentParser:
    """A parser whose help begins with ``words`` as they are."""
    kind = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(description=words, formatter_class=kind)


def add_options(parser: argparse.ArgumentParser, *names: str, **changes: dict[str, Any]) -> None:
    """Add the options of these names, in this order; ``changes`` are to what the table says."""
    for name in names:
        parser.add_argument(f"--{name}", **(OPTIONS[name] | changes.get(name, {})))


def run_command(
    parser: argparse.ArgumentParser,
    benchmark: Callable[[argparse.Namespace], Any],
    arguments: Sequence[str] | None,
) -> None:
    """Read the command line and run; input that is wrong ends the program with its message."""
    options = parser.parse_args(arguments)
    try:
        benchmark(options)
    except InputError as error:
        sys.exit(f"error: {error}")
