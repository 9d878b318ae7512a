"""A whole training step side by side: render, guidance, backward pass and optimiser.

The setting is that of threestudio's ``configs/prolificdreamer.yaml`` early in training: hash grid,
neural environment map, 512 samples a ray, one view, VSD on a pipeline of Stable Diffusion 1.5's
shapes and random weights. The first setup is threestudio itself, unmodified, from the checkout in
``THREESTUDIO_ROOT``; what it could not have of its own packages is printed. Every setup is a
process of its own and sees the same cameras. With --at-once, a few start and warm up side by
side on a GPU and then take turns: who measures is alone, so the slowest to warm up delays all.

    THREESTUDIO_ROOT=threestudio python benchmarks/train_step.py --out train_step.json
    python benchmarks/train_step.py --size tiny --device cpu
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]
os.environ.setdefault("THREESTUDIO_EEG_HOST", "builtin")

import torch  # noqa: E402
from guidance_setups import World, pipeline_of  # noqa: E402
from step_setups import PARTS, SETUPS, TrainingStep, allocated, stood_in  # noqa: E402
from timing import machine  # noqa: E402
from vsd_step import FOR_UPSTREAM, SIDES, floor_ms  # noqa: E402

from eeg_encoder.files import write_json  # noqa: E402

USUAL = ("upstream", "default", "fused", "fused, shared noise")
SAMPLES = {"sd15": 512, "small": 32, "tiny": 32}
RENDERED_SIDE = {"small": 32}
LAST_LINES = 15


def main(arguments: list[str] | None = None) -> int:
    """Run what the arguments ask for; 1 when a setup broke."""
    options = parse(arguments)
    if options.one is not None:
        return one(options)
    report: dict[str, Any] = {"machine": machine(options.device), "options": public(options)}
    print(*report["machine"].values(), f"{options.side}²", f"{options.samples} a ray", sep=", ")
    began = time.perf_counter()
    with (
        tempfile.TemporaryDirectory() as folder,
        pipeline_of(options.size, options.pipeline, options.device) as options.pipeline,
    ):
        print(f"pipeline: {time.perf_counter() - began:.1f} s", flush=True)
        report["setups"] = rows = {}
        for name, row in run_all(options, Path(folder)):
            rows[name] = row
            if options.out is not None:
                write_json(options.out, report)
    table(rows, options.setups)
    if options.out is not None:
        write_json(options.out, report)
    return int(any("reason" in row for row in rows.values()))


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cuda = torch.cuda.is_available()
    parser.add_argument("--size", choices=list(SAMPLES), default="sd15" if cuda else "tiny")
    parser.add_argument("--side", type=int, help="pixels of the render")
    parser.add_argument("--samples", type=int, help="per ray")
    parser.add_argument("--device", default="cuda" if cuda else "cpu")
    parser.add_argument("--setups", nargs="+", choices=list(SETUPS), help=f"default: {USUAL}")
    parser.add_argument("--repeats", type=int, default=20 if cuda else 2)
    parser.add_argument("--warm-up", type=int, default=6 if cuda else 1)
    parser.add_argument("--pipeline", type=Path, help="a folder, made before")
    parser.add_argument("--limit", type=float, default=240, help="seconds, of all setups")
    parser.add_argument("--at-once", type=int, default=1, help="processes on a GPU, for its memory")
    parser.add_argument("--floor", action="store_true", help="count the guidance's arithmetic too")
    parser.add_argument("--profile", action="store_true", help="list the costliest kernels of each")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    for hidden in ("--one", "--lock", "--result"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    options.side = options.side or RENDERED_SIDE.get(options.size, SIDES[options.size])
    options.samples = options.samples or SAMPLES[options.size]
    if options.setups is None:
        can = options.size in FOR_UPSTREAM and "THREESTUDIO_ROOT" in os.environ
        options.setups = [name for name in USUAL if can or not SETUPS[name].upstream]
        if not options.device.startswith("cuda"):
            options.setups = [n for n in options.setups if not SETUPS[n].guidance]
    return options


def public(options: argparse.Namespace) -> dict[str, Any]:
    """The options that a reader of the figures wants to know."""
    hidden = ("one", "lock", "result", "out", "pipeline")
    return {key: value for key, value in vars(options).items() if key not in hidden}


# The processes


@dataclass
class Child:
    """A setup's process, and where it leaves its figures and its words."""

    name: str
    process: subprocess.Popen[bytes]
    result: Path
    words: IO[bytes]

    def row(self) -> dict[str, Any]:
        """Its figures, or why there are none."""
        said = Path(self.words.name).read_text(encoding="utf-8", errors="replace")
        if self.result.is_file():
            row: dict[str, Any] = json.loads(self.result.read_text(encoding="utf-8"))
            if "profile" in row:
                print(f"\n{self.name}\n{row['profile']}")
            return row
        last = "\n".join(said.strip().splitlines()[-LAST_LINES:])
        print(f"\n{self.name}: exit code {self.process.returncode}\n{last}\n", flush=True)
        return {"reason": f"exit code {self.process.returncode}: {last[-400:]}"}


