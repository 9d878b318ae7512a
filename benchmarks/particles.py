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
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]

import eeg_objects  # noqa: E402
import object_worker  # noqa: E402
import phantom_objects  # noqa: E402
from object_options import add_options, described, run_command  # noqa: E402
from phantom_objects import Eyes, Job, Settings  # noqa: E402
from pool import run_jobs  # noqa: E402

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
    run_command(_parser(), benchmark, arguments)


def _parser() -> argparse.ArgumentParser:
    parser = described(__doc__)
    add_options(
        parser,
        *("conditioning", "objects", "out", "trials", "skip", "subject", "workers"),
        trials={"default": 3},
        workers={"default": 15},
    )
    parser.add_argument("--steps", type=int, help="of each field; default the config's")
    add_options(parser, "override")
    parser.add_argument("--time-budget", type=float, help="seconds; then no new run is started")
    add_options(parser, "pipeline", "judge", "device", "size")
    return parser


def benchmark(options: argparse.Namespace) -> dict[str, Any]:
    """Make the runs that ``options.out`` lacks and write the figures of all."""
    from eeg_encoder.training import resolve_device

    out = writable_folder(options.out)
    device = resolve_device(options.device)
    settings = eeg_objects.settings_from(
        options, out, device, steps=options.steps, overrides=options.override
    )
    phantom_objects._same_settings(out, settings)
    trials = eeg_objects.trials_of(options, seed=0)
    done = phantom_objects.read_results(out)
    runs = [run for run in plan(trials) if any(_not_made(o, done) for o in objects_of(run))]
    print(f"{len(trials)} trials, {len(runs)} runs to make", flush=True)
    started = time.monotonic()

    def keep(run: Job, results: list[dict[str, Any]] | None) -> None:
        for entry in results or [{**asdict(run), "error": "the worker died"}]:
            eeg_objects.add_line(out, entry)
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
    object_worker.prepare(settings.threads)
    eyes = Eyes.open(settings)

    def make(run: Job) -> list[dict[str, Any]]:
        return object_worker.attempt(objects_of(run), partial(make_run, run, settings, eyes))[0]

    object_worker.answer(connection, make)


def make_run(run: Job, settings: Settings, eyes: Eyes) -> list[dict[str, Any]]:
    """Distil a run and look at each of its objects; seconds are an object's equal share."""
    started = time.monotonic()
    system = phantom_objects.distil(run, settings_of(run, settings))
    jobs = objects_of(run)
    seconds = round((time.monotonic() - started) / len(jobs), 2)
    results = []
    for number, job in enumerate(jobs):
        system.select_particle(number if run.condition == PARTICLES else 0)
        figures, views = phantom_objects.look_at(job, system, settings, eyes)
        _keep_embeddings(job, views, settings, eyes)
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


def _keep_embeddings(job: Job, views: Mapping[str, Any], settings: Settings, eyes: Eyes) -> None:
    import numpy as np

    from threestudio_eeg.evaluation.objects import BACKGROUNDS, on_background

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
            **eeg_objects.summarise(found, FIGURES),
            "diversity": phantom_objects.mean_and_error([u for u in unlike if u is not None]),
            "diversity_by_trial": {t.stimulus: u for t, u in zip(trials, unlike, strict=True)},
        }
        entries += found
        eeg_objects.save_contact(out, groups, f"contact-{condition}.png")
    text = table(summary)
    print(text, flush=True)
    with whole_file(out / "table.md") as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
    content = {
        **phantom_objects.made_by(settings.device, seconds),
        "settings": json.loads(json.dumps(asdict(replace(settings, out=out.name)))),
        "summary": summary,
        "objects": entries,
    }
    write_json(out / "results.json", content)
    return content


def objects_of_trial(trial: Job, condition: str) -> list[Job]:
    """The four objects of a trial in one condition."""
    return [replace(trial, condition=condition, seed=number) for number in range(N)]


def table(summary: Mapping[str, Mapping[str, Any]]) -> str:
    """The figures as a Markdown table."""
    rows = [["", "objects", "failed", "diversity", *FIGURES.values()]]
    rows.append(["---"] * len(rows[0]))
    for condition, figures in summary.items():
        cells = [phantom_objects._cell(figures[name]) for name in ("diversity", *FIGURES)]
        rows.append([condition, str(figures["made"]), str(figures["failed"]), *cells])
    return eeg_objects.markdown(rows)


def _say(entry: Mapping[str, Any], seconds: float) -> None:
    words = entry.get("error") or (
        f"judged a {entry['colour']} {entry['category']}, F {entry['fscore']:.3f}"
    )
    name = f"{entry['condition']} {entry['seed']}"
    print(f"{seconds:7.0f} s  {name}, {entry['caption']}: {words}", flush=True)


if __name__ == "__main__":
    main()
