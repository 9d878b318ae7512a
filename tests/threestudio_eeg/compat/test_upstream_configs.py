"""Upstream's own configs on a CPU: two steps with validation and test, resumed, exported.

``THREESTUDIO_ROOT=PATH pytest -m upstream``; they take minutes, and ``-m "upstream and not slow"``
leaves these out.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from ..tiny_stable_diffusion import make_tiny_stable_diffusion
from .upstream_runs import EXPORT, MARKS, launch, models

pytestmark = [*MARKS, pytest.mark.slow]
SMALL_GRID = "system.geometry.pos_encoding_config.log2_hashmap_size=12"
ONE_SIZE = "data.resolution_milestones=[]"
FEW = "system.renderer.num_samples_per_ray=32"
PROLIFIC = (SMALL_GRID, ONE_SIZE, FEW)


@dataclass(frozen=True)
class Config:
    """A config file, whether its guidance trains a LoRA on a second model, and small sizes."""

    file: str
    lora: bool
    options: tuple[str, ...]
    threshold: float | str = 1.0


CONFIGS = {
    "hifa": Config("prolificdreamer-hifa.yaml", True, PROLIFIC),
    "patch": Config(
        "prolificdreamer-patch.yaml",
        True,
        (
            *PROLIFIC[:2],
            "data.width=32",
            "data.height=32",
            "system.renderer.patch_size=16",
            "system.renderer.base_renderer.num_samples_per_ray=32",
        ),
    ),
    "unified": Config(
        "experimental/unified-guidance/prolificdreamer.yaml",
        False,
        (*PROLIFIC, "system.guidance.vsd_phi_model_name_or_path={model}"),
    ),
    "neus": Config(
        "experimental/prolificdreamer-neus-importance.yaml",
        True,
        (*PROLIFIC, "system.renderer.estimator=occgrid", "system.renderer.use_volsdf=false"),
        threshold=0.0,
    ),
    "volsdf-importance": Config(
        "experimental/prolificdreamer-neus-importance.yaml",
        True,
        (*PROLIFIC, "system.renderer.num_samples_per_ray_importance=16"),
        threshold=0.0,
    ),
    "importance": Config(
        "experimental/prolificdreamer-importance.yaml",
        True,
        (
            *PROLIFIC,
            "system.renderer.num_samples_per_ray_importance=16",
            # The system reads it, and this config of upstream's does not name it.
            "system.loss.lambda_z_variance=0.0",
        ),
    ),
    "proposal": Config(
        "experimental/prolificdreamer-propnet.yaml",
        True,
        (*PROLIFIC, "system.renderer.num_samples_per_ray_proposal=16"),
    ),
    "dreamfusion": Config("dreamfusion-sd.yaml", False, (SMALL_GRID, FEW)),
    "latentnerf": Config("latentnerf.yaml", False, (FEW,)),
    "sjc": Config("sjc.yaml", False, (FEW,), threshold="auto"),
    "sdi": Config(
        "sdi.yaml",
        False,
        # Its validation works at the guidance's own 512 pixels only.
        (*PROLIFIC, "trainer.val_check_interval=100"),
    ),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_tiny_stable_diffusion(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize("name", CONFIGS)
def test_train_resume_export(name, model, tmp_path):
    config = CONFIGS[name]
    options = [*models(model, lora=config.lora)]
    options += [option.format(model=model) for option in config.options]
    trial = launch(tmp_path, config.file, "--train", *options)
    assert len(list((trial / "save" / "it2-test").glob("*.png"))) == 4
    assert (trial / "save" / "it2-test.mp4").stat().st_size > 0
    resume = f"resume={trial / 'ckpts' / 'last.ckpt'}"
    launch(tmp_path, config.file, "--train", *options, resume, "trainer.max_steps=3")
    assert (trial / "save" / "it3-test.mp4").stat().st_size > 0
    threshold = f"system.geometry.isosurface_threshold={config.threshold}"
    launch(tmp_path, config.file, "--export", *options, *EXPORT, resume, threshold)
    mesh = (trial / "save" / "it3-export" / "model.obj").read_text()
    assert mesh.count("\nf ") > 0
