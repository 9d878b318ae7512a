"""Four particles that share one LoRA, beside four single runs: how unlike, and how good.

For every held-out trial, phantom/particles.yaml over phantom/eeg.yaml makes four fields in one run;
four runs of phantom/eeg.yaml alone, with seeds 0 to 3, have as many steps a field. All are judged
and compared with the object that was seen, several processes side by side on one device. A second
call goes on where the first stopped.

    python benchmarks/particles.py --conditioning test.safetensors \\
        --objects recording/objects.json --out particles --trials 3 --workers 15

``diversity`` of the four objects of a trial is the mean over their pairs, and over the views, of
one minus the cosine between the image embeddings of two objects from the same camera.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import os
import sys
import time
import traceback
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]

import phantom_objects  # noqa: E402
from phantom_objects import N_VIEWS, Eyes, Job, Settings  # noqa: E402
from pool import run_jobs, threads_each  # noqa: E402

from eeg_encoder.errors import InputError  # noqa: E402
from eeg_encoder.files import whole_file, writable_folder, write_json  # noqa: E402

N = 4
PARTICLES, SINGLE = "particles", "single"
CONDITIONS = (PARTICLES, SINGLE)
FIGURES = {
    "category_right": "category",
    "colour_right": "colour",
    "fscore": "F-score",
    "chamfer": "Chamfer",
    "similarity": "similarity",
    "seconds": "seconds",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line; run what is missing; write the table."""
    options = _parser().parse_args(arguments)
    try:
        benchmark(options)
    except InputError as error:
        sys.exit(f"error: {error}")


