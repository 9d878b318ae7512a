"""Objects from held-out simulated EEG, beside a text prompt and shuffled EEG.

Makes one object for every test trial, condition and seed, several processes side by side on one
device, and prints what an independent judge sees in them and how near their shapes are to the true
ones. An object that fails is reported and counted, not fatal; results.jsonl grows by one line an
object, and a second call goes on where the first stopped. With --together, a process makes several
objects in one batch of its guidance, as threestudio-eeg batch --together does.

    python benchmarks/phantom_objects.py --conditioning test.safetensors \\
        --objects recording/objects.json --out results --workers 12 --together 8
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import random
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]

import object_worker  # noqa: E402
from object_options import add_options, described, run_command  # noqa: E402
from pool import run_jobs, threads_each  # noqa: E402

from eeg_encoder.errors import InputError  # noqa: E402
from eeg_encoder.files import whole_file, writable_folder, write_json  # noqa: E402

CONDITIONS = ("text", "eeg", "class", "shuffled", "image")
DEFAULT_CONDITIONS = ("text", "eeg", "shuffled")
CONTROLLED = ("class", "image")
N_VIEWS = 12
SHOWN = (1, 3, 6, 9)
FIGURES = {
    "category_right": "category",
    "colour_right": "colour",
    "chamfer": "Chamfer",
    "fscore": "F-score",
    "iou": "IoU",
    "view_agreement": "agreement",
    "side_right": "sides",
    "two_fronts": "two fronts",
    "fronts_apart": "two fronts, any turn",
    "seconds": "seconds",
}
GALLERY_WAYS = ((10, 1),)
"""n and k of the n-way top-k accuracy of the stimulus among the test objects' pictures."""
ASYMMETRIC_ONLY = ("side_right", "two_fronts", "fronts_apart")


@dataclass(frozen=True)
class Job:
    """One object: judged against ``stimulus``, made from the conditioning of ``source``."""

    condition: str
    stimulus: str
    source: str
    caption: str
    seed: int

    @property
    def key(self) -> str:
        return f"{self.condition}-{self.stimulus}-{self.seed}"


