"""Recognise a threestudio: a checkout of its repository, or the installed package alone."""

from __future__ import annotations

import ast
import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path

from eeg_encoder.errors import InputError

VARIABLE = "THREESTUDIO_ROOT"
PACKAGE = "threestudio"
SCRIPT = "launch.py"
TESTED = ("0.2.3",)
"""Versions that the tests marked ``upstream`` have run on."""
UNKNOWN = "unknown"


@dataclass(frozen=True)
class Threestudio:
    """A threestudio on disk; nothing of it has been imported.

    Parameters
    ----------
    root
        The folder that holds the package ``threestudio``, and goes on ``sys.path``.
    version
        As its ``__init__.py`` says, or ``"unknown"``.
    script
        ``launch.py``, or ``None`` where only the package is installed.
    """

    root: Path
    version: str
    script: Path | None

    @property
    def extensions(self) -> Path:
        """The folder whose entries ``launch.py`` loads."""
        return self.root / "custom"

    @property
    def tested(self) -> bool:
        return self.version in TESTED

    def __str__(self) -> str:
        kind = "" if self.script else " (package only)"
        return f"threestudio {self.version} at {self.root}{kind}"


def threestudio_at(path: str | Path) -> Threestudio:
    """Recognise the threestudio in a folder.

    Raises
    ------
    InputError
        When the path is missing, a file, or a folder without ``threestudio/__init__.py``.
    """
    root = Path(path).expanduser().absolute()
    expected = f"a folder with {PACKAGE}/__init__.py (a checkout of threestudio)"
    if not root.exists():
        raise InputError(root, PACKAGE, "no such folder", expected)
    if not root.is_dir():
        raise InputError(root, PACKAGE, "a file", expected)
    package = root / PACKAGE / "__init__.py"
    if not package.is_file():
        if root.name == PACKAGE and (root / "__init__.py").is_file():
            raise InputError(root, PACKAGE, "the package itself", f"its parent, {root.parent}")
        raise InputError(root, PACKAGE, f"a folder without {PACKAGE}/__init__.py", expected)
    script = root / SCRIPT
    return Threestudio(root, version_in(package), script if script.is_file() else None)


def find_threestudio(path: str | Path | None = None) -> Threestudio | None:
    """Return the threestudio of ``path``, else of ``THREESTUDIO_ROOT``, else the installed one.

    Raises
    ------
    InputError
        When a path was given and is none; an absent installation gives ``None``.
    """
    if path is not None:
        return threestudio_at(path)
    named = os.environ.get(VARIABLE, "").strip()
    if named:
        try:
            return threestudio_at(named)
        except InputError as error:
            where = f"{VARIABLE}={error.where}"
            raise InputError(where, error.field, error.found, error.expected) from None
    return _installed()


def version_in(package: Path) -> str:
    """Read ``__version__`` of an ``__init__.py`` without running it."""
    try:
        tree = ast.parse(package.read_text(encoding="utf-8"))
    except (SyntaxError, ValueError, OSError):
        return UNKNOWN
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
            names = [target.id for target in node.targets if isinstance(target, ast.Name)]
            if "__version__" in names:
                return str(node.value.value)
    return UNKNOWN


def warning_of(threestudio: Threestudio) -> str | None:
    """Say that a version was never tried, or nothing."""
    if threestudio.tested:
        return None
    return f"{threestudio} was never tried with this extension; tested: {', '.join(TESTED)}"


def _installed() -> Threestudio | None:
    try:
        spec = importlib.util.find_spec(PACKAGE)
    except ValueError:  # a module without a spec stands in sys.modules
        return None
    if spec is None or spec.origin is None:
        return None
    return threestudio_at(Path(spec.origin).parent.parent)
