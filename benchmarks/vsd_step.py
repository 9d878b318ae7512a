"""The guidance's share of a VSD step, side by side: eager, recorded, diffusers, upstream.

A step is the guidance's forward pass and the backward pass of its losses, to the render and to the
LoRA; the renderer and the optimisers are left out. Prints medians, ratios, and the multiple of the
time that the counted arithmetic would take at the rate of a large matrix product on this device.
Timing comes first and the table grows line by line; a setup that breaks or is too slow costs only
itself. With --check it then compares losses and gradients with those of the eager step in float32.

    python benchmarks/vsd_step.py --size sd15 --batch 1 2 4 --check --out vsd_step.json
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]
os.environ.setdefault("THREESTUDIO_EEG_HOST", "builtin")

import torch  # noqa: E402
from guidance_setups import SIZES, World, ours, pipeline_of, plain_diffusers, upstream  # noqa: E402
from timing import machine  # noqa: E402
from torch import Tensor  # noqa: E402

from eeg_encoder.files import write_json  # noqa: E402
from threestudio_eeg.acceleration.gradients import flat_gradient  # noqa: E402
from threestudio_eeg.acceleration.graphs import Recordings  # noqa: E402
from threestudio_eeg.guidance import Levels, Step  # noqa: E402

OURS: dict[str, dict[str, Any]] = {
    "eager": {"acceleration": "none"},
    "graphs": {"acceleration": "graphs"},
    "graphs, two passes": {"acceleration": "graphs", "one_pass_scores": False},
    "graphs, plain networks": {"acceleration": "graphs", "fused_norms": False},
    "graphs, channels last": {
        "acceleration": "graphs",
        "channels_last": True,
        "fused_norms": False,
    },
    "graphs, checkpoints": {
        "acceleration": "graphs",
        "checkpoint_unet": True,
        "checkpoint_vae": True,
    },
    "graphs, shared noise": {"acceleration": "graphs", "lora_shares_noise": True},
}
OTHERS = {"diffusers": plain_diffusers, "upstream": upstream}
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
FOR_UPSTREAM = ("sd15", "small")
SIDES = {"sd15": 512, "phantom": 64, "tiny": 16, "small": 512}


def main(arguments: list[str] | None = None) -> int:
    """Run what the arguments ask for; 1 when a check failed or a setup broke."""
    options = parse(arguments)
    device, dtype = options.device, DTYPES[options.dtype]
    shown = {name: value for name, value in vars(options).items() if not isinstance(value, Path)}
    report: dict[str, Any] = {"machine": machine(device), "options": shown}
    failed = False
    with pipeline_of(options.size, options.pipeline, device) as pipeline:
        for batch in options.batch:
            world = World.of(options.size, pipeline, batch, device, dtype)
            side = SIDES[options.size]
            report[f"batch {batch}"], ok = compare(world, side, options)
            failed |= not ok
            if options.out is not None:
                write_json(options.out, report)
            if options.pieces and batch == options.batch[0]:
                report["pieces"] = pieces(world, side, options)
        if options.check:
            world = World.of(options.size, pipeline, options.batch[0], device, dtype)
            report["check"], ok = check(world, SIDES[options.size], options)
            failed |= not ok
        if options.profile:
            profile(World.of(options.size, pipeline, options.batch[0], device, dtype), options)
    if options.out is not None:
        write_json(options.out, report)
    return int(failed)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cuda = torch.cuda.is_available()
    known = [*OURS, *OTHERS]
    parser.add_argument("--size", choices=SIZES, default="sd15" if cuda else "tiny")
    parser.add_argument("--batch", type=int, nargs="+", default=[1])
    parser.add_argument("--device", default="cuda" if cuda else "cpu")
    parser.add_argument("--dtype", choices=DTYPES, default="float16" if cuda else "float32")
    parser.add_argument("--setups", nargs="+", choices=known, help="default: all that can run")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--warm-up", type=int, default=3)
    parser.add_argument(
        "--setup-budget",
        type=float,
        default=60.0,
        help="seconds a setup: after it, fewer repeats; a median of at least one is printed",
    )
    parser.add_argument("--pipeline", type=Path, help="a folder of this size, made before")
    parser.add_argument("--no-floor", action="store_true", help="do not count the arithmetic")
    parser.add_argument("--check", action="store_true", help="compare with eager float32 too")
    parser.add_argument(
        "--pieces",
        action="store_true",
        help="also time a step's parts in the kinds of setups asked for: eager, graphs",
    )
    parser.add_argument("--profile", action="store_true", help="list the costliest kernels")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    options = parser.parse_args(arguments)
    if options.setups is None:
        left_out = set() if "THREESTUDIO_ROOT" in os.environ else {"upstream"}
        left_out |= set() if cuda else {n for n in OURS if "plain networks" in n}
        left_out |= set() if options.size in FOR_UPSTREAM else {"upstream"}
        options.setups = [name for name in known if name not in left_out]
    return options


# What is timed


def build(world: World, name: str) -> tuple[Any, Any]:
    """Return the function from renders to losses, and what owns the trained weights."""
    if name in OURS:
        return ours(world, **OURS[name])
    return OTHERS[name](world)


def step_of(losses: Any, owner: Any, rgb: Tensor) -> Callable[[], None]:
    """Return one step: losses, and their gradients into ``rgb`` and the owner's weights."""
    weights = list(owner.parameters())

    def step() -> None:
        rgb.grad = None
        for weight in weights:
            weight.grad = None
        out = losses(rgb)
        (out["loss_vsd"] + out["loss_lora"]).backward()

    return step


