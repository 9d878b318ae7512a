"""Run an experiment on the chosen host: what ``threestudio-eeg launch`` does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from eeg_encoder.errors import InputError

from .. import host
from ..experiments import experiment_config
from .checkout import Threestudio
from .checks import Registry, check_experiment
from .choice import Choice


def launch_on(
    choice: Choice,
    mode: str,
    configs: Sequence[Path],
    overrides: Sequence[str],
    *,
    device: str = "auto",
    gpu: str | None = None,
    say: Callable[[str], None] = print,
) -> Path | None:
    """Run an experiment and return its trial folder.

    Parameters
    ----------
    choice
        From :func:`~threestudio_eeg.launching.choice.choose_host`.
    mode
        ``train``, ``validate``, ``test`` or ``export``.
    configs
        Paths, names of shipped files, or for upstream paths in its checkout.
    overrides
        ``key=value`` words.
    device, gpu
        As on the command line.
    say
        Prints the line about the host.

    Raises
    ------
    InputError
        For whatever is wrong with the experiment, the device or the host.
    """
    files = [_find_config(name, choice.threestudio) for name in configs]
    if choice.threestudio is not None:
        from .upstream import Launch, launch_upstream

        launch = Launch(mode, files, overrides, choice.threestudio, device=device, gpu=gpu)
        return launch_upstream(launch, say)
    return _launch_builtin(mode, files, overrides, device, gpu, say)


def _launch_builtin(
    mode: Any,
    files: Sequence[Path],
    overrides: Sequence[str],
    device: Any,
    gpu: str | None,
    say: Callable[[str], None],
) -> Path:
    from ..builtin.config import compose
    from ..builtin.launch import launch
    from ..builtin.registry import find, load_builtin
    from .devices import visible_devices
    from .explanations import explained

    host.settle("builtin")
    with visible_devices(device, gpu) as chosen:
        say("host: builtin")
        where, registry = " + ".join(map(str, files)), Registry(load_builtin(), find)
        with explained(where):
            check_experiment(where, compose(*files, cli_args=overrides), registry)
        return launch(mode, files, overrides, device=chosen)  # type: ignore[arg-type]


def _find_config(name: Path, threestudio: Threestudio | None) -> Path:
    """A path from here, a shipped file, or a file of threestudio's checkout; absolute."""
    try:
        return experiment_config(name).absolute()
    except InputError:
        if threestudio is not None and (threestudio.root / name).is_file():
            return threestudio.root / name
        raise
