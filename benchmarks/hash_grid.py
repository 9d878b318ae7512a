"""Hash-grid look-ups side by side: our Triton kernels, our torch code, and tiny-cuda-nn.

Points are drawn uniformly, and laid along the rays of a camera as a renderer lays them. Prints
medians of the forward pass, and of forward and backward to the table (and to the positions),
ratios to tiny-cuda-nn where it is installed, and the multiple of the time that the counted bytes
take at the rate of a large copy.
With --check the first points are compared with the readable reference, gradients included; with
--tune the launch settings are swept, and every level is timed by itself.

    python benchmarks/hash_grid.py --check --tune --out hash_grid.json
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]

import torch  # noqa: E402
from timing import bandwidth, machine, median_ms  # noqa: E402
from torch import Tensor  # noqa: E402

from eeg_encoder.files import write_json  # noqa: E402
from threestudio_eeg.neural_fields.hash_grid import GridLayout, encode, make_layout  # noqa: E402
from threestudio_eeg.neural_fields.hash_grid_reference import (  # noqa: E402
    encode as encode_reference,
)

GRID: dict[str, Any] = {
    "n_levels": 16,
    "n_features_per_level": 2,
    "log2_hashmap_size": 19,
    "base_resolution": 16,
    "per_level_scale": 1.447269237440378,
}
STEPS_PER_RAY = 128
CHECKED_POINTS = 1 << 12
TOLERANCE = {torch.float32: 3e-4, torch.float16: 2e-2}
BORDER = 1e-3
PASSES = ("forward", "forward and backward", "forward and backward, positions too")
GATHER_SWEEP = [
    {"gather_block": block, "gather_warps": warps, "wide_reads": wide}
    for block, warps in ((128, 4), (256, 8), (512, 16), (256, 4), (512, 8), (512, 4), (1024, 8))
    for wide in (False, True)
]
RUNS = (
    (),
    ((4, 160.0),),
    ((8, 40.0), (4, 160.0)),
    ((16, 40.0), (4, 160.0)),
    ((16, 75.0), (4, 160.0)),
    ((32, 30.0), (8, 75.0), (4, 160.0)),
)
SCATTER_SWEEP = [
    {"scatter_block": block, "scatter_warps": warps, "wide_adds": wide, "runs": runs}
    for block, warps in ((64, 2), (128, 4), (256, 8), (256, 4))
    for wide in (False, True)
    for runs in RUNS
]
SLOPE_SWEEP = [
    {"slope_block": block, "slope_warps": warps, "wide_reads": wide}
    for block, warps in ((128, 4), (256, 8), (256, 4), (512, 8))
    for wide in (False, True)
]


@dataclass(frozen=True)
class Setup:
    """A way to look points up: a function from points to features, its table, its precision."""

    name: str
    look_up: Callable[[Tensor], Tensor]
    table: Tensor
    precision: torch.dtype


def main(arguments: list[str] | None = None) -> int:
    """Run what the arguments ask for; 1 when a check failed."""
    options = parse(arguments)
    device = options.device
    layout = grid_layout(options)
    report: dict[str, Any] = {"machine": machine(device), "points": options.points}
    print(*report["machine"].values(), f"{options.points} points", sep=", ")
    setups = make_setups(options, layout)
    failed = options.check and not check(setups, layout, device)
    rate = bandwidth(device)
    print(f"copy: {rate / 1e12:.2f} TB/s read and written")
    for kind, points in point_sets(options.points, device).items():
        print(f"\n{kind}")
        report[kind] = compare(setups, points, layout, rate, options)
        if options.tune:
            report[f"{kind}, tuning"] = tune(points, layout, options)
    if options.out is not None:
        write_json(options.out, report)
    return int(failed)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cuda = torch.cuda.is_available()
    parser.add_argument("--device", default="cuda" if cuda else "cpu")
    parser.add_argument("--points", type=int, default=1 << 22 if cuda else 1 << 12)
    parser.add_argument("--n-levels", type=int, default=GRID["n_levels"])
    parser.add_argument("--log2-hashmap-size", type=int, default=GRID["log2_hashmap_size"])
    parser.add_argument("--repeats", type=int, default=20 if cuda else 3)
    parser.add_argument("--warm-up", type=int, default=3 if cuda else 1)
    parser.add_argument("--check", action="store_true", help="compare with the reference first")
    parser.add_argument("--tune", action="store_true", help="sweep launch settings (Triton)")
    parser.add_argument("--no-torch", action="store_true", help="leave our torch code out")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    return parser.parse_args(arguments)


def grid_config(options: argparse.Namespace) -> dict[str, Any]:
    """The grid in tiny-cuda-nn's words."""
    chosen = {"n_levels": options.n_levels, "log2_hashmap_size": options.log2_hashmap_size}
    return {**GRID, **chosen}


