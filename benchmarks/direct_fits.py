"""Which representation holds the phantom's shapes: fits to true pictures, without any diffusion.

Each representation is trained as ``phantom/eeg.yaml`` with its overlay trains it, but towards the
true picture at every random camera instead of by a guidance. This bounds what distillation with the
same steps can reach, and says how much of an object's error is the representation's own.

    python -m benchmarks.direct_fits --steps 200 --categories mug chair --out fits.jsonl
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

OVERLAYS = (
    "implicit-volume",
    "volume-grid",
    "implicit-sdf",
    "gaussian-splatting",
    "tetrahedra-sdf-grid",
)
"""The first is what the experiment has without an overlay."""
DENSITIES = OVERLAYS[:2]
FIGURES = ("fscore", "precision", "recall", "iou", "chamfer", "psnr", "steps_per_s")
FITTED = ("lambda_eikonal", "lambda_normal_consistency", "lambda_laplacian_smoothness")
"""Regularisers that a fit keeps; the others stand against distillation's clouds."""


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    rows = []
    for category in options.categories:
        for overlay in options.overlays:
            row = fit(overlay, category, options)
            rows.append(row)
            print(json.dumps(row), flush=True)
            if options.out is not None:
                with options.out.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
    print(table(rows))


def _parser() -> argparse.ArgumentParser:
    kind = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=kind)
    parser.add_argument("--overlays", nargs="+", choices=OVERLAYS, default=list(OVERLAYS))
    parser.add_argument("--categories", nargs="+", default=["mug"])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="overrides")
    parser.add_argument("--out", type=Path, help="append rows as JSON lines")
    return parser


def fit(overlay: str, category: str, options: argparse.Namespace) -> dict[str, Any]:
    """Fit one representation to one test object and compare them."""
    import lightning.pytorch as pl
    import torch

    from threestudio_eeg.builtin.base import device_scope
    from threestudio_eeg.evaluation.shape import compare_meshes, main_components
    from threestudio_eeg.phantom.objects import make_instances, solids_of
    from threestudio_eeg.phantom.pictures import mesh_of

    instances = {i.category: i for i in make_instances("test", 1, seed=0)}
    instance = instances[category]
    with device_scope(options.device) as device:
        pl.seed_everything(options.seed, verbose=False)
        config = experiment(overlay, options)
        system, cameras = parts_of(config, device)
        started = time.perf_counter()
        psnr = train(system, cameras, instance, options.steps)
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - started
        mesh = system.eval().make_exporter().coloured_mesh()
    shape = compare_meshes(main_components(mesh), mesh_of(solids_of([instance])), seed=0)
    return {
        "overlay": overlay,
        "category": category,
        "steps": options.steps,
        "seed": options.seed,
        "device": options.device,
        "seconds": round(seconds, 1),
        "steps_per_s": round(options.steps / seconds, 2),
        "psnr": round(psnr, 2),
        "faces": len(mesh.faces),
        **{name: round(float(value), 4) for name, value in shape.items()},
    }


def experiment(overlay: str, options: argparse.Namespace) -> Any:
    from threestudio_eeg.builtin.config import load_config
    from threestudio_eeg.experiments import experiment_config

    names = ["phantom/eeg.yaml"]
    names += [f"phantom/{overlay}.yaml"] if overlay != OVERLAYS[0] else []
    words = ["system.prompt_processor.conditioning=none", f"trainer.max_steps={options.steps}"]
    if overlay in DENSITIES:
        words.append("system.geometry.isosurface_threshold=auto")
    files = [experiment_config(name) for name in names]
    return load_config(*files, cli_args=[*words, *options.set])


def parts_of(config: Any, device: Any) -> tuple[Any, Any]:
    """The system without its guidance, and the experiment's random cameras."""
    from omegaconf import OmegaConf

    from threestudio_eeg.builtin.registry import find
    from threestudio_eeg.builtin.systems import BaseLift3DSystem

    known = {field.name for field in dataclasses.fields(BaseLift3DSystem.Config)}
    fields = OmegaConf.create({key: config.system[key] for key in config.system if key in known})
    fields.optimizer.params.pop("guidance", None)
    data = find(config.data_type)(config.data)
    data.setup("fit")
    system = BaseLift3DSystem(fields).to(device).train()
    if hasattr(system.geometry, "initialize_shape"):
        system.geometry.initialize_shape()
    return system, data.train_dataset


def train(system: Any, cameras: Any, instance: Any, steps: int) -> float:
    """Fit to true pictures; return the last steps' mean PSNR over the flat background, in dB."""
    import torch
    from torch.nn import functional as F

    optimizer, errors = system.make_optimizer(), []
    for step in range(steps):
        batch = {
            name: value.to(system.device) if isinstance(value, torch.Tensor) else value
            for name, value in cameras.batch(step).items()
        }
        truth = picture(instance, batch)
        system.do_update_step(0, step)
        out = system(batch)
        rgb = truth[..., :3] + out["comp_rgb_bg"].detach() * (1 - truth[..., 3:])
        error = F.mse_loss(out["comp_rgb"], rgb)
        loss = error + F.mse_loss(out["opacity"], truth[..., 3:])
        loss = loss + regularisation(system, out, step)
        optimizer.zero_grad()
        loss.backward()
        for group in optimizer.param_groups:
            follow_schedule(group, step)
        optimizer.step()
        errors.append(error.detach())
    system.set_resume_status(0, steps)
    system.eval().do_update_step(0, steps)
    return float(-10 * torch.stack(errors[-10:]).mean().log10())


def picture(instance: Any, batch: dict[str, Any]) -> Any:
    """The true pictures (B, H, W, 4) at a batch's cameras, colour times opacity."""
    import torch

    from threestudio_eeg.phantom.objects import solids_of
    from threestudio_eeg.phantom.pictures import Cameras, render

    cameras = Cameras(batch["elevation"], batch["azimuth"], batch["camera_distances"])
    solids = solids_of([instance] * len(cameras)).to(batch["elevation"].device)
    rgba = render(solids, cameras, batch["height"]).permute(0, 2, 3, 1)
    return torch.cat((rgba[..., :3] * rgba[..., 3:], rgba[..., 3:]), dim=-1)


def regularisation(system: Any, out: dict[str, Any], step: int) -> Any:
    """What keeps a mesh or a distance field in shape, at a thousandth of its weight beside VSD."""
    import torch

    from threestudio_eeg.builtin.regularisers import REGULARISERS

    total = torch.zeros((), device=system.device)
    for name in FITTED:
        weight = float(system.cfg.loss.get(name, 0.0))
        if weight > 0:
            total = total + weight * 1e-3 * REGULARISERS[name.removeprefix("lambda_")](out)
    return total


def follow_schedule(group: dict[str, Any], step: int) -> None:
    from omegaconf import OmegaConf

    from threestudio_eeg.builtin.config import C

    if isinstance(group.get("schedule"), list):
        group["lr"] = C(OmegaConf.create(group["schedule"]), 0, step)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: a row a representation, the mean over the objects."""
    lines = [f"| representation | {' | '.join(FIGURES)} |", "|---" * (1 + len(FIGURES)) + "|"]
    for overlay in dict.fromkeys(row["overlay"] for row in rows):
        own = [row for row in rows if row["overlay"] == overlay]
        means = [sum(row[name] for row in own) / len(own) for name in FIGURES]
        lines.append(f"| {overlay} | {' | '.join(f'{mean:.3g}' for mean in means)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
