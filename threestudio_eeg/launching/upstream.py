"""Run an experiment inside an unmodified threestudio, with this extension registered."""

from __future__ import annotations

import functools
import importlib
import os
import runpy
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from eeg_encoder.errors import InputError
from eeg_encoder.files import whole_file, write_json

from .. import host
from . import package_only, resuming
from .checkout import PACKAGE, Threestudio, warning_of
from .checks import Registry, check_experiment
from .devices import check_one_gpu, visible_devices
from .explanations import explained
from .extensions import Registrations
from .overlays import experiment_for, write_experiment

RECORD = "launch.json"


@dataclass
class Launch:
    """One run inside threestudio.

    Parameters
    ----------
    mode
        ``train``, ``validate``, ``test`` or ``export``.
    configs, overrides
        Experiment files, later ones over earlier ones, and ``key=value`` words over them.
    threestudio
        Where to run.
    device
        ``auto``, ``cpu`` or ``cuda``.
    gpu
        As threestudio's ``--gpu``; ``None`` is its default, the first one.
    here
        The folder that relative paths start from.

    Attributes
    ----------
    trial
        The trial's folder, once threestudio has made it.
    """

    mode: str
    configs: Sequence[Path]
    overrides: Sequence[str]
    threestudio: Threestudio
    device: str = "auto"
    gpu: str | None = None
    here: Path = field(default_factory=Path.cwd)
    trial: Path | None = field(default=None, init=False)

    @property
    def where(self) -> str:
        return " + ".join(map(str, self.configs))

    @property
    def command(self) -> str:
        """The command line that does this again."""
        return self._command([*map(str, self.configs)], f"--{self.mode}", *self.overrides)

    def to_go_on(self, checkpoint: Path) -> str:
        """The command line that goes on from a checkpoint of this run."""
        parsed = checkpoint.parent.parent / "configs" / "parsed.yaml"
        return self._command([str(parsed)], "--train", f"resume={checkpoint}")

    def _command(self, configs: Sequence[str], *more: str) -> str:
        words = ["threestudio-eeg", "launch", "--host", "upstream"]
        words += ["--threestudio", str(self.threestudio.root)]
        words += [] if self.device == "auto" else ["--device", self.device]
        words += [] if self.gpu is None else ["--gpu", self.gpu]
        words += [word for file in configs for word in ("--config", file)]
        return shlex.join([*words, *more])


def launch_upstream(launch: Launch, say: Callable[[str], None] = print) -> Path | None:
    """Run an experiment inside threestudio and return its trial folder.

    ``launch.py`` runs as it is, in its own folder, on one experiment file composed of all layers
    and overrides. Where only the package is installed, :mod:`.package_only` does its part, in the
    working folder. The process's working folder, arguments and visible GPUs come back afterwards.

    Raises
    ------
    InputError
        For bad configs, overrides or checkpoints, for an experiment that names what nobody
        registered, and for a threestudio that cannot be imported.
    KeyboardInterrupt
        After Ctrl-C in training, when the step is done and ``ckpts/last.ckpt`` is written.
    """
    threestudio = launch.threestudio
    folder = threestudio.root if threestudio.script else launch.here
    experiment = experiment_for(folder, launch.here, launch.configs, launch.overrides)
    warning = warning_of(threestudio)
    if warning:
        print(f"warning: {warning}", file=sys.stderr)
    with ExitStack() as stack:
        device = stack.enter_context(visible_devices(launch.device, launch.gpu or "0"))
        check_one_gpu()
        remedies = prepare(threestudio, device)
        say(f"host: upstream {threestudio}; remedies: {', '.join(remedies) or 'none'}")
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="threestudio-eeg-")))
        command = f"Made for: {launch.command}"
        file = write_experiment(work, experiment, launch.configs, launch.overrides, command)
        custom = folder / "custom"
        stack.enter_context(explained(launch.where))
        stack.enter_context(_in_folder(folder))
        stack.enter_context(_checked_and_resumable(launch, file, custom, remedies))
        if threestudio.script is None:
            package_only.run(launch.mode, file, device=device, custom=custom)
        else:
            _run_script(threestudio.script, launch, file)
    return launch.trial


