"""From a conditioning file to a mesh: start, training at each resolution, export.

Launches ``eeg-prolificdreamer.yaml`` with ``schedule/progressive.yaml`` and, unless --slow,
``acceleration/fused-field.yaml`` laid over it, on the embedded host, for a few steps. The schedule
is a share of the run, so every resolution gets its share of them, and ``10,000 steps`` below is an
extrapolation: start and export as measured, each resolution's mean step times its number of steps
in a run of --of. With --all the whole run is made and nothing is extrapolated. Validation pictures
and the turntable are left out, a checkpoint is written at the end.

With random weights in the pipeline no object forms: what is timed is the matter that is there, and
the samples and the opacity of each resolution are printed beside it.

    python -m benchmarks.object_time --pipeline sd15 --device cuda --steps 400 --out object.json
    python -m benchmarks.object_time --pipeline tiny --device cpu --steps 20 --small
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

os.environ.setdefault("THREESTUDIO_EEG_HOST", "builtin")

import torch

from eeg_encoder.files import write_json
from threestudio_eeg.builtin.config import load_config
from threestudio_eeg.builtin.launch import launch
from threestudio_eeg.builtin.renderer import VolumeRenderer
from threestudio_eeg.experiments import experiment_config

from .launched import leave_films_out
from .representations import pipeline_and_conditioning
from .timing import peak_gb, reset_peak

CONFIGS = ("eeg-prolificdreamer.yaml", "schedule/progressive.yaml")
FUSED = "acceleration/fused-field.yaml"
SMALL = (
    "data.width=[8,12,16,20]",
    "data.height=[8,12,16,20]",
    "data.eval_width=16",
    "data.eval_height=16",
    "system.renderer.num_samples_per_ray=[0,8,16,12]",
    "system.geometry.pos_encoding_config.log2_hashmap_size=12",
    "system.geometry.isosurface_resolution=24",
)
FIRST = 8
"""Steps of a resolution that are counted apart: kernels and graphs are made in them."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what the arguments ask for."""
    options = parse(arguments)
    leave_films_out()
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        pipeline, conditioning = pipeline_and_conditioning(
            options.pipeline, Path(folder), options.device, options.conditioning
        )
        print(f"pipeline and conditioning: {time.perf_counter() - began:.1f} s", flush=True)
        words = overrides(options, pipeline, conditioning, Path(folder) / "out")
        report = run(options, words)
    show(report)
    if options.out is not None:
        write_json(options.out, report)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cuda = torch.cuda.is_available()
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if cuda else "cpu")
    parser.add_argument("--pipeline", default="sd15" if cuda else "tiny", help="as representations")
    parser.add_argument("--conditioning", type=Path, help="default: random tokens of its shape")
    parser.add_argument("--steps", type=int, default=400 if cuda else 20)
    parser.add_argument("--of", type=int, default=10_000, help="steps of the run meant")
    parser.add_argument("--all", action="store_true", help="make the whole run of --of steps")
    parser.add_argument("--small", action="store_true", help="small pictures and grids")
    parser.add_argument("--slow", action="store_true", help="without the fused field")
    parser.add_argument("--set", nargs="*", default=[], help="further key=value words")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    options = parser.parse_args(arguments)
    if options.all:
        options.steps = options.of
    return options


def overrides(
    options: argparse.Namespace, pipeline: Path, conditioning: Path, folder: Path
) -> list[str]:
    """Words of the command line."""
    words = [
        f"system.prompt_processor.pretrained_model_name_or_path={pipeline}",
        f"system.prompt_processor.conditioning={conditioning}",
        f"exp_root_dir={folder}",
        f"trainer.max_steps={options.steps}",
        f"trainer.val_check_interval={options.steps}",
        f"checkpoint.every_n_train_steps={options.steps}",
        "trainer.enable_progress_bar=false",
        "data.n_val_views=1",
        "data.n_test_views=1",
        "system.geometry.isosurface_threshold=auto",
        "system.geometry.isosurface_resolution=256",
    ]
    return [*words, *(SMALL if options.small else ()), *options.set]


# One run


