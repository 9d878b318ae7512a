"""Our EEG experiments inside an unmodified threestudio: train, resume, test, export.

Each phase is a process of its own, as ``threestudio-eeg launch --host upstream`` is for a user:
training, which ends with a film, and from its checkpoint a longer training, the film, the mesh. The
experiments run side by side, so steps per second are those of a shared device. The experiments
are run with this package's stand-ins for what does not import, and, where ``--libraries`` names a
folder with the compiled packages, once more with it on Python's path. The table says which ones
were real: those for which threestudio's run records no remedy.

    python -m benchmarks.upstream_runs --threestudio threestudio --device cuda \
        --libraries site --out upstream.json
    python -m benchmarks.upstream_runs --threestudio threestudio --device cpu --pipeline tiny \
        --steps 4 --resume-to 6 --side 16 --samples 16 --grid 32 --workers 2
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tarfile
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .launched import build_nerfacc, checkout_for_one, launched
from .timing import machine

EXPERIMENTS = (
    "eeg-prolificdreamer",
    "eeg-dreamfusion",
    "eeg-prolificdreamer+implicit-sdf",
    "eeg-prolificdreamer+volume-grid",
    "eeg-prolificdreamer+tetrahedra-sdf-grid",
    "eeg-prolificdreamer-geometry",
    "eeg-prolificdreamer-texture",
)
"""Behind a plus the overlay. The last two start from the one before: coarse, geometry, texture."""
BEFORE = {
    "eeg-prolificdreamer-geometry": "eeg-prolificdreamer",
    "eeg-prolificdreamer-texture": "eeg-prolificdreamer-geometry",
}
MESHES = ("tetrahedra-sdf-grid", "geometry", "texture")
UNHASHED = ("volume-grid", "-geometry")
PHASES = ("train", "resume", "test", "export")
COMPILED = ("nerfacc", "tinycudann", "nvdiffrast")
FIGURES = ("steps_per_s", "peak_gb")
VIEWS = 2


@dataclass
class Run:
    """One experiment with one set of libraries: its folder, and what became of its phases."""

    experiment: str
    libraries: str | None
    pipeline: Path
    conditioning: Path
    steps: int
    resume_to: int
    folder: Path
    phases: dict[str, dict[str, Any]] = field(default_factory=dict)
    remedies: list[str] = field(default_factory=list)
    note: str = ""

    @property
    def trial(self) -> Path:
        return self.folder / "outputs" / "run" / "trial"

    @property
    def checkpoint(self) -> Path:
        return self.trial / "ckpts" / "last.ckpt"

    @property
    def copy(self) -> Path:
        """A trial's folder as well: what starts from a checkpoint in it writes there."""
        return self.folder / "trained"

    @property
    def kept(self) -> Path:
        return self.copy / "ckpts" / "last.ckpt"

    @property
    def kept_config(self) -> Path:
        return self.copy / "configs" / "parsed.yaml"

    def keep(self) -> None:
        """Copy what other phases start from: resuming writes over it meanwhile."""
        config = self.trial / "configs" / "parsed.yaml"
        for source, copy in ((self.checkpoint, self.kept), (config, self.kept_config)):
            copy.parent.mkdir(parents=True)
            shutil.copyfile(source, copy)

    def row(self) -> dict[str, Any]:
        real = [name for name in COMPILED if name not in self.remedies]
        train = self.phases.get("train", {})
        return {
            "experiment": self.experiment + (f", {self.note}" if self.note else ""),
            "asked": self.libraries,
            "libraries": (real or ["none"]) if self.remedies else None,
            "remedies": self.remedies,
            "steps": self.steps,
            "steps_per_s": train.get("steps_per_s"),
            "peak_gb": train.get("peak_gb"),
            "phases": self.phases,
        }


