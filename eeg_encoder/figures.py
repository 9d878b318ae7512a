"""Figures of an encoder folder on the test trials of a recording."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from .embedding import first_repetitions
from .errors import InputError
from .evaluation.decoding import evaluate
from .evaluation.reconstruction import encoder_reconstruction
from .evaluation.retrieval import hits, similarities, targets
from .evaluation.tables import provenance, save_table, sign_test, subject_table
from .image_space import embed_pictures
from .pretrained import Pretrained, from_pretrained
from .protocols import Split, find_control
from .recordings.splits import check_split
from .recordings.trials import TrialSet
from .sources import protocol_split, read_again, read_split
from .training import resolve_device

HEADLINES = ("top1", "top5", "category_top1", "shuffled_top1")


@dataclass(frozen=True)
class Question:
    """What an encoder is tested on.

    Parameters
    ----------
    recording, format, options
        File or folder, its format (default: recognised) and options of that format's loader.
    splits
        Split file, ``.pth`` or ``.json``; or else:
    protocol, parameters, fold
        A protocol by name, its parameters, and which of its splits, by number.
    pictures, pipeline
        Picture folder, and the pipeline folder with the image tower; or else:
    embeddings
        ``.npz`` with ``ids`` (S,) and ``embeddings`` (S, P) of every stimulus.
    control
        Name of a control that replaces the signals; empty for none.
    repetitions
        Average at most this many trials; default all.
    seed
        Of shuffles, masks and controls.
    """

    recording: str | Path
    format: str | None = None
    options: Mapping[str, Any] | None = None
    splits: str | Path | None = None
    protocol: str = ""
    parameters: Mapping[str, Any] | None = None
    fold: int = 0
    pictures: str | Path | None = None
    pipeline: str | Path | None = None
    embeddings: str | Path | None = None
    control: str = ""
    repetitions: int | None = None
    seed: int = 0


@dataclass(frozen=True)
class Tested:
    """Test trials, the training pictures, and how the two were told apart."""

    trials: TrialSet
    train_stimuli: list[str]
    train_labels: np.ndarray
    description: dict[str, Any]


def load_for(recording: str | Path, config: Mapping[str, Any]) -> TrialSet:
    """A recording read as an encoder's config says; see :func:`.sources.read_again`."""
    return read_again(recording, dict(config))


def recording_figures(
    recording: str | Path,
    encoder: str | Path,
    pictures: str | Path | None = None,
    pipeline: str | Path | None = None,
    splits: str | Path | None = None,
    *,
    device: str = "auto",
    **question: Any,
) -> dict[str, Any]:
    """Evaluate an encoder folder; see :func:`answer` and :class:`Question`."""
    asked = Question(recording, splits=splits, pictures=pictures, pipeline=pipeline, **question)
    return answer(asked, encoder, device=device)


def answer(question: Question, encoder: str | Path, *, device: str = "auto") -> dict[str, Any]:
    """Figures of one encoder, see :func:`eeg_encoder.evaluation.evaluate`.

    Given for ``averaged`` trials and for ``single`` ones; ``recalled`` are those of the embeddings
    after the encoder's memory, which condition the diffusion model. ``subjects`` has the headline
    figures of averaged trials for each person, ``reconstruction`` those of encoders with a decoder.
    A ``simulation.json`` beside the recording is copied into the protocol, which marks the figures
    as simulated.

    Raises
    ------
    InputError
        For bad input files, a split that leaks, or test trials whose pictures are not known.
    """
    device = resolve_device(device)
    pretrained = from_pretrained(encoder)
    tested = _tested(question, pretrained.config)
    test = tested.trials
    counts = np.bincount(test.groups())
    score = _scorer(question, tested, device)
    result: dict[str, Any] = {}
    averaged = test.average()
    trials_in = {"averaged": torch.from_numpy(counts), "single": torch.ones(len(test))}
    for name, chosen in (("averaged", averaged), ("single", test)):
        found = pretrained.embed(chosen, device=device)
        result[name] = score(found, chosen)
        if pretrained.memory is not None:
            weighed = pretrained.weigh(chosen, trials_in[name])
            result[name]["recalled"] = score(pretrained.recall(found, weighed), chosen)
        if name == "averaged":
            result["subjects"] = _by_subject(found, chosen, score, pretrained.config)
    drawn = _reconstruction(pretrained, averaged, question.seed, device)
    if drawn is not None:
        result["reconstruction"] = drawn
    result["protocol"] = {
        **tested.description,
        "encoder": pretrained.weights_hash,
        "trained_on": pretrained.config.get("protocol", {}),
        "same_split_as_training": _same_split(
            tested.description, pretrained.config.get("protocol", {})
        ),
        "gallery": _gallery_kind(question),
        "repetitions": [int(counts.min()), int(counts.max())],
        "subjects": np.unique(test.subjects).tolist(),
        **_simulation(Path(question.recording)),
    }
    return result