@dataclass
class Watch:
    """When steps ended, and what was rendered in them."""

    device: str
    boundaries: set[int]
    ends: list[float] = field(default_factory=list)
    samples: list[int] = field(default_factory=list)
    opacities: list[torch.Tensor] = field(default_factory=list)

    def step(self, done: int) -> None:
        """Note the end of a step; wait for the device where a resolution begins or ends."""
        if self.device == "cuda" and done in self.boundaries:
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())

    @contextmanager
    def of_renders(self) -> Iterator[None]:
        """Note what training renders."""
        forward = VolumeRenderer.forward

        def watched(renderer: Any, *arguments: Any, **options: Any) -> dict[str, Any]:
            out = forward(renderer, *arguments, **options)
            if renderer.training:
                self.samples.append(len(out["weights"]))
                self.opacities.append(out["opacity"].detach().mean())
            return out

        with mock.patch.object(VolumeRenderer, "forward", watched):
            yield


def run(options: argparse.Namespace, words: list[str]) -> dict[str, Any]:
    """Train and export, and return seconds and milliseconds of the parts."""
    names = CONFIGS if options.slow else (*CONFIGS, FUSED)
    files = [experiment_config(name) for name in names]
    data = load_config(*files, cli_args=words).data
    starts = [0, *data.resolution_milestones]
    ends = [*data.resolution_milestones, options.steps]
    firsts = {min(start + FIRST, end) for start, end in zip(starts, ends, strict=True)}
    watch = Watch(options.device, firsts | set(ends))
    began = time.perf_counter()
    reset_peak(options.device)
    with watch.of_renders():
        trial = launch("train", files, words, device=options.device, quiet=True, on_step=watch.step)
    trained = time.perf_counter()
    peak = peak_gb(options.device)
    last = [f"resume={trial / 'ckpts' / 'last.ckpt'}"]
    launch("export", [trial / "configs" / "parsed.yaml"], last, device=options.device, quiet=True)
    exported = time.perf_counter()
    meshes = [path for path in (trial / "save").rglob("model.*") if path.stat().st_size > 0]
    segments = [
        segment(watch, began, int(side), *between, options.steps)
        for side, *between in zip(data.width, starts, ends, strict=True)
    ]
    once = watch.ends[0] - began - segments[0]["mean ms"] / 1e3
    once += sum(part["first s"] - part["first steps"] * part["mean ms"] / 1e3 for part in segments)
    once += trained - watch.ends[-1]
    steady = sum(part["share"] * part["mean ms"] for part in segments) / 1e3
    return {
        "steps": options.steps,
        "segments": segments,
        "start and all that happens once s": once,
        "export s": exported - trained,
        "measured s": exported - began,
        "of steps": options.of,
        "extrapolated": options.steps != options.of,
        "whole s": exported - began
        if options.steps == options.of
        else once + steady * options.of + exported - trained,
        "peak GB": peak,
        "meshes": [path.name for path in meshes],
        "device": torch.cuda.get_device_name() if options.device == "cuda" else "CPU",
        "words": words,
    }


def segment(
    watch: Watch, began: float, side: int, start: int, end: int, steps: int
) -> dict[str, Any]:
    """Figures of steps ``start`` to ``end`` of ``steps``, at one resolution."""
    times = [began, *watch.ends]
    skipped = min(FIRST, end - start - 1)
    begin = start + skipped
    seen = slice(begin, end)
    first = times[begin] - times[start] if start else times[begin] - times[1]
    return {
        "side": side,
        "steps": end - start,
        "share": (end - start) / steps,
        "mean ms": 1e3 * (times[end] - times[begin]) / (end - begin),
        "first steps": skipped if start else skipped - 1,
        "first s": first,
        "samples": statistics.mean(watch.samples[seen]),
        "mean opacity": statistics.mean(float(opacity) for opacity in watch.opacities[seen]),
    }


def show(report: dict[str, Any]) -> None:
    """Print the figures."""
    for part in report["segments"]:
        print(
            f"{part['side']:4d}²  {part['steps']:6d} steps  {part['mean ms']:8.2f} ms a step  "
            f"{part['samples'] / 1e6:7.3f} M samples  opacity {part['mean opacity']:.3f}"
        )
    print(f"once: {report['start and all that happens once s']:.1f} s", end=", ")
    print(f"export: {report['export s']:.1f} s, peak {report['peak GB']:.2f} GB, ", end="")
    print(f"measured as a whole: {report['measured s']:.1f} s, meshes: {report['meshes']}")
    kind = "extrapolated" if report["extrapolated"] else "measured"
    print(f"{report['of steps']} steps, {kind}: {report['whole s'] / 60:.2f} min", flush=True)


if __name__ == "__main__":
    main()
