"""A finished run, opened without its guidance: the field, and what renders and exports it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch

from eeg_encoder.errors import InputError

PARTS = ("geometry.", "material.", "background.", "renderer.", "particles.")


def run_config(folder: str | Path) -> Any:
    """The experiment of a trial folder, as it was resolved.

    Raises
    ------
    InputError
        When the folder is no trial folder, or was left before its config was whole.
    """
    from ..builtin.config import load_config

    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(folder, "run", "nothing", "a trial folder")
    file = folder / "configs" / "parsed.yaml"
    if not file.is_file():
        raise InputError(folder, "configs/parsed.yaml", "nothing", "a trial folder")
    return load_config(file)


def open_run(
    folder: str | Path,
    *,
    device: str | torch.device = "cpu",
    checkpoint: str | Path | None = None,
) -> Any:
    """The system of a trial folder, on the embedded host, with a checkpoint, to look at.

    No diffusion model is loaded, so the pipeline need not be there. A run of threestudio itself is
    opened too where the embedded host has its parts under the same names.

    Parameters
    ----------
    folder
        Trial folder.
    checkpoint
        Default the trial's ``ckpts/last.ckpt``.

    Returns
    -------
    BaseLift3DSystem
        In evaluation mode, on ``device``; ``system(batch)`` renders.

    Raises
    ------
    InputError
        When the folder is no trial folder, its checkpoint cannot be used or belongs to another
        representation, or the run is one of threestudio itself that this host cannot open.
    """
    from omegaconf import OmegaConf

    from ..builtin.base import device_scope, load_checkpoint
    from ..builtin.systems import BaseLift3DSystem

    folder = Path(folder)
    config = run_config(folder).system
    file = Path(checkpoint) if checkpoint is not None else folder / "ckpts" / "last.ckpt"
    content = load_checkpoint(file)
    known = {field.name for field in dataclasses.fields(BaseLift3DSystem.Config)} - {"weights"}
    try:
        with device_scope(device):
            parts = OmegaConf.create({k: config[k] for k in config if k in known})
            system = BaseLift3DSystem(parts, resumed=True)
        _load(system, content["state_dict"], file, str(config.geometry_type))
    except InputError as error:
        if _host_of(folder) == "builtin":
            raise
        found = f"a run of threestudio itself ({error.field}: {error.found})"
        expected = "one of the embedded host, or threestudio-eeg launch --host upstream --test"
        raise InputError(folder, "host", found, expected) from error
    system.set_resume_status(int(content["epoch"]), int(content["global_step"]))
    system.set_save_dir(folder / "save")
    system.to(device).eval().requires_grad_(False)
    system.do_update_step(system.true_current_epoch, system.true_global_step)
    return system


def _host_of(folder: Path) -> str:
    """Host that made a run; threestudio's own launch.py writes no provenance."""
    file = folder / "provenance.json"
    if not file.is_file():
        return "upstream"
    try:
        return str(json.loads(file.read_text(encoding="utf-8")).get("host"))
    except ValueError as error:
        raise InputError(file, "file", error, "JSON") from error


def run_record(folder: str | Path) -> dict[str, Any]:
    """What the run says about the EEG it was made from; empty for a text prompt."""
    file = Path(folder) / "conditioning.json"
    if not file.is_file():
        return {}
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(file, "file", error, "JSON") from error


def _load(system: Any, state: dict[str, Any], file: Path, representation: str) -> None:
    own = {name: value for name, value in state.items() if name.startswith(PARTS)}
    expected = set(system.state_dict())
    try:
        system.load_state_dict(own)
    except RuntimeError as error:
        strange = sorted(expected ^ set(own))
        reason = " ".join(str(error).split())[:160]
        if strange:
            reason = f"{strange[0]} {'missing' if strange[0] in expected else 'too much'}"
        raise InputError(
            file, "weights", reason, f"those of its own config, {representation}"
        ) from error


def evaluate_run(
    run: str | Path,
    out: str | Path,
    *,
    objects: str | Path | None = None,
    stimulus: str | None = None,
    pipeline: str | Path = "phantom",
    judge: str | Path | None = None,
    n_views: int = 12,
    size: int = 128,
    device: str = "cpu",
) -> dict[str, Any]:
    """Render a run's object, export it, and compare it with what was seen.

    Parameters
    ----------
    run
        Trial folder.
    out
        Gets ``views/``, ``object.glb`` and ``metrics.json``.
    objects
        ``objects.json`` of the recording; without it there is no truth to compare with.
    stimulus
        What was seen; default the stimulus in the run's ``conditioning.json``.
    pipeline, judge
        Folders; the image tower for the agreement of views, and the judge.

    Returns
    -------
    dict
        :func:`.objects.evaluate_object`'s figures, with ``simulated``, ``run`` and ``stimulus``.

    Raises
    ------
    InputError
        When a file is missing or does not fit, or the field is empty.
    """
    from eeg_encoder.files import writable_folder, write_json

    from ..phantom.recording import object_of
    from ..pipeline import load_pipeline
    from .objects import evaluate_object, load_judge
    from .views import render_views, save_views

    run, out = Path(run), writable_folder(out)
    seen = stimulus or run_record(run).get("trial", {}).get("stimulus")
    if objects is not None and seen is None:
        raise InputError(run, "stimulus", "nothing", "one, given or in conditioning.json")
    truth = None if objects is None or seen is None else object_of(objects, seen)
    system = open_run(run, device=device)
    mesh = system.make_exporter().coloured_mesh()
    views = render_views(system, n_views=n_views, size=size, device=device)
    save_views(out / "views", **views)
    export_glb(mesh, out / "object.glb")
    tower = load_pipeline(pipeline, device=device, parts=("image_encoder",))
    figures = evaluate_object(views, mesh, truth, load_judge(judge, device), tower)
    result = {"simulated": True, "run": str(run), "stimulus": seen, **figures}
    write_json(out / "metrics.json", result)
    return result


def export_glb(mesh: Any, path: Path) -> Path:
    """Write a mesh in world axes as glTF, which has y up and the front along +z."""
    from eeg_encoder.files import whole_file

    from ..builtin.exporter import GLTF_FROM_WORLD

    turned = mesh.copy()
    turned.apply_transform(GLTF_FROM_WORLD)
    with whole_file(path) as temporary:
        turned.export(temporary, file_type="glb")
    return path


def print_figures(figures: dict[str, Any]) -> None:
    """Print figures as a table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(show_header=False)
    for name, value in figures.items():
        table.add_row(name, f"{value:.3g}" if isinstance(value, float) else str(value))
    Console().print(table)
