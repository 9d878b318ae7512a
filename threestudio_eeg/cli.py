"""The command line ``threestudio-eeg``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Optional

import typer

from eeg_encoder.errors import InputError, one_line_errors

app = typer.Typer(
    help="From an EEG recording of what a person saw to a 3D object.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
)
phantom = typer.Typer(
    help="Objects of known shape, their pictures, simulated recordings of people who look at them, "
    "and the small diffusion model trained on them.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)
app.add_typer(phantom, name="phantom")

DEVICE = typer.Option(help="auto, cpu or cuda.")
THREESTUDIO = typer.Argument(help="A checkout of threestudio.")
SEED = typer.Option(help="Of everything random.")
PIPELINE = typer.Option(help="Pipeline folder, or phantom for the one that ships.")
VRAM = typer.Option(
    min=1.0, help="Gigabytes of GPU memory that the run may take; picks settings and says which."
)
CATEGORIES = typer.Option("--category", help="Only this category; may be given again.")
OptionalPath = Optional[Path]  # noqa: UP045
OptionalInt = Optional[int]  # noqa: UP045
OptionalText = Optional[str]  # noqa: UP045
OptionalFloat = Optional[float]  # noqa: UP045
Floats = Optional[list[float]]  # noqa: UP045
Words = Optional[list[str]]  # noqa: UP045


@app.command(epilog="Example: threestudio-eeg demo --trial 0 --out outputs/demo --device cpu")
def demo(
    trial: Annotated[
        int, typer.Option(help="Test object: 0 and 1 are mugs, 2 and 3 chairs, … up to 39.")
    ] = 0,
    out: Annotated[Path, typer.Option(help="Folder for the files.")] = Path("outputs/demo"),
    device: Annotated[str, DEVICE] = "auto",
    steps: Annotated[
        OptionalInt, typer.Option(min=1, help="Steps of the optimisation; default the config's.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the optimisation.")] = 0,
    resume: Annotated[bool, typer.Option(help="Go on with an interrupted demo in --out.")] = False,
    vram: Annotated[OptionalFloat, VRAM] = None,
    overrides: Annotated[
        Words, typer.Argument(help="key=value for the experiment, as in launch.")
    ] = None,
) -> None:
    """The whole way on simulated EEG, offline: recording, encoder, object, report."""
    with one_line_errors():
        from rich.console import Console

        from .demo import CONFIGS, DemoOptions, run_demo, summary

        options = DemoOptions(
            trial=trial,
            out=out,
            device=device,  # type: ignore[arg-type]
            steps=steps,
            seed=seed,
            resume=resume,
            overrides=[*_within(vram, [Path(name) for name in CONFIGS], []), *(overrides or [])],
        )
        _embedded_host()
        try:
            result = run_demo(options)
        except KeyboardInterrupt:
            words = f"demo --trial {trial} --out {out} --device {device} --seed {seed} --resume"
            typer.echo(f"to finish the demo: threestudio-eeg {words}", err=True)
            raise
        Console().print(summary(result))


@app.command(
    epilog="Examples: threestudio-eeg launch --config phantom/eeg.yaml --train "
    "system.prompt_processor.conditioning=test.safetensors system.prompt_processor.trial=0 · "
    "threestudio-eeg launch --config RUN/configs/parsed.yaml --export "
    "resume=RUN/ckpts/last.ckpt system.exporter.fmt=glb · "
    "threestudio-eeg launch --host upstream --threestudio threestudio "
    "--config eeg-prolificdreamer.yaml --config representation/implicit-sdf.yaml --train "
    "system.prompt_processor.conditioning=test.safetensors"
)
def launch(
    config: Annotated[
        list[Path],
        typer.Option(help="YAML file or shipped name; later ones are laid over earlier ones."),
    ],
    overrides: Annotated[Words, typer.Argument(help="key=value, for example seed=1.")] = None,
    train: Annotated[bool, typer.Option("--train", help="Train, then film.")] = False,
    validate: Annotated[bool, typer.Option("--validate", help="A few views.")] = False,
    test: Annotated[bool, typer.Option("--test", help="The turntable film.")] = False,
    export: Annotated[bool, typer.Option("--export", help="The mesh.")] = False,
    host: Annotated[
        OptionalText,
        typer.Option(
            help="builtin (the embedded host) or upstream (threestudio itself). Default: what "
            "THREESTUDIO_EEG_HOST says, else upstream where there is one, else builtin."
        ),
    ] = None,
    threestudio: Annotated[
        OptionalPath,
        typer.Option(help="Checkout for upstream; default THREESTUDIO_ROOT, else the installed."),
    ] = None,
    device: Annotated[str, DEVICE] = "auto",
    gpu: Annotated[
        OptionalText, typer.Option(help="Which GPU; CUDA_VISIBLE_DEVICES, if set, wins.")
    ] = None,
    vram: Annotated[OptionalFloat, VRAM] = None,
) -> None:
    """Run an experiment as threestudio's launch.py does: exactly one of the four modes.

    A later file that names another `<part>_type` starts `<part>` afresh, on both hosts.
    """
    with one_line_errors():
        modes = {"train": train, "validate": validate, "test": test, "export": export}
        chosen = [mode for mode, wanted in modes.items() if wanted]
        if len(chosen) != 1:
            found = " and ".join(f"--{mode}" for mode in chosen) or "no mode"
            raise InputError("command line", "mode", found, f"one of --{', --'.join(modes)}")
        from .launching.choice import choose_host
        from .launching.command import launch_on

        choice = choose_host(host, threestudio)
        embedded = choice.threestudio is None
        words = [*_within(vram, config, overrides or [], embedded), *(overrides or [])]
        folder = launch_on(choice, chosen[0], config, words, device=device, gpu=gpu, say=typer.echo)
        typer.echo(f"trial: {folder}")


@app.command(
    epilog="Examples: threestudio-eeg batch test.safetensors --config phantom/eeg.yaml "
    "--out outputs/batch --workers 2 · threestudio-eeg batch test.safetensors --config "
    "phantom/eeg.yaml --out outputs/batch --device cuda --together 8 --objects "
    "recording/objects.json · threestudio-eeg batch list.txt --config eeg-prolificdreamer.yaml "
    "--out /shared/batch --engine ray --ray-address auto --gpus-per-trial 0.5 --device cuda"
)
def batch(
    trials: Annotated[
        Path, typer.Argument(help="Conditioning file, or a list with FILE [TRIAL] a line.")
    ],
    config: Annotated[
        list[Path],
        typer.Option(help="YAML file or shipped name; later ones are laid over earlier ones."),
    ],
    out: Annotated[Path, typer.Option(help="Folder for objects and table; also to go on in.")],
    overrides: Annotated[Words, typer.Argument(help="key=value, as in launch.")] = None,
    trial: Annotated[
        Words, typer.Option(help="Only this row or id; may be given again. Default all.")
    ] = None,
    engine: Annotated[str, typer.Option(help="local (this machine) or ray.")] = "local",
    workers: Annotated[
        int, typer.Option(min=0, help="Processes side by side; with ray, 0 is all there is room.")
    ] = 1,
    together: Annotated[
        int, typer.Option(min=1, help="Objects in one process that share the guidance's calls.")
    ] = 1,
    retries: Annotated[int, typer.Option(min=0, help="Further attempts after a failure.")] = 1,
    device: Annotated[str, DEVICE] = "auto",
    gpus: Annotated[
        OptionalInt, typer.Option(help="Of this machine, with local; default all of them.")
    ] = None,
    gpus_per_trial: Annotated[
        float, typer.Option(help="Share of a GPU that a process takes, with ray on CUDA.")
    ] = 1.0,
    ray_address: Annotated[
        OptionalText, typer.Option(help="Of a Ray cluster, or auto; default one started here.")
    ] = None,
    objects: Annotated[
        OptionalPath, typer.Option(help="objects.json of a phantom recording: adds figures.")
    ] = None,
    judge: Annotated[
        OptionalPath, typer.Option(help="Judge folder; default the one that ships.")
    ] = None,
    vram: Annotated[OptionalFloat, VRAM] = None,
) -> None:
    """Objects of many trials: queue, retries, one table. The same command goes on after Ctrl-C.

    Runs on the embedded host. Exits with 1 when an object is missing in the end.
    """
    with one_line_errors():
        from rich.console import Console
        from rich.markdown import Markdown

        from eeg_encoder.training import resolve_device

        from .batch.command import BatchOptions, run_batch
        from .batch.table import markdown

        _embedded_host()
        if engine == "local" and workers < 1:
            raise InputError("command line", "--workers", workers, "1 or more with --engine local")
        options = BatchOptions(
            source=trials,
            configs=tuple(config),
            out=out,
            trials=tuple(trial or ()),
            overrides=tuple(overrides or ()),
            engine=engine,
            workers=workers,
            together=together,
            retries=retries,
            device=resolve_device(device),
            gpus=gpus,
            gpus_per_trial=gpus_per_trial,
            ray_address=ray_address,
            objects=objects,
            judge=judge,
            vram=vram,
        )
        rows = run_batch(options, typer.echo)
        Console().print(Markdown(markdown(rows)))
        made = sum(row["status"] == "done" for row in rows)
        typer.echo(f"{made} of {len(rows)} objects: {out / 'results.csv'}")
        if made < len(rows):
            raise typer.Exit(1)


@app.command(epilog="Example: threestudio-eeg link threestudio")
def link(threestudio: Annotated[Path, THREESTUDIO]) -> None:
    """Let `python launch.py` in a checkout load this extension, by one file in its custom/."""
    with one_line_errors():
        from .launching import linking
        from .launching.checkout import threestudio_at

        typer.echo(linking.link(threestudio_at(threestudio)))


@app.command(epilog="Example: threestudio-eeg unlink threestudio")
def unlink(threestudio: Annotated[Path, THREESTUDIO]) -> None:
    """Remove what `link` wrote."""
    with one_line_errors():
        from .launching import linking
        from .launching.checkout import threestudio_at

        typer.echo(linking.unlink(threestudio_at(threestudio)))


@app.command(epilog="Example: threestudio-eeg doctor --threestudio threestudio --device cuda")
def doctor(
    threestudio: Annotated[
        OptionalPath,
        typer.Option(help="Checkout to look at; default THREESTUDIO_ROOT, else the installed."),
    ] = None,
    host: Annotated[OptionalText, typer.Option(help="builtin or upstream, as in launch.")] = None,
    device: Annotated[str, DEVICE] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
) -> None:
    """Say what this Python can run: versions, host, remedies, what is missing and how to get it.

    The exit code is 1 when something is missing that the host needs.
    """
    with one_line_errors():
        import json

        from .launching.doctor import examine

        diagnosis = examine(threestudio, device, host)
        if as_json:
            typer.echo(json.dumps(diagnosis.as_json(), indent=2))
        else:
            typer.echo("\n".join(diagnosis.lines()))
        if not diagnosis.healthy:
            raise typer.Exit(1)


@app.command(
    epilog="Example: threestudio-eeg evaluate outputs/demo/run/s1-n99000000_20000 "
    "--objects outputs/demo/recording/objects.json"
)
def evaluate(
    run: Annotated[Path, typer.Argument(help="Trial folder with ckpts/last.ckpt.")],
    objects: Annotated[
        OptionalPath, typer.Option(help="objects.json of a phantom recording: the truth.")
    ] = None,
    stimulus: Annotated[
        OptionalText,
        typer.Option(help="What was seen; default the run's own record."),
    ] = None,
    out: Annotated[
        OptionalPath, typer.Option(help="Folder for views, mesh, metrics; default RUN/evaluation.")
    ] = None,
    pipeline: Annotated[str, PIPELINE] = "phantom",
    judge: Annotated[
        OptionalPath, typer.Option(help="Judge folder; default the one that ships.")
    ] = None,
    device: Annotated[str, DEVICE] = "auto",
) -> None:
    """Views, mesh and figures of a finished phantom object."""
    with one_line_errors():
        from eeg_encoder.training import resolve_device

        from .evaluation.runs import evaluate_run, print_figures

        result = evaluate_run(
            run,
            out or run / "evaluation",
            objects=objects,
            stimulus=stimulus,
            pipeline=pipeline,
            judge=judge,
            device=resolve_device(device),
        )
        print_figures(result)
        typer.echo(f"files: {out or run / 'evaluation'}")


@app.command(
    epilog="Example: threestudio-eeg views outputs/demo/run/s1-n99000000_20000 --n 24 --out views"
)
def views(
    run: Annotated[Path, typer.Argument(help="Trial folder with ckpts/last.ckpt.")],
    out: Annotated[Path, typer.Option(help="Folder for the files.")],
    n: Annotated[int, typer.Option(min=1, help="Views in all.")] = 24,
    elevation: Annotated[
        Floats, typer.Option(help="Degrees; again for another ring. Default 15.")
    ] = None,
    distance: Annotated[
        OptionalFloat, typer.Option(help="World units; default the run's evaluation cameras'.")
    ] = None,
    fovy: Annotated[
        OptionalFloat, typer.Option(help="Vertical field of view in degrees; default likewise.")
    ] = None,
    size: Annotated[int, typer.Option(min=8, help="Side in pixels.")] = 256,
    checkpoint: Annotated[
        OptionalPath, typer.Option(help="Default the run's ckpts/last.ckpt.")
    ] = None,
    particle: Annotated[int, typer.Option(min=0, help="Of a run with several.")] = 0,
    device: Annotated[str, DEVICE] = "auto",
) -> None:
    """Posed RGBA pictures of a trained object, depth, normals, cameras, a sheet and a film."""
    with one_line_errors():
        from eeg_encoder.training import resolve_device

        from .views.exporting import ViewOptions, export_views

        options = ViewOptions(
            run=run,
            out=out,
            n=n,
            elevations=tuple(elevation or (15.0,)),
            distance=distance,
            fovy_deg=fovy,
            size=size,
            checkpoint=checkpoint,
            particle=particle,
            device=resolve_device(device),
        )
        for name, path in export_views(options).items():
            typer.echo(f"{name}: {path}")


@app.command(
    epilog="Examples: threestudio-eeg images --conditioning test.safetensors --trial 0 --n 4 "
    "--out pictures · threestudio-eeg images --prompt 'a red mug' --method vsd --views 8 "
    "--out mug"
)
def images(
    out: Annotated[Path, typer.Option(help="Folder for the files.")],
    method: Annotated[
        str, typer.Option(help="sample (DDIM), sds or vsd (optimised particles).")
    ] = "sample",
    conditioning: Annotated[OptionalPath, typer.Option(help="EEG: conditioning file.")] = None,
    trial: Annotated[str, typer.Option(help="Its row, or a trial's id.")] = "0",
    prompt: Annotated[OptionalText, typer.Option(help="A text, instead of EEG.")] = None,
    n: Annotated[int, typer.Option(min=1, help="Particles.")] = 4,
    views: Annotated[
        int, typer.Option(min=0, help="Views of each, around the object; 0: no camera.")
    ] = 0,
    steps: Annotated[
        OptionalInt, typer.Option(min=1, help="Default 50 (sample), 300 (sds), 500 (vsd).")
    ] = None,
    guidance_scale: Annotated[
        OptionalFloat, typer.Option(help="Default 3 (sample), 7.5 (sds, vsd).")
    ] = None,
    space: Annotated[str, typer.Option(help="Particles are latent or pixel.")] = "latent",
    timesteps: Annotated[str, typer.Option(help="random or descending.")] = "random",
    lr: Annotated[float, typer.Option(help="Learning rate of the particles.")] = 0.03,
    pipeline: Annotated[str, PIPELINE] = "phantom",
    seed: Annotated[int, SEED] = 0,
    device: Annotated[str, DEVICE] = "auto",
) -> None:
    """Pictures from EEG or text: sampled, or distilled by SDS or VSD without any 3D."""
    with one_line_errors():
        from eeg_encoder.training import resolve_device

        _embedded_host()
        from .images.making import ImageOptions, make_images

        options = ImageOptions(
            out=out,
            method=method,
            conditioning=conditioning,
            trial=trial,
            prompt=prompt,
            n=n,
            views=views,
            steps=steps,
            guidance_scale=guidance_scale,
            space=space,
            timesteps=timesteps,
            lr=lr,
            pipeline=pipeline,
            seed=seed,
            device=resolve_device(device),
        )
        result = make_images(options)
        for name in ("similarity", "agreement_of_particles", "agreement_of_views"):
            if name in result:
                typer.echo(f"{name}: {result[name]:.3f}")
        typer.echo(f"{len(result['pictures'])} pictures: {out / 'grid.png'}")


@app.command(
    epilog="Example: threestudio-eeg control test.safetensors --kind image --pictures pictures "
    "--out image.safetensors"
)
def control(
    conditioning: Annotated[Path, typer.Argument(help="Conditioning file of EEG.")],
    kind: Annotated[str, typer.Option(help="image, class-mean, label or shuffled.")],
    out: Annotated[Path, typer.Option(help="Conditioning file to write.")],
    pictures: Annotated[
        OptionalPath, typer.Option(help="Picture folder, for image and class-mean.")
    ] = None,
    pipeline: Annotated[str, PIPELINE] = "phantom",
    seed: Annotated[int, SEED] = 0,
    device: Annotated[str, DEVICE] = "auto",
) -> None:
    """The same trials conditioned on something else, to compare the EEG with.

    image: the picture seen (upper bound). class-mean: other pictures of its class. label: the
    word. shuffled: another trial's EEG.
    """
    with one_line_errors():
        from eeg_encoder.conditioning import load_conditioning, save_conditioning
        from eeg_encoder.training import resolve_device

        from .comparison.controls import control_conditioning
        from .pipeline import pipeline_folder

        made = control_conditioning(
            load_conditioning(conditioning),
            kind,
            pipeline=pipeline_folder(pipeline),
            pictures=pictures,
            device=resolve_device(device),
            seed=seed,
        )
        save_conditioning(out, made)
        typer.echo(f"{len(made)} trials, {kind}: {out}")


@app.command(
    epilog="Examples: threestudio-eeg compare outputs/eeg outputs/text outputs/image --out "
    "comparison --objects recording/objects.json · threestudio-eeg compare "
    "docs/figures/objects-40.jsonl --out comparison"
)
def compare(
    sources: Annotated[
        list[str],
        typer.Argument(
            help="Trial folders, folders of them, or rows of benchmarks/phantom_objects.py: "
            "[NAME=]PATH[::STIMULUS].",
            metavar="RUN…",
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the tables and the sheet.")],
    reference: Annotated[
        OptionalText, typer.Option(help="Condition the others are compared with; default eeg.")
    ] = None,
    allow: Annotated[
        Words, typer.Option(help="A key of the protocol that may differ, or seeds; again for more.")
    ] = None,
    objects: Annotated[
        OptionalPath, typer.Option(help="objects.json of a phantom recording: the truth.")
    ] = None,
    pictures: Annotated[
        OptionalPath, typer.Option(help="Picture folder; default the one beside --objects.")
    ] = None,
    pipeline: Annotated[str, PIPELINE] = "phantom",
    judge: Annotated[
        OptionalPath, typer.Option(help="Judge folder; default the one that ships.")
    ] = None,
    size: Annotated[int, typer.Option(min=8, help="Side of the judged views.")] = 128,
    device: Annotated[str, DEVICE] = "auto",
) -> None:
    """Conditions and representations on the same trials: tables, paired statistics, a sheet.

    Runs of different protocols, budgets or seeds are refused; the difference is named.
    """
    with one_line_errors():
        from rich.console import Console
        from rich.markdown import Markdown

        from eeg_encoder.training import resolve_device

        from .comparison.command import CompareOptions
        from .comparison.command import compare as run
        from .comparison.tables import markdown

        _embedded_host()
        options = CompareOptions(
            sources=sources,
            out=out,
            reference=reference,
            allowed=tuple(allow or ()),
            objects=objects,
            pictures=pictures,
            pipeline=pipeline,
            judge=judge,
            size=size,
            device=resolve_device(device),
        )
        comparison, files = run(options)
        Console().print(Markdown(markdown(comparison)))
        for name, path in files.items():
            typer.echo(f"{name}: {path}")


@app.command(
    epilog="Examples: threestudio-eeg report outputs/demo --text outputs/text/mug · "
    "threestudio-eeg report outputs --index"
)
def report(
    run: Annotated[Path, typer.Argument(help="Trial folder, the demo's, or with --index any.")],
    text: Annotated[OptionalPath, typer.Option(help="Trial folder of the text baseline.")] = None,
    index: Annotated[
        bool, typer.Option("--index", help="Write index.html: a card for every run below.")
    ] = False,
    recording: Annotated[
        OptionalPath,
        typer.Option(help="Recording folder, for stimulus and EEG; default the demo's."),
    ] = None,
    encoder: Annotated[
        OptionalPath, typer.Option(help="EEG encoder's folder, for the saliency.")
    ] = None,
    out: Annotated[OptionalPath, typer.Option(help="Default the trial folder.")] = None,
    device: Annotated[str, DEVICE] = "auto",
) -> None:
    """One self-contained page about a run, or an index of a folder of runs."""
    with one_line_errors():
        if index:
            from .report.index import write_index

            typer.echo(f"index: {write_index(run)}")
            return
        from eeg_encoder.training import resolve_device

        _embedded_host()
        from .report.run import ReportOptions, report_run

        options = ReportOptions(run, text, recording, encoder, out, device=resolve_device(device))
        typer.echo(f"report: {report_run(options)}")


@app.command(
    epilog="Examples: threestudio-eeg view outputs/demo · threestudio-eeg view outputs/nerf/mug "
    "outputs/splats/mug --port 8090"
)
def view(
    runs: Annotated[list[Path], typer.Argument(help="Trial folders to choose from.")],
    conditioning: Annotated[
        OptionalPath,
        typer.Option(help="Offer the trials of this file: runs beside the first, made from it."),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8080,
    device: Annotated[str, DEVICE] = "auto",
) -> None:
    """Orbit a run's object in the browser, live while it trains (needs the extra *viewer*)."""
    with one_line_errors():
        import threading

        from eeg_encoder.training import resolve_device

        _embedded_host()
        from .report.material import trial_folder
        from .viewer.fields import trials_of
        from .viewer.server import Viewer

        folders = [trial_folder(run) for run in runs]
        trials: dict[str, Path | None] = {str(folder): folder for folder in folders}
        if conditioning is not None:
            trials |= trials_of(conditioning, folders[0])
        viewer = Viewer(trials, host=host, port=port, device=resolve_device(device))
        typer.echo(f"http://{host}:{port} (Ctrl-C ends)")
        try:
            threading.Event().wait()
        finally:
            viewer.close()


