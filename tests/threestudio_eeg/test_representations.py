"""Every representation of the embedded host, by its overlay: one row each."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import trimesh

import tests.threestudio_eeg.toy_parts  # noqa: F401
from eeg_encoder.errors import InputError
from threestudio_eeg.builtin.base import load_checkpoint
from threestudio_eeg.builtin.launch import launch
from threestudio_eeg.evaluation.runs import open_run
from threestudio_eeg.evaluation.views import render_views
from threestudio_eeg.experiments import experiment_config

REPRESENTATIONS = {
    "implicit-volume": ["system.geometry.pos_encoding_config.log2_hashmap_size=10"],
    "volume-grid": ["system.geometry.grid_size=[12,12,12]"],
    "implicit-sdf": ["system.geometry.pos_encoding_config.log2_hashmap_size=10"],
    "gaussian-splatting": [
        "system.geometry.max_num=300",
        "system.geometry.init_num_pts=200",
        "system.geometry.densify_grad_threshold=0.0",
        "system.geometry.densification_interval=2",
        "system.geometry.prune_interval=2",
        "system.geometry.densify_from_iter=1",
        "system.geometry.densify_until_iter=100",
        "system.geometry.prune_from_iter=1",
    ],
    "tetrahedra-sdf-grid": [
        "system.geometry.isosurface_resolution=10",
        "system.geometry.pos_encoding_config.log2_hashmap_size=10",
    ],
}
VOLUMES = ("implicit-volume", "volume-grid", "implicit-sdf")
SMALL = [
    "system_type=prolificdreamer-system",
    "system.guidance_type=toy-guidance",
    "system.prompt_processor_type=toy-prompt-processor",
    "system.optimizer.params.guidance.lr=0.001",
    "tag=run",
    "use_timestamp=false",
    "data.height=12",
    "data.width=12",
    "data.eval_height=12",
    "data.eval_width=12",
    "data.n_val_views=1",
    "data.n_test_views=2",
    "trainer.val_check_interval=2",
    "checkpoint.every_n_train_steps=2",
    "checkpoint.save_top_k=-1",
]


def files(name: str) -> list[Path]:
    names = ["phantom/text.yaml"] + [f"phantom/{name}.yaml"] * (name != "implicit-volume")
    return [experiment_config(layer) for layer in names]


def words(name: str, folder: Path, *more: str) -> list[str]:
    few = ["system.renderer.num_samples_per_ray=16"] if name in VOLUMES else []
    few += ["system.geometry.isosurface_threshold=3.0"] if name in VOLUMES[:2] else []
    mesh = [] if name == "tetrahedra-sdf-grid" else ["system.geometry.isosurface_resolution=24"]
    return [*SMALL, *REPRESENTATIONS[name], *few, *mesh, f"exp_root_dir={folder}", *more]


def train(name: str, folder: Path, *more: str, steps: int = 4) -> Path:
    overrides = words(name, folder, "trainer.max_steps=4", *more)
    overrides[overrides.index("trainer.max_steps=4")] = f"trainer.max_steps={steps}"
    return launch("train", files(name), overrides, device="cpu", quiet=True)


@pytest.fixture(scope="module", params=list(REPRESENTATIONS))
def run(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    return request.param, train(request.param, folder)


def test_pictures_have_their_shapes_and_gradients_reach_every_weight(run):
    from threestudio_eeg.builtin.cameras import c2w_from_angles, camera_batch

    name, trial = run
    system = open_run(trial)
    system.requires_grad_().train()
    c2w = c2w_from_angles(torch.zeros(2), torch.tensor([0.0, 90]), torch.full((2,), 2.0))
    batch = camera_batch(c2w, torch.full((2,), 0.7), 12, 10)
    out = system({**batch, "light_positions": c2w[:, :3, 3]})
    for key, channels in (("comp_rgb", 3), ("comp_rgb_fg", 3), ("opacity", 1), ("depth", 1)):
        assert out[key].shape == (2, 12, 10, channels), key
        assert out[key].isfinite().all(), key
    assert 0.01 < out["opacity"].mean() < 0.99
    centre = out["depth"][:, 6, 5] / out["opacity"][:, 6, 5].clamp(min=1e-3)
    assert ((centre > 1.2) & (centre < 2.2)).all(), "the middle is about two away"
    (out["comp_rgb"] * torch.rand_like(out["comp_rgb"])).sum().backward()
    untouched = [
        key
        for key, parameter in system.geometry.named_parameters()
        if parameter.grad is None or not parameter.grad.isfinite().all() or not parameter.grad.any()
    ]
    assert untouched == []


def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(run, tmp_path):
    name, trial = run
    half = next((trial / "ckpts").glob("*step=2.ckpt"))
    copy = tmp_path / "half.ckpt"
    copy.write_bytes(half.read_bytes())
    resumed = train(name, tmp_path, f"resume={copy}")
    whole, again = (load_checkpoint(t / "ckpts" / "last.ckpt") for t in (trial, resumed))
    assert whole["global_step"] == again["global_step"] == 4
    for key, value in whole["state_dict"].items():
        assert torch.equal(value, again["state_dict"][key]), key
    before = load_checkpoint(copy)["state_dict"]
    assert any(not torch.equal(before[key], value) for key, value in whole["state_dict"].items())


def test_a_loaded_object_renders_and_exports_as_the_trained_one(run, tmp_path):
    import imageio.v3 as imageio
    import numpy as np

    name, trial = run
    system = open_run(trial)
    views = render_views(system, n_views=4, size=12)
    again = render_views(open_run(trial), n_views=4, size=12)
    for key in ("rgb", "opacity", "depth"):
        assert torch.equal(views[key], again[key])
    saved = imageio.imread(trial / "save" / "it4-test" / "0.png")[:, :12]
    front = (views["composite"][0].numpy() * 255).round()
    assert np.abs(saved.astype(float) - front).max() <= 1
    words_ = words(name, tmp_path, f"resume={trial / 'ckpts' / 'last.ckpt'}", "trainer.max_steps=4")
    launch("export", files(name), words_, device="cpu", quiet=True)
    mesh = trimesh.load_mesh(trial / "save" / "it4-export" / "model.obj", process=False)
    assert len(mesh.faces) > 50
    assert np.abs(mesh.vertices).max() <= 0.66
    assert mesh.visual.vertex_colors.shape == (len(mesh.vertices), 4)


def test_a_checkpoint_of_another_representation_is_refused(run, tmp_path):
    name, trial = run
    other = "volume-grid" if name != "volume-grid" else "implicit-volume"
    copy = tmp_path / "other.ckpt"
    copy.write_bytes((trial / "ckpts" / "last.ckpt").read_bytes())
    with pytest.raises(InputError, match="other.ckpt: state_dict: .*geometry"):
        train(other, tmp_path, f"resume={copy}")


@pytest.mark.parametrize("name", [*VOLUMES, "gaussian-splatting"])
def test_an_empty_surface_says_which_threshold_is_not_empty(name):
    import re

    from threestudio_eeg.builtin.config import load_config
    from threestudio_eeg.builtin.registry import find

    config = load_config(*files(name), cli_args=words(name, Path("out"))).system
    threshold = -10.0 if name == "implicit-sdf" else 1e4
    geometry = {**config.geometry, "isosurface_threshold": threshold}
    with pytest.raises(InputError, match="this isosurface is empty") as refusal:
        find(config.geometry_type)(geometry).isosurface()
    suggested = float(re.search(r"for instance (-?[\d.e+-]+)", str(refusal.value))[1])
    made = find(config.geometry_type)({**geometry, "isosurface_threshold": suggested})
    assert len(made.isosurface().t_pos_idx) > 0