@dataclass(frozen=True)
class Settings:
    """What every object has in common."""

    out: str
    objects: str
    conditioning: str | None
    controls: tuple[tuple[str, str], ...]
    pipeline: str
    judge: str | None
    eeg_config: str
    text_config: str
    overlays: tuple[str, ...]
    steps: int | None
    overrides: tuple[str, ...]
    device: str
    size: int
    threads: int
    begin: int | None = None
    """Steps of a field by the experiment alone, from which the overlays' representation starts."""
    begin_overlays: tuple[str, ...] = ()
    begin_overrides: tuple[str, ...] = ()

    def comparable(self) -> dict[str, Any]:
        """What two calls that add to the same results must share."""
        left_out = ("out", "threads")
        return {k: v for k, v in json.loads(json.dumps(asdict(self))).items() if k not in left_out}


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line; run what is missing; aggregate."""
    run_command(_parser(), benchmark, arguments)


def _parser() -> argparse.ArgumentParser:
    parser = described(__doc__)
    add_options(parser, "objects")
    parser.add_argument("--conditioning", type=Path, help="conditioning file of its test trials")
    parser.add_argument(
        "--control",
        action="append",
        default=[],
        metavar="CONDITION=FILE",
        help="conditioning file of class or image, as threestudio-eeg control writes it",
    )
    add_options(parser, "out", "trials", "skip", trials={"default": 40})
    parser.add_argument("--stimuli", nargs="+", metavar="STIMULUS", help="these, not --trials")
    parser.add_argument(
        "--conditions", nargs="+", choices=CONDITIONS, default=list(DEFAULT_CONDITIONS)
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    add_options(parser, "subject", "workers", workers={"default": 12})
    parser.add_argument("--gpus", type=int, default=1, help="spread the workers over as many")
    parser.add_argument(
        "--together", type=int, default=1, help="objects that a worker makes with one guidance"
    )
    parser.add_argument("--steps", type=int, help="default: the config's")
    parser.add_argument(
        "--begin", type=int, metavar="STEPS", help="of the field that the overlay's starts from"
    )
    parser.add_argument("--begin-overlay", action="append", default=[], help="YAML of that field")
    parser.add_argument("--begin-override", action="append", default=[], metavar="KEY=VALUE")
    add_options(parser, "override")
    parser.add_argument("--time-budget", type=float, help="seconds; then no new object is started")
    add_options(parser, "pipeline", "judge")
    parser.add_argument("--eeg-config", default="phantom/eeg.yaml")
    parser.add_argument("--text-config", default="phantom/text.yaml")
    parser.add_argument(
        "--overlay", action="append", default=[], help="YAML over them: a representation"
    )
    add_options(parser, "device", "size", size={"help": "side of the judged views, pixels"})
    return parser


def benchmark(options: argparse.Namespace) -> dict[str, Any]:
    """Make the objects that ``options.out`` lacks and write the figures of all."""
    from eeg_encoder.training import resolve_device

    out, device = writable_folder(options.out), resolve_device(options.device)
    settings = Settings(
        out=str(out),
        objects=str(options.objects),
        conditioning=None if options.conditioning is None else str(options.conditioning),
        controls=controls_of(options),
        pipeline=options.pipeline,
        judge=options.judge,
        eeg_config=options.eeg_config,
        text_config=options.text_config,
        overlays=tuple(options.overlay),
        steps=options.steps,
        begin=options.begin,
        begin_overlays=tuple(options.begin_overlay),
        begin_overrides=tuple(options.begin_override),
        overrides=tuple(options.override),
        device=device,
        size=options.size,
        threads=threads_each(options.workers, device),
    )
    _same_settings(out, settings)
    jobs = plan(options)
    done = read_results(out)
    missing = [job for job in jobs if "error" in done.get(job.key, {"error": "not made"})]
    print(f"{len(jobs)} objects, {len(jobs) - len(missing)} of them made before", flush=True)
    started = time.monotonic()

    def keep(group: list[Job], results: list[dict[str, Any]] | None) -> None:
        entries = results or [{**asdict(job), "error": "the worker died"} for job in group]
        for job, entry in zip(group, entries, strict=True):
            add_result(out, {"key": job.key, **entry})
            _say(job, entry, time.monotonic() - started)

    left = run_jobs(
        groups_of(missing, options.together),
        work,
        settings,
        workers=options.workers,
        on_result=keep,
        time_budget=options.time_budget,
        environments=_one_gpu_each(options.gpus),
    )
    if left:
        print(f"{sum(map(len, left))} objects not started: out of time", flush=True)
    return report(out, jobs, settings, time.monotonic() - started)


def controls_of(options: argparse.Namespace) -> tuple[tuple[str, str], ...]:
    """Conditioning files by condition, for the conditions that are not made of the EEG's."""
    files = dict(word.partition("=")[::2] for word in options.control)
    for condition in CONTROLLED:
        if condition in options.conditions and condition not in files:
            expected = f"--control {condition}=FILE, made by threestudio-eeg control"
            raise InputError("command line", "--control", f"none for {condition}", expected)
    for condition, file in files.items():
        if condition not in CONTROLLED or not Path(file).is_file():
            expected = f"{' or '.join(CONTROLLED)}, = and a conditioning file"
            raise InputError("command line", "--control", f"{condition}={file}", expected)
    return tuple(sorted(files.items()))


def groups_of(jobs: Sequence[Job], size: int) -> list[list[Job]]:
    """Jobs in groups of at most ``size``, text apart: objects made together share a config.

    Groups are in the order of their first jobs.
    """
    by_config: dict[bool, list[Job]] = {}
    for job in jobs:
        by_config.setdefault(job.condition == "text", []).append(job)
    groups = [
        alike[i : i + size] for alike in by_config.values() for i in range(0, len(alike), size)
    ]
    return sorted(groups, key=lambda group: jobs.index(group[0]))


