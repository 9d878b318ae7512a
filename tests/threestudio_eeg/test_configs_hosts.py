"""The shipped experiments: twins are twins, and each runs on a host or says why it cannot."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from eeg_encoder.errors import InputError
from tests.tiny import tiny_conditioning, tiny_pipeline
from threestudio_eeg.builtin.config import compose, load_config
from threestudio_eeg.builtin.registry import find
from threestudio_eeg.experiments import experiment_config, shipped_configs
from threestudio_eeg.launching.catalogue import where_to_get

ROOT = "THREESTUDIO_ROOT"
EXPERIMENTS = (
    "prolificdreamer",
    "prolificdreamer-geometry",
    "prolificdreamer-texture",
    "dreamfusion",
)
OVERLAYS = ("implicit-sdf", "volume-grid", "tetrahedra-sdf-grid", "gaussian-splatting")
PROMPTS = ("eeg", "text")
NEEDS_A_MESH = ("prolificdreamer-geometry", "prolificdreamer-texture")
SMALL = [
    "data.batch_size=1",
    "data.width=12",
    "data.height=12",
    "data.resolution_milestones=[]",
    "data.eval_width=12",
    "data.eval_height=12",
    "data.n_val_views=1",
    "data.n_test_views=2",
    "trainer.max_steps=1",
    "trainer.val_check_interval=1",
    "checkpoint.every_n_train_steps=1",
]
SMALL_VOLUME = ["system.renderer.num_samples_per_ray=16"]
SMALL_GRID = [
    "system.geometry.pos_encoding_config.n_levels=8",
    "system.geometry.pos_encoding_config.log2_hashmap_size=9",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline without a view encoder, as Stable Diffusion is, and ``eeg.safetensors``."""
    folder = tmp_path_factory.mktemp("inputs")
    tiny_pipeline(folder / "pipeline", view_tokens=False)
    tiny_conditioning(folder / "eeg.safetensors", folder / "pipeline")
    return folder


def files(prompt: str, experiment: str, overlay: str | None = None) -> list[Path]:
    names = [f"{prompt}-{experiment}.yaml"] + [f"representation/{overlay}.yaml"] * bool(overlay)
    return [experiment_config(name) for name in names]


def given(prompt: str, folder: Path, experiment: str = "") -> list[str]:
    """What a user has to say."""
    part = "system.prompt_processor."
    words = [f"{part}pretrained_model_name_or_path={folder / 'pipeline'}"]
    if prompt == "eeg":
        words += [f"{part}conditioning={folder / 'eeg.safetensors'}", f"{part}trial=1"]
    else:
        words += [f"{part}prompt=a red mug"]
    if experiment in NEEDS_A_MESH:
        words += ["system.geometry_convert_from=run/ckpts/last.ckpt"]
    return words