@phantom.command(
    "recording",
    epilog="Example: threestudio-eeg phantom recording --out recording --train 100 --val 10 "
    "--test 10 --device cuda",
)
def phantom_recording(
    out: Annotated[Path, typer.Option(help="Folder for the files.")],
    train: Annotated[int, typer.Option(help="Training objects a category.")] = 100,
    val: Annotated[int, typer.Option(help="Validation objects a category.")] = 10,
    test: Annotated[int, typer.Option(help="Test objects a category.")] = 10,
    held_out_pairs: Annotated[
        bool, typer.Option("--held-out-pairs", help="Also test colours new to their category.")
    ] = False,
    repetitions: Annotated[
        int, typer.Option(help="Times each subject sees a training or validation object.")
    ] = 4,
    test_repetitions: Annotated[
        int, typer.Option(help="Times each subject sees a test object.")
    ] = 20,
    snr: Annotated[float, typer.Option(help="Single-trial discriminative SNR, dB.")] = -26.0,
    subjects: Annotated[int, typer.Option(help="How many.")] = 2,
    sessions: Annotated[int, typer.Option(help="How many.")] = 2,
    order: Annotated[str, typer.Option(help="rapid, or block: a category in a row.")] = "rapid",
    seed: Annotated[int, SEED] = 0,
    category: Annotated[Words, CATEGORIES] = None,
    pipeline: Annotated[str, PIPELINE] = "phantom",
    device: Annotated[str, DEVICE] = "auto",
) -> None:
    """Simulate a recording: perceivelab file, splits, picture folder, and the truth beside them."""
    with one_line_errors():
        from eeg_encoder.recordings.simulation import SimulationConfig
        from eeg_encoder.training import resolve_device

        from .phantom.recording import make_recording

        recording = make_recording(
            out,
            per_category={"train": train, "val": val, "test": test},
            simulation=SimulationConfig(
                snr_db=snr,
                repetitions=repetitions,
                held_out_repetitions=test_repetitions,
                subjects=subjects,
                sessions=sessions,
                order=order,
                seed=seed,
            ),
            pipeline=pipeline,
            categories=category,
            held_out_pairs=held_out_pairs,
            seed=seed,
            device=resolve_device(device),
        )
        typer.echo(f"{len(recording.instances)} stimuli: {recording.trials}")