def _one_gpu_each(n: int) -> list[dict[str, str]]:
    return [{"CUDA_VISIBLE_DEVICES": str(i)} for i in range(n)] if n > 1 else [{}]


def plan(options: argparse.Namespace) -> list[Job]:
    """All objects wanted: a first round over the categories in every condition, then a second."""
    from threestudio_eeg.phantom.recording import load_objects

    objects = {s: i for s, i in load_objects(options.objects).items() if i.split == "test"}
    ids = {stimulus: stimulus for stimulus in objects}
    if options.conditioning is not None:
        ids = _trial_ids(options.conditioning, options.subject)
    elif set(options.conditions) != {"text"}:
        raise InputError("command line", "--conditioning", "nothing", "a conditioning file")
    categories = {s: i.category for s, i in objects.items() if s in ids}
    chosen = options.stimuli or choose(categories, options.skip + options.trials)[options.skip :]
    for stimulus in chosen:
        if stimulus not in categories:
            expected = "test objects that have a conditioning"
            raise InputError("command line", "--stimuli", stimulus, expected)
    other = derange({stimulus: objects[stimulus].category for stimulus in chosen})
    if "shuffled" in options.conditions:
        _check_shuffle({s: (objects[s].category, objects[t].category) for s, t in other.items()})
    return [
        Job(
            condition,
            stimulus,
            ids[other[stimulus] if condition == "shuffled" else stimulus],
            objects[stimulus].caption,
            seed,
        )
        for seed in options.seeds
        for stimulus in chosen
        for condition in options.conditions
    ]


def choose(category_of: Mapping[str, str], n: int) -> list[str]:
    """``n`` stimuli, one of each category in turn; the order inside a category is by number."""
    if not category_of:
        raise InputError("benchmark", "trials", "none", "test objects that have a conditioning")
    rounds: dict[str, int] = {}
    ranked = []
    for stimulus in sorted(category_of, key=lambda s: (s.split("_")[0], int(s.split("_")[1]))):
        place = rounds[category_of[stimulus]] = rounds.get(category_of[stimulus], -1) + 1
        ranked.append((place, stimulus))
    return [stimulus for _, stimulus in sorted(ranked, key=lambda entry: entry[0])][:n]


def derange(category_of: Mapping[str, str], seed: int = 0) -> dict[str, str]:
    """For every stimulus another one, of another category where there are enough: a fixed
    permutation."""
    categories = sorted(set(category_of.values()))
    random.Random(seed).shuffle(categories)
    order = sorted(category_of, key=lambda s: (categories.index(category_of[s]), s))
    shift = max((list(category_of.values()).count(c) for c in categories), default=0)
    if 2 * shift > len(order):
        return {s: order[(i + 1) % len(order)] for i, s in enumerate(order)}
    return {s: order[(i + shift) % len(order)] for i, s in enumerate(order)}


def _check_shuffle(categories: Mapping[str, tuple[str, str]]) -> None:
    for stimulus, (own, other) in categories.items():
        if own == other:
            expected = "trials of more categories, so that each can get another's EEG"
            raise InputError("benchmark", "shuffled", f"{stimulus} with a {other}", expected)


def _trial_ids(conditioning: Path, subject: int) -> dict[str, str]:
    from eeg_encoder.conditioning import load_conditioning

    trials = load_conditioning(conditioning).trials
    ids = {trial.stimulus: trial.id for trial in reversed(trials) if trial.subject == subject}
    if not ids:
        found = sorted({trial.subject for trial in trials})
        raise InputError(conditioning, "subjects", found, f"trials of subject {subject}")
    return ids


