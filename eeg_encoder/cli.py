"""The command line ``eeg-encoder``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from .errors import InputError, one_line_errors

app = typer.Typer(
    help="EEG recordings to conditioning for a diffusion model.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
)

RECORDING = typer.Argument(help="A recording of any known format.")
ENCODER = typer.Option(help="Encoder folder written by train.")
SPLITS = typer.Option(help="Split file; the default embeds or evaluates every trial.")
DEVICE = typer.Option(help="auto, cpu or cuda.")


OVERRIDES = typer.Argument(help="key=value, for example seed=1 align.epochs=20")
CONFIG = typer.Option(help="A YAML file, or its name in configs/encoder.")
RESUME = typer.Option("--resume", help="Go on from the checkpoint in out, if there is one.")
Overrides = Annotated[Optional[list[str]], OVERRIDES]  # noqa: UP045
Config = Annotated[str, CONFIG]
Resume = Annotated[bool, RESUME]


@app.command(
    epilog="Example: eeg-encoder train --config phantom.yaml recording=eeg.pth splits=splits.pth "
    "pictures=pictures pipeline=prior out=encoder seed=0"
)
def train(
    overrides: Overrides = None, config: Config = "phantom.yaml", resume: Resume = False
) -> None:
    """Train an encoder: masked contrast, then alignment with the pictures seen."""
    with one_line_errors():
        from .training import TrainConfig
        from .training import train as run

        settings = _settings(TrainConfig, config, overrides, resume)
        _show("encoder", settings.out, run(settings))


@app.command(
    epilog="Example: eeg-encoder pretrain --config pretrain.yaml recording=eeg.pth "
    "splits=splits.pth out=stage1. Unlabelled: eeg-encoder pretrain --config pretrain-faithful.yaml"
    " recording=folder options.sfreq=1000 out=stage1"
)
def pretrain(
    overrides: Overrides = None, config: Config = "pretrain.yaml", resume: Resume = False
) -> None:
    """Masked contrast on a recording, with or without labels (MERL, first stage)."""
    with one_line_errors():
        from .pretraining import PretrainRunConfig, run_pretrain

        settings = _settings(PretrainRunConfig, config, overrides, resume)
        _show("encoder", settings.out, run_pretrain(settings))


@app.command(
    epilog="Example: eeg-encoder joint --config joint.yaml init=stage1 recording=eeg.pth "
    "splits=splits.pth pictures=pictures pipeline=prior out=stage2"
)
def joint(
    overrides: Overrides = None, config: Config = "joint.yaml", resume: Resume = False
) -> None:
    """Masked EEG and masked pictures, each drawn with the other's help (MERL, second stage)."""
    with one_line_errors():
        from .pretraining import JointRunConfig, run_joint

        settings = _settings(JointRunConfig, config, overrides, resume)
        _show("encoder", settings.out, run_joint(settings))


@app.command(
    epilog="Example: eeg-encoder align --config align.yaml recording=eeg.pth splits=splits.pth "
    "pictures=pictures pipeline=prior out=aligned"
)
def align(
    overrides: Overrides = None, config: Config = "align.yaml", resume: Resume = False
) -> None:
    """InfoNCE between EEG and the embeddings of the pictures seen."""
    with one_line_errors():
        from .training import TrainConfig
        from .training import train as run

        settings = _settings(TrainConfig, config, overrides, resume)
        _show("encoder", settings.out, run(settings))


@app.command(
    epilog="Example: eeg-encoder condition --config condition.yaml init=aligned recording=eeg.pth "
    "splits=splits.pth pictures=pictures pipeline=stable-diffusion-v1-5 out=conditioner"
)
def condition(
    overrides: Overrides = None, config: Config = "condition.yaml", resume: Resume = False
) -> None:
    """EEG to cross-attention tokens, by the noise-prediction loss of a diffusion pipeline."""
    with one_line_errors():
        from .diffusion_training import ConditionRunConfig, run_condition

        settings = _settings(ConditionRunConfig, config, overrides, resume)
        _show("encoder", settings.out, run_condition(settings))


