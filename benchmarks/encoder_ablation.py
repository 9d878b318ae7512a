"""The encoder's choices on the phantom, one changed at a time, over several seeds.

    python benchmarks/encoder_ablation.py --device cuda --workers 14 --out encoder-ablation.json
    python benchmarks/encoder_ablation.py --quick

A simulated recording of people who look at the phantom's objects is made once. Rows *embedding* are
decoded image embeddings of test trials (all repetitions averaged): attention over both axes or over
time only, with and without masked pre-training; the masked autoencoder with and without its
earlier stages. Rows *picture* are pictures sampled by the phantom's U-Net from decoded tokens,
embedded by its image tower: a context head trained through the U-Net with and without alignment,
and, on request, the same after the U-Net was refined. Each figure stands beside the same with the
EEG of trials shuffled. Simulated data: software verified, nothing said of brains.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]

from timing import machine  # noqa: E402

from eeg_encoder.diffusion_training import (  # noqa: E402
    ConditionRunConfig,
    RefineRunConfig,
    run_condition,
    run_refine,
)
from eeg_encoder.evaluation import evaluate  # noqa: E402
from eeg_encoder.files import write_json  # noqa: E402
from eeg_encoder.image_space import embed_pictures, picture_embeddings  # noqa: E402
from eeg_encoder.pretrained import Pretrained, from_pretrained  # noqa: E402
from eeg_encoder.pretraining import (  # noqa: E402
    JointRunConfig,
    PretrainRunConfig,
    run_joint,
    run_pretrain,
)
from eeg_encoder.quiet import quiet_libraries  # noqa: E402
from eeg_encoder.recordings.perceivelab import load_splits  # noqa: E402
from eeg_encoder.recordings.simulation import SimulationConfig  # noqa: E402
from eeg_encoder.sources import read_again  # noqa: E402
from eeg_encoder.stages.align import AlignConfig  # noqa: E402
from eeg_encoder.stages.condition import ConditionConfig  # noqa: E402
from eeg_encoder.stages.diffusion import load_denoiser  # noqa: E402
from eeg_encoder.stages.joint import JointConfig  # noqa: E402
from eeg_encoder.stages.pretrain import PretrainConfig  # noqa: E402
from eeg_encoder.stages.refine import RefineConfig  # noqa: E402
from eeg_encoder.training import TrainConfig, train  # noqa: E402

FIGURES = ("top1", "top5", "category")


@dataclass(frozen=True)
class Size:
    """How much of everything."""

    per_category: dict[str, int]
    snr_db: float
    categories: tuple[str, ...] | None
    pretrain: int
    joint: int
    align: int
    condition: int
    refine: int
    batch: int
    sampled: int
    sampling_steps: int


FULL = Size(
    {"train": 50, "val": 5, "test": 10}, -24.0, None,
    pretrain=25, joint=15, align=30, condition=25, refine=10, batch=64,
    sampled=200, sampling_steps=20,
)  # fmt: skip
QUICK = Size(
    {"train": 4, "val": 1, "test": 2}, -10.0, ("mug", "chair", "table"),
    pretrain=1, joint=1, align=2, condition=1, refine=1, batch=8,
    sampled=4, sampling_steps=2,
)  # fmt: skip

DUAL: dict[str, Any] = {"name": "dual_self_attention", "preset": "dual"}
TIME: dict[str, Any] = {"name": "dual_self_attention", "preset": "temporal_only"}
MASKED: dict[str, Any] = {"name": "masked_autoencoder", "preset": "small"}


class World:
    """The recording, and how anything decoded from it is scored."""

    def __init__(self, folder: Path, pipeline: Path, size: Size, device: str) -> None:
        from threestudio_eeg.phantom.recording import make_recording

        simulation = SimulationConfig(subjects=1, snr_db=size.snr_db, held_out_repetitions=8)
        made = make_recording(
            folder / "recording",
            per_category=size.per_category,
            simulation=simulation,
            categories=size.categories,
            pipeline=pipeline,
            device=device,
        )
        self.recording, self.splits, self.pictures = made.trials, made.splits, made.pictures
        self.folder, self.pipeline, self.device, self.size = folder, pipeline, device, size

    def paths(self, out: Path, seed: int) -> dict[str, Any]:
        """What every stage's config says."""
        return {
            "recording": str(self.recording),
            "splits": str(self.splits),
            "out": str(out),
            "seed": seed,
            "device": self.device,
            "progress": False,
        }

    def shown(self) -> dict[str, Any]:
        """What the stages with pictures say too."""
        return {"pictures": str(self.pictures), "pipeline": str(self.pipeline)}

    def test(self, encoder: Pretrained) -> tuple[Any, Tensor]:
        """Averaged test trials, and how many each is the mean of."""
        trials = read_again(self.recording, encoder.config)
        test = trials.at(load_splits(self.splits, trials.total)["test"])
        return test.average(), torch.from_numpy(np.bincount(test.groups()))

    def score(self, encoder: Pretrained, found: Tensor, trials: Any) -> dict[str, dict[str, float]]:
        """Retrieval and category of embeddings (N, P), beside shuffled EEG."""
        every = read_again(self.recording, encoder.config)
        train = every.at(load_splits(self.splits, every.total)["train"])
        ids, first = np.unique(train.stimuli, return_index=True)
        shown, labels = np.unique(train.labels[first], return_inverse=True)
        names = np.unique(trials.stimuli).tolist()
        known, gallery = (
            embed_pictures(self.pipeline, self.pictures, part, device=self.device)
            for part in (ids.tolist(), names)
        )
        result = evaluate(
            found,
            trials.stimuli,
            np.searchsorted(shown, trials.labels),
            dict(zip(names, gallery, strict=True)),
            known,
            labels,
            n_categories=len(shown),
        )
        return {
            source: {
                "top1": result[source]["retrieval"]["top1"],
                "top5": result[source]["retrieval"]["top5"],
                "category": result[source]["category_top1"],
            }
            for source in ("eeg", "shuffled")
        } | {
            "chance": {
                "top1": 1 / len(names),
                "top5": min(1.0, 5 / len(names)),
                "category": 1 / len(shown),
            }
        }


