"""Coarse, geometry, texture on held-out simulated EEG, beside the coarse field alone.

Every trial is distilled by phantom/eeg.yaml; its mesh is refined by phantom/refined-geometry.yaml
and its colours by phantom/refined-texture.yaml. With --normals the stages are ProlificDreamer's:
the shape by its normals, which the phantom's prior has never seen, and new colours. Each stage's
object is judged and compared with the one that was seen; ``longer`` is the coarse field with as
many steps as the three stages have together. Several processes side by side on one device, each
with --together trials in one batch of its guidance. A second call goes on where the first stopped.

    python benchmarks/stages.py --conditioning test.safetensors --objects recording/objects.json \\
        --out stages --trials 10 --workers 10

``sharpness`` is the mean squared slope of brightness over all views, ``detail`` the mean variance
of the Laplacian; both are divided by those of the true object's pictures from the same cameras at
the same size, so that 1 is as sharp as the truth. ``edges`` is how many pixels are half covered
(between a tenth and nine tenths) for one such pixel in the true pictures.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
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

from eeg_encoder.errors import InputError  # noqa: E402
from eeg_encoder.files import whole_file, writable_folder, write_json  # noqa: E402

STAGES = ("coarse", "geometry", "texture")
LONGER = "longer"
REFINED = {"geometry": "phantom/refined-geometry.yaml", "texture": "phantom/refined-texture.yaml"}
BY_NORMALS = {"geometry": "phantom/geometry.yaml", "texture": "phantom/texture.yaml"}
STARTS_FROM = {"geometry": "coarse", "texture": "geometry"}
FIGURES = {
    "fscore": "F-score",
    "chamfer": "Chamfer",
    "iou": "IoU",
    "sharpness": "sharpness",
    "detail": "detail",
    "edges": "edges",
    "category_right": "category",
    "colour_right": "colour",
    "seconds": "seconds",
}
COMPARED = ("fscore", "chamfer", "iou", "sharpness", "detail", "edges")
GREY = 0.85
LUMINANCE = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class Plan:
    """What all trials have in common; overlays, steps (None: the config's) and words by stage."""

    settings: Settings
    overlays: tuple[tuple[str, str], ...]
    stages: tuple[str, ...]
    steps: tuple[tuple[str, int | None], ...]
    overrides: tuple[tuple[str, tuple[str, ...]], ...]


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line; run what is missing; write the table."""
    run_command(_parser(), benchmark, arguments)


def _parser() -> argparse.ArgumentParser:
    parser = described(__doc__)
    begin = ("conditioning", "objects", "out", "trials", "skip")
    add_options(parser, *begin, trials={"default": 10})
    parser.add_argument("--seed", type=int, default=0)
    add_options(parser, "subject")
    parser.add_argument("--normals", action="store_true", help="ProlificDreamer's own stages")
    parser.add_argument("--longer", action="store_true", help="also the coarse field for longer")
    add_options(parser, "workers", workers={"default": 10})
    parser.add_argument(
        "--together", type=int, default=1, help="trials that a worker makes at once"
    )
    parser.add_argument("--steps", nargs=3, type=int, metavar=tuple(s.upper() for s in STAGES))
    for stage in STAGES:
        word = f"--{stage}-override"
        parser.add_argument(word, action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--time-budget", type=float, help="seconds; then no new trial is started")
    add_options(parser, "pipeline", "judge", "device", "size")
    return parser


def benchmark(options: argparse.Namespace) -> dict[str, Any]:
    """Make the stages that ``options.out`` lacks and write the figures of all."""
    from eeg_encoder.training import resolve_device

    out = writable_folder(options.out)
    plan = _plan(options, out, resolve_device(options.device))
    trials = eeg_objects.trials_of(options, options.seed)
    done = phantom_objects.read_results(out)
    left = [trial for trial in trials if missing(trial, plan, done)]
    print(f"{len(trials)} trials, {len(trials) - len(left)} of them made before", flush=True)
    started = time.monotonic()

    def keep(group: list[Job], results: list[dict[str, Any]] | None) -> None:
        for trial in group if results is None else ():
            eeg_objects.add_line(
                out, {**asdict(of_stage(trial, "coarse")), "error": "the worker died"}
            )
        for entry in results or ():
            _say(entry, time.monotonic() - started)

    not_begun = run_jobs(
        [left[i : i + options.together] for i in range(0, len(left), options.together)],
        work,
        plan,
        workers=options.workers,
        on_result=keep,
        time_budget=options.time_budget,
    )
    if not_begun:
        print(f"{sum(map(len, not_begun))} trials not begun: out of time", flush=True)
    return report(out, trials, plan, time.monotonic() - started)


def _plan(options: argparse.Namespace, out: Path, device: str) -> Plan:
    steps = dict(zip(STAGES, options.steps or (None,) * 3, strict=True))
    overlays = BY_NORMALS if options.normals else REFINED
    own = {stage: _steps_of(overlays.get(stage, "phantom/eeg.yaml")) for stage in STAGES}
    steps[LONGER] = sum(steps[stage] or own[stage] for stage in STAGES)
    given = {stage: tuple(getattr(options, f"{stage}_override")) for stage in STAGES}
    settings = eeg_objects.settings_from(options, out, device)
    stages = (*STAGES, *([LONGER] if options.longer else []))
    overrides = {**given, LONGER: given["coarse"]}
    plan = Plan(
        settings,
        tuple(overlays.items()),
        stages,
        tuple(steps.items()),
        tuple(overrides.items()),
    )
    _same_plan(out / "settings.json", plan)
    return plan


def _steps_of(experiment: str) -> int:
    from omegaconf import OmegaConf

    from threestudio_eeg.experiments import experiment_config

    config: Any = OmegaConf.load(experiment_config(experiment))
    return int(config.trainer.max_steps)


def _same_plan(file: Path, plan: Plan) -> None:
    """Refuse to add to results of other settings; more stages may be asked for."""
    now = json.loads(json.dumps(asdict(plan)))
    now["settings"] = plan.settings.comparable()
    del now["stages"]
    if file.is_file() and (before := json.loads(file.read_text(encoding="utf-8"))) != now:
        name = next(name for name in now if before.get(name) != now[name])
        raise InputError(file, name, now[name], f"{before.get(name)}, as there (or another --out)")
    write_json(file, now)


def of_stage(trial: Job, stage: str) -> Job:
    """A trial's object of one stage; its key names its line, its folder and its pictures."""
    return replace(trial, condition=stage)


def missing(trial: Job, plan: Plan, done: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The stages of a trial that have no figures yet."""
    keys = {stage: of_stage(trial, stage).key for stage in plan.stages}
    return [s for s, key in keys.items() if "error" in done.get(key, {"error": "not made"})]


def work(connection: Connection, plan: Plan) -> None:
    """A worker: make the groups of trials that come in."""
    object_worker.prepare(plan.settings.threads)
    eyes = Eyes.open(plan.settings)
    object_worker.answer(connection, lambda group: make_group(group, plan, eyes))


def make_group(group: Sequence[Job], plan: Plan, eyes: Eyes) -> list[dict[str, Any]]:
    """Make the stages of a few trials, each from the one before; a failure ends what follows."""
    done = phantom_objects.read_results(Path(plan.settings.out))
    wanted = {stage for trial in group for stage in missing(trial, plan, done)}
    results: list[dict[str, Any]] = []
    failed: set[str] = set()
    for stage in plan.stages:
        if STARTS_FROM.get(stage) in failed:
            failed.add(stage)
        elif stage in wanted:
            jobs = [of_stage(trial, stage) for trial in group]
            make = partial(make_stage, jobs, stage, plan, eyes)
            made, well = object_worker.attempt(jobs, make)
            if not well:
                failed.add(stage)
            for entry in made:
                eeg_objects.add_line(Path(plan.settings.out), entry)
            results += made
    return results


def make_stage(jobs: Sequence[Job], stage: str, plan: Plan, eyes: Eyes) -> list[dict[str, Any]]:
    """Distil one stage of a few trials and look at each; seconds are a trial's equal share."""
    from threestudio_eeg.batch.together import Together

    settings = settings_of(stage, plan)
    started = time.monotonic()
    words = [words_of(job, stage, settings) for job in jobs]
    together = Together(phantom_objects.files_of(jobs[0], settings), words, settings.device)
    together.train()
    seconds = round((time.monotonic() - started) / len(jobs), 2)
    systems = [member.system.eval() for member in together.members]
    return [
        {**look_at(job, system, settings, eyes), "seconds": seconds}
        for job, system in zip(jobs, systems, strict=True)
    ]


def settings_of(stage: str, plan: Plan) -> Settings:
    """The experiment of a stage."""
    return replace(
        plan.settings,
        overlays=tuple(file for name, file in plan.overlays if name == stage),
        steps=dict(plan.steps)[stage],
        overrides=dict(plan.overrides)[stage],
    )


def words_of(job: Job, stage: str, settings: Settings) -> list[str]:
    """``key=value`` words of one stage of one trial: its folder, and what it starts from."""
    words = phantom_objects.words_of(job, settings)
    if stage not in STARTS_FROM:
        return words
    before = of_stage(job, STARTS_FROM[stage]).key
    source = Path(settings.out) / "objects" / before / "ckpts" / "last.ckpt"
    return [f"system.geometry_convert_from={source}", *words]


def look_at(job: Job, system: Any, settings: Settings, eyes: Eyes) -> dict[str, Any]:
    """Figures of a finished object, its views' sharpness among them."""
    figures, views = phantom_objects.look_at(job, system, settings, eyes)
    return {**figures, **sharpness_figures(views, eyes.objects[job.stimulus], settings.size)}


def sharpness_figures(views: Mapping[str, Any], truth: Any, size: int) -> dict[str, float]:
    """Sharpness, detail and edges of views beside the true object's; see the top of the file."""
    rgba = true_views(truth, views["cameras"], size)
    own, true = brightness(views["rgb"], views["opacity"]), brightness(rgba[..., :3], rgba[..., 3:])
    half = [((o > 0.1) & (o < 0.9)).sum().clamp(min=1) for o in (views["opacity"], rgba[..., 3:])]
    return {
        "sharpness": float(slope_energy(own) / slope_energy(true)),
        "detail": float(laplacian_variance(own) / laplacian_variance(true)),
        "edges": float(half[0] / half[1]),
    }


def true_views(truth: Any, cameras: Sequence[Mapping[str, Any]], size: int) -> Any:
    """Pictures (V, H, W, 4) of the true object from these cameras."""
    import torch

    from threestudio_eeg.phantom.objects import solids_of
    from threestudio_eeg.phantom.pictures import Cameras, render

    columns = [[float(c[name]) for c in cameras] for name in ("elevation", "azimuth", "distance")]
    rgba = render(
        solids_of([truth] * len(cameras)), Cameras(*(torch.tensor(c) for c in columns)), size
    )
    return rgba.permute(0, 2, 3, 1)


def brightness(rgb: Any, opacity: Any) -> Any:
    """Brightness (V, H, W) of views over grey."""
    import torch

    picture = rgb * opacity + GREY * (1 - opacity)
    return (picture * torch.tensor(LUMINANCE)).sum(-1)


def slope_energy(grey: Any) -> Any:
    """Mean squared slope of brightness (V, H, W)."""
    return grey.diff(dim=1).square().mean() + grey.diff(dim=2).square().mean()


def laplacian_variance(grey: Any) -> Any:
    """Mean over views of the variance of the five-point Laplacian."""
    inner = grey[:, 1:-1, 1:-1]
    around = grey[:, :-2, 1:-1] + grey[:, 2:, 1:-1] + grey[:, 1:-1, :-2] + grey[:, 1:-1, 2:]
    return (around - 4 * inner).flatten(1).var(dim=1).mean()


def report(out: Path, trials: Sequence[Job], plan: Plan, seconds: float) -> dict[str, Any]:
    """Print the table; write ``results.json``, ``table.md`` and a contact sheet."""
    results = phantom_objects.read_results(out)
    entries = {
        stage: {
            trial.stimulus: results[key]
            for trial in trials
            if (key := of_stage(trial, stage).key) in results
        }
        for stage in plan.stages
    }
    summary = {
        stage: eeg_objects.summarise(list(entries[stage].values()), FIGURES)
        for stage in plan.stages
    }
    others = [stage for stage in plan.stages if stage != "coarse"]
    paired = {stage: compare(entries["coarse"], entries[stage]) for stage in others}
    text = f"{table(summary)}\n\n{paired_table(paired)}\n"
    print(text, flush=True)
    with whole_file(out / "table.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    content = {
        **phantom_objects.made_by(plan.settings.device, seconds),
        "plan": asdict(replace(plan, settings=replace(plan.settings, out=out.name))),
        "summary": summary,
        "against_coarse": paired,
        "objects": [entry for stage in plan.stages for entry in entries[stage].values()],
    }
    write_json(out / "results.json", content)
    groups = [[of_stage(trial, stage) for stage in plan.stages] for trial in trials]
    eeg_objects.save_contact(out, groups, "contact.png")
    return content


def compare(
    coarse: Mapping[str, Mapping[str, Any]], other: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """Differences to the coarse field, trial by trial: mean, error, and in how many it is more."""
    both = [
        (coarse[key], other[key])
        for key in coarse
        if key in other and "error" not in coarse[key] and "error" not in other[key]
    ]
    figures = {}
    for name in COMPARED:
        pairs = [(a[name], b[name]) for a, b in both if None not in (a.get(name), b.get(name))]
        changes = [float(b) - float(a) for a, b in pairs]
        more = sum(change > 0 for change in changes)
        figures[name] = {**phantom_objects.mean_and_error(changes), "more": more}
    return figures


def table(summary: Mapping[str, Mapping[str, Any]]) -> str:
    """The figures of each stage as a Markdown table."""
    rows = [["stage", "objects", "failed", *FIGURES.values()], ["---"] * (3 + len(FIGURES))]
    for stage, figures in summary.items():
        cells = [phantom_objects._cell(figures[name]) for name in FIGURES]
        rows.append([stage, str(figures["made"]), str(figures["failed"]), *cells])
    return eeg_objects.markdown(rows)


def paired_table(paired: Mapping[str, Mapping[str, Any]]) -> str:
    """The changes against the coarse field as a Markdown table."""
    rows = [["against coarse", *(FIGURES[name] for name in COMPARED)]]
    rows.append(["---"] * len(rows[0]))
    for stage, figures in paired.items():
        cells = [_change(figures[name]) for name in COMPARED]
        rows.append([stage, *cells])
    return eeg_objects.markdown(rows)


def _change(figure: Mapping[str, Any]) -> str:
    if figure["mean"] is None:
        return "–"
    mean, error = figure["mean"], figure["se"]
    return f"{mean:+.3f} ± {error:.3f} (more in {figure['more']} of {figure['n']})"


def _say(entry: Mapping[str, Any], seconds: float) -> None:
    words = entry.get("error") or (
        f"judged a {entry['colour']} {entry['category']}, F {entry['fscore']:.3f}, "
        f"sharpness {entry['sharpness']:.2f}, {entry['seconds']:.0f} s"
    )
    print(f"{seconds:7.0f} s  {entry['condition']}, {entry['caption']}: {words}", flush=True)


if __name__ == "__main__":
    main()