@pytest.fixture(scope="module")
def coarse(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A first stage's run."""
    from threestudio_eeg.builtin.launch import launch

    words = [*given("text", folder), f"exp_root_dir={tmp_path_factory.mktemp('coarse')}"]
    words += [*small(None), "system.geometry.isosurface_resolution=16"]
    return launch("train", files("text", "prolificdreamer"), words, device="cpu", quiet=True)


def small(overlay: str | None) -> list[str]:
    words = [*SMALL]
    if overlay == "tetrahedra-sdf-grid":
        words += ["system.geometry.isosurface_resolution=12", *SMALL_GRID]
    if overlay == "gaussian-splatting":
        words += ["system.geometry.init_num_pts=100", "system.geometry.max_num=100"]
    if overlay in (None, "implicit-sdf", "volume-grid"):
        words += SMALL_VOLUME
    if overlay in (None, "implicit-sdf"):
        words += SMALL_GRID
    if overlay == "volume-grid":
        words += ["system.geometry.grid_size=[16,16,16]"]
    return words


def cells() -> Iterator[Any]:
    for experiment in EXPERIMENTS:
        for prompt in PROMPTS:
            for overlay in (None, *(() if experiment in NEEDS_A_MESH else OVERLAYS)):
                yield pytest.param(
                    prompt, experiment, overlay, id=f"{prompt}-{experiment}-{overlay or 'as-is'}"
                )


def leaves(config: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(config, dict):
        for key, value in config.items():
            yield from leaves(value, f"{path}.{key}".strip("."))
    else:
        yield path, config


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_twins_differ_in_the_prompt_alone(experiment: str) -> None:
    eeg, text = (
        dict(leaves(OmegaConf.to_container(compose(*files(prompt, experiment)))))
        for prompt in PROMPTS
    )
    missing = object()
    differing = {k for k in eeg | text if eeg.get(k, missing) != text.get(k, missing)}
    assert differing == {
        "name",
        "system.prompt_processor_type",
        "system.prompt_processor.conditioning",
        "system.prompt_processor.trial",
        "system.prompt_processor.prompt",
    }


@pytest.mark.parametrize("name", shipped_configs())
def test_every_shipped_file_is_read(name: str) -> None:
    assert len(compose(experiment_config(name))) > 0


@pytest.mark.parametrize(("prompt", "experiment", "overlay"), cells())
def test_every_combination_resolves(
    prompt: str, experiment: str, overlay: str | None, folder: Path
) -> None:
    words = given(prompt, folder, experiment)
    config = load_config(*files(prompt, experiment, overlay), cli_args=words)
    assert config.tag == {"eeg": "trial_1", "text": "a_red_mug"}[prompt]
    assert config.name == f"{prompt}-{experiment}"
    parts, groups = config.system, config.system.optimizer.get("params") or {}
    assert parts.guidance.pretrained_model_name_or_path == str(folder / "pipeline")
    assert {group.partition(".")[0] for group in groups} <= set(parts)
    if overlay:
        types = compose(experiment_config(f"representation/{overlay}.yaml")).system
        assert all(parts[key] == value for key, value in types.items() if key.endswith("_type"))


def test_the_seed_s_setting_is_kept(folder: Path) -> None:
    """Numbers of the published system that the reference digest lists."""
    config = load_config(*files("eeg", "prolificdreamer"), cli_args=given("eeg", folder))
    system, data = config.system, config.data
    grid = system.geometry.pos_encoding_config
    finest = grid.base_resolution * grid.per_level_scale ** (grid.n_levels - 1)
    assert finest == pytest.approx(2048)
    assert system.optimizer.params["geometry.encoding"].lr == 0.01
    assert system.optimizer.params.guidance.lr == 1e-4
    assert list(system.guidance.max_step_percent) == [5000, 0.98, 0.5, 5001]
    assert list(data.width) == list(data.height) == [64, 512]
    assert list(data.elevation_range) == [90 - 120, 90 - 0]
    background = system.background
    assert 3 + 3 * 2 * background.dir_encoding_config.n_frequencies == 27


def refined(experiment: str, coarse: Path) -> list[str]:
    """What a later stage needs besides: a run to start from, and a small grid."""
    words = [f"system.geometry_convert_from={coarse / 'ckpts' / 'last.ckpt'}"]
    words += ["system.geometry_convert_override.isosurface_threshold=auto"]
    words += ["system.geometry.isosurface_resolution=12"]
    return words + (SMALL_GRID if experiment == "prolificdreamer-texture" else [])


@pytest.mark.parametrize(("prompt", "experiment", "overlay"), cells())
def test_the_embedded_host_runs_it(
    prompt: str, experiment: str, overlay: str | None, folder: Path, coarse: Path, tmp_path: Path
) -> None:
    from threestudio_eeg.builtin.launch import launch

    words = [*given(prompt, folder), f"exp_root_dir={tmp_path}"]
    if experiment in NEEDS_A_MESH:
        words += [*SMALL, *refined(experiment, coarse)]
    else:
        words += small(overlay)
    trial = launch("train", files(prompt, experiment, overlay), words, device="cpu", quiet=True)
    assert (trial / "ckpts" / "last.ckpt").is_file()
    assert (trial / "save" / "it1-test.mp4").is_file()
    assert (trial / "conditioning.json").is_file() == (prompt == "eeg")


@pytest.mark.parametrize("name", ["custom-mesh", "patch-renderer", "gaussian-splatting-io"])
def test_what_the_embedded_host_lacks_is_said_to_be_upstream(name: str) -> None:
    with pytest.raises(InputError):
        find(name)
    assert "--host upstream" in str(where_to_get(name, None))


UPSTREAM = [
    ("eeg", "prolificdreamer", None),
    ("text", "prolificdreamer", None),
    ("eeg", "dreamfusion", "volume-grid"),
    ("eeg", "prolificdreamer", "implicit-sdf"),
    ("eeg", "prolificdreamer", "tetrahedra-sdf-grid"),
    ("eeg", "prolificdreamer", "gaussian-splatting"),
]
REFUSED_UPSTREAM = {
    "tetrahedra-sdf-grid": "nvdiffrast",
    "gaussian-splatting": "threestudio-3dgs",
}


@pytest.mark.upstream
@pytest.mark.parametrize(("prompt", "experiment", "overlay"), UPSTREAM)
def test_threestudio_runs_the_same_files(
    prompt: str, experiment: str, overlay: str | None, folder: Path, tmp_path: Path
) -> None:
    """On a CPU; two steps, and two more from the checkpoint. A mesh needs a rasteriser."""
    if not os.environ.get(ROOT):
        pytest.skip(f"{ROOT} names no checkout of threestudio")
    words = [*given(prompt, folder), *small(overlay), "use_timestamp=false"]
    steps = ("trainer.max_steps=2", "trainer.max_steps=4")
    if overlay in REFUSED_UPSTREAM:
        done = launched(tmp_path, files(prompt, experiment, overlay), words)
        assert done.returncode != 0
        assert REFUSED_UPSTREAM[overlay] in done.stderr.strip().splitlines()[-1]
        return
    done = launched(tmp_path, files(prompt, experiment, overlay), [*words, steps[0]])
    assert done.returncode == 0, done.stderr[-2000:]
    tag = "trial_1" if prompt == "eeg" else "a_red_mug"
    trial = tmp_path / "outputs" / f"{prompt}-{experiment}" / tag
    last = trial / "ckpts" / "last.ckpt"
    assert (trial / "save" / "it2-test.mp4").is_file()
    assert (trial / "conditioning.json").is_file() == (prompt == "eeg")
    assert (trial / "provenance.json").is_file()
    resume = [*words, steps[1], f"resume={last}"]
    done = launched(tmp_path, files(prompt, experiment, overlay), resume)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (trial / "save" / "it4-test.mp4").is_file()


def launched(here: Path, configs: list[Path], words: list[str]) -> Any:
    command = [sys.executable, "-m", "threestudio_eeg.cli", "launch", "--host", "upstream"]
    command += ["--threestudio", os.environ[ROOT], "--device", "cpu", "--train"]
    command += [word for file in configs for word in ("--config", str(file))]
    return subprocess.run([*command, *words], cwd=here, capture_output=True, text=True)