def align_run(
    world: World, out: Path, seed: int, model: dict[str, Any], *, pretrained: bool,
    init: Path | None = None,
) -> Path:  # fmt: skip
    """Alignment, after masked pre-training on the same training trials or without."""
    size = world.size
    train(
        TrainConfig(
            **world.paths(out, seed),
            **world.shown(),
            model=model,
            init=None if init is None else str(init),
            pretrain=PretrainConfig(
                epochs=size.pretrain if pretrained else 0, batch_size=size.batch
            ),
            align=AlignConfig(epochs=size.align, batch_size=size.batch, lr=1e-3),
            memory=False,
        )
    )
    return out


def joint_run(world: World, out: Path, seed: int) -> tuple[Path, Path]:
    """First stage, and the joint stage after it."""
    size = world.size
    run_pretrain(
        PretrainRunConfig(
            **world.paths(out / "stage1", seed),
            model=MASKED,
            pretrain=PretrainConfig(epochs=size.pretrain, batch_size=size.batch),
        )
    )
    run_joint(
        JointRunConfig(
            **world.paths(out / "stage2", seed),
            **world.shown(),
            init=str(out / "stage1"),
            joint=JointConfig(
                epochs=size.joint, batch_size=size.batch, lr=3e-4, warmup=0.05, blocks=2, heads=4,
                decoder_width=128, decoder_depth=2, decoder_heads=4,
            ),
        )
    )  # fmt: skip
    return out / "stage1", out / "stage2"


def condition_run(world: World, out: Path, seed: int, init: Path, *, aligned: bool) -> Path:
    """A context head through the frozen U-Net."""
    run_condition(
        ConditionRunConfig(
            **world.paths(out, seed),
            **world.shown(),
            init=str(init),
            condition=ConditionConfig(
                epochs=world.size.condition,
                batch_size=world.size.batch,
                lr=1e-3,
                clip_weight=1.0 if aligned else 0.0,
            ),
        )
    )
    return out


def refine_run(world: World, out: Path, seed: int, init: Path) -> Path:
    """The U-Net's keys and values, adapted to the tokens of an encoder."""
    run_refine(
        RefineRunConfig(
            **world.paths(out, seed),
            **world.shown(),
            init=str(init),
            refine=RefineConfig(epochs=world.size.refine, batch_size=world.size.batch),
        )
    )
    return out


@torch.no_grad()
def sample(pipeline: Path, tokens: Tensor, device: str, steps: int, scale: float = 3.0) -> Tensor:
    """Pictures (B, 3, H, W) in [0, 1] by DDIM with classifier-free guidance."""
    from diffusers import DDIMScheduler

    denoiser = load_denoiser(pipeline, device)
    schedule = DDIMScheduler.from_config(denoiser.schedule.config)
    schedule.set_timesteps(steps)
    side = int(denoiser.unet.config.sample_size)
    channels = int(denoiser.unet.config.in_channels)
    generator = torch.Generator(device).manual_seed(0)
    null = denoiser.context(denoiser.null_tokens[None])
    pictures = []
    for chunk in tokens.to(device).split(64):
        context = torch.cat([null.expand(len(chunk), -1, -1), denoiser.context(chunk)])
        x = torch.randn(len(chunk), channels, side, side, device=device, generator=generator)
        for t in schedule.timesteps:
            both = denoiser.unet(torch.cat([x, x]), t, encoder_hidden_states=context).sample
            empty, told = both.chunk(2)
            x = schedule.step(empty + scale * (told - empty), t, x).prev_sample
        rgb = denoiser.vae.decode(x / denoiser.vae.config.scaling_factor).sample
        pictures.append((rgb * 0.5 + 0.5).clamp(0, 1))
    return torch.cat(pictures)


