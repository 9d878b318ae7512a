"""Rays side by side: marching, compositing, networks, the whole render; Triton, torch, nerfacc.

The scene is an implicit volume as training begins (a blob), seen by a camera of threestudio's
range. Prints medians, ratios, the multiple of the time that the counted bytes take at the rate of a
large copy, and for the whole render its peak memory. With --check the samples and the composited
values are first compared with the torch code.

    python benchmarks/render.py --check --side 512 --samples 512 --out render.json
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]
os.environ.setdefault("THREESTUDIO_EEG_HOST", "builtin")

import torch  # noqa: E402
from timing import bandwidth, machine, median_ms, peak_gb, reset_peak  # noqa: E402
from torch import Tensor  # noqa: E402

from eeg_encoder.files import write_json  # noqa: E402
from threestudio_eeg.builtin.cameras import c2w_from_angles, camera_batch  # noqa: E402
from threestudio_eeg.builtin.registry import find  # noqa: E402
from threestudio_eeg.neural_fields.compositing import accumulate, render_weights  # noqa: E402
from threestudio_eeg.neural_fields.marching import Samples, march  # noqa: E402
from threestudio_eeg.neural_fields.networks import evaluate_together  # noqa: E402

CAMERA_DISTANCE, FIELD_OF_VIEW = 1.25, 55.0
RADIUS = 1.0
SETTLED_STEPS = 6
FUSED = {"backend": "triton"}
WHOLE: dict[str, dict[str, Any]] = {
    "graph kept": {"backend": "triton", "train_chunk_size": 0},
    "default": {},
    "chunks of 256 k": {"backend": "triton", "train_chunk_size": 1 << 18},
    "chunks of 4 M": {"backend": "triton", "train_chunk_size": 1 << 22},
    "fused float32": {"mlp": {**FUSED, "precision": "float32"}},
    "fused float16": {"mlp": {**FUSED, "precision": "float16"}},
    "fused bfloat16": {"mlp": {**FUSED, "precision": "bfloat16"}},
    "fused float16, graph kept": {"mlp": {**FUSED, "precision": "float16"}, "train_chunk_size": 0},
    "torch rays": {"backend": "torch"},
}
"""Settings of the renderer, and under ``mlp`` further ones of the field's networks."""

NETWORKS: dict[str, dict[str, Any]] = {
    "torch": {},
    **{kind: {**FUSED, "precision": kind} for kind in ("float32", "float16", "bfloat16")},
}


def main(arguments: list[str] | None = None) -> int:
    """Run what the arguments ask for; 1 when a check failed."""
    options = parse(arguments)
    device = options.device
    report: dict[str, Any] = {"machine": machine(device), "options": vars(options) | {"out": None}}
    print(*report["machine"].values(), f"{options.side}² rays", sep=", ")
    torch.manual_seed(0)
    renderer = make_renderer(options, {})
    settle(renderer)
    rays = camera_rays(options)
    rate = bandwidth(device)
    print(f"copy: {rate / 1e12:.2f} TB/s read and written")
    failed = options.check and not check(renderer, rays, options)
    for name, piece in (("march", march_setups), ("composite", composite_setups)):
        report[name] = compare(name, piece(renderer, rays, options), rate, options)
    report["networks"] = networks(renderer, options)
    report["whole"] = whole(options)
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
    parser.add_argument("--side", type=int, default=512 if cuda else 32, help="pixels")
    parser.add_argument("--samples", type=int, default=512 if cuda else 64, help="per ray")
    parser.add_argument("--points", type=int, default=1 << 22 if cuda else 1 << 10)
    parser.add_argument("--setups", nargs="+", choices=WHOLE, help="of the whole render")
    parser.add_argument("--repeats", type=int, default=20 if cuda else 3)
    parser.add_argument("--warm-up", type=int, default=3 if cuda else 1)
    parser.add_argument("--check", action="store_true", help="compare with the torch code first")
    parser.add_argument("--no-torch", action="store_true", help="do not time torch's rays on a GPU")
    parser.add_argument("--profile", action="store_true", help="list the costliest kernels")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    options = parser.parse_args(arguments)
    if options.setups is None:
        options.setups = list(WHOLE) if cuda else ["torch rays"]
    return options


# The scene