def compare(world: World, side: int, options: Any) -> tuple[dict[str, Any], bool]:
    """Time every setup on one batch size and print the table."""
    rows: dict[str, Any] = {}
    ok = True
    floor = None if options.no_floor else guarded(lambda: floor_ms(world, side))
    print(f"\nbatch {world.batch}", flush=True)
    if floor is not None:
        print(f"{floor['tflop']:.2f} TFLOP a step, {floor['ms']:.2f} ms at {floor['rate']:.1f}")
        print(f"TFLOP/s, this device's rate on a large {world.dtype} product\n", flush=True)
    titles = ("median ms", "ratio", "x floor", "peak GB", "start s")
    print(f"{'setup':24}" + "".join(f"{title:>10}" for title in titles))
    for name in options.setups:
        row = guarded(lambda name=name: timed(world, name, side, options))
        ok &= row is not None
        if row is None:
            continue
        rows[name] = row
        first = next(iter(rows.values()))["ms"]
        row["times_floor"] = float("nan") if floor is None else row["ms"] / floor["ms"]
        print(
            f"{name:24}{row['ms']:10.2f}{first / row['ms']:10.2f}{row['times_floor']:10.1f}"
            f"{row['peak_gb']:10.2f}{row['start_s']:10.1f}",
            flush=True,
        )
    return {"floor": floor, "setups": rows}, ok


def timed(world: World, name: str, side: int, options: Any) -> dict[str, float]:
    """Median milliseconds of a step, peak memory, and seconds until the first step was done."""
    if world.device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    losses, owner = build(world, name)
    step = step_of(losses, owner, world.render(side))
    step()
    synchronize(world.device)
    start = time.perf_counter() - began
    for _ in range(options.warm_up):
        step()
    synchronize(world.device)
    a_step = (time.perf_counter() - began - start) / max(options.warm_up, 1)
    left = options.setup_budget - (time.perf_counter() - began)
    repeats = max(1, min(options.repeats, int(left / max(a_step, 1e-6))))
    return {**measure(step, world.device, repeats), "start_s": start, "repeats": repeats}


def measure(step: Callable[[], Any], device: str, repeats: int) -> dict[str, float]:
    """Median milliseconds between the step's launches, by CUDA events where there are any."""
    if device != "cuda":
        times = []
        for _ in range(repeats):
            began = time.perf_counter()
            step()
            times.append(1e3 * (time.perf_counter() - began))
        return {"ms": statistics.median(times), "peak_gb": float("nan")}
    torch.cuda.synchronize()
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    marks[0].record()
    for mark in marks[1:]:
        step()
        mark.record()
    torch.cuda.synchronize()
    times = [a.elapsed_time(b) for a, b in zip(marks, marks[1:], strict=False)]
    return {"ms": statistics.median(times), "peak_gb": torch.cuda.max_memory_reserved() / 2**30}


def synchronize(device: str) -> None:
    """Wait for the device."""
    if device == "cuda":
        torch.cuda.synchronize()


def guarded(work: Callable[[], Any]) -> Any:
    """Run; a setup that breaks is reported and does not take the others with it."""
    try:
        return work()
    except Exception:
        traceback.print_exc()
        return None
    finally:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