def table(
    results: Sequence[Mapping[str, Any]], baselines: Sequence[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    """Table by subject of several encoders (seeds), and a sign test against others.

    Returns
    -------
    dict
        ``rows`` of :func:`.tables.subject_table`; with baselines also theirs and ``sign_test``.

    Raises
    ------
    InputError
        When an encoder's seed is there twice, or the subjects differ.
    """
    rows = [row for result in results for row in result["subjects"]]
    found: dict[str, Any] = {"rows": subject_table(rows, HEADLINES)}
    if baselines:
        theirs = [row for result in baselines for row in result["subjects"]]
        found["baseline"] = subject_table(theirs, HEADLINES)
        found["sign_test"] = [sign_test(rows, theirs, name) for name in ("top1", "category_top1")]
    return found


def save_figures(
    path: str | Path, question: Question, results: Sequence[Mapping[str, Any]], found: dict
) -> None:
    """Write the table as ``.json``, with every result and provenance, and as ``.csv``."""
    made_by = provenance(
        question={name: _plain(value) for name, value in vars(question).items()},
        seeds=sorted({row["seed"] for result in results for row in result["subjects"]}),
        protocol=results[0]["protocol"],
    )
    more = {name: value for name, value in found.items() if name != "rows"}
    save_table(path, found["rows"], made_by, runs=list(results), **more)


def draw(
    folder: str | Path, question: Question, encoder: str | Path, *, device: str = "auto"
) -> list[Path]:
    """Draw top-5 over time, saliency, similarities and training curves of an encoder.

    Returns
    -------
    list
        The files; training curves only where the encoder's folder has logs.
    """
    from .evaluation import plots
    from .evaluation.saliency import over_time, saliency
    from .files import writable_folder

    device, folder = resolve_device(device), writable_folder(folder)
    pretrained = from_pretrained(encoder, device=device)
    tested = _tested(question, pretrained.config)
    trials = tested.trials.average()
    ids = np.unique(trials.stimuli).tolist()
    pictures = _embeddings(question, ids, device)
    target = targets(trials.stimuli.tolist(), ids)
    pre = pretrained.preprocessing
    signals = torch.from_numpy(pre(trials)).to(device)
    subjects = torch.from_numpy(trials.subjects).to(device)
    mean = _embeddings(question, tested.train_stimuli, device).mean(0)

    @torch.no_grad()
    def scores(x: Tensor) -> Tensor:
        parts = zip(x.split(256), subjects.split(256), strict=True)
        found = torch.cat([pretrained.encoder(s, n).float().cpu() for s, n in parts])
        return similarities(torch.nn.functional.normalize(found, dim=1) - mean, pictures - mean)

    def top5(x: Tensor) -> float:
        return float(hits(scores(x), target, 5).mean())

    sfreq = pre.output_samples * pre.input_sfreq / pre.samples
    if pre.window:
        sfreq = pre.output_samples / (pre.window[1] - pre.window[0])
    tmin = pre.window[0] if pre.window else pre.tmin
    timed = over_time(top5, signals, sfreq, tmin=tmin, chance=min(1.0, 5 / len(ids)))
    shares = saliency(pretrained.encoder, signals, subjects, pictures[target])
    files = [folder / f"{name}.png" for name in ("over_time", "saliency", "similarity")]
    plots.draw_over_time(files[0], timed, figure=f"top-5 of {len(ids)}")
    plots.draw_saliency(files[1], shares.cpu(), pre.output_channels, sfreq=sfreq, tmin=tmin)
    matrix = scores(signals)[:, target]
    plots.draw_similarity(files[2], matrix, trials.labels, trials.label_names)
    logs = Path(encoder) / "logs"
    if next(logs.rglob("metrics.csv"), None) is not None:
        files.append(folder / "training.png")
        plots.draw_training(files[-1], logs)
    return files


def _tested(question: Question, config: Mapping[str, Any]) -> Tested:
    trials = read_again(
        question.recording, dict(config), question.format, dict(question.options or {})
    )
    parts, description = _parts(question, trials)
    where = question.splits or question.protocol
    checked = check_split(trials, parts, where=where, allow_within_block=True)
    train = trials.select(trials.rows(parts["train"]))
    if question.control:
        control = find_control(question.control, seed=question.seed)
        trials = control(trials, parts)
        description["control"] = {"name": control.name, "tells": control.tells}
    test = trials.at(parts["test"])
    if not len(test):
        raise InputError(where, "test", "no trials", "at least one")
    for name, part in (("train", train), ("test", test)):
        if np.any(part.stimuli == ""):
            expected = "a recording that says which picture was shown"
            raise InputError(question.recording, "stimuli", f"unknown in {name}", expected)
    if question.repetitions is not None:
        test = first_repetitions(test, question.repetitions)
    stimuli, first = np.unique(train.stimuli, return_index=True)
    described = {**checked, **description, "recording": Path(question.recording).name}
    return Tested(test, stimuli.tolist(), train.labels[first], described)


def _parts(question: Question, trials: TrialSet) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    if (question.splits is None) == (not question.protocol):
        found = "both" if question.protocol else "neither"
        raise InputError("command line", "splits, protocol", found, "a split file or a protocol")
    if question.protocol:
        settings = {"name": question.protocol, "fold": question.fold}
        chosen = protocol_split({**settings, **(question.parameters or {})}, trials, question.seed)
        return chosen.parts(), {"split": chosen.name, "protocol": chosen.description}
    assert question.splits is not None
    parts = read_split(question.splits, trials)
    if Path(question.splits).suffix != ".json":
        return parts, {}
    saved = Split.load(question.splits)
    return parts, {"split": saved.name, "protocol": saved.description}


def _same_split(found: Mapping[str, Any], trained: Mapping[str, Any]) -> bool | None:
    """Whether training says that it used the split of the test; None where one has no name."""
    names = found.get("split"), trained.get("name")
    return names[0] == names[1] if "protocol" in found and names[1] else None


def _scorer(question: Question, tested: Tested, device: str) -> Any:
    ids = np.unique(tested.trials.stimuli).tolist()
    gallery = dict(zip(ids, _embeddings(question, ids, device), strict=True))
    common = partial(
        evaluate,
        gallery=gallery,
        train_embeddings=_embeddings(question, tested.train_stimuli, device),
        train_labels=tested.train_labels,
        n_categories=len(tested.trials.label_names),
        seed=question.seed,
        gallery_kind=_gallery_kind(question),
    )
    return lambda found, trials: common(found, trials.stimuli, trials.labels)


def _embeddings(question: Question, ids: list[str], device: str) -> Tensor:
    if question.embeddings is not None:
        return _from_file(Path(question.embeddings), ids)
    if question.pictures is None or question.pipeline is None:
        expected = "pictures and pipeline, or a file of embeddings"
        raise InputError("command line", "pictures, pipeline, embeddings", "not enough", expected)
    return embed_pictures(question.pipeline, question.pictures, ids, device=device)


def _from_file(path: Path, ids: list[str]) -> Tensor:
    try:
        with np.load(path, allow_pickle=False) as content:
            names, values = content["ids"].astype(str).tolist(), content["embeddings"]
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        reason = " ".join(str(error).split())[:160]
        raise InputError(path, "file", reason, ".npz with ids (S,), embeddings (S, P)") from error
    if values.ndim != 2 or len(values) != len(names) or not np.isfinite(values).all():
        found = f"shape {values.shape} for {len(names)} ids, or not finite"
        raise InputError(path, "embeddings", found, "finite, a row for each id")
    return torch.from_numpy(values.astype(np.float32))[targets(ids, names)]


def _gallery_kind(question: Question) -> str:
    if question.embeddings is None:
        return "exact test pictures"
    return f"embeddings of {Path(question.embeddings).name}"


def _by_subject(
    found: Tensor, trials: TrialSet, score: Any, config: Mapping[str, Any]
) -> list[dict[str, Any]]:
    rows = []
    for subject in np.unique(trials.subjects):
        mine = np.flatnonzero(trials.subjects == subject)
        figures = score(found[torch.from_numpy(mine)], trials.select(mine))
        eeg = figures["eeg"]
        rows.append(
            {
                "subject": int(subject),
                "seed": config.get("training", {}).get("seed", 0),
                "trials": len(mine),
                "top1": eeg["retrieval"]["top1"],
                "top5": eeg["retrieval"]["top5"],
                "category_top1": eeg["category_top1"],
                "shuffled_top1": figures["shuffled"]["retrieval"]["top1"],
            }
        )
    return rows


def _reconstruction(
    pretrained: Pretrained, trials: TrialSet, seed: int, device: str
) -> dict[str, Any] | None:
    signals = torch.from_numpy(pretrained.preprocessing(trials)).to(device)
    subjects = torch.from_numpy(trials.subjects).to(device)
    return encoder_reconstruction(pretrained.encoder.to(device), signals, subjects, seed=seed)


def _simulation(recording: Path) -> dict[str, Any]:
    file = recording.with_name("simulation.json")
    if not file.is_file():
        return {}
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(file, "file", error, "JSON") from error
    return {"simulated": True, "snr_db": record.get("snr_db"), "simulation": record}


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value
