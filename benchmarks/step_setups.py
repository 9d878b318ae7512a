"""The training steps that ``train_step.py`` times: this project's, and threestudio's own.

Both hosts take the same names and fields, so one description builds both: ProlificDreamer's first
stage as threestudio's ``configs/prolificdreamer.yaml`` has it, with the cameras of that file.
"""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from guidance_setups import World, ours, upstream
from timing import Laps, median_ms, peak_gb, reset_peak

from threestudio_eeg.builtin.base import device_scope
from threestudio_eeg.builtin.geometry import ImplicitVolume
from threestudio_eeg.builtin.regularisers import sparsity

RADIUS = 1.0
FUSED = {"backend": "triton", "precision": "float16"}
_DEFAULTS = ImplicitVolume.Config()
GRID, PERCEPTRON = _DEFAULTS.pos_encoding_config, _DEFAULTS.mlp_network_config
"""threestudio's defaults, which are those of its file."""
FIELD = {
    "radius": RADIUS,
    "normal_type": None,
    "density_bias": "blob_magic3d",
    "density_activation": "softplus",
    "density_blob_scale": 10.0,
    "density_blob_std": 0.5,
}
CAMERAS = {
    "camera_distance_range": [1.0, 1.5],
    "fovy_range": [40, 70],
    "elevation_range": [-10, 45],
    "camera_perturb": 0.0,
    "center_perturb": 0.0,
    "up_perturb": 0.0,
}
LEARNING_RATES = {
    "encoding": 0.01,
    "density_network": 0.001,
    "feature_network": 0.001,
    "background": 0.001,
    "guidance": 0.0001,
}
LAMBDA_SPARSITY = 10.0
PARTS = ("render", "guidance", "backward and optimiser")


@dataclass(frozen=True)
class Setup:
    """What a step is made of, besides what all have in common.

    Attributes
    ----------
    guidance, perceptron, renderer
        Further fields of the guidance, of the field's networks, of the renderer.
    upstream
        threestudio's own modules, under its half-precision autocast.
    fused_optimizer
        torch's fused AdamW.
    """

    guidance: dict[str, Any] = field(default_factory=dict)
    perceptron: dict[str, Any] = field(default_factory=dict)
    renderer: dict[str, Any] = field(default_factory=dict)
    upstream: bool = False
    fused_optimizer: bool = False


_FUSED = Setup(perceptron=FUSED, fused_optimizer=True)
SETUPS: dict[str, Setup] = {
    "upstream": Setup(upstream=True),
    "eager": Setup({"acceleration": "none"}),
    "default": Setup(),
    "fused": _FUSED,
    "fused, chunks of 4 M": replace(_FUSED, renderer={"train_chunk_size": 1 << 22}),
    "fused, graph kept": replace(_FUSED, renderer={"train_chunk_size": 0}),
    "fused, plain networks": replace(_FUSED, guidance={"fused_norms": False}),
    "fused, shared noise": replace(_FUSED, guidance={"lora_shares_noise": True}),
}
"""By name; the first is what the others are compared with."""


