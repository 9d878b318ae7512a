"""Where the YAML files are: beside the packages in a checkout, inside the wheel once installed."""

from __future__ import annotations

from pathlib import Path

from .errors import InputError


def config_path(name: str | Path, *, kind: str = "encoder") -> Path:
    """Path of a config file.

    Parameters
    ----------
    name
        A path, or the name of a file in ``configs/<kind>``.
    kind
        Folder below ``configs``.

    Raises
    ------
    InputError
        When neither exists.
    """
    if Path(name).is_file():
        return Path(name)
    beside = Path(__file__).resolve().parent.parent
    folders = [beside / "configs" / kind, beside / "threestudio_eeg" / "configs" / kind]
    for folder in folders:
        for file in (folder / name, folder / f"{name}.yaml"):
            if file.is_file():
                return file
    known = sorted(file.name for folder in folders for file in folder.glob("*.yaml"))
    raise InputError(name, "config", "no such file", f"a path, or one of {', '.join(known)}")
