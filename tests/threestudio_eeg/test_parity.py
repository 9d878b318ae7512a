"""The same numbers through the extension and through unmodified threestudio: same results."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = "THREESTUDIO_ROOT"
REPOSITORY = Path(__file__).parents[2]
GOAL = 1e-4

pytestmark = pytest.mark.upstream


@pytest.fixture(scope="module")
def differences(tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    """What :mod:`.parity_driver` found."""
    if not os.environ.get(ROOT):
        pytest.skip(f"{ROOT} names no checkout of threestudio")
    folder = tmp_path_factory.mktemp("parity")
    command = [sys.executable, "-m", "tests.threestudio_eeg.parity_driver"]
    done = subprocess.run(
        [*command, os.environ[ROOT], str(folder)], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads((folder / "parity.json").read_text())


@pytest.mark.parametrize(
    "name", ["vsd_gradient", "lora_loss", "lora_gradient", "sds_gradient", "train_gradient"]
)
def test_gradients(differences: dict[str, float], name: str) -> None:
    """Of VSD (one model), its LoRA, SDS, and a picture with respect to a field's weights."""
    assert differences[name] <= GOAL


def test_upstream_s_sds_scale_is_one_less_than_ours(differences: dict[str, float]) -> None:
    """Upstream's SDS guides by ``c + s (c - u)``: the same number would be another gradient."""
    assert differences["sds_gradient_at_the_same_number"] > 10 * GOAL


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("name", ["comp_rgb", "opacity", "depth", "z_variance"])
def test_pictures_of_one_field(differences: dict[str, float], mode: str, name: str) -> None:
    assert 0.02 < differences["occupied"] < 0.98
    assert 0.1 < differences["opacity_mean"] < 0.9
    assert differences[f"{mode}_{name}"] <= GOAL
    assert differences[f"{mode}_{name}_max"] <= GOAL


def test_the_same_samples_along_the_rays(differences: dict[str, float]) -> None:
    assert differences["train_samples"] == 0


def test_the_same_surface_by_occlusion(differences: dict[str, float]) -> None:
    """In the world's unit, of a field whose surface at a density is elsewhere."""
    assert max(differences["surface"], differences["surface_back"]) <= GOAL
    assert differences["surface_moved"] > 100 * GOAL