@phantom.command(
    "basis",
    epilog="Example: threestudio-eeg phantom basis --pipeline prior/pipeline --device cuda",
)
def phantom_basis(
    pipeline: Annotated[str, PIPELINE] = "phantom",
    device: Annotated[str, DEVICE] = "auto",
) -> None:
    """Fit what simulated brains respond to in pictures, and keep it in the pipeline's folder."""
    with one_line_errors():
        from eeg_encoder.training import resolve_device

        from .phantom.recording import write_stimulus_code

        typer.echo(f"basis: {write_stimulus_code(pipeline, device=resolve_device(device))}")


@phantom.command(
    "objects",
    epilog="Example: threestudio-eeg phantom objects --out objects --split test --n 2 "
    "--category mug --fmt glb",
)
def phantom_objects(
    out: Annotated[Path, typer.Option(help="Folder for the files.")],
    split: Annotated[str, typer.Option(help="train, val or test.")] = "test",
    n: Annotated[int, typer.Option(help="Objects a category.")] = 2,
    category: Annotated[Words, CATEGORIES] = None,
    fmt: Annotated[str, typer.Option(help="ply, obj (both z up) or glb (y up).")] = "ply",
    resolution: Annotated[int, typer.Option(min=16, help="Of the marching cubes.")] = 128,
    seed: Annotated[int, SEED] = 0,
) -> None:
    """Write the true meshes of objects, and their parameters."""
    with one_line_errors():
        from .phantom.files import write_meshes

        files = write_meshes(
            out, split, n, categories=category, fmt=fmt, resolution=resolution, seed=seed
        )
        typer.echo(f"{len(files)} objects: {out}")