def main() -> None:
    options = parse()
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="upstream-runs-") as folder:
        work = Path(folder) if options.keep is None else options.keep.absolute()
        checkout = unpacked(options.threestudio, work)
        if options.device == "cuda":
            print(f"nerfacc's kernels: {build_nerfacc():.0f} s", flush=True)
        runs = list(planned(options, work))
        perform(runs, options, checkout, begun)
    print(table([run.row() for run in runs]), flush=True)
    wall = time.perf_counter() - begun
    print(f"{wall:.0f} s in all, {options.workers} side by side")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--threestudio", type=Path, required=True, help="a checkout, or a tar archive of one")
    add("--libraries", type=Path, help="folder with tinycudann and nvdiffrast, on no path so far")
    add("--only-libraries", action="store_true", help="not without them")
    add("--device", choices=("cpu", "cuda"), default="cuda")
    add("--experiments", nargs="+", choices=EXPERIMENTS, default=list(EXPERIMENTS))
    add("--pipeline", default="phantom", help="a folder; phantom; or random: tiny, sd15")
    add("--sd15", type=int, default=0, metavar="STEPS", help="also one at its shape")
    add("--steps", type=int, default=200)
    add("--resume-to", type=int, default=210)
    add("--side", type=int, default=64, help="pixels of a render")
    add("--samples", type=int, default=128, help="per ray")
    add("--grid", type=int, default=64, help="of tetrahedra: 32 or 64")
    add("--small", action="store_true", help="hash grids of 2^12 entries")
    add("--workers", type=int, default=14)
    add("--time-limit", type=float, default=400.0, help="seconds that a phase may take")
    add("--keep", type=Path, help="a folder for the runs and their output")
    add("--out", type=Path, help="JSON")
    return parser.parse_args()


def unpacked(threestudio: Path, work: Path) -> Path:
    if not threestudio.is_file():
        return threestudio.absolute()
    with tarfile.open(threestudio) as archive:
        archive.extractall(work / "checkout", filter="data")
    (script,) = (work / "checkout").rglob("launch.py")
    return script.parent


def planned(options: argparse.Namespace, work: Path) -> Iterator[Run]:
    """All runs, the longest first."""
    from .representations import pipeline_and_conditioning

    columns: list[str | None] = [] if options.only_libraries else [None]
    columns += [str(options.libraries.absolute())] if options.libraries is not None else []
    if options.sd15:
        inputs = pipeline_and_conditioning("sd15", work / "inputs-sd15", options.device)
        steps = {"steps": options.sd15, "resume_to": options.sd15 + 10}
        folder = work / "sd15"
        libraries = columns[-1]
        run = Run("eeg-prolificdreamer", libraries, *inputs, **steps, folder=folder)
        run.note = "Stable Diffusion 1.5's shape"
        yield run
    inputs = pipeline_and_conditioning(options.pipeline, work / "inputs", options.device)
    for number, libraries in enumerate(columns):
        for experiment in (one for one in EXPERIMENTS if one in options.experiments):
            steps = {"steps": options.steps, "resume_to": options.resume_to}
            folder = work / f"{number}-{experiment}"
            yield Run(experiment, libraries, *inputs, **steps, folder=folder)


