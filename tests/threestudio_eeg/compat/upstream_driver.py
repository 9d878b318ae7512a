"""Run in a process of its own: threestudio's unmodified launch.py, with the remedies in force.

``python upstream_driver.py DEVICE CHECKOUT [launch.py's arguments]``; without arguments, only
``import threestudio`` and a line ``modules: N``. The working directory becomes the place of
``outputs/``; of the checkout, threestudio reads ``load/`` and ``custom/`` from there too.
"""

from __future__ import annotations

import importlib
import runpy
import sys
from pathlib import Path

from threestudio_eeg import compat


def main(device: str, checkout: Path, arguments: list[str]) -> None:
    remedies = compat.activate(device, threestudio=checkout)
    threestudio = importlib.import_module("threestudio")
    remedies += compat.after_import()
    for remedy in remedies:
        print(f"remedy: {remedy.name}: {remedy.reason}")
    print(f"modules: {len(threestudio.__modules__)}", flush=True)
    if arguments:
        _prepare_working_directory(checkout)
        script = str(checkout / "launch.py")
        sys.argv = [script, *arguments]
        runpy.run_path(script, run_name="__main__")


def _prepare_working_directory(checkout: Path) -> None:
    Path("custom").mkdir(exist_ok=True)
    if not Path("load").exists():
        Path("load").symlink_to(checkout / "load", target_is_directory=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