def _same_settings(out: Path, settings: Settings) -> None:
    file = out / "settings.json"
    if file.is_file():
        before = json.loads(file.read_text(encoding="utf-8"))
        for name, value in settings.comparable().items():
            if before.get(name) != value:
                expected = f"{before.get(name)}, as in the results there (or another --out)"
                raise InputError(file, name, value, expected)
    write_json(file, settings.comparable())


def add_result(out: Path, entry: Mapping[str, Any]) -> None:
    """Append one line, on a new one even after a line that was cut short."""
    file = out / "results.jsonl"
    before = file.read_bytes()[-1:] if file.is_file() else b""
    line = json.dumps(entry) + "\n"
    with file.open("ab") as stream:
        stream.write((line if before in (b"", b"\n") else "\n" + line).encode())


def read_results(out: Path) -> dict[str, dict[str, Any]]:
    """Results so far by key; the last line of a key counts, a line cut short is passed over."""
    file = out / "results.jsonl"
    results: dict[str, dict[str, Any]] = {}
    for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else []:
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        results[entry["key"]] = entry
    return results


def work(connection: Connection, settings: Settings) -> None:
    """A worker: make the groups of objects that come in."""
    object_worker.prepare(settings.threads)
    eyes = Eyes.open(settings)

    def make(group: list[Job]) -> list[dict[str, Any]]:
        return object_worker.attempt(group, partial(make_objects, group, settings, eyes))[0]

    object_worker.answer(connection, make)


@dataclass
class Eyes:
    """The networks that look at objects, loaded once a process."""

    judge: Any
    tower: Any
    objects: dict[str, Any]
    gallery: dict[str, Any]
    truths: Path

    @classmethod
    def open(cls, settings: Settings) -> Eyes:
        from threestudio_eeg.evaluation.objects import load_judge
        from threestudio_eeg.phantom.recording import load_objects
        from threestudio_eeg.pipeline import load_pipeline

        return cls(
            load_judge(settings.judge, settings.device),
            load_pipeline(settings.pipeline, device=settings.device, parts=("image_encoder",)),
            load_objects(settings.objects),
            gallery_of(settings),
            writable_folder(Path(settings.out) / "truth"),
        )

    def true_mesh(self, stimulus: str) -> Any:
        """Surface of what was seen; made once for all processes and calls."""
        import numpy as np
        import trimesh

        from threestudio_eeg.evaluation.objects import true_mesh

        file = self.truths / f"{stimulus}.npz"
        if not file.is_file():
            mesh = true_mesh(self.objects[stimulus])
            with whole_file(file) as temporary, temporary.open("wb") as stream:
                np.savez(stream, vertices=mesh.vertices, faces=mesh.faces)
        with np.load(file, allow_pickle=False) as kept:
            return trimesh.Trimesh(kept["vertices"], kept["faces"], process=False)

    def similarity(self, stimulus: str, views: Mapping[str, Any]) -> dict[str, float]:
        """How near the views are to the picture seen; nothing without pictures."""
        from threestudio_eeg.evaluation.objects import (
            BACKGROUNDS,
            on_background,
            similarity_figures,
        )

        if stimulus not in self.gallery:
            return {}
        pictures = on_background(views, BACKGROUNDS[0]).to(self.tower.device)
        embedded = self.tower.encode_pictures(pictures).cpu()
        return similarity_figures(embedded, stimulus, self.gallery, GALLERY_WAYS)


def gallery_of(settings: Settings) -> dict[str, Any]:
    """Embeddings of the test objects' pictures beside ``objects.json``; empty without them."""
    from eeg_encoder.image_space import embed_pictures
    from threestudio_eeg.phantom.recording import load_objects
    from threestudio_eeg.pipeline import pipeline_folder

    pictures = Path(settings.objects).parent / "pictures"
    if not pictures.is_dir():
        return {}
    names = [s for s, i in load_objects(settings.objects).items() if i.split == "test"]
    folder = pipeline_folder(settings.pipeline)
    return dict(
        zip(names, embed_pictures(folder, pictures, names, device=settings.device), strict=True)
    )


