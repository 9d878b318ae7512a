"""Trial folders as rows of a comparison."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eeg_encoder.errors import InputError

from ..evaluation.runs import open_run, run_config, run_record
from ..evaluation.views import render_views
from .eyes import Eyes
from .pictures import N_VIEWS, write_strip
from .rows import Row, Source

NOT_TRAINING = re.compile(r"eval_|n_val_views|n_test_views")
GIVEN = "::"


@dataclass(frozen=True)
class Run:
    """A finished trial folder of the embedded host, known by what it was made of.

    ``prompt`` is the text of a text run, else empty; ``stimulus`` is what was seen, or None where
    neither the folder nor the user says it.
    """

    name: str
    folder: Path
    condition: str
    stimulus: str | None
    prompt: str
    seed: int
    representation: str
    max_steps: int
    protocol: Mapping[str, Any]


def read_run(folder: str | Path, name: str = "", stimulus: str | None = None) -> Run:
    """Read what a trial folder says of itself; nothing is rendered.

    Raises
    ------
    InputError
        When the folder is no trial folder, was not finished, or its records cannot be read.
    """
    folder = Path(folder)
    config = run_config(folder)
    if not (folder / "ckpts" / "last.ckpt").is_file():
        raise InputError(folder, "ckpts/last.ckpt", "nothing", "a run that was trained to its end")
    record = run_record(folder)
    text = not record
    return Run(
        name=name or folder.name,
        folder=folder,
        condition="text" if text else str(record.get("protocol", {}).get("condition", "eeg")),
        stimulus=stimulus or record.get("trial", {}).get("stimulus"),
        prompt=str(config.system.prompt_processor.get("prompt", "")) if text else "",
        seed=int(config.seed),
        representation=str(config.system.geometry_type),
        max_steps=int(config.trainer.max_steps),
        protocol={**_protocol(config), **_eeg_protocol(record)},
    )


def is_trial_folder(path: Path) -> bool:
    """Whether a path looks like a trial folder, finished or not."""
    return (path / "configs").is_dir() or (path / "ckpts").is_dir() or (path / "cmd.txt").is_file()


def look_at_runs(
    runs: Sequence[Run], eyes: Eyes, out: Path, *, size: int = 128, device: str = "cpu"
) -> list[Source]:
    """Render and measure runs, with a progress bar; four views of each go to ``out``.

    Raises
    ------
    InputError
        When a run stopped early, its checkpoint does not fit its config, or what was seen is not
        known.
    """
    from rich.progress import track

    stimuli = [_stimulus(run, eyes, runs) for run in runs]
    sources = []
    for run, stimulus in track(
        list(zip(runs, stimuli, strict=True)), description="objects", transient=True
    ):
        row = _look(run, stimulus, eyes, out, size, device)
        sources.append(Source(run.name, run.folder, [row], dict(run.protocol), run.representation))
    return sources


def _look(run: Run, stimulus: str, eyes: Eyes, out: Path, size: int, device: str) -> Row:
    system = open_run(run.folder, device=device)
    step = int(system.true_global_step)
    if step < run.max_steps:
        raise InputError(run.folder, "step", step, f"{run.max_steps}: a run trained to its end")
    views = render_views(system, n_views=N_VIEWS, size=size, device=device)
    try:
        mesh = system.make_exporter().coloured_mesh()
    except InputError:
        mesh = None
    figures = {**eyes.figures(views, mesh, stimulus), "empty": mesh is None}
    key = f"{run.condition}-{run.representation}-{stimulus}-{run.seed}"
    return Row(run.condition, stimulus, run.seed, figures, write_strip(out / f"{key}.png", views))


def _stimulus(run: Run, eyes: Eyes, runs: Sequence[Run]) -> str:
    if run.stimulus is not None:
        return run.stimulus
    wanted = {other.stimulus for other in runs if other.stimulus is not None}
    objects = eyes.objects or {}
    fitting = [
        stimulus
        for stimulus, instance in objects.items()
        if instance.caption == run.prompt and stimulus in wanted
    ]
    if len(fitting) == 1:
        return fitting[0]
    found = f"{len(fitting)} trials captioned “{run.prompt}”"
    raise InputError(run.folder, "stimulus", found, f"one: give RUN{GIVEN}STIMULUS")


def _protocol(config: Any) -> dict[str, Any]:
    from omegaconf import OmegaConf

    system = config.system
    flat: dict[str, Any] = {
        "trainer.max_steps": int(config.trainer.max_steps),
        "system.guidance_type": system.guidance_type,
        "system.n_particles": int(system.get("n_particles", 1) or 1),
    }
    for section in ("data", "system.guidance"):
        content = OmegaConf.to_container(OmegaConf.select(config, section), resolve=True)
        assert isinstance(content, dict)
        flat.update({f"{section}.{key!s}": value for key, value in content.items()})
    return {key: value for key, value in flat.items() if not NOT_TRAINING.search(key)}


def _eeg_protocol(record: Mapping[str, Any]) -> dict[str, Any]:
    """What conditions made of EEG must share: the encoder, the recording, the averaging."""
    if not record:
        return {}
    names = ("recording", "part", "averaged", "repetitions")
    protocol = record.get("protocol", {})
    found = {f"conditioning.{name}": protocol[name] for name in names if name in protocol}
    return {"conditioning.encoder": record.get("encoder_sha256"), **found}
