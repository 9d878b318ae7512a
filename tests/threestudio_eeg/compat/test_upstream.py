"""The unmodified upstream threestudio on a CPU, each run in a process of its own.

``THREESTUDIO_ROOT=/path/to/threestudio pytest -m upstream``
"""

from __future__ import annotations

import csv

import pytest

from ..tiny_stable_diffusion import make_tiny_stable_diffusion
from .upstream_runs import DRIVER, EXPORT, MARKS, ROOT, launch, models, run

pytestmark = MARKS
OPTIONS = [
    "data.resolution_milestones=[]",
    "system.geometry.pos_encoding_config.log2_hashmap_size=12",
    "system.renderer.num_samples_per_ray=32",
]
TEACHER = """
import runpy, sys, torch
driver = runpy.run_path(sys.argv[1])
from pathlib import Path
driver["main"]("cpu", Path(sys.argv[2]), [])
import threestudio
from omegaconf import OmegaConf
model = sys.argv[3]
guidance = threestudio.find("stable-diffusion-vsd-guidance")(OmegaConf.create({
    "pretrained_model_name_or_path": model,
    "pretrained_model_name_or_path_lora": model,
    "half_precision_weights": False,
}))
assert guidance.single_model
names = [name for name, _ in guidance.lora_layers.named_parameters()]
assert names[0].startswith("layers.0.to_") and len(names) == 8 * 8, names
for name, weight in guidance.lora_layers.named_parameters():
    if ".up." in name:
        torch.nn.init.normal_(weight)
from diffusers import UNet2DConditionModel
plain = UNet2DConditionModel.from_pretrained(model, subfolder="unet")
torch.manual_seed(0)
args = torch.randn(1, 4, 64, 64), torch.tensor([500]), torch.randn(1, 77, 32)
def predict(unet, scale):
    with torch.no_grad(), guidance.disable_unet_class_embedding(unet) as unet:
        return guidance.forward_unet(unet, *args, cross_attention_kwargs={"scale": scale})
with torch.no_grad():
    expected = plain(*args).sample
assert torch.equal(predict(guidance.unet, 0.0), expected)
assert (predict(guidance.unet, 1.0) - expected).norm() > 0.01 * expected.norm()
print("the teacher does not see the LoRA")
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_tiny_stable_diffusion(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def trained(model, tmp_path_factory):
    """prolificdreamer.yaml trained for two steps, in a folder of its own."""
    folder = tmp_path_factory.mktemp("run")
    launch(folder, "prolificdreamer.yaml", "--train", *OPTIONS, *models(model, lora=True))
    return folder


def test_every_module_registers(tmp_path):
    printed = run(DRIVER, "cpu", ROOT, cwd=tmp_path)
    count = next(line for line in printed.splitlines() if line.startswith("modules: "))
    assert int(count.split()[1]) >= 55


def test_the_teacher_does_not_see_the_lora(model, tmp_path):
    printed = run("-c", TEACHER, DRIVER, ROOT, model, cwd=tmp_path)
    assert "the teacher does not see the LoRA" in printed


def test_training_validates_and_tests(trained):
    trial = trained / "outputs" / "prolificdreamer" / "trial"
    made = {str(path.relative_to(trial)) for path in trial.rglob("*") if path.is_file()}
    assert {"ckpts/last.ckpt", "configs/parsed.yaml", "cmd.txt"} <= made
    assert {"save/it1-0.png", "save/it2-0.png", "save/it2-test.mp4"} <= made
    assert {f"save/it2-test/{view}.png" for view in range(4)} <= made
    (log,) = trial.glob("csv_logs/version_0/metrics.csv")
    rows = [row for row in csv.DictReader(log.open()) if row["train/loss_vsd"]]
    assert len(rows) == 2
    assert all(float(row["train/loss_lora"]) > 0 for row in rows)


def test_resuming_goes_on_from_the_checkpoint(trained, model):
    checkpoint = "resume=outputs/prolificdreamer/trial/ckpts/last.ckpt"
    options = [*OPTIONS, *models(model, lora=True), checkpoint, "trainer.max_steps=3"]
    trial = launch(trained, "prolificdreamer.yaml", "--train", *options)
    log = trial / "csv_logs" / "version_1" / "metrics.csv"
    steps = [row["step"] for row in csv.DictReader(log.open()) if row["train/loss_vsd"]]
    assert steps == ["2"]
    assert (trial / "save" / "it3-0.png").exists()


def test_export_writes_a_mesh(trained, model):
    checkpoint = "resume=outputs/prolificdreamer/trial/ckpts/epoch=0-step=2.ckpt"
    options = [*OPTIONS, *models(model, lora=True), *EXPORT, checkpoint]
    options += ["system.geometry.isosurface_threshold=1.0"]
    trial = launch(trained, "prolificdreamer.yaml", "--export", *options)
    mesh = (trial / "save" / "it2-export" / "model.obj").read_text()
    assert mesh.count("\nf ") > 100


CAMERAS = """
import runpy, sys, torch
driver = runpy.run_path(sys.argv[1])
from pathlib import Path
driver["main"]("cpu", Path(sys.argv[2]), [])
import threestudio
from omegaconf import OmegaConf
data = threestudio.find("random-camera-datamodule")(OmegaConf.create({
    "batch_size": 3, "height": 4, "width": 4, "n_test_views": 3, "n_val_views": 3,
}))
data.setup()
batches = [data.train_dataset.collate(None), next(iter(data.test_dataloader()))]
for batch in batches:
    c2w = batch["c2w"][:, :3, :3]
    torch.testing.assert_close(c2w.mT @ c2w, torch.eye(3).expand_as(c2w), rtol=0, atol=1e-5)
    torch.testing.assert_close(torch.linalg.det(c2w), torch.ones(len(c2w)))
print("three cameras look straight")
"""


def test_a_batch_of_three_cameras(tmp_path):
    printed = run("-c", CAMERAS, DRIVER, ROOT, cwd=tmp_path)
    assert "three cameras look straight" in printed