def make_objects(group: Sequence[Job], settings: Settings, eyes: Eyes) -> list[dict[str, Any]]:
    """Distil the objects of a group, then look at each; seconds are an object's equal share."""
    import torch

    started = time.monotonic()
    if len(group) == 1 and settings.begin is None:
        systems = [distil(group[0], settings)]
    else:
        systems = distil_together(group, settings)
    seconds = round((time.monotonic() - started) / len(group), 2)
    results = []
    while systems:
        figures, _ = look_at(group[len(results)], systems.pop(0), settings, eyes)
        results.append({**figures, "seconds": seconds})
    gc.collect()
    if settings.device == "cuda":
        torch.cuda.empty_cache()
    return results


def look_at(
    job: Job, system: Any, settings: Settings, eyes: Eyes
) -> tuple[dict[str, Any], Mapping[str, Any]]:
    """Figures of a finished object, and its views; a few of these go to ``views/<key>.png``."""
    from threestudio_eeg.evaluation.objects import evaluate_object
    from threestudio_eeg.evaluation.views import render_views

    started = time.monotonic()
    views = render_views(system, n_views=N_VIEWS, size=settings.size, device=settings.device)
    try:
        mesh = system.make_exporter().coloured_mesh()
    except InputError:
        mesh = None
    truth = eyes.objects[job.stimulus]
    figures = {
        **evaluate_object(
            views, mesh, truth, eyes.judge, eyes.tower, truth_mesh=eyes.true_mesh(job.stimulus)
        ),
        **eyes.similarity(job.stimulus, views),
    }
    save_strip(Path(settings.out) / "views" / f"{job.key}.png", views)
    entry = {
        **asdict(job),
        **figures,
        "empty": mesh is None,
        "seconds_evaluation": round(time.monotonic() - started, 2),
    }
    return entry, views


def distil(job: Job, settings: Settings) -> Any:
    """Train as ``launch`` does, without film, pictures, checkpoints and logs; return the system."""
    import lightning.pytorch as pl

    from threestudio_eeg.builtin.base import device_scope
    from threestudio_eeg.builtin.config import load_config
    from threestudio_eeg.builtin.random_state import StepLoader
    from threestudio_eeg.builtin.registry import find

    config = load_config(*files_of(job, settings), cli_args=overrides_of(job, settings))
    steps = int(config.trainer.max_steps)
    with device_scope(settings.device):
        pl.seed_everything(job.seed, verbose=False)
        data = find(config.data_type)(config.data)
        system = find(config.system_type)(config.system)
        system.set_save_dir(Path(settings.out) / "objects" / job.key / "save")
        trainer = pl.Trainer(
            max_steps=steps,
            accelerator="gpu" if settings.device == "cuda" else "cpu",
            devices=1,
            precision=config.trainer.get("precision", "32-true"),
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            limit_val_batches=0,
            log_every_n_steps=10**9,
        )
        data.setup("fit")
        trainer.fit(system, StepLoader(data.train_dataloader(), steps, system))
    return system.to(settings.device).eval()


def distil_together(group: Sequence[Job], settings: Settings) -> list[Any]:
    """Train the objects of a group with one guidance, without films.

    With ``settings.begin`` a field is trained first; the overlays' representation starts from it.
    """
    from threestudio_eeg.batch.together import Together

    words = [words_of(job, settings) for job in group]
    if settings.begin is not None:
        sources = begin(group, settings)
        words = [
            [f"system.geometry_convert_from={source}", *own]
            for source, own in zip(sources, words, strict=True)
        ]
    together = Together(files_of(group[0], settings), words, settings.device)
    while together.step < together.n_steps:
        together.training_step()
    return [member.system.eval() for member in together.members]