def prepare(threestudio: Threestudio, device: str) -> list[str]:
    """Make threestudio importable, import it and register this extension; name the remedies.

    Raises
    ------
    InputError
        When it cannot be imported, or another threestudio was imported before.
    """
    from ..compat import activate, after_import

    applied = activate(device, threestudio=threestudio.root)
    try:
        module: Any = importlib.import_module(PACKAGE)
    except ImportError as error:
        found = f"{type(error).__name__}: {error}"
        expected = "one that can be imported (threestudio-eeg doctor says what is missing)"
        raise InputError(threestudio.root, PACKAGE, found, expected) from error
    _check_origin(module, threestudio)
    applied += after_import()
    host.settle("upstream")
    if not isinstance(module.register, Registrations):
        module.register = Registrations(module.__modules__, module.register)
    importlib.import_module("threestudio_eeg.plugin")
    return [one.name for one in applied]


def _check_origin(module: Any, threestudio: Threestudio) -> None:
    package = threestudio.root / PACKAGE / "__init__.py"
    if not package.samefile(str(module.__file__)):
        found = f"{module.__file__}, imported before"
        raise InputError(threestudio.root, PACKAGE, found, "one threestudio a process")


def _run_script(script: Path, launch: Launch, file: Path) -> None:
    before = sys.argv
    words = ["--config", str(file), f"--{launch.mode}", "--gpu", launch.gpu or "0"]
    sys.argv = [str(script), *words]
    try:
        runpy.run_path(str(script), run_name="__main__")
    finally:
        sys.argv = before


@contextmanager
def _checked_and_resumable(
    launch: Launch, file: Path, custom: Path, remedies: list[str]
) -> Iterator[None]:
    """Put our checks before threestudio's reading of the config, and our Trainer in its place.

    Both are looked up when a run begins, after the extensions in ``custom`` were imported.
    """
    import pytorch_lightning

    threestudio = importlib.import_module(PACKAGE)
    configs = importlib.import_module(f"{PACKAGE}.utils.config")
    registry = Registry(threestudio.__modules__, threestudio.find, custom)
    load_config = configs.load_config

    @functools.wraps(load_config)
    def checked(*args: Any, **kwargs: Any) -> Any:
        if launch.trial is not None:  # a later stage reads the config of the one before it
            return load_config(*args, **kwargs)
        threestudio.register.check(custom)
        check_experiment(launch.where, cast(DictConfig, OmegaConf.load(file)), registry)
        config = load_config(*args, **kwargs)
        launch.trial = Path(config.trial_dir)
        if launch.mode == "train":
            _record(launch, remedies)
        return config

    keep = resuming.callback(pytorch_lightning)
    trainer = resuming.resumable(pytorch_lightning.Trainer, keep, launch.to_go_on)
    with (
        _replaced(configs, "load_config", checked),
        _replaced(pytorch_lightning, "Trainer", trainer),
    ):
        try:
            yield
        finally:
            _add_command(launch)


def _record(launch: Launch, remedies: list[str]) -> None:
    assert launch.trial is not None
    record = {
        "command": launch.command,
        "working_folder": str(launch.here),
        "threestudio": {"version": launch.threestudio.version, "at": str(launch.threestudio.root)},
        "remedies": remedies,
    }
    write_json(launch.trial / RECORD, record)


def _add_command(launch: Launch) -> None:
    """Add our command line to the trial's ``cmd.txt``, which names a file that is gone."""
    if launch.trial is None or launch.mode != "train":
        return
    path = launch.trial / "cmd.txt"
    before = path.read_text(encoding="utf-8") if path.is_file() else ""
    with whole_file(path) as temporary:
        temporary.write_text(f"{before}{launch.command}\n", encoding="utf-8")


@contextmanager
def _in_folder(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)
