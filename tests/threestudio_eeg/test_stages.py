"""Coarse, geometry, texture; and several particles in one run."""

from __future__ import annotations

import dataclasses
import itertools
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from omegaconf import OmegaConf
from scipy.spatial import cKDTree

from eeg_encoder.errors import InputError
from threestudio_eeg.builtin.base import load_checkpoint
from threestudio_eeg.builtin.config import load_config
from threestudio_eeg.builtin.launch import launch
from threestudio_eeg.builtin.registry import find
from threestudio_eeg.builtin.stage_conversion import converted_geometry
from threestudio_eeg.evaluation.runs import open_run
from threestudio_eeg.experiments import experiment_config

from .test_representations import REPRESENTATIONS, SMALL, files, train, words

COARSE = ("implicit-volume", "volume-grid", "implicit-sdf", "gaussian-splatting")
GRID = ["system.geometry.isosurface_resolution=12"]
ENCODING = {
    "otype": "HashGrid",
    "n_levels": 4,
    "n_features_per_level": 2,
    "log2_hashmap_size": 10,
    "base_resolution": 8,
    "per_level_scale": 1.5,
}
TABLE = ["system.geometry.pos_encoding_config.log2_hashmap_size=10"]


def radii(mesh):
    points = mesh.v_pos.detach() if isinstance(mesh.v_pos, torch.Tensor) else mesh.vertices
    return np.linalg.norm(np.asarray(points), axis=1)


def exported_surface(run):
    """What the run's exporter writes, and what its geometry has from then on."""
    return open_run(run).make_exporter().geometry.isosurface()


def stage(name: str, source: Path, folder: Path, *more: str) -> Path:
    layers = [experiment_config(layer) for layer in ("phantom/text.yaml", f"phantom/{name}.yaml")]
    overrides = [*SMALL, *GRID, f"exp_root_dir={folder}", "trainer.max_steps=2", *more]
    overrides.append(f"system.geometry_convert_from={source / 'ckpts' / 'last.ckpt'}")
    return launch("train", layers, overrides, device="cpu", quiet=True)


@pytest.fixture(scope="module")
def coarse_run(tmp_path_factory):
    """Runs of one step by name, made when first asked for; not to be written to."""
    made = {}

    def run(name):
        if name not in made:
            made[name] = train(name, tmp_path_factory.mktemp(name), steps=1)
        return made[name]

    return run


def grid_from(run: Path, **options):
    config = {
        "radius": 0.65,
        "isosurface_resolution": 24,
        "pos_encoding_config": {**ENCODING},
        **options.pop("config", {}),
    }
    kind = find("tetrahedra-sdf-grid")
    return converted_geometry(kind, config, run / "ckpts" / "last.ckpt", **options)


@pytest.mark.parametrize("name", COARSE)
def test_a_mesh_starts_with_the_coarse_surface(name, coarse_run):
    before = exported_surface(coarse_run(name))
    grid = grid_from(coarse_run(name), config={"geometry_only": True})
    after = grid.surface()
    shapes = [
        trimesh.Trimesh(m.v_pos.detach().numpy(), m.t_pos_idx.numpy(), process=False)
        for m in (before, after)
    ]
    assert shapes[1].is_watertight
    assert shapes[1].volume == pytest.approx(shapes[0].volume, rel=0.1)
    points, _ = trimesh.sample.sample_surface(shapes[0], 50_000, seed=1)
    distance, _ = cKDTree(points).query(shapes[1].vertices)
    cell = float((grid.isosurface_bbox[1] - grid.isosurface_bbox[0]).max()) / 24
    assert np.median(distance) < 0.2 * cell


def test_thresholds_can_be_overridden(coarse_run):
    run = coarse_run("volume-grid")
    small, large = (
        radii(
            grid_from(
                run,
                config={"geometry_only": True},
                override={"isosurface_threshold": threshold},
            ).surface()
        ).mean()
        for threshold in (6.0, 1.0)
    )
    assert small < 0.8 * large
    with pytest.raises(InputError, match=r"1e\+06, with values .* this isosurface is empty"):
        grid_from(run, override={"isosurface_threshold": 1e6})


