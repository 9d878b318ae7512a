"""Run in a process of its own: the same numbers through both hosts, differences as JSON.

``python -m tests.threestudio_eeg.parity_driver CHECKOUT FOLDER``; what is random is drawn once and
handed to both. An entry is the relative error ``|ours - theirs| / |theirs|`` (Euclidean norms),
or, where it ends in ``_max``, the largest absolute difference.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from omegaconf import OmegaConf
from torch import Tensor

B = 2
VSD_SCALE, SDS_SCALE = 7.5, 100.0
GRID = {
    "otype": "HashGrid",
    "n_levels": 8,
    "n_features_per_level": 2,
    "log2_hashmap_size": 14,
    "base_resolution": 8,
    "per_level_scale": 1.5,
}

LATTICE = {
    "pos_encoding_config": GRID,
    "isosurface_method": "mc-cpu",
    "isosurface_resolution": 32,
    "isosurface_threshold": 1.0,
}


def relative(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


def largest(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max())


def import_upstream(checkout: Path) -> Any:
    from threestudio_eeg import compat, host

    host.settle("upstream")
    compat.activate("cpu", threestudio=checkout)
    importlib.import_module("threestudio")
    compat.after_import()
    importlib.import_module("threestudio_eeg.plugin")
    return host


def write_inputs(folder: Path) -> tuple[Path, Path]:
    """A random Stable Diffusion and a conditioning file for it."""
    from eeg_encoder.conditioning import (
        Conditioning,
        Trial,
        pipeline_fingerprint,
        save_conditioning,
    )

    from .tiny_stable_diffusion import LENGTH, WIDTH, make_tiny_stable_diffusion

    pipeline = make_tiny_stable_diffusion(folder / "sd")
    torch.manual_seed(1)
    conditioning = Conditioning(
        tokens=torch.randn(1, LENGTH, WIDTH),
        null_tokens=torch.randn(LENGTH, WIDTH),
        pooled=torch.nn.functional.normalize(torch.randn(1, 16), dim=1),
        trials=[Trial(id="t", subject=1, stimulus="n90000001_0", label="mug")],
        base_model=pipeline_fingerprint(pipeline),
        encoder="0" * 64,
        preprocessing={},
        protocol={"split": "test"},
    )
    save_conditioning(folder / "eeg.safetensors", conditioning)
    return pipeline, folder / "eeg.safetensors"


def cameras(n: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(5)
    return {
        "elevation": torch.linspace(0, 30, n),
        "azimuth": torch.linspace(-100, 90, n),
        "camera_distances": torch.full((n,), 1.5),
        "c2w": torch.randn(n, 4, 4, generator=generator),
        "mvp_mtx": torch.randn(n, 4, 4, generator=generator),
    }


@contextmanager
def given_draws(times: list[Tensor], noises: list[Tensor]) -> Iterator[None]:
    """Hand out these timesteps and noises, in order, to whoever draws."""
    with (
        mock.patch.object(torch, "randint", side_effect=times),
        mock.patch.object(torch, "randn_like", side_effect=noises),
    ):
        yield


def gradient(loss: Tensor, latents: Tensor) -> Tensor:
    """What the guidance says of the latents, freed of the batch's size."""
    return torch.autograd.grad(loss, latents, retain_graph=True)[0] * len(latents)


class Draw:
    """Timesteps and noises, and latents (B, 64, 64, 4) to put them on."""

    def __init__(self) -> None:
        torch.manual_seed(2)
        self.latents = torch.randn(B, 64, 64, 4)
        self.t, self.lora_t = torch.tensor([137, 821]), torch.tensor([44, 930])
        self.noise, self.lora_noise = torch.randn(2, B, 4, 64, 64)

    def leaf(self) -> Tensor:
        return self.latents.clone().requires_grad_(True)

    def as_ours(self) -> Any:
        from threestudio_eeg.noise import Draws

        return Draws(None, self.t, self.noise, self.lora_t, self.lora_noise)


