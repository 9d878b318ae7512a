"""EEG beside text, class, shuffled EEG and the picture itself: objects, then the table.

Makes the control files, makes an object of every test trial, condition and seed with
phantom_objects.py, and compares them trial by trial. Objects that are there already are kept, so a
call that was cut short goes on.

    python benchmarks/comparison.py --conditioning test.safetensors \\
        --objects recording/objects.json --out comparison --workers 16 --device cuda

With --views-off a second batch is made in which the prior is not told the camera, for the Janus
count with and without view conditioning. With --rows-only the objects are taken as they are.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]

import phantom_objects  # noqa: E402
from object_options import add_options, described, run_command  # noqa: E402

from eeg_encoder.files import writable_folder  # noqa: E402

CONDITIONS = ("text", "eeg", "class", "shuffled", "image")
VIEWS_OFF = "system.guidance.view_dependent_prompting=false"


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line; make what is missing; compare."""
    run_command(_parser(), run, arguments)


def _parser() -> argparse.ArgumentParser:
    parser = described(__doc__)
    trials = {"default": 40, "help": None}
    add_options(parser, "conditioning", "objects", "out", "trials", trials=trials)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--conditions", nargs="+", choices=CONDITIONS, default=list(CONDITIONS))
    parser.add_argument("--class-control", choices=("label", "class-mean"), default="class-mean")
    add_options(parser, "pipeline", "judge", judge={"type": Path})
    parser.add_argument("--views-off", action="store_true", help="do not tell the prior the camera")
    parser.add_argument("--rows-only", action="store_true", help="make no objects")
    add_options(parser, "device", "workers", workers={"default": 12})
    parser.add_argument("--gpus", type=int, default=1)
    parser.add_argument("--together", type=int, default=1, help="objects of a worker in one batch")
    parser.add_argument("--steps", type=int)
    add_options(parser, "size", "override", size={"help": "side of the judged views, pixels"})
    parser.add_argument("--overlay", action="append", default=[])
    parser.add_argument("--time-budget", type=float)
    return parser


def run(options: argparse.Namespace) -> dict[str, Path]:
    """Controls, objects, tables; returns the files of the comparison."""
    from eeg_encoder.training import resolve_device
    from threestudio_eeg.comparison.command import CompareOptions, compare
    from threestudio_eeg.comparison.tables import markdown

    out = writable_folder(options.out)
    device = resolve_device(options.device)
    objects = out / ("objects-views-off" if options.views_off else "objects")
    if not options.rows_only:
        phantom_objects.main(_words(options, objects, make_controls(options, out, device)))
    comparison, files = compare(
        CompareOptions(
            sources=[str(objects)],
            out=out / ("comparison-views-off" if options.views_off else "comparison"),
            objects=options.objects,
            pipeline=options.pipeline,
            judge=options.judge,
            device=device,
        )
    )
    print(markdown(comparison))
    return files


def make_controls(options: argparse.Namespace, out: Path, device: str) -> dict[str, Path]:
    """Write the conditioning files of the conditions that are not of EEG; return them."""
    from eeg_encoder.conditioning import load_conditioning, save_conditioning
    from threestudio_eeg.comparison.controls import control_conditioning
    from threestudio_eeg.pipeline import pipeline_folder

    files = {}
    for condition, kind in (("class", options.class_control), ("image", "image")):
        if condition in options.conditions:
            made = control_conditioning(
                load_conditioning(options.conditioning),
                kind,
                pipeline=pipeline_folder(options.pipeline),
                pictures=options.objects.parent / "pictures",
                device=device,
            )
            files[condition] = out / f"{condition}.safetensors"
            save_conditioning(files[condition], made)
    return files


def _words(options: argparse.Namespace, objects: Path, controls: dict[str, Path]) -> list[str]:
    """The command line of phantom_objects.py."""
    words = [
        *("--conditioning", str(options.conditioning), "--objects", str(options.objects)),
        *("--out", str(objects), "--trials", str(options.trials), "--device", options.device),
        *("--seeds", *map(str, options.seeds), "--conditions", *options.conditions),
        *("--workers", str(options.workers), "--gpus", str(options.gpus)),
        *("--together", str(options.together)),
        *("--pipeline", options.pipeline, "--size", str(options.size)),
    ]
    overrides = [*options.override, *([VIEWS_OFF] if options.views_off else [])]
    for flag, values in (
        ("--control", [f"{name}={file}" for name, file in controls.items()]),
        ("--override", overrides),
        ("--overlay", options.overlay),
        ("--judge", [options.judge]),
        ("--steps", [options.steps]),
        ("--time-budget", [options.time_budget]),
    ):
        words += [word for value in values if value is not None for word in (flag, str(value))]
    return words


if __name__ == "__main__":
    main()