def test_all_stages_run_and_the_last_keeps_the_shape(coarse_run, tmp_path):
    shaped = stage("geometry", coarse_run("implicit-volume"), tmp_path / "shaped")
    textured = stage("texture", shaped, tmp_path / "textured", *TABLE)
    before, after = (load_checkpoint(t / "ckpts" / "last.ckpt") for t in (shaped, textured))
    for key in ("geometry.sdf", "geometry.deformation", "geometry.isosurface_bbox"):
        assert torch.equal(before["state_dict"][key], after["state_dict"][key])
    grid = grid_from(shaped, config={"isosurface_resolution": 12, "geometry_only": True})
    assert torch.equal(grid.sdf, before["state_dict"]["geometry.sdf"])
    assert before["state_dict"]["geometry.sdf"].shape == (13**3, 1)
    the_geometry_stage_moved_the_shape(coarse_run("implicit-volume"), shaped)
    shutil.rmtree(shaped)
    system = open_run(textured)
    mesh = system.make_exporter().coloured_mesh()
    assert mesh.visual.vertex_colors[:, :3].std() > 0


def test_refined_stages_take_the_colours_along(coarse_run, tmp_path):
    words = [*TABLE, "system.geometry_convert_inherit_texture=true"]
    coarse = coarse_run("implicit-volume")
    shaped = stage("refined-geometry", coarse, tmp_path / "shaped", *words)
    textured = stage("refined-texture", shaped, tmp_path / "textured", *words)
    runs = (coarse, shaped, textured)
    states = [load_checkpoint(run / "ckpts" / "last.ckpt")["state_dict"] for run in runs]
    assert torch.equal(states[1]["geometry.sdf"], states[2]["geometry.sdf"])
    name = next(key for key in states[0] if key.startswith("geometry.feature_network"))
    for before, after in itertools.pairwise(state[name] for state in states):
        assert 0 < (before - after).abs().max() <= 2.5 * 0.00125, "two steps of the learning rate"


def test_splats_of_a_run_keep_its_colours(coarse_run, tmp_path):
    coarse = coarse_run("implicit-volume")
    words = [*SMALL, f"exp_root_dir={tmp_path}"]
    words += [f"system.geometry_convert_from={coarse}", "system.geometry.isosurface_resolution=24"]
    files = [experiment_config(f"phantom/{name}.yaml") for name in ("text", "refined-gaussians")]
    run = launch("train", files, [*words, "trainer.max_steps=2"], device="cpu", quiet=True)
    system = open_run(run)
    splats, colours = system.geometry.splats()
    assert len(colours) == 4000
    before = open_run(coarse).geometry.export(splats.means)["features"].sigmoid()
    assert (colours - before).abs().mean() < 0.01
    surface = exported_surface(run)
    assert radii(surface).mean() == pytest.approx(radii(exported_surface(coarse)).mean(), abs=0.03)


@pytest.mark.parametrize(
    ("name", "before"),
    [
        ("geometry", "implicit-volume"),
        ("texture", "tetrahedra-sdf-grid"),
        ("refined-geometry", "implicit-volume"),
        ("refined-texture", "tetrahedra-sdf-grid"),
        ("refined-gaussians", "implicit-volume"),
    ],
)
def test_a_stage_overrides_only_what_the_stage_before_has(name, before):
    layers = [experiment_config(layer) for layer in ("phantom/text.yaml", f"phantom/{name}.yaml")]
    system = load_config(*layers, cli_args=["system.geometry_convert_from=x"]).system
    known = {field.name for field in dataclasses.fields(find(before).Config)}
    assert set(system.get("geometry_convert_override") or {}) <= known