def perform(runs: list[Run], options: argparse.Namespace, checkout: Path, begun: float) -> None:
    """Phases in the pool: train, then resume, test and export at once."""
    by_key = {(run.experiment, run.libraries, run.note): run for run in runs}
    trained: dict[int, Future[None]] = {}
    slots, telling = threading.Semaphore(options.workers), threading.Lock()

    def phase(run: Run, name: str) -> None:
        reason = lacking(run, name, by_key)
        if reason is not None:
            run.phases[name] = {"reason": reason}
        else:
            with slots:
                run.phases[name] = guarded(run, name, options, checkout)
        shown = {key: run.phases[name].get(key) for key in ("reason", "seconds", "steps_per_s")}
        at = f"{time.perf_counter() - begun:6.1f} s"
        name_of = f"{run.experiment} {run.note} {'real' if run.libraries else ''}"
        with telling:
            print(f"{at}  {name_of}: {name}: {shown}", flush=True)
            if options.out is not None:
                write(options, runs, time.perf_counter() - begun)

    def whole(run: Run) -> None:
        before = by_key.get((BEFORE.get(run.experiment, ""), run.libraries, run.note))
        if before is not None:
            trained[id(before)].result()
        phase(run, "train")
        if run.checkpoint.is_file():
            run.keep()

    def rest(run: Run) -> None:
        trained[id(run)].result()
        for one in [ends.submit(phase, run, name) for name in PHASES[1:]]:
            one.result()

    # Threads only wait; the slots bound the processes.
    n = 2 * len(runs) + 2
    with ThreadPoolExecutor(2 * n) as ends, ThreadPoolExecutor(n) as pool:
        for run in runs:
            trained[id(run)] = pool.submit(whole, run)
        for one in [pool.submit(rest, run) for run in runs]:
            one.result()


def lacking(run: Run, phase: str, by_key: dict[Any, Run]) -> str | None:
    """Why a phase cannot begin."""
    if phase != "train":
        return None if run.checkpoint.is_file() else "no checkpoint of the training"
    before = BEFORE.get(run.experiment)
    if before is None:
        return None
    earlier = by_key.get((before, run.libraries, run.note))
    if earlier is None or not earlier.checkpoint.is_file():
        return f"no run of {before} to start from"
    return None


def guarded(run: Run, phase: str, options: argparse.Namespace, checkout: Path) -> dict[str, Any]:
    """A mistake of this script in one phase costs that phase."""
    try:
        return one_phase(run, phase, options, checkout)
    except Exception as error:
        return {"reason": f"{type(error).__name__}: {error}"}


def one_phase(run: Run, phase: str, options: argparse.Namespace, checkout: Path) -> dict[str, Any]:
    mode = "train" if phase == "resume" else phase
    words = ["launch", "--host", "upstream", "--device", options.device]
    place = checkout_for_one(checkout, run.folder / f"threestudio-{phase}")
    words += ["--threestudio", str(place), f"--{mode}"]
    if mode == "train":
        words += [word for name in files(run.experiment) for word in ("--config", name)]
        words += settings(run, options)
    else:
        words += ["--config", str(run.kept_config), f"resume={run.kept}"]
    steps = run.steps
    if phase == "train":
        words += [f"trainer.max_steps={steps}", f"trainer.val_check_interval={steps}"]
    if phase == "resume":
        steps = run.resume_to - run.steps
        words += [
            f"resume={run.checkpoint}",
            f"trainer.max_steps={run.resume_to}",
            f"trainer.val_check_interval={steps}",
        ]
    if phase == "export":
        words += exporting(run, options)
    path = [run.libraries] if run.libraries else []
    path += [os.environ["PYTHONPATH"]] if os.environ.get("PYTHONPATH") else []
    row = launched(
        words,
        device=options.device,
        environment={"PYTHONPATH": os.pathsep.join(path)},
        log=run.folder / f"{phase}.txt",
        time_limit=options.time_limit,
    )
    record = run.trial / "launch.json"
    if phase == "train" and record.is_file():
        run.remedies = json.loads(record.read_text(encoding="utf-8"))["remedies"]
    if "reason" not in row:
        row |= looked_at(run, phase)
    return row


def files(experiment: str) -> list[str]:
    name, _, overlay = experiment.partition("+")
    return [f"{name}.yaml"] + ([f"representation/{overlay}.yaml"] if overlay else [])