def grid_layout(options: argparse.Namespace) -> GridLayout:
    """The grid in our words."""
    config = grid_config(options)
    return make_layout(n_features=config.pop("n_features_per_level"), **config)


# What is timed


def make_setups(options: argparse.Namespace, layout: GridLayout) -> list[Setup]:
    """All ways that can run here."""
    device = options.device
    seed = torch.Generator().manual_seed(0)
    table = torch.randn(layout.n_entries, layout.n_features, generator=seed).to(device)
    setups = []
    if device.startswith("cuda"):
        setups.append(_ours("triton", "triton", table, layout))
        setups.append(_ours("triton, half table", "triton", table.half(), layout))
    if not options.no_torch:
        setups.append(_ours("torch", "torch", table, layout))
    if device.startswith("cuda"):
        setups += _tinycudann(options, table)
    return setups


def _ours(name: str, backend: str, table: Tensor, layout: GridLayout) -> Setup:
    table = table.clone().requires_grad_()
    look_up = lambda points: encode(points, table, layout, backend=backend)  # noqa: E731
    return Setup(name, look_up, table, table.dtype)


def _tinycudann(options: argparse.Namespace, table: Tensor) -> list[Setup]:
    try:
        import tinycudann
    except (ImportError, OSError) as error:
        print(f"tinycudann: {error}")
        return []
    config = {"otype": "HashGrid", **grid_config(options)}
    setups = []
    for name, dtype in (("tinycudann", torch.float32), ("tinycudann, half", torch.float16)):
        module = tinycudann.Encoding(3, config, dtype=dtype)
        with torch.no_grad():
            module.params.copy_(table.view(-1))
        setups.append(Setup(name, module, module.params, dtype))
    return setups


def point_sets(count: int, device: str) -> dict[str, Tensor]:
    """Points (N, 3) in [0, 1]: uniform, and along a camera's rays through the box."""
    seed = torch.Generator().manual_seed(1)
    uniform = torch.rand(count, 3, generator=seed)
    side = max(round((count / STEPS_PER_RAY) ** 0.5), 1)
    pixel = torch.linspace(-0.5, 0.5, side)
    across, up = torch.meshgrid(pixel, pixel, indexing="ij")
    direction = torch.stack((torch.ones_like(up), across, up), -1).view(-1, 1, 3)
    jitter = torch.rand(len(direction), 1, 1, generator=seed)
    depth = (torch.arange(STEPS_PER_RAY)[:, None] + jitter) / STEPS_PER_RAY
    origin = torch.tensor([-0.6, 0.5, 0.5])
    along = (origin + direction * (0.7 + 0.8 * depth)).view(-1, 3).clamp(0, 1)
    return {"uniform": uniform.to(device), "along rays": along[:count].contiguous().to(device)}


def one_pass(setup: Setup, points: Tensor, kind: str) -> Callable[[], None]:
    """One of ``PASSES`` as a function to time."""
    points = points.clone().requires_grad_("positions" in kind)
    wanted = [tensor for tensor in (points, setup.table) if tensor.requires_grad]
    seed: list[Tensor] = []

    def step() -> None:
        if kind == "forward":
            with torch.no_grad():
                setup.look_up(points)
            return
        features = setup.look_up(points)
        if not seed:
            seed.append(torch.randn_like(features))
        torch.autograd.grad(features, wanted, seed[0])

    return step


def floor_bytes(kind: str, n_points: int, layout: GridLayout) -> int:
    """Bytes that must move once: points, features, the table, and their gradients."""
    points, features = 12 * n_points, 4 * layout.n_output_dims * n_points
    table = 4 * layout.n_entries * layout.n_features
    forward = points + features + table
    if kind == "forward":
        return forward
    backward = points + features + table
    return forward + backward + (points + table if "positions" in kind else 0)


# What is printed


def compare(
    setups: list[Setup],
    points: Tensor,
    layout: GridLayout,
    rate: float,
    options: argparse.Namespace,
) -> dict[str, dict[str, float]]:
    """Medians of every pass and setup."""
    found: dict[str, dict[str, float]] = {}
    for kind in PASSES:
        floor = floor_bytes(kind, len(points), layout) / rate * 1e3
        times = {
            setup.name: median_ms(
                one_pass(setup, points, kind), options.device, options.repeats, options.warm_up
            )
            for setup in setups
        }
        found[kind] = {**times, "floor": floor}
        print(f"\n{kind} (floor {floor:.3f} ms)")
        for name, time in times.items():
            line = f"  {name:20s} {time:9.3f} ms  {time / floor:6.1f} x floor"
            if "tinycudann" in times:
                line += f"  {time / times['tinycudann']:6.2f} x tinycudann"
            print(line)
    return found