def begin(group: Sequence[Job], settings: Settings) -> list[Path]:
    """Train the fields that a representation starts from; return their checkpoints."""
    from threestudio_eeg.batch.together import Together

    first = replace(
        settings,
        overlays=settings.begin_overlays,
        steps=settings.begin,
        overrides=settings.begin_overrides,
    )
    words = [[*words_of(job, first), f"tag={job.key}-begin"] for job in group]
    together = Together(files_of(group[0], first), words, settings.device)
    while together.step < together.n_steps:
        together.training_step()
    together.save()
    return [member.last for member in together.members]


def files_of(job: Job, settings: Settings) -> list[Path]:
    """The experiment's files, the overlays last."""
    from threestudio_eeg.experiments import experiment_config

    name = settings.text_config if job.condition == "text" else settings.eeg_config
    return [experiment_config(layer) for layer in (name, *settings.overlays)]


def words_of(job: Job, settings: Settings) -> list[str]:
    """``key=value`` words of one object, its folder among them."""
    place = [f"exp_root_dir={settings.out}", "name=objects", "use_timestamp=false"]
    return [*place, f"tag={job.key}", *overrides_of(job, settings)]


def overrides_of(job: Job, settings: Settings) -> list[str]:
    """``key=value`` words of one object."""
    prompt = "system.prompt_processor"
    words = (
        [f"{prompt}.prompt={job.caption}"]
        if job.condition == "text"
        else [
            f"{prompt}.conditioning={conditioning_of(job, settings)}",
            f"{prompt}.trial={job.source}",
        ]
    )
    return [
        *words,
        f"{prompt}.pretrained_model_name_or_path={settings.pipeline}",
        f"system.guidance.pretrained_model_name_or_path={settings.pipeline}",
        f"seed={job.seed}",
        *([] if settings.steps is None else [f"trainer.max_steps={settings.steps}"]),
        *settings.overrides,
    ]


def conditioning_of(job: Job, settings: Settings) -> str | None:
    """The file that holds a job's tokens."""
    return dict(settings.controls).get(job.condition, settings.conditioning)


def save_strip(path: Path, views: Mapping[str, Any]) -> None:
    """Write a few views side by side: three-quarter front, right, back, left."""
    import numpy as np
    from PIL import Image

    from threestudio_eeg.evaluation.objects import BACKGROUNDS, on_background

    rgb = on_background(views, BACKGROUNDS[0])[list(SHOWN)].permute(0, 2, 3, 1).numpy()
    strip = np.concatenate(list((rgb * 255).round().astype(np.uint8)), axis=1)
    with whole_file(path) as temporary:
        Image.fromarray(strip).save(temporary, format="PNG")


def report(out: Path, jobs: Sequence[Job], settings: Settings, seconds: float) -> dict[str, Any]:
    """Print the table; write ``results.json`` and a contact sheet for each condition."""
    results = read_results(out)
    entries = [results[job.key] for job in jobs if job.key in results]
    conditions = list(dict.fromkeys(job.condition for job in jobs))
    summary = {c: summarise([e for e in entries if e["condition"] == c]) for c in conditions}
    print(table(summary))
    for entry in entries:
        if "error" in entry:
            print(f"failed: {entry['key']}: {entry['error']}")
    content = {
        **made_by(settings.device, seconds),
        "settings": asdict(replace(settings, out=out.name)),
        "wanted": len(jobs),
        "summary": summary,
        "objects": entries,
    }
    write_json(out / "results.json", content)
    for condition in conditions:
        sheet = contact(out, [j for j in jobs if j.condition == condition], results, settings)
        if sheet is not None:
            with whole_file(out / f"contact-{condition}.png") as temporary:
                sheet.save(temporary, format="PNG")
    return content


def made_by(device: str, seconds: float) -> dict[str, Any]:
    """What made a file of figures: command, commit, device, and the seconds of this call."""
    return {
        "simulated": True,
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "commit": _commit(),
        "device": _device_name(device),
        "seconds_of_this_call": round(seconds, 1),
    }