@torch.no_grad()
def score_pictures(world: World, folder: Path, pipeline: Path) -> dict[str, dict[str, float]]:
    """Scores of sampled pictures' embeddings."""
    from transformers import CLIPVisionModelWithProjection

    encoder = from_pretrained(folder)
    trials, averaged = world.test(encoder)
    order = torch.randperm(len(trials), generator=torch.Generator().manual_seed(0))
    rows = order[: world.size.sampled].numpy()
    trials, averaged = trials.select(rows), averaged[torch.from_numpy(rows)]
    if encoder.context is None:
        tokens = encoder.to_tokens(encoder.decode(trials, averaged, device=world.device))
    else:
        tokens = encoder.to_context(trials, device=world.device)
    rgb = sample(pipeline, tokens, world.device, world.size.sampling_steps)
    with quiet_libraries():
        tower = CLIPVisionModelWithProjection.from_pretrained(world.pipeline / "image_encoder")
    found = picture_embeddings(tower.float().eval().to(world.device), rgb).cpu()
    return world.score(encoder, found, trials)


def score_embeddings(world: World, folder: Path) -> dict[str, dict[str, float]]:
    """Scores of decoded embeddings."""
    encoder = from_pretrained(folder)
    trials, averaged = world.test(encoder)
    return world.score(encoder, encoder.decode(trials, averaged, device=world.device), trials)


Rows = dict[str, dict[str, dict[str, float]]]


def axes_row(
    world: World, folder: Path, seed: int, *, model: dict[str, Any], pretrained: bool
) -> Rows:
    """Attention over both axes or over time, with or without pre-training."""
    name = "dual self-attention" if model is DUAL else "time only"
    align_run(world, folder, seed, model, pretrained=pretrained)
    words = "pre-trained" if pretrained else "from nothing"
    return {f"embedding: {name}, {words}": score_embeddings(world, folder)}


def masked_rows(world: World, folder: Path, seed: int, *, before: bool) -> Rows:
    """The masked autoencoder aligned from nothing, or after its first and its joint stage."""
    stages: list[tuple[Path | None, str]] = [(None, "from nothing")]
    if before:
        stage1, stage2 = joint_run(world, folder, seed)
        stages = [(stage1, "pre-trained"), (stage2, "and joint")]
    found = {}
    for init, words in stages:
        out = folder / words.replace(" ", "-")
        align_run(world, out, seed, MASKED, pretrained=False, init=init)
        found[f"embedding: masked autoencoder, {words}"] = score_embeddings(world, out)
    return found


def pictures_rows(world: World, folder: Path, seed: int, *, aligned: bool, refined: bool) -> Rows:
    """Pictures sampled from the tokens of a context head, its encoder aligned before or only
    pre-trained."""
    init, size = folder / "encoder", world.size
    found = {}
    if aligned:
        align_run(world, init, seed, MASKED, pretrained=True)
        found["picture: image projection, aligned"] = score_pictures(world, init, world.pipeline)
    else:
        run_pretrain(
            PretrainRunConfig(
                **world.paths(init, seed),
                model=MASKED,
                pretrain=PretrainConfig(epochs=size.pretrain, batch_size=size.batch),
            )
        )
    words = "aligned" if aligned else "not aligned"
    out = condition_run(world, folder / "condition", seed, init, aligned=aligned)
    found[f"picture: context head, {words}"] = score_pictures(world, out, world.pipeline)
    if refined:
        pipeline = refine_run(world, folder / "refined", seed, out)
        found[f"picture: context head, {words}, refined U-Net"] = score_pictures(
            world, out, pipeline
        )
    return found


Task = Callable[[World, Path, int], Rows]
PARTS: dict[str, list[Task]] = {
    "pictures": [partial(pictures_rows, aligned=on, refined=False) for on in (True, False)],
    "refined": [partial(pictures_rows, aligned=on, refined=True) for on in (True, False)],
    "axes": [
        partial(axes_row, model=model, pretrained=on)
        for model in (DUAL, TIME)
        for on in (True, False)
    ],
    "masked": [partial(masked_rows, before=on) for on in (True, False)],
}


def one(world: World, part: str, number: int, seed: int) -> tuple[Rows, float, str]:
    """A task of a part: its rows, its seconds, and what went wrong."""
    torch.set_num_threads(1)
    started = time.monotonic()
    rows: Rows = {}
    wrong = ""
    try:
        folder = world.folder / f"{part}-{number}-{seed}"
        rows = PARTS[part][number](world, folder, seed)
    except Exception as error:
        traceback.print_exc()
        wrong = f"{part} {number}, seed {seed}: {type(error).__name__}: {error}"[:400]
    return rows, time.monotonic() - started, wrong


