"""The whole way on the phantom: a recording on disk, its conditioning, an object, a report."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from eeg_encoder.errors import InputError
from eeg_encoder.files import writable_folder, write_json

from .phantom.objects import Instance

CONFIGS = ("phantom/eeg.yaml", "phantom/one-view.yaml")
PER_CATEGORY = 2
REPETITIONS = 20
N_VIEWS = 12
VIEW_SIZE = 128
GIGABYTE = 2**30


@dataclass
class DemoOptions:
    """What the demo runs on; the defaults are what ships with the package.

    Parameters
    ----------
    trial
        Number of the test object: 0 and 1 are mugs, 2 and 3 chairs, and so on.
    out
        Folder for the files.
    device
        ``auto``, ``cpu`` or ``cuda``.
    steps
        Steps of the optimisation; default those of the files.
    seed
        Of the optimisation.
    resume
        Go on with an interrupted demo in ``out``.
    quiet
        Print no progress.
    pipeline, encoder, judge
        Folders.
    configs
        Experiment files, later ones over earlier ones.
    overrides
        ``key=value`` words for them.
    """

    trial: int = 0
    out: Path = Path("outputs/demo")
    device: Literal["auto", "cpu", "cuda"] = "auto"
    steps: int | None = None
    seed: int = 0
    resume: bool = False
    quiet: bool = False
    pipeline: str = "phantom"
    encoder: Path | None = None
    judge: Path | None = None
    configs: Sequence[str] = CONFIGS
    overrides: Sequence[str] = ()


@dataclass
class Demo:
    """What the demo made: its files, and what they show. ``mesh`` is in world axes."""

    folder: Path
    truth: Instance
    trial_id: str
    metrics: dict[str, Any]
    run: Path
    mesh: Any
    files: dict[str, Path] = field(default_factory=dict)


def run_demo(options: DemoOptions) -> Demo:
    """Simulate, encode, distil, export, judge, report.

    Writes ``recording/``, ``conditioning.safetensors``, ``run/`` (the trial folder),
    ``object.glb``, ``turntable.mp4``, ``views/``, ``metrics.json`` and ``report.html`` to
    ``options.out``.

    Raises
    ------
    InputError
        For bad options, missing networks, or a folder that cannot be written.
    KeyboardInterrupt
        After Ctrl-C; ``resume`` goes on from the last checkpoint.
    """
    from eeg_encoder.training import resolve_device

    clock = _Stopwatch(options.quiet)
    out = writable_folder(options.out)
    device = resolve_device(options.device)
    truth = _choose(options.trial)
    with clock.stage("recording"):
        recording = _record(out / "recording", options)
    with clock.stage("encoding"):
        conditioning = encode_recording(recording, out, options.encoder, device)
        trial_id = f"s1-{truth.stimulus}"
        decoded = _retrieval(conditioning, recording, trial_id)
    with clock.stage("object", spinner=False):
        run = _distil(options, out, trial_id, device)
    with clock.stage("figures"):
        demo = _look(options, out, run, truth, trial_id, device)
    demo.metrics |= {
        "decoding": decoded | _signal(recording),
        "run": clock.figures() | {"device": device},
    }
    write_json(out / "metrics.json", demo.metrics)
    with clock.stage("report"):
        _report(demo, recording, conditioning, options)
    return demo


def _choose(trial: int) -> Instance:
    from .phantom.recording import draw_instances

    instances = draw_instances({"test": PER_CATEGORY}, seed=0)
    if not 0 <= trial < len(instances):
        raise InputError("command line", "trial", trial, f"0 to {len(instances) - 1}")
    return instances[trial]


def _record(folder: Path, options: DemoOptions) -> Any:
    """On the CPU whatever the device, so that the same trial is the same EEG everywhere."""
    from eeg_encoder.recordings.simulation import SimulationConfig

    from .phantom.recording import make_recording

    return make_recording(
        folder,
        per_category={"test": PER_CATEGORY},
        simulation=SimulationConfig(subjects=1, held_out_repetitions=REPETITIONS),
        pipeline=options.pipeline,
        device="cpu",
    )


def shipped_encoder() -> Path:
    """Folder of the EEG encoder that ships with the package."""
    return Path(__file__).parent / "phantom" / "encoder"


def encode_recording(recording: Any, out: Path, encoder: Path | None, device: str) -> Path:
    """Do what ``eeg-encoder embed --split test`` does; return the conditioning file."""
    from eeg_encoder.conditioning import save_conditioning
    from eeg_encoder.embedding import embed_trials
    from eeg_encoder.figures import load_for
    from eeg_encoder.pretrained import from_pretrained
    from eeg_encoder.recordings.perceivelab import load_splits

    from .phantom.recording import category_names

    pretrained = from_pretrained(encoder or shipped_encoder())
    trials = load_for(recording.trials, pretrained.config)
    test = trials.at(load_splits(recording.splits, trials.total)["test"])
    protocol = {"recording": recording.trials.name, "part": "test", "simulated": True}
    conditioning = embed_trials(
        pretrained, test, names=category_names(), protocol=protocol, device=device
    )
    file = out / "conditioning.safetensors"
    save_conditioning(file, conditioning)
    return file


def _retrieval(file: Path, recording: Any, trial_id: str) -> dict[str, Any]:
    """Where the picture seen stands among the test pictures, by what the EEG decodes to."""
    from eeg_encoder.conditioning import load_conditioning

    conditioning = load_conditioning(file)
    similarity = recording.embeddings @ conditioning.pooled[conditioning.index_of(trial_id)]
    names = [instance.stimulus for instance in recording.instances]
    own = names.index(trial_id.split("-", 1)[1])
    nearest = recording.instances[int(similarity.argmax())]
    return {
        "rank": {
            "name": "Rank of the picture seen",
            "value": 1 + int((similarity > similarity[own]).sum()),
            "chance": (len(names) + 1) / 2,
            "meaning": f"Among {len(names)} test pictures, by similarity to the decoded EEG.",
        },
        "nearest": {"name": "Nearest test picture", "value": nearest.caption},
        "cosine": {
            "name": "Similarity to it",
            "value": float(similarity[own]),
            "meaning": "Cosine between decoded EEG and the embedding of the picture seen.",
        },
    }


def _signal(recording: Any) -> dict[str, Any]:
    import json

    record = json.loads(recording.simulation.read_text(encoding="utf-8"))
    return {
        "snr_db": {
            "name": "Signal to noise",
            "value": record["snr_db"],
            "unit": "dB",
            "meaning": "Discriminative, of a single trial.",
        },
        "repetitions": {"name": "Trials averaged", "value": record["held_out_repetitions"]},
    }


def _distil(options: DemoOptions, out: Path, trial_id: str, device: str) -> Path:
    from .experiments import experiment_config

    last = out / "run" / trial_id / "ckpts" / "last.ckpt"
    overrides = [
        f"exp_root_dir={out}",
        "name=run",
        f"tag={trial_id}",
        "use_timestamp=false",
        f"seed={options.seed}",
        f"system.prompt_processor.conditioning={out / 'conditioning.safetensors'}",
        f"system.prompt_processor.trial={trial_id}",
        f"system.prompt_processor.pretrained_model_name_or_path={options.pipeline}",
        f"system.guidance.pretrained_model_name_or_path={options.pipeline}",
        *([] if options.steps is None else [f"trainer.max_steps={options.steps}"]),
        *([f"resume={last}"] if options.resume and last.is_file() else []),
        *options.overrides,
    ]
    os.environ.setdefault("THREESTUDIO_EEG_HOST", "builtin")
    files = [experiment_config(name) for name in options.configs]
    return _train(files, overrides, device, options.quiet)


def _train(files: list[Path], overrides: list[str], device: str, quiet: bool) -> Path:
    """Launch on the host that the environment names."""
    from .launching.choice import choose_host

    threestudio = choose_host().threestudio
    if threestudio is None:
        from .builtin.launch import launch

        return launch("train", files, overrides, device=device, quiet=quiet)  # type: ignore[arg-type]
    from .launching.upstream import Launch, launch_upstream

    words = [*overrides, *(["trainer.enable_progress_bar=false"] if quiet else [])]
    trial = launch_upstream(Launch("train", files, words, threestudio, device=device))
    assert trial is not None
    return trial


def _look(
    options: DemoOptions, out: Path, run: Path, truth: Instance, trial_id: str, device: str
) -> Demo:
    from .evaluation.objects import evaluate_object, load_judge
    from .evaluation.runs import export_glb, open_run
    from .evaluation.views import render_views, save_views
    from .pipeline import load_pipeline

    system = open_run(run, device=device)
    mesh = system.make_exporter().coloured_mesh()
    views = render_views(system, n_views=N_VIEWS, size=VIEW_SIZE, device=device)
    pictures = save_views(out / "views", **views)
    judge = load_judge(options.judge, device)
    tower = load_pipeline(options.pipeline, device=device, parts=("image_encoder",))
    figures = evaluate_object(views, mesh, truth, judge, tower)
    film = sorted(run.glob("save/it*-test.mp4"), key=lambda path: path.stat().st_mtime)[-1]
    files = {
        "object": export_glb(mesh, out / "object.glb"),
        "turntable": Path(shutil.copyfile(film, out / "turntable.mp4")),
        "views": pictures[0].parent,
        "metrics": out / "metrics.json",
        "report": out / "report.html",
    }
    seen = {"caption": truth.caption, "stimulus": truth.stimulus, "trial": trial_id}
    metrics = {"simulated": True, "seen": seen, **figures}
    return Demo(out, truth, trial_id, metrics, run, mesh, files)


def _report(demo: Demo, recording: Any, conditioning: Path, options: DemoOptions) -> None:
    from eeg_encoder.recordings.perceivelab import load_perceivelab, picture_path

    from .evaluation.objects import true_mesh
    from .report import write_report
    from .report.material import average_response, encoder_saliency, latest_curves

    truth = demo.truth
    trials = load_perceivelab(recording.trials)
    names = [instance.stimulus for instance in recording.instances]
    saliency = encoder_saliency(
        trials,
        truth.stimulus,
        options.encoder or shipped_encoder(),
        recording.embeddings[names.index(truth.stimulus)],
        device=demo.metrics["run"]["device"],
    )
    views = sorted(p for p in demo.files["views"].glob("*.png") if p.stem.isdigit())
    write_report(
        demo.folder,
        title=truth.caption.capitalize(),
        subtitle="An object from simulated EEG: what was seen, what was recorded, what came out.",
        seen=truth.caption,
        stimulus=picture_path(recording.pictures, truth.stimulus),
        eeg=average_response(trials, truth.stimulus, what="simulated trials"),
        saliency=saliency,
        views=views,
        mesh=demo.mesh,
        truth=true_mesh(truth),
        metrics=demo.metrics,
        provenance=_provenance(demo, conditioning, options),
        curves=latest_curves(demo.run),
    )


def _provenance(demo: Demo, conditioning: Path, options: DemoOptions) -> dict[str, Any]:
    import json

    from .evaluation.runs import run_record

    run = json.loads((demo.run / "provenance.json").read_text(encoding="utf-8"))
    record = run_record(demo.run)
    return {
        "command": " ".join(["threestudio-eeg", *sys.argv[1:]]),
        "seed": options.seed,
        "host": run["host"],
        "commit": run["commit"],
        "device": run["device"],
        "packages": run["packages"],
        "conditioning_sha256": record.get("conditioning_sha256"),
        "conditioning": record,
        "config": (demo.run / "configs" / "parsed.yaml").read_text(encoding="utf-8"),
    }


def peak_memory() -> float | None:
    """Most memory this process has had in use, GiB; None where the system does not say."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / GIGABYTE


