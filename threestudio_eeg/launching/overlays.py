"""Make one experiment file of several, for a launcher that takes only one.

Layers and overrides compose as on the embedded host, by :func:`..builtin.config.compose`: later
ones win, and a layer that names another ``<part>_type`` starts ``<part>`` afresh, on both hosts.
Threestudio's own launcher would keep the former part's keys, and fail on them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from eeg_encoder.errors import InputError
from eeg_encoder.files import whole_file

from ..builtin.config import compose, release_resolvers

TRIAL_KEYS = ("exp_root_dir", "name", "tag", "timestamp")
PATH_KEYS = (
    "resume",
    "conditioning",
    "geometry_convert_from",
    "dataroot",
    "*_path",
    "*_path_lora",
    "*_dir",
)
"""Keys whose whole value is a path."""
PATH_PREFIXED_KEYS = ("weights", "*_weights")
"""Keys whose value is ``path`` or ``path:module``."""
PATH_SUFFIXED_KEYS = ("shape_init",)
"""Keys whose value may be ``mesh:path``."""
FILES = ("resume", "conditioning", "geometry_convert_from", "weights")
"""Keys whose value can be nothing but a file, where it looks like one."""


def experiment_for(
    threestudio_root: Path, here: Path, configs: Sequence[Path], overrides: Sequence[str]
) -> DictConfig:
    """Compose an experiment that means the same when run from another folder.

    Parameters
    ----------
    threestudio_root
        The folder the experiment will run in.
    here
        The folder its paths were written in.
    configs, overrides
        As :func:`~threestudio_eeg.builtin.config.compose` takes them.

    Returns
    -------
    DictConfig
        Interpolations unresolved; ``exp_root_dir`` absolute.
    """
    try:
        config = compose(*configs, cli_args=overrides)
        config["exp_root_dir"] = str(here / (config.get("exp_root_dir") or "outputs"))
        _anchor_paths(config, here, threestudio_root)
        _go_on_where_it_stopped(config)
    except OmegaConfBaseException as error:
        where = " + ".join(map(str, configs))
        key = getattr(error, "full_key", None) or "interpolation"
        found = str(error).splitlines()[0]
        raise InputError(where, str(key), found, "one that resolves") from error
    finally:
        release_resolvers()
    return config


def write_experiment(
    folder: Path,
    config: DictConfig,
    configs: Sequence[Path],
    overrides: Sequence[str],
    command: str,
) -> Path:
    """Write a composed experiment, headed by what it is made of, and return its path.

    Threestudio copies the file into the trial as ``configs/raw.yaml``, comments included.
    """
    path = folder / f"{'+'.join(Path(file).stem for file in configs)[:100]}.yaml"
    lines = ["Composed by threestudio-eeg; later layers win over earlier ones.", *map(str, configs)]
    lines += [f"{word} (command line)" for word in overrides]
    lines += ["Paths are absolute where they were written for another folder.", command]
    header = "".join(f"# {' '.join(line.split())}\n" for line in lines)
    with whole_file(path) as temporary:
        temporary.write_text(header + OmegaConf.to_yaml(config), encoding="utf-8")
    return path


def _anchor_paths(config: DictConfig, here: Path, root: Path) -> None:
    """Make relative paths absolute, except those that exist only in threestudio's own folder."""
    for node, key, value in _strings(config):
        if _matches(key, PATH_KEYS):
            before, path, after = "", value, ""
        elif _matches(key, PATH_PREFIXED_KEYS):
            path, colon, module = value.rpartition(":")
            before, path, after = ("", path, colon + module) if colon else ("", value, "")
        elif _matches(key, PATH_SUFFIXED_KEYS) and value.startswith("mesh:"):
            before, path, after = "mesh:", value.removeprefix("mesh:"), ""
        else:
            continue
        node[key] = f"{before}{_anchored(path, here, root, mandatory=key in FILES)}{after}"


def _anchored(path: str, here: Path, root: Path, *, mandatory: bool) -> str:
    """Return ``path`` absolute where it is a path of ``here``.

    A value that names nothing may be a model's id, so it stays, unless it must be a file
    (``mandatory``): errors then name the file that was meant.
    """
    if not path or "${" in path or os.path.isabs(path):
        return path
    if (here / path).exists():
        return str(here / path)
    looks_like_file = mandatory and ":" not in path and (os.sep in path or "." in path)
    return str(here / path) if looks_like_file and not (root / path).exists() else path


def _strings(config: Any) -> Iterator[tuple[Any, str, str]]:
    for key in list(config) if isinstance(config, DictConfig) else range(len(config)):
        if OmegaConf.is_missing(config, key) or OmegaConf.is_interpolation(config, key):
            continue
        value = config[key]
        if isinstance(value, str) and isinstance(key, str):
            yield config, key, value
        elif isinstance(value, DictConfig | ListConfig):
            yield from _strings(value)


def _go_on_where_it_stopped(config: DictConfig) -> None:
    """A run that resumes from a trial's own checkpoint goes on in that trial's folder."""
    if config.get("resume") is None:
        return
    if config.resume == "LAST":
        config["resume"] = str(newest_checkpoint(config))
    checkpoint = Path(config.resume)
    if not checkpoint.is_file():
        expected = "a checkpoint that a trial wrote (ckpts/last.ckpt)"
        raise InputError(checkpoint, "resume", "no such file", expected)
    if checkpoint.parent.name == "ckpts":
        trial = checkpoint.resolve().parent.parent
        tag, at, stamp = trial.name.partition("@")
        values = (str(trial.parent.parent), trial.parent.name, tag, at + stamp)
        config.merge_with(dict(zip(TRIAL_KEYS, values, strict=True)))


def newest_checkpoint(config: DictConfig) -> Path:
    """Return the newest ``ckpts/*.ckpt`` among the trials of an experiment's name and tag.

    Raises
    ------
    InputError
        When there is none.
    """
    folder = Path(config.exp_root_dir) / str(config.get("name", "default"))
    tag = str(config.get("tag") or "")
    found = [
        path
        for path in folder.glob("*/ckpts/*.ckpt")
        if path.parent.parent.name.partition("@")[0] == tag
    ]
    if not found:
        raise InputError(folder, "resume=LAST", "no checkpoint", "a trial with ckpts/*.ckpt")
    return max(found, key=lambda path: path.stat().st_mtime)


def _matches(key: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(key, pattern) for pattern in patterns)