def vsd(host: Any, pipeline: Path, prompt: Any) -> dict[str, float]:
    """Gradients of both losses: on the latents, and on the LoRA and the camera embedding."""
    common = {
        "pretrained_model_name_or_path": str(pipeline),
        "guidance_scale": VSD_SCALE,
        "half_precision_weights": False,
        "lora_cfg_training": False,
    }
    ours = host.find("eeg-vsd-guidance")(OmegaConf.create(common))
    theirs = host.find("stable-diffusion-vsd-guidance")(
        OmegaConf.create({**common, "pretrained_model_name_or_path_lora": str(pipeline)})
    )
    assert theirs.single_model
    for name, value in ours.named_parameters():
        if ".up." in name:
            torch.nn.init.normal_(value, std=0.1)
    theirs.load_state_dict(ours.state_dict())
    draw = Draw()
    here, there = draw.leaf(), draw.leaf()
    ours.draw = lambda *_, **__: draw.as_ours()
    mine = ours(here, prompt, **cameras(B), rgb_as_latents=True)
    with given_draws([draw.t, draw.lora_t], [draw.noise, draw.lora_noise]):
        other = theirs(there, prompt, **cameras(B), rgb_as_latents=True)
    grads, lora_grads = [], []
    for guidance, out, leaf in ((ours, mine, here), (theirs, other, there)):
        grads.append(gradient(out["loss_vsd"], leaf))
        weights = [p for _, p in sorted(guidance.named_parameters()) if p.requires_grad]
        pieces = torch.autograd.grad(out["loss_lora"], weights)
        lora_grads.append(torch.cat([piece.flatten() for piece in pieces]))
    return {
        "vsd_gradient": relative(*grads),
        "lora_loss": relative(mine["loss_lora"], other["loss_lora"]),
        "lora_gradient": relative(*lora_grads),
    }


def sds(host: Any, pipeline: Path, prompt: Any) -> dict[str, float]:
    """Upstream's SDS guides by ``c + s (c - u)``, ours by ``u + s (c - u)``: s + 1 is its s."""
    common = {"pretrained_model_name_or_path": str(pipeline), "half_precision_weights": False}
    ours, same_scale = (
        host.find("eeg-sds-guidance")(OmegaConf.create({**common, "guidance_scale": scale}))
        for scale in (SDS_SCALE + 1, SDS_SCALE)
    )
    theirs = host.find("stable-diffusion-guidance")(
        OmegaConf.create({**common, "guidance_scale": SDS_SCALE})
    )
    draw = Draw()
    leaves = [draw.leaf() for _ in range(3)]
    losses = []
    for guidance, leaf in ((ours, leaves[0]), (same_scale, leaves[1])):
        guidance.draw = lambda *_, **__: draw.as_ours()
        losses.append(guidance(leaf, prompt, **cameras(B), rgb_as_latents=True)["loss_sds"])
    with given_draws([draw.t], [draw.noise]):
        out = theirs(leaves[2], prompt, **cameras(B), rgb_as_latents=True)
    losses.append(out["loss_sds"])
    grads = [gradient(loss, leaf) for loss, leaf in zip(losses, leaves, strict=True)]
    return {
        "sds_gradient": relative(grads[0], grads[2]),
        "sds_gradient_at_the_same_number": relative(grads[1], grads[2]),
    }


def parts(host: Any, names: dict[str, tuple[str, dict[str, Any]]]) -> list[Any]:
    return [host.find(name)(OmegaConf.create(config)) for name, config in names.values()]