@app.command(
    epilog="Example: eeg-encoder refine --config refine.yaml init=aligned recording=eeg.pth "
    "splits=splits.pth pictures=pictures pipeline=prior out=refined"
)
def refine(
    overrides: Overrides = None, config: Config = "refine.yaml", resume: Resume = False
) -> None:
    """Adapt a pipeline's U-Net to decoded tokens; writes a pipeline folder."""
    with one_line_errors():
        from .diffusion_training import RefineRunConfig, run_refine

        settings = _settings(RefineRunConfig, config, overrides, resume)
        _show("pipeline", settings.out, run_refine(settings))


@app.command(
    epilog="Example: eeg-encoder embed eeg.pth --encoder encoder --splits splits.pth --split test "
    "--out test.safetensors"
)
def embed(
    recording: Annotated[Path, RECORDING],
    encoder: Annotated[Path, ENCODER],
    out: Annotated[Path, typer.Option(help="Conditioning file to write.")],
    splits: Annotated[Optional[Path], SPLITS] = None,  # noqa: UP045
    split: Annotated[str, typer.Option(help="train, val, test, or all.")] = "test",
    average: Annotated[bool, typer.Option(help="Average trials of a subject and stimulus.")] = True,
    repetitions: Annotated[
        Optional[int], typer.Option(min=1, help="Average at most this many.")  # noqa: UP045
    ] = None,
    pictures: Annotated[
        Optional[Path], typer.Option(help="Picture folder; checks that each picture exists.")  # noqa: UP045
    ] = None,
    device: Annotated[str, DEVICE] = "auto",
    format: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Format by name; default: recognised from the file."),
    ] = None,
    option: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option("--option", "-o", help="key=value for the format's loader, repeatable."),
    ] = None,
) -> None:
    """Write a conditioning file for the trials of a recording."""
    with one_line_errors():
        from .conditioning import save_conditioning
        from .embedding import embed_trials
        from .pretrained import from_pretrained
        from .recordings.perceivelab import picture_path
        from .settings import resolve_device

        pretrained = from_pretrained(encoder)
        trials, protocol = _trials(recording, pretrained.config, splits, split, format, option)
        if pictures is not None:
            for stimulus in sorted(set(trials.stimuli.tolist())):
                picture_path(pictures, stimulus)
        conditioning = embed_trials(
            pretrained,
            trials,
            average=average,
            repetitions=repetitions,
            protocol=protocol,
            device=resolve_device(device),
        )
        save_conditioning(out, conditioning)
        typer.echo(f"{len(conditioning)} trials: {out}")


