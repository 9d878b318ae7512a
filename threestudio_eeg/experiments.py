"""Where the experiment files are: beside the packages in a checkout, else in the wheel."""

from __future__ import annotations

from pathlib import Path

from eeg_encoder.configs import config_path
from eeg_encoder.errors import InputError


def experiment_config(name: str | Path) -> Path:
    """Path of an experiment file.

    Parameters
    ----------
    name
        A path, or the name of a shipped file such as ``phantom/eeg.yaml``.

    Raises
    ------
    InputError
        When there is no such file.
    """
    if Path(name).is_file():
        return Path(name)
    folder, _, file = str(name).rpartition("/")
    try:
        return config_path(file, kind=folder)
    except InputError:
        expected = f"a path, or one of {', '.join(shipped_configs())}"
        raise InputError(name, "config", "no such file", expected) from None


def shipped_configs() -> list[str]:
    """Names of the shipped files, for a message."""
    packages = Path(__file__).resolve().parent
    roots = (packages.parent / "configs", packages / "configs")
    return sorted({str(f.relative_to(root)) for root in roots for f in root.rglob("*.yaml")})
