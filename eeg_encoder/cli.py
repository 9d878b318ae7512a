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

RECORDING = typer.Argument(help="Recording in the perceivelab .pth layout.")
ENCODER = typer.Option(help="Encoder folder written by train.")
SPLITS = typer.Option(help="Split file; the default embeds or evaluates every trial.")
DEVICE = typer.Option(help="auto, cpu or cuda.")


@app.command(
    epilog="Example: eeg-encoder train --config phantom.yaml recording=eeg.pth splits=splits.pth "
    "pictures=pictures pipeline=prior out=encoder seed=0"
)
def train(
    overrides: Annotated[
        Optional[list[str]], typer.Argument(help="key=value, for example align.epochs=20")  # noqa: UP045
    ] = None,
    config: Annotated[str, typer.Option(help="A YAML file, or its name in configs/encoder.")] = (
        "phantom.yaml"
    ),
) -> None:
    """Train an encoder: masked contrast, then alignment with the pictures seen."""
    with one_line_errors():
        from .configs import config_path
        from .training import load_train_config
        from .training import train as run

        settings = load_train_config(config_path(config), overrides or [])
        result = run(settings)
        typer.echo(f"encoder: {settings.out}")
        typer.echo(f"validation: {result['validation']}")


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
) -> None:
    """Write a conditioning file for the trials of a recording."""
    with one_line_errors():
        from .conditioning import save_conditioning
        from .embedding import embed_trials
        from .pretrained import from_pretrained
        from .recordings.perceivelab import picture_path
        from .training import resolve_device

        pretrained = from_pretrained(encoder)
        trials, protocol = _trials(recording, pretrained.config, splits, split)
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
    "--pipeline prior --splits splits.pth --out figures.json"
)
def evaluate(
    recording: Annotated[Path, RECORDING],
    encoder: Annotated[Path, ENCODER],
    pictures: Annotated[Path, typer.Option(help="Picture folder.")],
    pipeline: Annotated[Path, typer.Option(help="Pipeline folder with the image tower.")],
    splits: Annotated[Path, typer.Option(help="Split file.")],
    repetitions: Annotated[
        Optional[int], typer.Option(min=1, help="Average at most this many.")  # noqa: UP045
    ] = None,
    out: Annotated[Optional[Path], typer.Option(help="Also write the figures as JSON.")] = None,  # noqa: UP045
    device: Annotated[str, DEVICE] = "auto",
) -> None:
    """Retrieval and category figures on the test split, beside a shuffled control."""
    with one_line_errors():
        import json

        from .figures import recording_figures
        from .files import write_json

        result = recording_figures(
            recording, encoder, pictures, pipeline, splits, repetitions=repetitions, device=device
        )
        typer.echo(json.dumps(result, indent=2))
        if out is not None:
            write_json(out, result)


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


def _trials(
    recording: Path, config: dict[str, Any], splits: Path | None, split: str
) -> tuple[Any, dict[str, Any]]:
    from .figures import load_for
    from .recordings.perceivelab import load_splits

    trials = load_for(recording, config)
    protocol: dict[str, Any] = {"recording": recording.name, **config.get("protocol", {})}
    if splits is None or split == "all":
        return trials, {**protocol, "part": "all"}
    parts = load_splits(splits, trials.total)
    if split not in parts:
        raise InputError("command line", "split", split, "train, val, test or all")
    return trials.at(parts[split]), {**protocol, "part": split}


if __name__ == "__main__":
    app()