# The floor


def floor_ms(world: World, side: int) -> dict[str, float]:
    """Arithmetic of a step: counted operations over the measured rate of a matrix product."""
    from torch.utils.flop_counter import FlopCounterMode

    losses, owner = ours(world, acceleration="none")
    step = step_of(losses, owner, world.render(side))
    with FlopCounterMode(display=False) as counter:
        step()
    rate = matmul_rate(world.device, world.dtype)
    tflop = counter.get_total_flops() / 1e12
    return {"tflop": tflop, "rate": rate, "ms": 1e3 * tflop / rate}


def matmul_rate(device: str, dtype: torch.dtype) -> float:
    """TFLOP/s of a square matrix product: the best of a few."""
    n = 8192 if device == "cuda" else 512
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    for _ in range(3):
        a @ b
    times = [measure(lambda: a @ b, device, 1)["ms"] for _ in range(10)]
    return 2 * n**3 / min(times) / 1e9


# The check


def check(world: World, side: int, options: Any) -> tuple[dict[str, Any], bool]:
    """Compare with eager float32: no setup of ours may be much further from it than eager half is.

    Errors are ``|a - b| / |b|`` over all numbers of the render's gradient and the LoRA's.
    """
    rows: dict[str, Any] = {}
    exact = World(**{**vars(world), "dtype": torch.float32})
    with exact_arithmetic():
        references = {
            shared: one_step(exact, side, {"acceleration": "none", "lora_shares_noise": shared})
            for shared in (False, True)
        }
    allowed: dict[bool, dict[str, float]] = {}
    for shared, reference in references.items():
        eager = one_step(world, side, {"acceleration": "none", "lora_shares_noise": shared})
        allowed[shared] = errors(eager, reference)
        rows[f"eager, shared noise {shared}"] = allowed[shared]
    print(f"\nrelative errors against eager float32, batch {world.batch}, {world.dtype}")
    ok = True
    for name in (n for n in options.setups if n in OURS):
        shared = bool(OURS[name].get("lora_shares_noise", False))
        found = guarded(lambda name=name: one_step(world, side, OURS[name]))
        if found is None:
            ok = False
            continue
        rows[name] = errors(found, references[shared])
        for part, error in rows[name].items():
            limit = 2 * allowed[shared][part] + 1e-4
            verdict = "" if error <= limit else "  TOO FAR"
            ok &= error <= limit
            print(f"{name:24} {part:12} {error:.2e}  (eager {allowed[shared][part]:.2e}){verdict}")
    return rows, ok


@contextmanager
def exact_arithmetic() -> Iterator[None]:
    """No TensorFloat32 in convolutions and products."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def one_step(world: World, side: int, config: dict[str, Any]) -> dict[str, Tensor]:
    """Losses and gradients, the second time a step is run, on random numbers that are always the
    same."""
    losses, guidance = ours(world, **config)
    draws = fixed_draws(guidance, world.batch)
    guidance.draw = lambda n, as_latents=False: draws
    rgb = world.render(side)
    step = step_of(losses, guidance, rgb)
    step()
    step()
    owners = {"LoRA": guidance.lora_layers, "camera": guidance.camera_embedding}
    gradients = {"to render": rgb.grad.flatten()}
    for name, owner in owners.items():
        gradients[f"to {name}"] = torch.cat([p.grad.flatten() for p in owner.parameters()])
    out = losses(rgb)
    values = {name: out[name].detach() for name in ("loss_vsd", "loss_lora", "grad_norm")}
    return {name: value.double().cpu() for name, value in {**values, **gradients}.items()}


def fixed_draws(guidance: Any, batch: int) -> Any:
    """A step's random numbers, made on the CPU: the same for every precision and device."""
    from threestudio_eeg.noise import Draws

    generator = torch.Generator().manual_seed(7)
    size = guidance.pipeline.latent_size
    shape = (batch, guidance.pipeline.unet.config.in_channels, size, size)
    noises = [torch.randn(shape, generator=generator) for _ in range(3)]
    times = [torch.randint(20, 981, (batch,), generator=generator) for _ in range(2)]
    posterior, noise, lora_noise = (noise.to(guidance.device) for noise in noises)
    t, lora_t = (time.to(guidance.device) for time in times)
    draws = Draws(posterior.to(guidance.pipeline.dtype), t, noise)
    if not guidance.cfg.lora_shares_noise:
        draws.lora_t, draws.lora_noise = lora_t, lora_noise
    return draws