def run_tasks(
    world: World, tasks: list[tuple[str, int, int]], workers: int, limit: float
) -> Iterator[tuple[tuple[str, int, int], tuple[Rows, float, str]]]:
    """Tasks (part, number, seed) and their results, as they end; none after ``limit`` seconds."""
    end = time.monotonic() + limit
    if workers < 2:
        for task in tasks:
            if time.monotonic() < end:
                yield task, one(world, *task)
        return
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        waiting = [(task, pool.apply_async(one, (world, *task))) for task in tasks]
        while waiting and time.monotonic() < end:
            ready = [pair for pair in waiting if pair[1].ready()]
            for task, result in ready:
                yield task, result.get()
            waiting = [pair for pair in waiting if pair not in ready]
            time.sleep(0.2)
        pool.terminate()


def table(rows: dict[str, list[dict[str, dict[str, float]]]]) -> str:
    """Mean and standard deviation over seeds, in per cent; shuffled EEG in brackets."""
    lines = [
        f"| {'what':58s} | " + " | ".join(f"{name:>20s}" for name in FIGURES) + " |",
        "|" + "|".join(["---"] * (1 + len(FIGURES))) + "|",
    ]
    for name, seeds in rows.items():
        cells = []
        for figure in FIGURES:
            own = [100 * seed["eeg"][figure] for seed in seeds]
            control = statistics.mean(100 * seed["shuffled"][figure] for seed in seeds)
            spread = statistics.stdev(own) if len(own) > 1 else 0.0
            cells.append(f"{statistics.mean(own):5.1f} ± {spread:4.1f} ({control:4.1f})")
        lines.append(f"| {name:58s} | " + " | ".join(f"{cell:>20s}" for cell in cells) + " |")
    chance = next(iter(rows.values()))[0]["chance"]
    cells = [f"{100 * chance[figure]:5.1f}" for figure in FIGURES]
    lines.append(f"| {'chance':58s} | " + " | ".join(f"{cell:>20s}" for cell in cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run, print the table, save."""
    from threestudio_eeg.pipeline import phantom_prior

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seeds", type=int, nargs="+", default=None)
    parser.add_argument("--snr-db", type=float, default=None, help="of a single trial")
    parser.add_argument(
        "--parts", nargs="+", choices=list(PARTS), default=["pictures", "axes", "masked"]
    )
    parser.add_argument("--workers", type=int, default=1, help="tasks side by side")
    parser.add_argument("--limit", type=float, default=3600.0, help="seconds after the recording")
    parser.add_argument("--quick", action="store_true", help="tiny: shows that it runs")
    parser.add_argument("--out", type=Path, default=None)
    arguments = parser.parse_args()
    size = QUICK if arguments.quick else FULL
    if arguments.snr_db is not None:
        size = replace(size, snr_db=arguments.snr_db)
    seeds = arguments.seeds or ([0] if arguments.quick else [0, 1, 2])
    torch.set_num_threads(1 if arguments.device == "cpu" else torch.get_num_threads())
    started = time.monotonic()
    rows: dict[str, dict[int, dict[str, dict[str, float]]]] = {}
    wrong: list[str] = []
    tasks = [
        (part, number, seed)
        for part in arguments.parts
        for number in range(len(PARTS[part]))
        for seed in seeds
    ]
    with tempfile.TemporaryDirectory() as name:
        world = World(Path(name), phantom_prior(), size, arguments.device)
        print(f"recording: {time.monotonic() - started:.0f} s", flush=True)
        for task, (found, seconds, error) in run_tasks(
            world, tasks, arguments.workers, arguments.limit
        ):
            part, number, seed = task
            now = time.monotonic() - started
            print(f"{now:.0f} s: {part} {number}, seed {seed}, {seconds:.0f} s", flush=True)
            wrong += [error] if error else []
            for row, figures in found.items():
                rows.setdefault(row, {})[seed] = figures
            if arguments.out is not None:
                record = {
                    "simulated": True,
                    "size": vars(size),
                    "seconds": round(now, 1),
                    "command": " ".join(sys.argv),
                    "errors": wrong,
                    "rows": rows,
                    **machine(arguments.device),
                }
                write_json(arguments.out, record)
    print("simulated; test trials averaged over repetitions; in brackets shuffled EEG; per cent")
    if rows:
        print(table({name: list(rows[name].values()) for name in sorted(rows)}))
    print(
        f"{len(wrong)} tasks failed; seeds of each row: { {k: sorted(v) for k, v in rows.items()} }"
    )
    for line in wrong:
        print(line)


if __name__ == "__main__":
    main()