def make_renderer(options: argparse.Namespace, settings: dict[str, Any]) -> Any:
    """A renderer of a fresh implicit volume, in threestudio's default sizes."""
    mlp = {"otype": "VanillaMLP", "n_neurons": 64, "n_hidden_layers": 1}
    mlp.update(settings.get("mlp", {}))
    field = {"radius": RADIUS, "normal_type": None, "mlp_network_config": mlp}
    geometry = find("implicit-volume")(field)
    own = {name: value for name, value in settings.items() if name != "mlp"}
    renderer = find("nerf-volume-renderer")(
        {"radius": RADIUS, "num_samples_per_ray": options.samples, **own},
        geometry=geometry,
        material=find("no-material")({"n_output_dims": 3, "color_activation": "sigmoid"}),
        background=find("solid-color-background")({}),
    )
    for part in (geometry, renderer, renderer.material, renderer.background):
        part.to(options.device)
    return renderer


def settle(renderer: Any) -> None:
    """Let the occupancy grid see the field."""
    for turn in range(SETTLED_STEPS):
        renderer.update_step(0, 16 * turn)


def camera_rays(options: argparse.Namespace) -> dict[str, Any]:
    """One view as a batch."""
    one = torch.ones(1)
    c2w = c2w_from_angles(15 * one, 30 * one, CAMERA_DISTANCE * one)
    fovy = math.radians(FIELD_OF_VIEW) * one
    batch = camera_batch(c2w, fovy, options.side, options.side)
    batch["light_positions"] = batch["camera_positions"]
    return {k: v.to(options.device) if torch.is_tensor(v) else v for k, v in batch.items()}