class TrainingStep:
    """One training step after the other, its parts timed.

    Parameters
    ----------
    setup
        Of :data:`SETUPS`.
    world
        Pipeline, prompt, device.
    side, samples
        Pixels along a side, and samples a ray.
    """

    def __init__(self, setup: Setup, world: World, side: int, samples: int) -> None:
        self.world, self.side, self._step = world, side, 0
        self._half = setup.upstream and world.device.startswith("cuda")
        torch.manual_seed(0)
        if setup.upstream:
            self.guidance, find = _of_upstream(world)
            scope: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
        else:
            from threestudio_eeg.builtin.registry import find

            self.guidance = ours(world, **setup.guidance)[1]
            scope = device_scope(world.device)
        with scope:
            self._make_field(setup, find, samples)
        self.cameras = _cameras(side)
        self.optimizer = self._make_optimizer(setup.fused_optimizer)
        self.laps = Laps(world.device)
        self.seen: list[tuple[int, torch.Tensor]] = []

    def _make_field(self, setup: Setup, find: Callable[[str], Any], samples: int) -> None:
        on_cpu = self.world.device == "cpu"
        grid = {**GRID, "log2_hashmap_size": 14} if on_cpu else GRID
        perceptron = {**PERCEPTRON, **({} if on_cpu else setup.perceptron)}
        self.geometry = find("implicit-volume")(
            {**FIELD, "pos_encoding_config": grid, "mlp_network_config": perceptron}
        )
        self.material = find("no-material")({"n_output_dims": 3, "color_activation": "sigmoid"})
        self.background = find("neural-environment-map-background")(
            {"color_activation": "sigmoid", "random_aug": True}
        )
        self.renderer = find("nerf-volume-renderer")(
            {"radius": RADIUS, "num_samples_per_ray": samples, **setup.renderer},
            geometry=self.geometry,
            material=self.material,
            background=self.background,
        )
        self.parts = (
            self.geometry,
            self.material,
            self.background,
            self.renderer,
            self.guidance,
        )
        for part in self.parts:
            part.to(self.world.device)
            part.train()

    def _make_optimizer(self, fused: bool) -> torch.optim.Optimizer:
        owners = {name: getattr(self.geometry, name, None) for name in LEARNING_RATES}
        owners.update(background=self.background, guidance=self.guidance)
        groups = [
            {"params": [p for p in owners[name].parameters() if p.requires_grad], "lr": rate}
            for name, rate in LEARNING_RATES.items()
        ]
        return torch.optim.AdamW(groups, betas=(0.9, 0.99), eps=1e-15, fused=fused or None)

    # A step

    def __call__(self) -> None:
        """Run the next step."""
        batch = self.camera(self._step)
        for part in self.parts:
            part.do_update_step(0, self._step)
        self.laps.start()
        with self._autocast():
            out = self.renderer(**batch)
            self.laps.mark(PARTS[0])
            losses = self.guidance(out["comp_rgb"], self.world.prompt, **batch)
        self.laps.mark(PARTS[1])
        total = losses["loss_vsd"] + losses["loss_lora"] + LAMBDA_SPARSITY * sparsity(out)
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        self.optimizer.step()
        self.laps.mark(PARTS[2])
        self.seen.append((len(out["weights"]), out["opacity"].detach().mean()))
        self._step += 1

    def camera(self, step: int) -> dict[str, Any]:
        """The batch of a step, on the device."""
        batch = self.cameras.batch(step)
        device = self.world.device
        return {k: v.to(device) if torch.is_tensor(v) else v for k, v in batch.items()}

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if not self._half:
            return contextlib.nullcontext()
        return torch.autocast("cuda", dtype=torch.float16)

    # What is measured

    def measure(self, repeats: int) -> dict[str, Any]:
        """Medians of the parts in ms, what was rendered, and the peak of the memory."""
        self.laps.clear()
        self.seen.clear()
        reset_peak(self.world.device)
        for _ in range(repeats):
            self()
        times = self.laps.times()
        counts = [float(count) for count, _ in self.seen]
        return {
            **{part: statistics.median(values) for part, values in times.items()},
            "mean of whole": statistics.mean(times["whole"]),
            "samples": statistics.median(counts),
            "mean opacity": statistics.median(float(opacity) for _, opacity in self.seen),
            **_peak(self.world.device),
            "repeats": repeats,
        }

    def measure_guidance(self, repeats: int) -> dict[str, Any]:
        """The guidance by itself, forward and backward to render and LoRA: median, and memory."""
        device, batch = self.world.device, self.camera(0)
        rgb = self.world.render(self.side)
        weights = [p for p in self.guidance.parameters() if p.requires_grad]

        def step() -> None:
            rgb.grad = None
            for weight in weights:
                weight.grad = None
            with self._autocast():
                out = self.guidance(rgb, self.world.prompt, **batch)
            (out["loss_vsd"] + out["loss_lora"]).backward()

        step()
        base = allocated(device)
        reset_peak(device)
        ms = median_ms(step, device, repeats, warm_up=1)
        peak = _peak(device)["peak GB"]
        return {"guidance alone": ms, "guidance GB above what it keeps": peak - base}

    def measure_render(self) -> dict[str, Any]:
        """What a training render keeps of a sample until its backward pass, and takes in it."""
        device, batch = self.world.device, self.camera(0)
        self.optimizer.zero_grad(set_to_none=True)
        base = allocated(device)
        reset_peak(device)
        with self._autocast():
            out = self.renderer(**batch)
        kept, count = allocated(device) - base, len(out["weights"])
        (out["comp_rgb"].square().mean() + out["opacity"].mean()).backward()
        peak = _peak(device)["peak GB"] - base
        rays = batch["rays_o"].numel() // 3
        return {
            "render bytes kept a sample": kept * 1e9 / max(count, 1),
            "render bytes at peak a sample": peak * 1e9 / max(count, 1),
            "samples a ray": count / rays,
        }


def _of_upstream(world: World) -> tuple[Any, Callable[[str], Any]]:
    guidance = upstream(world)[1]
    import threestudio

    return guidance, threestudio.find


def stood_in() -> Sequence[str]:
    """Packages of threestudio's that could not be used, and had a stand-in."""
    from threestudio_eeg import compat

    return [f"{one.remedy.name}: {one.reason}" for one in compat.active()]


def _cameras(side: int) -> Any:
    from threestudio_eeg.builtin.registry import find

    torch.manual_seed(5)
    data = find("random-camera-datamodule")({**CAMERAS, "height": side, "width": side})
    data.setup("fit")
    return data.train_dataset


def allocated(device: str) -> float:
    """Memory of tensors, in 10**9 bytes; NaN on a CPU."""
    return torch.cuda.memory_allocated() / 1e9 if device.startswith("cuda") else float("nan")


def _peak(device: str) -> dict[str, float]:
    """Highest memory of tensors, and of what torch held for them, in 10**9 bytes."""
    if not device.startswith("cuda"):
        return {"peak GB": float("nan"), "reserved GB": float("nan")}
    reserved = torch.cuda.max_memory_reserved() / 1e9
    return {"peak GB": peak_gb(device), "reserved GB": reserved}
