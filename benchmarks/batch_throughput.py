"""Objects an hour: one at a time, several together in one process, several processes side by side.

Every setup makes the same objects of the phantom from the same conditioning file in the same run,
with a film of one picture and no figures. Starting is part of the time, as it is of a batch.
One at a time takes long, so --alone lets that setup make fewer objects.

    python benchmarks/batch_throughput.py --conditioning test.safetensors --trials 80 --alone 3 \\
        --together 8 --workers 4 --combined 5x16 --out throughput.json
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]
os.environ.setdefault("THREESTUDIO_EEG_HOST", "builtin")

from eeg_encoder.files import write_json  # noqa: E402

QUICK = {"trials": 2, "steps": 6, "together": [2], "workers": [2], "combined": []}


def main(arguments: list[str] | None = None) -> None:
    """Time every setup; print the table as it grows."""
    options = parse(arguments)
    report: dict[str, Any] = {"machine": machine(options.device), "setups": {}}
    with tempfile.TemporaryDirectory() as folder:
        for name, run in setups(options, Path(folder)).items():
            row = timed(run, options.steps)
            report["setups"][name] = row
            first = next(iter(report["setups"].values()))
            row["ratio"] = row["objects_per_hour"] / first["objects_per_hour"]
            print(
                f"{name:36}{row['objects_per_hour']:12.1f} objects/h"
                f"{row['steps_per_second']:10.2f} steps/s{row['ratio']:8.2f}x",
                flush=True,
            )
            if options.out is not None:
                write_json(options.out, report)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    import torch

    kind = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=kind)
    parser.add_argument("--conditioning", type=Path, required=True)
    parser.add_argument("--config", default="phantom/eeg.yaml")
    parser.add_argument("--trials", type=int, default=16, help="objects a setup")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--together", type=int, nargs="*", default=[4, 8])
    parser.add_argument("--workers", type=int, nargs="*", default=[4])
    parser.add_argument(
        "--combined",
        nargs="*",
        default=[],
        metavar="KxN",
        help="K objects together in each of N processes",
    )
    parser.add_argument("--alone", type=int, help="objects made one at a time; default --trials")
    parser.add_argument("--gpus", type=int, nargs="*", default=[1], help="for the combined setups")
    parser.add_argument("--override", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--quick", action="store_true", help="a few steps: the ratios only hint")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    if options.quick:
        vars(options).update(QUICK)
    return options


def setups(options: argparse.Namespace, folder: Path) -> dict[str, Callable[[], list[Any]]]:
    """The setups by name, each a function that makes all objects and returns their rows."""
    many = options.trials
    choices = {"one at a time": (1, 1, 1, options.alone or many)}
    choices |= {f"{k} together": (k, 1, 1, many) for k in options.together}
    choices |= {f"{n} processes": (1, n, 1, many) for n in options.workers}
    for word in options.combined:
        k, n = (int(part) for part in word.split("x"))
        for gpus in options.gpus:
            choices[f"{k} together, {n} processes, {gpus} GPU"] = (k, n, gpus, many * gpus)
    return {
        name: partial(batch, options, folder / name.replace(" ", "-"), *choice)
        for name, choice in choices.items()
    }


def batch(
    options: argparse.Namespace, out: Path, together: int, workers: int, gpus: int, trials: int
) -> list[Any]:
    """Make the objects as ``threestudio-eeg batch`` does, ``workers`` on each GPU."""
    from threestudio_eeg.batch.command import BatchOptions, run_batch

    steps = f"trainer.max_steps={options.steps}"
    no_pictures = ["trainer.val_check_interval=1000000", "data.n_test_views=1"]
    return run_batch(
        BatchOptions(
            source=options.conditioning,
            configs=(Path(options.config),),
            out=out,
            trials=tuple(str(i) for i in range(trials)),
            overrides=(steps, *no_pictures, *options.override),
            workers=workers * gpus,
            gpus=gpus,
            together=together,
            retries=0,
            device=options.device,
            quiet=True,
        )
    )


def timed(run: Callable[[], list[Any]], steps: int) -> dict[str, Any]:
    """Objects an hour and steps a second of one setup; failures are counted."""
    began = time.perf_counter()
    rows = run()
    seconds = time.perf_counter() - began
    made = sum(row["status"] == "done" for row in rows)
    for row in rows:
        if row["status"] != "done":
            print(f"failed: {row['trial']}: {row['error']}", flush=True)
    return {
        "seconds": seconds,
        "made": made,
        "failed": len(rows) - made,
        "objects_per_hour": 3600 * made / seconds,
        "steps_per_second": made * steps / seconds,
    }


def machine(device: str) -> dict[str, str]:
    """What the figures were measured on."""
    import torch

    name = torch.cuda.get_device_name() if device == "cuda" else platform.processor()
    return {"device": name, "torch": torch.__version__, "python": platform.python_version()}


if __name__ == "__main__":
    main()