def settings(run: Run, options: argparse.Namespace) -> list[str]:
    """What makes a run of the shipped experiment a short one."""
    part, side = "system.prompt_processor.", options.side
    words = [f"exp_root_dir={run.folder / 'outputs'}", "name=run", "tag=trial"]
    words += ["use_timestamp=false", f"{part}conditioning={run.conditioning}"]
    words += [f"{part}pretrained_model_name_or_path={run.pipeline}"]
    words += ["data.batch_size=1", "data.resolution_milestones=[]"]
    words += [f"data.width={side}", f"data.height={side}"]
    words += [f"data.eval_width={side}", f"data.eval_height={side}"]
    words += ["data.n_val_views=1", f"data.n_test_views={VIEWS}"]
    words += ["checkpoint.every_n_train_steps=1000000"]
    if not any(name in run.experiment for name in MESHES):
        words += [f"system.renderer.num_samples_per_ray={options.samples}"]
    else:
        words += [f"system.geometry.isosurface_resolution={options.grid}"]
    if options.small and not any(name in run.experiment for name in UNHASHED):
        words += ["system.geometry.pos_encoding_config.log2_hashmap_size=12"]
    before = BEFORE.get(run.experiment)
    if before is not None:
        earlier = run.folder.with_name(run.folder.name.replace(run.experiment, before))
        words += [f"system.geometry_convert_from={earlier}/trained/ckpts/last.ckpt"]
    if before == "eeg-prolificdreamer":
        words += ["system.geometry_convert_override.isosurface_threshold=auto"]
    return words


def exporting(run: Run, options: argparse.Namespace) -> list[str]:
    words = ["system.exporter_type=mesh-exporter", "system.exporter.fmt=obj"]
    words += ["system.exporter.context_type=cuda", "system.exporter.save_uv=false"]
    if run.experiment.endswith("-geometry"):  # a shape without colours
        words += ["system.exporter.save_texture=false"]
    if any(name in run.experiment for name in MESHES):
        return words
    words += ["system.geometry.isosurface_method=mt"]
    words += [f"system.geometry.isosurface_resolution={options.grid}"]
    if "implicit-sdf" not in run.experiment:  # a level of no density is no surface
        words += ["system.geometry.isosurface_threshold=auto"]
    return words


def looked_at(run: Run, phase: str) -> dict[str, Any]:
    """What the phase has to have left behind; the reason where it has not."""
    step = run.resume_to if phase == "resume" else run.steps
    save = (run.copy if phase in ("test", "export") else run.trial) / "save"
    if phase == "export":
        found = sorted(save.rglob("*.obj"))
        if not found:
            return {"reason": "no obj file"}
        lines = found[-1].read_text(encoding="utf-8").splitlines()
        faces = sum(line.startswith("f ") for line in lines)
        return {"faces": faces} if faces else {"reason": "an obj file without faces"}
    pictures = list((save / f"it{step}-test").glob("*.png"))
    if len(pictures) != VIEWS:
        return {"reason": f"{len(pictures)} pictures of {VIEWS} in save/it{step}-test"}
    return {"pictures": VIEWS}


def write(options: argparse.Namespace, runs: list[Run], wall: float) -> None:
    """All that is known so far."""
    told = {"wall_s": round(wall, 1), "workers": options.workers, **machine(options.device)}
    rows = [run.row() for run in runs]
    options.out.write_text(json.dumps({**told, "rows": rows}, indent=1), encoding="utf-8")


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    heads = ["experiment", "real libraries", *PHASES, "steps/s", "peak GB"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in rows:
        libraries = "–" if row["libraries"] is None else ", ".join(row["libraries"])
        phases = [words(row["phases"].get(phase, {"reason": "not run"})) for phase in PHASES]
        figures = [str(row[key]) if row[key] is not None else "–" for key in FIGURES]
        first = f"{row['experiment']}, {row['steps']} steps"
        lines.append(f"| {' | '.join([first, libraries, *phases, *figures])} |")
    return "\n".join(lines)


def words(phase: dict[str, Any]) -> str:
    if "reason" in phase:
        return f"no: {phase['reason']}".replace("|", "/")
    faces = f", {phase['faces']} faces" if "faces" in phase else ""
    return f"runs ({phase['seconds']:.0f} s{faces})"


if __name__ == "__main__":
    main()