def renderer(host: Any, folder: Path) -> dict[str, float]:
    """One field, rendered by both hosts' ``nerf-volume-renderer``, with gradients."""
    from threestudio_eeg.builtin import registry
    from threestudio_eeg.builtin.base import device_scope

    names: dict[str, tuple[str, dict[str, Any]]] = {
        "geometry": ("implicit-volume", {**LATTICE, "normal_type": None}),
        "material": ("no-material", {"requires_normal": False}),
        "background": ("neural-environment-map-background", {}),
    }
    settings = OmegaConf.create({"num_samples_per_ray": 128})
    torch.manual_seed(3)
    with device_scope("cpu"):
        mine = parts(registry, names)
        ours = registry.find("nerf-volume-renderer")(
            settings, **dict(zip(names, mine, strict=True))
        )
    theirs_parts = parts(host, names)
    theirs = host.find("nerf-volume-renderer")(
        settings, **dict(zip(names, theirs_parts, strict=True))
    )
    torch.nn.init.normal_(mine[0].encoding.encoding.encoding.params, std=0.5)
    for here, there in zip(mine, theirs_parts, strict=True):
        there.load_state_dict(here.state_dict())
    for step in (0, 16, 32):
        ours.train().update_step(0, step)
    theirs.load_state_dict(ours.state_dict())
    rays = _rays(host, folder)
    found: dict[str, float] = {
        "occupied": float(ours.estimator.binaries.float().mean()),
        "opacity_mean": 0.0,
        **surfaces(host, mine[0], theirs_parts),
    }
    for mode in ("eval", "train"):
        outs, grads = [], []
        for render, field in ((ours, mine), (theirs, theirs_parts)):
            render.train(mode == "train")
            for part in field:
                part.train(mode == "train")
            torch.manual_seed(4)
            out = render(**rays)
            outs.append(out)
            if mode == "train":
                weight = torch.rand(
                    out["comp_rgb"].shape, generator=torch.Generator().manual_seed(6)
                )
                loss = (out["comp_rgb"] * weight).sum() + out["depth"].sum()
                weights = [p for part in field for _, p in sorted(part.named_parameters())]
                weights = [p for p in weights if p.numel()]
                pieces = torch.autograd.grad(loss, weights)
                grads.append(torch.cat([piece.flatten() for piece in pieces]))
        for name in ("comp_rgb", "opacity", "depth", "z_variance"):
            pair = outs[0][name].detach(), outs[1][name].detach()
            found[f"{mode}_{name}"] = relative(*pair)
            found[f"{mode}_{name}_max"] = largest(*pair)
        if mode == "train":
            found["train_gradient"] = relative(*grads)
            found["train_samples"] = abs(len(outs[0]["weights"]) - len(outs[1]["weights"]))
        found["opacity_mean"] = float(outs[0]["opacity"].mean())
    return found


def surfaces(host: Any, ours: Any, theirs: list[Any]) -> dict[str, float]:
    """One field's surface by occlusion, and by density, from both hosts."""
    from scipy.spatial import cKDTree

    geometry = theirs[0].eval()
    meshes = [ours.eval().isosurface(), geometry.isosurface()]
    exporter = host.find("occlusion-mesh-exporter")
    exporter({}, **dict(zip(("geometry", "material", "background"), theirs, strict=True)))
    ours.surface_occlusion = exporter.Config.occlusion
    meshes += [ours.isosurface(), geometry.isosurface()]
    by_density, _, mine, other = (mesh.v_pos.detach().numpy() for mesh in meshes)
    return {
        "surface": float(cKDTree(mine).query(other)[0].max()),
        "surface_back": float(cKDTree(other).query(mine)[0].max()),
        "surface_moved": float(cKDTree(by_density).query(other)[0].max()),
    }


def _rays(host: Any, folder: Path) -> dict[str, Tensor]:
    """Two of the host's own training cameras, 48 x 48."""
    data = host.find("random-camera-datamodule")(
        OmegaConf.create({"batch_size": 2, "height": 48, "width": 48})
    )
    torch.manual_seed(7)
    data.setup("fit")
    batch = data.train_dataset.collate(None)
    return {name: batch[name] for name in ("rays_o", "rays_d", "light_positions")}


def main(checkout: Path, folder: Path) -> None:
    host = import_upstream(checkout)
    pipeline, file = write_inputs(folder)
    prompt = host.find("eeg-prompt-processor")(
        OmegaConf.create(
            {
                "pretrained_model_name_or_path": str(pipeline),
                "conditioning": str(file),
                "view_text_subject": "mug",
            }
        )
    )()
    found = {
        **vsd(host, pipeline, prompt),
        **sds(host, pipeline, prompt),
        **renderer(host, folder),
    }
    (folder / "parity.json").write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