class _Stopwatch:
    """Seconds of each stage, which it announces."""

    def __init__(self, quiet: bool) -> None:
        from rich.console import Console

        self.console = Console(quiet=quiet)
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str, *, spinner: bool = True) -> Iterator[None]:
        title = STAGES[name]
        started = time.monotonic()
        if spinner:
            self.console.print(f"[bold]{title}[/bold] …")
        else:
            self.console.print(f"[bold]{title}[/bold]")
        yield
        self.seconds[name] = time.monotonic() - started

    def figures(self) -> dict[str, Any]:
        """Seconds so far by stage, in all, and the peak of memory."""
        import torch

        cuda = torch.cuda.max_memory_allocated() / GIGABYTE if torch.cuda.is_available() else 0.0
        return {
            "seconds": {
                "name": "Time in all",
                "value": round(sum(self.seconds.values()), 1),
                "unit": "s",
                "meaning": "Until the figures; the report comes after.",
            },
            **{
                name: {"name": STAGES[name], "value": round(value, 1), "unit": "s"}
                for name, value in self.seconds.items()
            },
            "peak_memory": {"name": "Peak memory", "value": peak_memory(), "unit": "GiB"},
            **({"cuda_memory": {"value": cuda, "unit": "GiB"}} if cuda else {}),
        }