@phantom.command(
    "pictures",
    epilog="Example: threestudio-eeg phantom pictures --out pictures --split train --n 5 --views 8",
)
def phantom_pictures(
    out: Annotated[Path, typer.Option(help="Folder for the files.")],
    split: Annotated[str, typer.Option(help="train, val or test.")] = "train",
    n: Annotated[int, typer.Option(help="Objects a category.")] = 5,
    views: Annotated[int, typer.Option(min=1, help="Pictures an object.")] = 8,
    size: Annotated[int, typer.Option(min=8, help="Side in pixels.")] = 64,
    category: Annotated[Words, CATEGORIES] = None,
    seed: Annotated[int, SEED] = 0,
    device: Annotated[str, DEVICE] = "auto",
) -> None:
    """Render pictures as the prior's training sees them, with captions.jsonl."""
    with one_line_errors():
        from eeg_encoder.training import resolve_device

        from .phantom.files import write_pictures

        total = write_pictures(
            out,
            split,
            n,
            views=views,
            size=size,
            categories=category,
            seed=seed,
            device=resolve_device(device),
        )
        typer.echo(f"{total} pictures: {out}")


@phantom.command(
    "train-prior",
    epilog="Example: threestudio-eeg phantom train-prior --config phantom/prior.yaml --out prior "
    "--device cuda",
)
def phantom_train_prior(
    out: Annotated[Path, typer.Option(help="Folder for pipeline/ and judge/.")],
    overrides: Annotated[
        Words, typer.Argument(help="key=value, for example unet.steps=10.")
    ] = None,
    config: Annotated[Path, typer.Option(help="YAML file or shipped name.")] = Path(
        "phantom/prior.yaml"
    ),
    device: Annotated[str, DEVICE] = "auto",
) -> None:
    """Train the small diffusion pipeline and the judge; what is there already is kept."""
    with one_line_errors():
        from eeg_encoder.files import writable_folder
        from eeg_encoder.training import resolve_device

        from .builtin.base import parse_structured
        from .builtin.config import compose
        from .experiments import experiment_config
        from .phantom.prior import PriorConfig, StageConfig, train_prior
        from .phantom.recording import BASIS, write_stimulus_code

        given = compose(experiment_config(config), cli_args=overrides or [])
        settings = parse_structured(PriorConfig, given, str(config))
        for stage in ("vae", "clip", "unet", "judge"):
            parse_structured(StageConfig, settings[stage], f"{config}: {stage}")
        chosen = resolve_device(device)
        folder = train_prior(settings, writable_folder(out), device=chosen, log=typer.echo)
        if not (folder / BASIS).is_file():
            write_stimulus_code(folder, device=chosen)
        typer.echo(f"pipeline: {folder}")