def check(setups: list[Setup], layout: GridLayout, device: str) -> bool:
    """Compare features and gradients of every setup with the reference, in double precision."""
    good = True
    for kind, points in point_sets(CHECKED_POINTS, device).items():
        points = inside_cells(points, layout)
        seed = torch.randn(len(points), layout.n_output_dims, dtype=torch.float64, device=device)
        for setup in setups:
            ours = _results(setup.look_up, points, setup.table, seed)
            table = setup.table.detach().double().view(layout.n_entries, -1).requires_grad_()
            double = points.double()
            theirs = _results(
                lambda x, t=table: encode_reference(x, t, layout), double, table, seed
            )
            errors = {name: _error(ours[name], theirs[name]) for name in ours}
            passed = all(error <= TOLERANCE[setup.precision] for error in errors.values())
            good &= passed
            worst = ", ".join(f"{name} {error:.1e}" for name, error in errors.items())
            print(f"check {kind:10s} {setup.name:20s} {'passed' if passed else 'FAILED'}: {worst}")
    return good


def inside_cells(points: Tensor, layout: GridLayout) -> Tensor:
    """The points that are in the same cell of every level in single as in double precision."""
    scales = torch.tensor([level.scale for level in layout.levels], device=points.device)
    place = (points.double()[:, None] * scales[:, None] + 0.5) % 1
    return points[((place > BORDER) & (place < 1 - BORDER)).all(-1).all(-1)]


def _results(
    look_up: Callable[[Tensor], Tensor], points: Tensor, table: Tensor, seed: Tensor
) -> dict[str, Tensor]:
    points = points.clone().requires_grad_()
    features = look_up(points)
    of_points, of_table = torch.autograd.grad(features, (points, table), seed.to(features.dtype))
    return {"features": features, "to table": of_table.flatten(), "to positions": of_points}


def _error(found: Tensor, expected: Tensor) -> float:
    """Distance relative to the expected length."""
    expected = expected.detach().view_as(found)
    difference = found.detach().double() - expected
    return float(difference.norm() / expected.norm())


def tune(points: Tensor, layout: GridLayout, options: argparse.Namespace) -> dict[str, Any]:
    """Times of the kernels under other launch settings, and level by level."""
    from threestudio_eeg.neural_fields import hash_grid_triton as ours

    table = torch.randn(layout.n_entries, layout.n_features, device=points.device)
    gradient = torch.randn(layout.n_output_dims, len(points), device=points.device).t()
    kernels: dict[str, tuple[list[dict[str, Any]], Callable[..., object]]] = {
        "gather": (GATHER_SWEEP, lambda l, t: ours.gather(points, table, l, tuning=t)),
        "scatter": (SCATTER_SWEEP, lambda l, t: ours.scatter(points, gradient, l, tuning=t)),
        "slope": (SLOPE_SWEEP, lambda l, t: ours.slope(points, table, gradient, l, tuning=t)),
    }
    found: dict[str, Any] = {}
    for name, (sweep, kernel) in kernels.items():
        print(f"\n{name}: settings, best first")
        times = []
        for settings in sweep:
            tuning = replace(ours.TUNING, **settings)
            step = lambda k=kernel, t=tuning: k(layout, t)  # noqa: E731
            times.append((median_ms(step, options.device, options.repeats, 2), settings))
        times.sort(key=lambda pair: pair[0])
        for time, settings in times:
            print(f"  {time:8.3f} ms  {settings}")
        best = replace(ours.TUNING, **times[0][1])
        found[name] = {"settings": times, "levels": levels(kernel, best, layout, options)}
    return found


def levels(
    kernel: Callable[..., object], tuning: Any, layout: GridLayout, options: argparse.Namespace
) -> list[float]:
    """Time of every level by itself; the gradient's columns read are those of the first level."""
    print("  level by level:")
    times = []
    for level in layout.levels:
        alone = replace(layout, levels=(level,))
        times.append(
            median_ms(lambda a=alone: kernel(a, tuning), options.device, options.repeats, 2)
        )
        kind = "hashed" if level.hashed else "dense"
        print(
            f"    {level.scale:8.1f} cells, {level.size:7d} entries, {kind:6s} {times[-1]:8.3f} ms"
        )
    return times


if __name__ == "__main__":
    sys.exit(main())