@app.command(
    epilog="Example: eeg-encoder evaluate eeg.pth --encoder encoder --pictures pictures "
    "--pipeline prior --splits splits.pth --out figures.json. Another, with its control: "
    "eeg-encoder evaluate sub-01 --encoder encoder --embeddings clip.npz "
    "--protocol zero-shot-by-concept --control shuffled"
)
def evaluate(
    recording: Annotated[Path, typer.Argument(help="A recording of any known format.")],
    encoder: Annotated[
        list[Path], typer.Option(help="Encoder folder; repeat it for those of other seeds.")
    ],
    pictures: Annotated[Optional[Path], typer.Option(help="Picture folder.")] = None,  # noqa: UP045
    pipeline: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Pipeline folder with the image tower."),
    ] = None,
    embeddings: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Instead of both: .npz with ids and embeddings of the pictures."),
    ] = None,
    splits: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Split file, .pth or one written by a protocol (.json)."),
    ] = None,
    protocol: Annotated[str, typer.Option(help="Instead of a split file: a protocol.")] = "",
    parameter: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option("--parameter", "-p", help="key=value of the protocol, repeatable."),
    ] = None,
    fold: Annotated[int, typer.Option(min=0, help="Which of the protocol's splits.")] = 0,
    control: Annotated[
        str, typer.Option(help="shuffled, drift, gaussian, label or class-mean: test it instead.")
    ] = "",
    baseline: Annotated[
        Optional[list[Path]],  # noqa: UP045
        typer.Option(help="Encoder folder to compare with by a sign test, repeatable."),
    ] = None,
    repetitions: Annotated[
        Optional[int], typer.Option(min=1, help="Average at most this many.")  # noqa: UP045
    ] = None,
    seed: Annotated[int, typer.Option(help="Of shuffles, masks, protocol and control.")] = 0,
    format: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Format by name; default: recognised from the file."),
    ] = None,
    option: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option("--option", "-o", help="key=value for the format's loader, repeatable."),
    ] = None,
    out: Annotated[Optional[Path], typer.Option(help="Also write the figures as JSON.")] = None,  # noqa: UP045
    table: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Also write the table by subject, as .json with provenance and .csv."),
    ] = None,
    plots: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Folder for plots: over time, saliency, similarity, training."),
    ] = None,
    device: Annotated[str, DEVICE] = "auto",
) -> None:
    """Retrieval, category and reconstruction figures on test trials, beside shuffled EEG."""
    with one_line_errors():
        import json

        from .figures import Question, answer, draw, save_figures
        from .figures import table as table_of
        from .files import write_json
        from .inspection import key_values

        question = Question(
            recording,
            format=format,
            options=key_values(option or []),
            splits=splits,
            protocol=protocol,
            parameters=key_values(parameter or []),
            fold=fold,
            pictures=pictures,
            pipeline=pipeline,
            embeddings=embeddings,
            control=control,
            repetitions=repetitions,
            seed=seed,
        )
        results = [answer(question, folder, device=device) for folder in encoder]
        theirs = [answer(question, folder, device=device) for folder in baseline or []]
        by_subject = table_of(results, theirs)
        found = results[0] if len(results) == 1 else {"runs": results}
        result = {**found, "table": by_subject}
        typer.echo(json.dumps(result, indent=2))
        if out is not None:
            write_json(out, result)
        if table is not None:
            save_figures(table, question, [*results, *theirs], by_subject)
        if plots is not None:
            draw(plots, question, encoder[0], device=device)


@app.command(
    epilog="Example: eeg-encoder inspect eeg.pth --splits splits.pth --out overview. Another: "
    "eeg-encoder inspect sub-01 --option channels=posterior --json"
)
def inspect(
    recording: Annotated[Path, typer.Argument(help="A recording of any known format.")],
    splits: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Split file, .pth or one written by a protocol (.json)."),
    ] = None,
    subject: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(help="The subject whose trials the split counts (single-subject splits)."),
    ] = None,
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Folder for overview.json and overview.png."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    format: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Format by name; default: recognised from the file."),
    ] = None,
    option: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option("--option", "-o", help="key=value for the format's loader, repeatable."),
    ] = None,
) -> None:
    """Say what a recording holds, what is bad in it, and whether a split of it leaks."""
    with one_line_errors():
        from .inspection import inspect_recording

        inspect_recording(
            recording,
            splits=splits,
            subject=subject,
            out=out,
            as_json=json,
            format=format,
            options=option or [],
        )


def _settings(kind: Any, config: str, overrides: list[str] | None, resume: bool) -> Any:
    from .configs import config_path
    from .settings import load_config

    words = [*(overrides or []), *(["resume=true"] if resume else [])]
    return load_config(kind, config_path(config), words)


def _show(what: str, out: str, result: dict[str, Any]) -> None:
    typer.echo(f"{what}: {out}")
    typer.echo(f"validation: {result['validation']}")


def _trials(
    recording: Path,
    config: dict[str, Any],
    splits: Path | None,
    split: str,
    format: str | None,
    option: list[str] | None,
) -> tuple[Any, dict[str, Any]]:
    from .inspection import key_values
    from .sources import read_again, read_split

    trials = read_again(recording, config, format, key_values(option or []))
    protocol: dict[str, Any] = {**config.get("protocol", {}), "recording": recording.name}
    if splits is None or split == "all":
        return trials, {**protocol, "part": "all"}
    parts = read_split(splits, trials)
    if split not in parts:
        raise InputError("command line", "split", split, "train, val, test or all")
    return trials.at(parts[split]), {**protocol, "part": split}


if __name__ == "__main__":
    app()
