"""What a worker process of the benchmarks that make objects does."""

from __future__ import annotations

import logging
import os
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict
from multiprocessing.connection import Connection
from typing import Any


def prepare(threads: int) -> None:
    """The built-in host, so many threads, and no chatter of Lightning's."""
    os.environ["THREESTUDIO_EEG_HOST"] = "builtin"
    import torch

    torch.set_num_threads(threads)
    warnings.filterwarnings("ignore", module="lightning.*")
    for name in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)


def answer(connection: Connection, make: Callable[[Any], list[dict[str, Any]]]) -> None:
    """Make what comes in, until None or an interrupt."""
    while (wanted := connection.recv()) is not None:
        try:
            results = make(wanted)
        except KeyboardInterrupt:
            return
        connection.send(results)


def attempt(
    jobs: Sequence[Any], make: Callable[[], list[dict[str, Any]]]
) -> tuple[list[dict[str, Any]], bool]:
    """What ``make`` makes, and True; when it fails, a row with the reason for every job."""
    try:
        return make(), True
    except Exception as error:
        traceback.print_exc()
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        return [{**asdict(job), "error": reason} for job in jobs], False