def errors(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> dict[str, float]:
    """Relative errors by name."""
    return {
        name: float((found[name] - value).norm() / value.norm()) for name, value in wanted.items()
    }


# Parts of a step


def pieces(world: World, side: int, options: Any) -> dict[str, Any]:
    """Time the parts of a step, each by itself: eager and recorded."""
    rows: dict[str, Any] = {}
    print(f"\n{'part':36} {'median ms':>10}")
    setups = {
        "eager": {"acceleration": "none"},
        "graphs": {"acceleration": "graphs"},
        "graphs, plain networks": {"acceleration": "graphs", "fused_norms": False},
    }
    for setup, config in setups.items():
        kinds = {name.split(",")[0] for name in options.setups}
        if setup.split(",")[0] not in kinds or (world.device != "cuda" and setup != "eager"):
            continue

        def time_all(setup: str = setup, config: dict[str, Any] = config) -> None:
            _, guidance = ours(world, **config)
            for part, work in parts_of(guidance).items():
                inputs = inputs_of(guidance, world, side)
                if setup == "eager":
                    run: Callable[[], Any] = lambda: work(inputs)  # noqa: B023, E731
                else:
                    recordings = Recordings(work, guidance.device)
                    run = lambda: recordings.run(inputs)  # noqa: B023, E731
                for _ in range(options.warm_up):
                    run()
                rows[f"{part}, {setup}"] = measure(run, world.device, options.repeats)
                ms = rows[f"{part}, {setup}"]["ms"]
                print(f"{part + ', ' + setup:36} {ms:10.2f}", flush=True)

        guarded(time_all)
    return rows


def parts_of(guidance: Any) -> dict[str, Callable[[Step], dict[str, Tensor]]]:
    """The parts by name, each a function of a step's inputs."""

    def teacher(step: Step) -> dict[str, Tensor]:
        noised = guidance.add_noise(step.draws.noise, step.draws)
        with torch.no_grad():
            return {"out": guidance.teacher(noised.latents, noised.t, step.prompt.guided)}

    def scores(step: Step) -> dict[str, Tensor]:
        noised = guidance.add_noise(step.draws.noise, step.draws)
        return {"out": guidance._one_pass_scores(noised, step.prompt, 7.5)[1]}

    def lora(step: Step) -> dict[str, Tensor]:
        loss = guidance.lora_loss(step.draws.noise, step.prompt, step.draws)
        return {"out": flat_gradient(loss, guidance.trained_parameters())}

    def vae(step: Step) -> dict[str, Tensor]:
        picture = step.picture.detach().requires_grad_()
        latents = guidance.encode(picture, step.draws.posterior)
        return {"out": flat_gradient((latents * step.draws.noise).sum(), [picture])}

    return {
        "teacher, 2B": teacher,
        "teacher and LoRA, 3B": scores,
        "LoRA forward + backward": lora,
        "VAE forward + backward": vae,
    }


def inputs_of(guidance: Any, world: World, side: int) -> Step:
    """A step's inputs as the guidance makes them."""
    views = tuple(world.views[n] for n in ("elevation", "azimuth", "camera_distances"))
    prompt = guidance.prompt(world.prompt, views, world.views)
    picture = guidance._channels_first(world.render(side).detach(), False)
    draws = fixed_draws(guidance, world.batch)
    return Step(picture, prompt, draws, Levels(7.5, None))


def profile(world: World, options: Any) -> None:
    """Print the kernels that take longest in a step of every setup."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    activities = [ProfilerActivity.CPU, ProfilerActivity.CUDA][: 1 + (world.device == "cuda")]
    for name in options.setups:

        def run(name: str = name) -> None:
            losses, owner = build(world, name)
            step = step_of(losses, owner, world.render(SIDES[options.size]))
            for _ in range(3):
                step()
            with profiler(activities=activities) as seen:
                step()
                synchronize(world.device)
            by = "self_cuda_time_total" if world.device == "cuda" else "self_cpu_time_total"
            print(f"\n{name}")
            print(seen.key_averages().table(sort_by=by, row_limit=25, max_name_column_width=80))

        guarded(run)


if __name__ == "__main__":
    raise SystemExit(main())