def run_all(options: argparse.Namespace, folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Figures by setup as they come: side by side on a GPU, else one after the other."""
    end = time.monotonic() + options.limit
    waiting = [start(name, options, folder) for name in options.setups[: _at_once(options)]]
    later = options.setups[len(waiting) :]
    while waiting:
        for child in list(waiting):
            if child.process.poll() is None and time.monotonic() > end:
                child.process.kill()
                child.process.wait()
            if child.process.poll() is None:
                continue
            waiting.remove(child)
            if later:
                waiting.append(start(later.pop(0), options, folder))
            yield child.name, child.row()
        time.sleep(0.05)


def _at_once(options: argparse.Namespace) -> int:
    return options.at_once if options.device.startswith("cuda") else 1


def start(name: str, options: argparse.Namespace, folder: Path) -> Child:
    """Start a setup's process."""
    result = folder / f"{list(SETUPS).index(name)}.json"
    words = (folder / f"{list(SETUPS).index(name)}.txt").open("wb")
    given = {
        "--one": name,
        "--lock": folder / "turn",
        "--result": result,
        "--pipeline": options.pipeline,
        "--size": options.size,
        "--side": options.side,
        "--samples": options.samples,
        "--device": options.device,
        "--repeats": options.repeats,
        "--warm-up": options.warm_up,
    }
    command = [sys.executable, __file__, *(str(word) for pair in given.items() for word in pair)]
    counts = name == next((n for n in options.setups if not SETUPS[n].upstream), None)
    command += ["--floor"] * (options.floor and counts) + ["--profile"] * options.profile
    process = subprocess.Popen(command, stdout=words, stderr=subprocess.STDOUT)
    return Child(name, process, result, words)


@contextmanager
def turn(lock: str, alone: bool) -> Iterator[None]:
    """Among the processes: together with others that warm up, or alone."""
    with open(lock, "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        yield


# One process


def one(options: argparse.Namespace) -> int:
    """Measure one setup and write its figures."""
    began = time.perf_counter()
    setup, row = SETUPS[options.one], {}
    with turn(options.lock, alone=False):
        dtype = torch.float16 if options.device.startswith("cuda") else torch.float32
        world = World.of(options.size, options.pipeline, 1, options.device, dtype)
        step = TrainingStep(setup, world, options.side, options.samples)
        row["built GB"] = allocated(options.device)
        for _ in range(max(options.warm_up, 1)):
            step()
        if options.device.startswith("cuda"):
            torch.cuda.synchronize()
        row["start s"] = time.perf_counter() - began
    with turn(options.lock, alone=True):
        step()
        row |= step.measure(options.repeats)
        row["stood in"] = list(stood_in()) if setup.upstream else []
        save(options, row)
        for more in (lambda: step.measure_guidance(options.repeats), step.measure_render):
            row |= attempt(more)
            save(options, row)
        if options.profile:
            row |= attempt(lambda: {"profile": profile(step, options.device)})
        if options.floor:
            row |= attempt(lambda: {"floor": floor_ms(world, SIDES[options.size])})
        save(options, row)
    return 0


def save(options: argparse.Namespace, row: dict[str, Any]) -> None:
    """Leave the figures so far for the process that asked."""
    write_json(Path(options.result), row)


def attempt(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Figures besides the main ones; what breaks is reported and costs only itself."""
    try:
        return work()
    except Exception as error:
        traceback.print_exc()
        return {f"broken: {type(error).__name__}": str(error)[:300]}


def profile(step: TrainingStep, device: str) -> str:
    """The kernels that take longest in a step, as a table."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    on_gpu = device.startswith("cuda")
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_gpu
    with profiler(activities=activities) as seen:
        step()
        if on_gpu:
            torch.cuda.synchronize()
    by = "self_cuda_time_total" if on_gpu else "self_cpu_time_total"
    table: str = seen.key_averages().table(sort_by=by, row_limit=40, max_name_column_width=70)
    return table


# The table

COLUMNS = (*PARTS, "whole", "peak GB", "reserved GB", "guidance alone", "mean opacity", "start s")


def table(rows: dict[str, dict[str, Any]], order: list[str]) -> None:
    """Print medians, ratios to the first setup, memory, and what was rendered."""
    found = [(name, rows[name]) for name in order if "whole" in rows.get(name, {})]
    if not found:
        return
    first = found[0][1]
    titles = ("render", "guidance", "backward", "whole", "peak GB", "reserved", "alone", "opacity")
    print(f"\n{'setup':30}" + "".join(f"{title:>10}" for title in (*titles, "start s")), end="")
    print(f"{'M samples':>11}{'x whole':>9}{'x alone':>9}")
    for name, row in found:
        line = "".join(f"{row.get(column, float('nan')):10.2f}" for column in COLUMNS)
        times = [
            first.get(key, float("nan")) / row.get(key, float("nan"))
            for key in ("whole", "guidance alone")
        ]
        ratios = "".join(f"{ratio:9.2f}" for ratio in times)
        print(f"{name:30}{line}{row['samples'] / 1e6:11.2f}{ratios}")
    for name, row in found:
        print(f"\n{name}: samples a ray {row.get('samples a ray', float('nan')):.1f}", end="")
        for key in ("render bytes kept a sample", "render bytes at peak a sample"):
            print(f", {key} {row.get(key, float('nan')):.0f}", end="")
        above = row.get("guidance GB above what it keeps", float("nan"))
        print(f", guidance {above:.2f} GB above what it keeps", end="")
        print(f", built {row.get('built GB', float('nan')):.2f} GB", end="")
        if "floor" in row:
            floor = row["floor"]
            times_floor = row.get("guidance alone", float("nan")) / floor["ms"]
            print(f"; guidance {floor['tflop']:.2f} TFLOP, floor {floor['ms']:.2f} ms", end="")
            print(f" at {floor['rate']:.0f} TFLOP/s: {times_floor:.1f} x floor", end="")
        for reason in row["stood in"]:
            print(f"\n  stand-in: {reason}", end="")
        for key in (key for key in row if key.startswith("broken")):
            print(f"\n  {key}: {row[key]}", end="")
    print(flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
