"""Work for the benchmark's processes; in a module of its own, so that they start fast."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any


def square(connection: Any, settings: Any) -> None:
    """Answer numbers with their squares; die at the number ``settings``."""
    while (job := connection.recv()) is not None:
        if job == settings:
            os._exit(1)
        connection.send(job * job)


def look_around(connection: Any, settings: Any) -> None:
    """Answer jobs with the environment variable ``settings``."""
    while connection.recv() is not None:
        connection.send(os.environ.get(settings))


def leave_together(connection: Any, settings: Any) -> None:
    """Echo jobs; leave only when ``settings["number"]`` workers have been sent home.

    One that waited in vain says so in the folder ``settings["folder"]``.
    """
    while (job := connection.recv()) is not None:
        connection.send(job)
    folder, deadline = Path(settings["folder"]), time.monotonic() + 15
    (folder / f"sent home {os.getpid()}").touch()
    while len(list(folder.iterdir())) < settings["number"]:
        if time.monotonic() > deadline:
            (folder / f"alone {os.getpid()}").touch()
            return
        time.sleep(0.02)