@phantom.command(
    "judge-prior",
    epilog="Example: threestudio-eeg phantom judge-prior --number 500 --device cuda",
)
def phantom_judge_prior(
    number: Annotated[int, typer.Option(min=1, help="Pictures to sample a protocol.")] = 500,
    guidance_scale: Annotated[float, typer.Option(help="Classifier-free guidance.")] = 3.0,
    pipeline: Annotated[str, PIPELINE] = "phantom",
    seed: Annotated[int, SEED] = 0,
    device: Annotated[str, DEVICE] = "auto",
) -> None:
    """Sample pictures by caption, stimulus picture and held-out pair; let the judge name them."""
    with one_line_errors():
        from eeg_encoder.training import resolve_device

        from .evaluation.objects import load_judge
        from .phantom.sampling import PROTOCOLS, judge_samples
        from .pipeline import load_pipeline

        where = resolve_device(device)
        networks, judge = load_pipeline(pipeline, device=where), load_judge(device=where)
        for protocol in PROTOCOLS:
            right = judge_samples(
                networks,
                judge,
                protocol=protocol,
                n=number,
                guidance_scale=guidance_scale,
                seed=seed,
            )
            shares = ", ".join(f"{name} {share:.3f}" for name, share in right.items())
            typer.echo(f"{protocol}: {shares} of {number}")


def _within(
    vram: float | None, configs: list[Path], overrides: list[str], embedded: bool = True
) -> list[str]:
    """Overrides that keep an experiment within a budget, said aloud; none without a budget."""
    if vram is None:
        return []
    from .acceleration.budget import settings_for_experiment
    from .builtin.config import load_config
    from .experiments import experiment_config

    files = [experiment_config(path) for path in configs]
    chosen = settings_for_experiment(load_config(*files, cli_args=overrides), vram)
    typer.echo(chosen.describe())
    words = chosen.arguments()
    if not embedded:  # threestudio's renderers have no chunks in training
        words = [word for word in words if "train_chunk_size" not in word]
    typer.echo(" ".join(words))
    return words


def _embedded_host() -> None:
    """The demo drives the embedded host unless the environment says otherwise."""
    os.environ.setdefault("THREESTUDIO_EEG_HOST", "builtin")


if __name__ == "__main__":
    app()