def flat_rays(rays: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Origins and directions, (R, 3)."""
    return rays["rays_o"].reshape(-1, 3), rays["rays_d"].reshape(-1, 3)


# The pieces

Setups = tuple[dict[str, Callable[[], Any]], int]


def backends(options: argparse.Namespace) -> list[str]:
    """Ours that can run here."""
    on_gpu = options.device.startswith("cuda")
    return ["triton"] * on_gpu + ["torch"] * (not (on_gpu and options.no_torch))


def march_setups(renderer: Any, rays: dict[str, Any], options: argparse.Namespace) -> Setups:
    """Sampling through the occupancy grid, and the bytes of its result."""
    origins, directions = flat_rays(rays)
    grid, step = renderer.estimator, renderer.render_step_size
    setups: dict[str, Callable[[], Any]] = {
        name: lambda b=name: march(origins, directions, grid, step, backend=b)
        for name in backends(options)
    }
    count = len(march(origins, directions, grid, step))
    print(f"{count} samples on {len(origins)} rays")
    for estimator in nerfacc_grid(grid, options):
        setups["nerfacc"] = lambda e=estimator: e.sampling(
            origins, directions, render_step_size=step, early_stop_eps=0
        )
    if "triton" in setups:
        setups["triton, fixed length"] = lambda: march(
            origins, directions, grid, step, backend="triton", capacity=count
        )
    return setups, 24 * len(origins) + 16 * count


def nerfacc_grid(grid: Any, options: argparse.Namespace) -> Iterator[Any]:
    """nerfacc's estimator with the same cells, where nerfacc runs."""
    if not options.device.startswith("cuda"):
        return
    try:
        import nerfacc

        estimator = nerfacc.OccGridEstimator(grid.aabbs[0], grid.side, 1).to(options.device)
        estimator.load_state_dict(grid.state_dict(), strict=False)
        ray = torch.eye(3, device=options.device)
        estimator.sampling(-3 * ray, ray, render_step_size=0.1)
    except Exception as error:  # its extension is compiled here, which fails in many ways
        print(f"nerfacc: {type(error).__name__}: {error}")
        return
    yield estimator


def composite_setups(renderer: Any, rays: dict[str, Any], options: argparse.Namespace) -> Setups:
    """Colour, opacity and depth of all rays and the gradients back, and the bytes of it."""
    origins, directions = flat_rays(rays)
    samples = march(origins, directions, renderer.estimator, renderer.render_step_size)
    inputs = composite_inputs(samples)
    n_rays = len(origins)
    setups: dict[str, Callable[[], Any]] = {
        name: lambda b=name: composite(*inputs, samples, n_rays, b) for name in backends(options)
    }
    for _ in nerfacc_grid(renderer.estimator, options):
        setups["nerfacc"] = lambda: composite_nerfacc(*inputs, samples, n_rays)
    return setups, 2 * (4 + 12 + 16) * len(samples)


def composite_inputs(samples: Samples) -> tuple[Tensor, Tensor]:
    """Densities (N,) and colours (N, 3)."""
    device, seed = samples.t_starts.device, torch.Generator().manual_seed(2)
    density = (torch.rand(len(samples), generator=seed) * 5).to(device).requires_grad_()
    return density, torch.rand(len(samples), 3, generator=seed).to(device).requires_grad_()


def composite(
    density: Tensor, colour: Tensor, samples: Samples, n_rays: int, backend: str
) -> tuple[Tensor, ...]:
    """Ours: pictures, and the gradients of the sum of their squares."""
    weights, _, _ = render_weights(density, samples, n_rays, backend)
    middles = samples.t_middles[:, None]
    pictures = [
        accumulate(weights, value, samples, n_rays, backend) for value in (colour, None, middles)
    ]
    return (*pictures, *_gradients(pictures, density, colour))


def composite_nerfacc(
    density: Tensor, colour: Tensor, samples: Samples, n_rays: int
) -> tuple[Tensor, ...]:
    """nerfacc's: the same."""
    import nerfacc

    index = samples.ray_indices
    weights, _, _ = nerfacc.render_weight_from_density(
        samples.t_starts, samples.t_ends, density, ray_indices=index, n_rays=n_rays
    )
    pictures = [
        nerfacc.accumulate_along_rays(weights, value, index, n_rays)
        for value in (colour, None, samples.t_middles[:, None])
    ]
    return (*pictures, *_gradients(pictures, density, colour))


def _gradients(pictures: list[Tensor], *inputs: Tensor) -> tuple[Tensor, ...]:
    loss = torch.stack([picture.square().sum() for picture in pictures]).sum()
    return torch.autograd.grad(loss, inputs)


def compare(
    title: str, setups: Setups, rate: float, options: argparse.Namespace
) -> dict[str, float]:
    """Medians of all setups of a piece."""
    functions, n_bytes = setups
    floor = n_bytes / rate * 1e3
    print(f"\n{title} (floor {floor:.3f} ms)")
    times = {}
    for name, function in functions.items():
        times[name] = median_ms(function, options.device, options.repeats, options.warm_up)
        line = f"  {name:22s} {times[name]:9.3f} ms  {times[name] / floor:6.1f} x floor"
        print(line)
    if "nerfacc" in times:
        ratios = {name: time / times["nerfacc"] for name, time in times.items()}
        print("  to nerfacc: " + ", ".join(f"{name} {r:.2f}" for name, r in ratios.items()))
    return {**times, "floor": floor}


# The networks alone


def networks(renderer: Any, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """The field's two networks on --points encodings, forward and backward: medians.

    ``one kernel``: fused, and both at once, as a field evaluates them.
    """
    width = renderer.geometry.encoding.n_output_dims
    seed = torch.Generator().manual_seed(3)
    encoded = torch.randn(width, options.points, generator=seed).to(options.device)
    encoded = encoded.t().requires_grad_()
    found = {}
    for name, settings in NETWORKS.items():
        if "backend" in settings and not options.device.startswith("cuda"):
            continue
        torch.manual_seed(0)
        geometry = make_renderer(options, {"mlp": settings}).geometry
        pair = (geometry.density_network, geometry.feature_network)
        inputs = [encoded, *(p for network in pair for p in network.parameters())]
        ways: dict[str, Callable[[], Any]] = {name: lambda p=pair: [f(encoded) for f in p]}
        if "backend" in settings:
            ways[f"{name}, one kernel"] = lambda p=pair: evaluate_together(*p, encoded)
        for way, outputs in ways.items():

            def forward(outputs: Any = outputs) -> Any:
                with torch.no_grad():
                    return outputs()

            def both(outputs: Any = outputs, inputs: list[Tensor] = inputs) -> None:
                torch.autograd.grad(sum(out.sum() for out in outputs()), inputs)

            found[way] = {
                title: median_ms(step, options.device, options.repeats, options.warm_up)
                for title, step in (("forward", forward), ("forward and backward", both))
            }
            times = ", ".join(f"{title} {value:.3f} ms" for title, value in found[way].items())
            print(f"networks, {options.points} points, {way}: {times}")
    return found


# The whole render


def whole(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Render, and render with backward pass to the field's weights: medians and peak memory."""
    found = {}
    for name in options.setups:
        torch.manual_seed(0)
        renderer = make_renderer(options, WHOLE[name])
        settle(renderer)
        rays = camera_rays(options)
        weights = list(renderer.geometry.parameters())

        def forward(renderer: Any = renderer, rays: dict[str, Any] = rays) -> dict[str, Tensor]:
            out: dict[str, Tensor] = renderer(**rays)
            return out

        def both(forward: Any = forward, weights: list[Tensor] = weights) -> None:
            for weight in weights:
                weight.grad = None
            out = forward()
            (out["comp_rgb"].square().mean() + out["opacity"].mean()).backward()

        out = forward()
        count, opacity = len(out["weights"]), float(out["opacity"].detach().mean())
        del out
        figures: dict[str, float] = {"samples": count, "mean opacity": opacity}
        figures["peak GB"] = _peak_gb(both, options.device)
        for title, step in (("forward", forward), ("forward and backward", both)):
            figures[title] = median_ms(step, options.device, options.repeats, options.warm_up)
        found[name] = figures
        line = ", ".join(f"{title} {value:.4g}" for title, value in figures.items())
        print(f"\nwhole render, {name}: {line}")
        if options.profile:
            _profile(both, options.device)
    return found


def _peak_gb(step: Callable[[], Any], device: str) -> float:
    """Peak of the device's memory over a second call, in 10**9 bytes; NaN on a CPU."""
    step()
    if not device.startswith("cuda"):
        return math.nan
    reset_peak(device)
    step()
    return peak_gb(device)


def _profile(step: Callable[[], Any], device: str) -> None:
    from torch.profiler import ProfilerActivity, profile

    on_gpu = device.startswith("cuda")
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if on_gpu else [])
    with profile(activities=activities) as record:
        step()
    order = "self_cuda_time_total" if on_gpu else "self_cpu_time_total"
    print(record.key_averages().table(sort_by=order, row_limit=25, max_name_column_width=70))


# The check


def check(renderer: Any, rays: dict[str, Any], options: argparse.Namespace) -> bool:
    """Compare samples and composited values of all setups with our torch code."""
    origins, directions = flat_rays(rays)
    grid, step = renderer.estimator, renderer.render_step_size
    samples = march(origins, directions, grid, step, backend="torch")
    good = True
    for name, function in march_setups(renderer, rays, options)[0].items():
        found = function()
        index = found.ray_indices if isinstance(found, Samples) else found[0]
        starts = found.t_starts if isinstance(found, Samples) else found[1]
        good &= _verdict(
            f"march {name}", _samples_apart(index, starts, samples, len(origins)), 1e-2
        )
    if options.device.startswith("cuda"):
        good &= all(check_networks(kind, options) for kind in NETWORKS if kind != "torch")
    inputs = composite_inputs(samples)
    expected = composite(*inputs, samples, len(origins), "torch")
    others: dict[str, Callable[[], tuple[Tensor, ...]]] = {
        name: lambda b=name: composite(*inputs, samples, len(origins), b)
        for name in backends(options)
    }
    for _ in nerfacc_grid(grid, options):
        others["nerfacc"] = lambda: composite_nerfacc(*inputs, samples, len(origins))
    for name, function in others.items():
        pairs = zip(function(), expected, strict=True)
        worst = max(float((a - b).detach().norm() / b.detach().norm()) for a, b in pairs)
        good &= _verdict(f"composite {name}", worst, 1e-4)
    return good


def check_networks(kind: str, options: argparse.Namespace) -> bool:
    """Compare a fused network and its gradients with torch's."""
    results = []
    for settings in ({}, NETWORKS[kind]):
        torch.manual_seed(0)
        network = make_renderer(options, {"mlp": settings}).geometry.feature_network
        x = torch.randn(10_000, 32, generator=torch.Generator().manual_seed(4)).to(options.device)
        inputs = [x.requires_grad_(), *network.parameters()]
        out = network(x)
        results.append([out, *torch.autograd.grad(out.square().mean(), inputs)])
    pairs = zip(results[1], results[0], strict=True)
    worst = max(float((a - b).detach().norm() / b.detach().norm()) for a, b in pairs)
    return _verdict(f"networks {kind}", worst, 1e-3 if kind == "float32" else 5e-2)


def _samples_apart(index: Tensor, starts: Tensor, samples: Samples, n_rays: int) -> float:
    """Share of the rays on which the number of samples differs, or where they begin."""
    count, expected = (torch.bincount(i, minlength=n_rays) for i in (index, samples.ray_indices))
    total = starts.new_zeros(n_rays).double().index_add_(0, index, starts.double())
    other = torch.zeros_like(total).index_add_(0, samples.ray_indices, samples.t_starts.double())
    apart = (total - other).abs() > 1e-4 * expected.clamp(min=1)
    return float(((count != expected) | apart).double().mean())


def _verdict(name: str, error: float, tolerance: float) -> bool:
    passed = error <= tolerance
    print(f"check {name:30s} {'passed' if passed else 'FAILED'}: {error:.1e}")
    return passed


if __name__ == "__main__":
    sys.exit(main())