def the_geometry_stage_moved_the_shape(coarse, trial):
    start = grid_from(coarse, config={"isosurface_resolution": 12, "geometry_only": True})
    end = load_checkpoint(trial / "ckpts" / "last.ckpt")["state_dict"]
    moved = (end["geometry.sdf"] - start.sdf).abs()
    near = start.sdf.abs() < 0.05
    assert moved[near].mean() > 1e-4
    system = open_run(trial)
    batch = {**_batch(), "light_positions": torch.ones(1, 3)}
    out = system(batch)
    assert torch.equal(out["comp_rgb_fg"], out["comp_normal"])
    assert len(system.make_exporter().coloured_mesh().faces) > 50


def _batch():
    from threestudio_eeg.builtin.cameras import c2w_from_angles, camera_batch

    c2w = c2w_from_angles(torch.zeros(1), torch.zeros(1), torch.full((1,), 2.0))
    return camera_batch(c2w, torch.full((1,), 0.7), 12, 12)


def test_colours_are_inherited_where_both_have_the_same_net(coarse_run):
    run = coarse_run("implicit-volume")
    old = open_run(run).geometry
    same = {k: old.cfg[k] for k in ("pos_encoding_config", "mlp_network_config")}
    grid = grid_from(run, config=same, inherit_texture=True)
    points = torch.rand(50, 3) - 0.5
    assert torch.equal(grid.export(points)["features"], old.export(points)["features"])
    with pytest.raises(InputError, match="expected the encoding of the run converted from"):
        grid_from(run, inherit_texture=True)
    flat = coarse_run("volume-grid")
    with pytest.raises(InputError, match="inherit_texture: found true, from volume-grid"):
        grid_from(flat, config=same, inherit_texture=True)


def test_splats_start_on_a_surface_with_its_colours(coarse_run):
    run = coarse_run("implicit-volume")
    old = open_run(run).geometry
    config = {"radius": 0.65, "init_num_pts": 500, "max_num": 600, "isosurface_resolution": 32}
    kind = find("gaussian-splatting")
    splats = converted_geometry(kind, config, run, inherit_texture=True)
    placed = splats.stored()["_xyz"]
    assert len(placed) == 500
    assert radii(exported_surface(run)).mean() == pytest.approx(
        float(placed.norm(dim=-1).mean()), abs=0.01
    )
    colours = old.export(placed)["features"].sigmoid()
    torch.testing.assert_close(splats.splats()[1], colours, atol=1e-5, rtol=0)


@pytest.mark.parametrize("case", ["nothing", "no config", "other weights", "other kind"])
def test_sources_that_cannot_be_used_are_named(case, coarse_run, tmp_path):
    run = shutil.copytree(coarse_run("volume-grid"), tmp_path / "run")
    if case == "nothing":
        with pytest.raises(InputError, match="no such file"):
            grid_from(tmp_path / "none")
    elif case == "no config":
        (run / "configs" / "parsed.yaml").unlink()
        with pytest.raises(InputError, match="geometry_convert_from: found no configs/parsed.yaml"):
            grid_from(run)
    elif case == "other weights":
        config = OmegaConf.load(run / "configs" / "parsed.yaml")
        config.system.geometry.grid_size = [9, 9, 9]
        OmegaConf.save(config, run / "configs" / "parsed.yaml")
        with pytest.raises(InputError, match="weights of volume-grid, as configs/parsed.yaml says"):
            grid_from(run)
    else:
        with pytest.raises(InputError, match="implicit-volume: geometry_convert_from"):
            converted_geometry(find("implicit-volume"), {}, run)


def particles(name: str, folder: Path, n: int, *more: str, steps: int = 4) -> Path:
    return train(name, folder, f"system.n_particles={n}", *more, steps=steps)