def summarise(entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean, standard error and number of each figure over the objects that were made.

    Sides and two fronts are of the asymmetric categories; the distance leaves out empty fields,
    which ``empty`` counts.
    """
    made = [entry for entry in entries if "error" not in entry]
    figures: dict[str, Any] = {
        "made": len(made),
        "failed": len(entries) - len(made),
        "empty": sum(bool(entry["empty"]) for entry in made),
    }
    for name in FIGURES:
        chosen = [e for e in made if e["asymmetric"]] if name in ASYMMETRIC_ONLY else made
        values = [float(e[name]) for e in chosen if e.get(name) is not None]
        figures[name] = mean_and_error(values)
    return figures


def mean_and_error(values: Sequence[float]) -> dict[str, Any]:
    """Mean, its standard error (sample deviation over the root of n), and n."""
    n = len(values)
    if n == 0:
        return {"mean": None, "se": None, "n": 0}
    mean = sum(values) / n
    spread = sum((value - mean) ** 2 for value in values) / (n - 1) if n > 1 else 0.0
    return {"mean": mean, "se": (spread / n) ** 0.5, "n": n}


def table(summary: Mapping[str, Mapping[str, Any]]) -> str:
    """The figures as a Markdown table."""
    heads = ["condition", "objects", "failed", "empty", *FIGURES.values()]
    lines = [" | ".join(heads), " | ".join("---" for _ in heads)]
    for condition, figures in summary.items():
        cells = [condition, *(str(figures[name]) for name in ("made", "failed", "empty"))]
        cells += [_cell(figures[name]) for name in FIGURES]
        lines.append(" | ".join(cells))
    return "\n".join(f"| {line} |" for line in lines)


def _cell(figure: Mapping[str, Any]) -> str:
    if figure["mean"] is None:
        return "–"
    return f"{figure['mean']:.3f} ± {figure['se']:.3f}"


def contact(
    out: Path, jobs: Sequence[Job], results: Mapping[str, Mapping[str, Any]], settings: Settings
) -> Any:
    """One object a category: what was seen, then four views of what was made; None without any."""
    from threestudio_eeg.evaluation.views import contact_sheet

    first: dict[str, Job] = {}
    for job in jobs:
        if (out / "views" / f"{job.key}.png").is_file() and job.key in results:
            first.setdefault(job.stimulus.split("_")[0], job)
    pictures: list[Any] = []
    labels: list[str] = []
    for _, job in sorted(first.items()):
        entry = results[job.key]
        pictures += [_seen(job, settings), *_strip(out / "views" / f"{job.key}.png")]
        judged = f"judged {entry.get('colour')} {entry.get('category')}"
        labels += [job.caption, judged, "", "", ""]
    if not pictures:
        return None
    return contact_sheet(pictures, 2 * (1 + len(SHOWN)), labels, cell=128)


def _strip(path: Path) -> list[Any]:
    from PIL import Image

    with Image.open(path) as image:
        side = image.height
        return [image.crop((i * side, 0, (i + 1) * side, side)) for i in range(len(SHOWN))]


def _seen(job: Job, settings: Settings) -> Any:
    from PIL import Image

    from eeg_encoder.recordings.perceivelab import picture_path

    try:
        return picture_path(Path(settings.objects).parent / "pictures", job.stimulus)
    except InputError:
        return Image.new("RGB", (128, 128), "white")


def _say(job: Job, entry: Mapping[str, Any], seconds: float) -> None:
    if "error" in entry:
        words = entry["error"]
    else:
        seen = f"judged a {entry['colour']} {entry['category']}"
        words = f"{job.caption}, {seen}, F {entry['fscore']:.2f}"
    print(f"{seconds:7.0f} s  {job.key}: {words}", flush=True)


def _commit() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        answer = subprocess.run(command, check=True, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()


def _device_name(device: str) -> str:
    import torch

    if device == "cuda":
        return torch.cuda.get_device_name()
    return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