def _parser() -> argparse.ArgumentParser:
    kind = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=kind)
    parser.add_argument("--conditioning", type=Path, required=True, help="of the test trials")
    parser.add_argument("--objects", type=Path, required=True, help="objects.json of a recording")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--trials", type=int, default=3, help="test objects, even over categories")
    parser.add_argument("--skip", type=int, default=0, help="leave out so many objects first")
    parser.add_argument("--subject", type=int, default=1)
    parser.add_argument("--workers", type=int, default=15)
    parser.add_argument("--steps", type=int, help="of each field; default the config's")
    parser.add_argument("--override", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--time-budget", type=float, help="seconds; then no new run is started")
    parser.add_argument("--pipeline", default="phantom")
    parser.add_argument("--judge")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--size", type=int, default=128, help="side of the views, pixels")
    return parser


def benchmark(options: argparse.Namespace) -> dict[str, Any]:
    """Make the runs that ``options.out`` lacks and write the figures of all."""
    from eeg_encoder.training import resolve_device

    out = writable_folder(options.out)
    settings = Settings(
        out=str(out),
        objects=str(options.objects),
        conditioning=str(options.conditioning),
        controls=(),
        pipeline=options.pipeline,
        judge=options.judge,
        eeg_config="phantom/eeg.yaml",
        text_config="phantom/text.yaml",
        overlays=(),
        steps=options.steps,
        overrides=tuple(options.override),
        device=resolve_device(options.device),
        size=options.size,
        threads=threads_each(options.workers, resolve_device(options.device)),
    )
    phantom_objects._same_settings(out, settings)
    trials = _trials(options)
    done = phantom_objects.read_results(out)
    runs = [run for run in plan(trials) if any(_not_made(o, done) for o in objects_of(run))]
    print(f"{len(trials)} trials, {len(runs)} runs to make", flush=True)
    started = time.monotonic()

    def keep(run: Job, results: list[dict[str, Any]] | None) -> None:
        for entry in results or [{**asdict(run), "error": "the worker died"}]:
            key = f"{entry['condition']}-{entry['stimulus']}-{entry['seed']}"
            phantom_objects.add_result(out, {"key": key, **entry})
            _say(entry, time.monotonic() - started)

    left = run_jobs(
        runs,
        work,
        settings,
        workers=options.workers,
        on_result=keep,
        time_budget=options.time_budget,
    )
    if left:
        print(f"{len(left)} runs not started: out of time", flush=True)
    return report(out, trials, settings, time.monotonic() - started)


def _trials(options: argparse.Namespace) -> list[Job]:
    wanted = argparse.Namespace(
        objects=options.objects,
        conditioning=options.conditioning,
        conditions=["eeg"],
        subject=options.subject,
        trials=options.skip + options.trials,
        seeds=[0],
    )
    return phantom_objects.plan(wanted)[options.skip :]


def plan(trials: Sequence[Job]) -> list[Job]:
    """The runs, longest first: one of particles a trial, then the single ones of each seed."""
    shared = [replace(trial, condition=PARTICLES, seed=0) for trial in trials]
    alone = [replace(t, condition=SINGLE, seed=seed) for t in trials for seed in range(N)]
    return [*shared, *alone]


def objects_of(run: Job) -> list[Job]:
    """What a run makes; a particle's number stands for its seed."""
    if run.condition == SINGLE:
        return [run]
    return [replace(run, seed=number) for number in range(N)]


def _not_made(job: Job, done: Mapping[str, Mapping[str, Any]]) -> bool:
    return "error" in done.get(job.key, {"error": "not made"})


def work(connection: Connection, settings: Settings) -> None:
    """A worker: make the runs that come in."""
    os.environ["THREESTUDIO_EEG_HOST"] = "builtin"
    import torch

    torch.set_num_threads(settings.threads)
    warnings.filterwarnings("ignore", module="lightning.*")
    for name in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    eyes = Eyes.open(settings)
    while (run := connection.recv()) is not None:
        try:
            results = make_run(run, settings, eyes)
        except KeyboardInterrupt:
            return
        except Exception as error:
            traceback.print_exc()
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            results = [{**asdict(job), "error": reason} for job in objects_of(run)]
        connection.send(results)


def make_run(run: Job, settings: Settings, eyes: Eyes) -> list[dict[str, Any]]:
    """Distil a run and look at each of its objects; seconds are an object's equal share."""
    started = time.monotonic()
    system = phantom_objects.distil(run, settings_of(run, settings))
    jobs = objects_of(run)
    seconds = round((time.monotonic() - started) / len(jobs), 2)
    results = []
    for number, job in enumerate(jobs):
        system.select_particle(number if run.condition == PARTICLES else 0)
        figures = phantom_objects.look_at(job, system, settings, eyes)
        _keep_embeddings(job, system, settings, eyes)
        results.append({**figures, "seconds": seconds})
    return results


def settings_of(run: Job, settings: Settings) -> Settings:
    """The experiment of a run: every field has the same number of steps."""
    if run.condition == SINGLE:
        return settings
    return replace(
        settings,
        overlays=("phantom/particles.yaml",),
        steps=None if settings.steps is None else N * settings.steps,
    )


def _keep_embeddings(job: Job, system: Any, settings: Settings, eyes: Eyes) -> None:
    import numpy as np

    from threestudio_eeg.evaluation.objects import BACKGROUNDS, on_background
    from threestudio_eeg.evaluation.views import render_views

    views = render_views(system, n_views=N_VIEWS, size=settings.size, device=settings.device)
    pictures = on_background(views, BACKGROUNDS[0]).to(eyes.tower.device)
    embedded = eyes.tower.encode_pictures(pictures).float().cpu().numpy()
    file = writable_folder(Path(settings.out) / "embeddings") / f"{job.key}.npy"
    with whole_file(file) as temporary, temporary.open("wb") as stream:
        np.save(stream, embedded)


def diversity(folder: Path, jobs: Sequence[Job]) -> float | None:
    """Mean distance of objects, pair by pair and view by view; None where one is missing."""
    import numpy as np

    files = [folder / f"{job.key}.npy" for job in jobs]
    if not all(file.is_file() for file in files):
        return None
    embedded = [np.load(file, allow_pickle=False) for file in files]
    unit = [e / np.linalg.norm(e, axis=1, keepdims=True) for e in embedded]
    distances = [1 - (a * b).sum(1).mean() for a, b in itertools.combinations(unit, 2)]
    return float(np.mean(distances))


def report(out: Path, trials: Sequence[Job], settings: Settings, seconds: float) -> dict[str, Any]:
    """Print the table; write ``results.json``, ``table.md`` and a contact sheet a condition."""
    results = phantom_objects.read_results(out)
    summary: dict[str, Any] = {}
    entries: list[Mapping[str, Any]] = []
    for condition in CONDITIONS:
        groups = [objects_of_trial(trial, condition) for trial in trials]
        found = [results[job.key] for group in groups for job in group if job.key in results]
        unlike = [diversity(out / "embeddings", group) for group in groups]
        summary[condition] = {
            **summarise(found),
            "diversity": phantom_objects.mean_and_error([u for u in unlike if u is not None]),
            "diversity_by_trial": {t.stimulus: u for t, u in zip(trials, unlike, strict=True)},
        }
        entries += found
        _contact(out, groups, condition)
    text = table(summary)
    print(text, flush=True)
    with whole_file(out / "table.md") as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
    content = {
        "simulated": True,
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "settings": json.loads(json.dumps(asdict(replace(settings, out=out.name)))),
        "commit": phantom_objects._commit(),
        "device": phantom_objects._device_name(settings.device),
        "seconds_of_this_call": round(seconds, 1),
        "summary": summary,
        "objects": entries,
    }
    write_json(out / "results.json", content)
    return content


def objects_of_trial(trial: Job, condition: str) -> list[Job]:
    """The four objects of a trial in one condition."""
    return [replace(trial, condition=condition, seed=number) for number in range(N)]


def summarise(entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean and standard error of each figure over the objects that were made."""
    made = [entry for entry in entries if "error" not in entry]
    figures: dict[str, Any] = {"made": len(made), "failed": len(entries) - len(made)}
    for name in FIGURES:
        values = [float(e[name]) for e in made if e.get(name) is not None]
        figures[name] = phantom_objects.mean_and_error(values)
    return figures


def table(summary: Mapping[str, Mapping[str, Any]]) -> str:
    """The figures as a Markdown table."""
    rows = [["", "objects", "failed", "diversity", *FIGURES.values()]]
    rows.append(["---"] * len(rows[0]))
    for condition, figures in summary.items():
        cells = [phantom_objects._cell(figures[name]) for name in ("diversity", *FIGURES)]
        rows.append([condition, str(figures["made"]), str(figures["failed"]), *cells])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _contact(out: Path, groups: Sequence[Sequence[Job]], condition: str) -> None:
    """One trial a row: a strip of four views of each object."""
    from PIL import Image

    strips = [[out / "views" / f"{job.key}.png" for job in group] for group in groups]
    rows = [row for row in strips if all(path.is_file() for path in row)]
    if not rows:
        return
    pictures = [[Image.open(path) for path in row] for row in rows]
    width, height = pictures[0][0].size
    sheet = Image.new("RGB", (width * N, height * len(rows)), "white")
    for i, row in enumerate(pictures):
        for j, picture in enumerate(row):
            sheet.paste(picture, (j * width, i * height))
    with whole_file(out / f"contact-{condition}.png") as temporary:
        sheet.save(temporary, format="PNG")


def _say(entry: Mapping[str, Any], seconds: float) -> None:
    words = entry.get("error") or (
        f"judged a {entry['colour']} {entry['category']}, F {entry['fscore']:.3f}"
    )
    name = f"{entry['condition']} {entry['seed']}"
    print(f"{seconds:7.0f} s  {name}, {entry['caption']}: {words}", flush=True)


if __name__ == "__main__":
    main()