def test_one_particle_is_as_without(tmp_path):
    plain = train("implicit-volume", tmp_path / "a", steps=2)
    one = particles("implicit-volume", tmp_path / "b", 1, steps=2)
    plain, one = (load_checkpoint(t / "ckpts" / "last.ckpt") for t in (plain, one))
    assert list(plain["state_dict"]) == list(one["state_dict"])
    assert all(torch.equal(v, one["state_dict"][k]) for k, v in plain["state_dict"].items())


@pytest.mark.parametrize("name", ["implicit-volume", "gaussian-splatting"])
def test_particles_differ_share_the_lora_and_resume(name, tmp_path):
    run = particles(name, tmp_path / "whole", 2)
    half = tmp_path / "half.ckpt"
    half.write_bytes(next((run / "ckpts").glob("*step=2.ckpt")).read_bytes())
    again = particles(name, tmp_path / "again", 2, f"resume={half}")
    whole, again = (load_checkpoint(t / "ckpts" / "last.ckpt") for t in (run, again))
    state = whole["state_dict"]
    assert all(torch.equal(value, again["state_dict"][key]) for key, value in state.items())
    own = [key for key in state if key.startswith("particles.0.geometry.")]
    first = [key.removeprefix("particles.0.") for key in own]
    assert own
    assert {key.split(".")[0] for key in state if "adapter" in key} == {"guidance"}
    assert any(not torch.equal(state[a], state[b]) for a, b in zip(own, first, strict=True))
    half_state = load_checkpoint(half)["state_dict"]
    for key in own + first:
        if state[key].is_floating_point() and "network" in key:
            assert not torch.equal(half_state[key], state[key]), f"{key} was not trained"


def test_a_step_trains_one_particle(tmp_path):
    same = "system.geometry.smoothing=0.7"  # the overlay's is a schedule over the run's length
    one, two = (particles("volume-grid", tmp_path / str(n), 2, same, steps=n) for n in (1, 2))
    one, two = (load_checkpoint(t / "ckpts" / "last.ckpt")["state_dict"] for t in (one, two))
    assert not one["particles.0.geometry.grid"].any()
    assert two["particles.0.geometry.grid"].any()
    assert torch.equal(one["geometry.grid"], two["geometry.grid"])


def test_particles_are_exported_and_rendered_apart(tmp_path):
    run = particles("implicit-volume", tmp_path, 2, steps=2)
    overrides = words("implicit-volume", tmp_path, "system.n_particles=2", "trainer.max_steps=2")
    overrides += [f"resume={run / 'ckpts' / 'last.ckpt'}", "system.exporter.fmt=glb"]
    launch("export", files("implicit-volume"), overrides, device="cpu", quiet=True)
    folder = run / "save" / "it2-export"
    assert sorted(path.name for path in folder.iterdir()) == ["model-0.glb", "model-1.glb"]
    assert (folder / "model-0.glb").read_bytes() != (folder / "model-1.glb").read_bytes()
    films = sorted(path.name for path in (run / "save").glob("*.mp4"))
    assert films == ["it2-test-0.mp4", "it2-test-1.mp4"]
    system = open_run(run)
    batch = {**_batch(), "light_positions": torch.ones(1, 3)}
    first = system(batch)["comp_rgb"]
    system.select_particle(1)
    assert not torch.equal(first, system(batch)["comp_rgb"])
    with pytest.raises(InputError, match="particle: found 2, expected 0 to 1"):
        system.select_particle(2)


def test_every_particle_starts_from_its_own(tmp_path):
    run = particles("implicit-volume", tmp_path / "coarse", 2, steps=2)
    trial = stage("geometry", run, tmp_path / "shaped", "system.n_particles=2")
    state = load_checkpoint(trial / "ckpts" / "last.ckpt")["state_dict"]
    assert {key.split(".")[0] for key in state} >= {"geometry", "guidance", "particles"}
    boxes = [state[f"{p}geometry.isosurface_bbox"] for p in ("", "particles.0.")]
    assert not torch.equal(*boxes)
    assert set(REPRESENTATIONS) >= set(COARSE)