STAGES = {
    "recording": "Simulating the recording",
    "encoding": "Encoding the EEG",
    "object": "Making the object",
    "figures": "Looking at it",
    "report": "Writing the report",
}


def summary(demo: Demo) -> Any:
    """The demo's table: what was seen, decoded and made, and where the files are."""
    from rich.table import Table

    metrics, eeg = demo.metrics, demo.metrics["decoding"]
    table = Table(title=f"[bold]{demo.truth.caption}[/bold] (simulated)", show_header=False)
    table.add_row("seen", demo.truth.caption)
    rank = f"(rank of the picture seen: {eeg['rank']['value']})"
    table.add_row("decoded", f"nearest test picture: {eeg['nearest']['value']} {rank}")
    table.add_row("judged", f"{metrics['colour']} {metrics['category']}")
    shape = f"F-score {metrics['fscore']:.2f}, Chamfer {metrics['chamfer']:.3f}"
    table.add_row("shape", f"{shape}, overlap {metrics['iou']:.2f}")
    table.add_row("sides right", f"{metrics['side_right']:.0%}")
    run = metrics["run"]
    table.add_row("took", f"{run['seconds']['value']:.0f} s")
    if run["peak_memory"]["value"] is not None:
        table.add_row("peak memory", f"{run['peak_memory']['value']:.1f} GiB")
    for name, path in demo.files.items():
        table.add_row(name, str(path))
    return table
