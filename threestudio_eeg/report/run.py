"""The page about any trial, beside a text baseline if there is one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eeg_encoder.errors import InputError

from .material import (
    average_response,
    encoder_saliency,
    figures_beside,
    latest_curves,
    provenance,
    recording_beside,
    trial_folder,
)
from .page import write_report

N_VIEWS = 12


@dataclass
class ReportOptions:
    """What the page is made from.

    Parameters
    ----------
    run
        Trial folder, or the demo's folder.
    text
        Trial folder of the text baseline.
    recording
        Recording folder with ``recording.pth`` and ``pictures/``; default the demo's beside the
        run. Without one the page has no stimulus and no EEG.
    encoder
        EEG encoder's folder, for the saliency; default the one that ships if the run used it.
    out
        Folder for ``report.html``; default the trial folder.
    size
        Side of the rendered views in pixels.
    """

    run: Path
    text: Path | None = None
    recording: Path | None = None
    encoder: Path | None = None
    out: Path | None = None
    size: int = 128
    device: str = "cpu"


def report_run(options: ReportOptions) -> Path:
    """Render the object of a trial and write ``report.html``.

    Raises
    ------
    InputError
        When a folder is no trial folder or half-written, its object is empty, or the recording
        does not hold the stimulus.
    """
    from ..evaluation.runs import open_run, run_record

    trial = trial_folder(options.run)
    baseline = None if options.text is None else trial_folder(options.text)
    record = run_record(trial)
    system = open_run(trial, device=options.device)
    mesh, views = system.make_exporter().coloured_mesh(), _views(system, options)
    figures = figures_beside(trial)
    seen = _seen(trial, options, record)
    label = record.get("trial", {}).get("label") or _prompt(trial) or trial.name
    return write_report(
        options.out or trial,
        title=str(seen.pop("caption", label)).capitalize(),
        subtitle=f"Trial {trial.name}, step {system.true_global_step}.",
        views=views,
        mesh=mesh,
        metrics=figures,
        provenance=provenance(trial, record, command="not recorded"),
        curves=latest_curves(trial),
        baselines=[] if baseline is None else [_baseline(baseline, options)],
        **seen,
    )


def _views(system: Any, options: ReportOptions) -> list[Any]:
    import torch

    from ..evaluation.views import render_views

    views = render_views(system, n_views=N_VIEWS, size=options.size, device=options.device)
    return list(torch.cat([views["rgb"], views["opacity"]], dim=-1))


def _baseline(trial: Path, options: ReportOptions) -> tuple[str, list[Any]]:
    from ..evaluation.runs import open_run

    prompt = _prompt(trial)
    label = f"Text baseline: {prompt}" if prompt else f"Baseline: {trial.name}"
    return label, _views(open_run(trial, device=options.device), options)


def _prompt(trial: Path) -> str:
    from ..evaluation.runs import run_config

    return str(run_config(trial).system.get("prompt_processor", {}).get("prompt") or "")


def _seen(trial: Path, options: ReportOptions, record: dict[str, Any]) -> dict[str, Any]:
    """The stimulus, the EEG and the true shape: what a recording adds to the page."""
    from eeg_encoder.recordings.perceivelab import load_perceivelab, picture_path

    recording = options.recording or recording_beside(trial)
    stimulus = record.get("trial", {}).get("stimulus")
    if recording is None or stimulus is None:
        if options.recording is not None:
            raise InputError(trial, "conditioning.json", "no stimulus", "a run made from EEG")
        return {"stimulus": None, "eeg": None}
    trials = load_perceivelab(recording / "recording.pth")
    found = {
        "stimulus": picture_path(recording / "pictures", stimulus),
        "eeg": average_response(trials, stimulus, what=_kind(record)),
        "saliency": _saliency(trial, options, record, trials),
    }
    objects = recording / "objects.json"
    if objects.is_file():
        from ..evaluation.objects import true_mesh
        from ..phantom.recording import object_of

        truth = object_of(objects, stimulus)
        found |= {"caption": truth.caption, "seen": truth.caption, "truth": true_mesh(truth)}
    return found


def _kind(record: dict[str, Any]) -> str:
    return "simulated trials" if record.get("protocol", {}).get("simulated") else "trials"


def _saliency(
    trial: Path, options: ReportOptions, record: dict[str, Any], trials: Any
) -> dict[str, Any] | None:
    """Of the encoder that made the conditioning file; None where either is not at hand."""
    from eeg_encoder.conditioning import load_conditioning
    from eeg_encoder.pretrained import from_pretrained

    from ..demo import shipped_encoder
    from ..evaluation.runs import run_config

    encoder = options.encoder or shipped_encoder()
    own = from_pretrained(encoder).weights_hash == record.get("encoder_sha256")
    if not own and options.encoder is not None:
        raise InputError(encoder, "encoder", "another encoder", "the one that the run was made by")
    name = str(run_config(trial).system.prompt_processor.get("conditioning") or "")
    file = next((path for path in _places(trial, name) if path.is_file()), None)
    if not own or file is None:
        return None
    conditioning = load_conditioning(file)
    target = conditioning.pooled[conditioning.index_of(record["trial"]["id"])].numpy()
    return encoder_saliency(
        trials, record["trial"]["stimulus"], encoder, target, device=options.device
    )


def _places(trial: Path, name: str) -> list[Path]:
    """Where a conditioning file may lie: as the config says, or above a folder that was moved."""
    return [Path(name), trial.resolve().parent.parent / Path(name).name] if name else []
