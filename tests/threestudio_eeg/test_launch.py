import json
import random

import imageio.v3 as imageio
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from eeg_encoder.errors import InputError
from threestudio_eeg.builtin.launch import WholeCheckpoints, launch
from threestudio_eeg.builtin.random_state import random_state, restore_random_state

from .toy_parts import ToyExperiment


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def run(folder, *overrides, mode="train", **changes):
    changes = {key.replace("__", "."): value for key, value in changes.items()}
    config = ToyExperiment(folder, changes).write()
    return launch(mode, [config], overrides, device="cpu", quiet=True)


def last(trial):
    return torch.load(trial / "ckpts" / "last.ckpt", weights_only=True)


def assert_same(one, other, where=""):
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_same(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for i, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_same(a, b, f"{where}[{i}]")
    else:
        assert one == other, where


def assert_same_training(one, other):
    for key in ("global_step", "state_dict", "optimizer_states", "random_state"):
        assert_same(one[key], other[key], key)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return run(tmp_path_factory.mktemp("finished"))


def test_a_trial_is_laid_out_as_threestudio_does(finished):
    assert finished.name.startswith("toy-prompt-processor@")
    names = {str(path.relative_to(finished)) for path in finished.rglob("*") if path.is_file()}
    assert names >= {
        "cmd.txt",
        "configs/raw.yaml",
        "configs/parsed.yaml",
        "provenance.json",
        "ckpts/last.ckpt",
        "save/it2-0.png",
        "save/it6-test/2.png",
        "save/it6-test.mp4",
    }
    assert "--train" in (finished / "cmd.txt").read_text()
    assert json.loads((finished / "provenance.json").read_text())["host"] == "builtin"
    raw = OmegaConf.load(finished / "configs" / "raw.yaml")
    assert OmegaConf.is_interpolation(raw, "tag")
    assert imageio.imread(finished / "save" / "it6-test" / "0.png").shape == (5, 14, 3)


@pytest.mark.parametrize("every", [1, 2])
def test_scalars_are_logged(tmp_path, every):
    trial = run(tmp_path, trainer__log_every_n_steps=every)
    rows = (trial / "csv_logs" / "version_0" / "metrics.csv").read_text().splitlines()
    assert len(rows) == 1 + 6 // every
    for name in ("train/loss_vsd", "train/grad_norm", "train_params/lambda_sparsity"):
        assert name in rows[0]
    assert list((trial / "tb_logs").rglob("events*"))


@pytest.mark.parametrize("interrupt_at", [2, 3])
def test_ctrl_c_and_resume_equal_an_uninterrupted_run(finished, tmp_path, interrupt_at, capsys):
    with pytest.raises(KeyboardInterrupt, match="to go on"):
        run(tmp_path, system__guidance__interrupt_at=interrupt_at)
    assert "resume=" in capsys.readouterr().out
    (trial,) = (tmp_path / "outputs" / "toy").iterdir()
    assert last(trial)["global_step"] == interrupt_at + 1
    assert run(tmp_path, "resume=LAST") == trial.resolve()
    assert_same_training(last(trial), last(finished))


def test_kill_and_resume_equal_an_uninterrupted_run(finished, tmp_path):
    with pytest.raises(InputError, match="training step 4: loss_vsd: found nan"):
        run(tmp_path, system__guidance__nan_at=4, checkpoint__every_n_train_steps=3)
    (trial,) = (tmp_path / "outputs" / "toy").iterdir()
    assert last(trial)["global_step"] == 3
    run(tmp_path, f"resume={trial}/ckpts/last.ckpt")
    assert_same_training(last(trial), last(finished))


def test_a_finished_run_trains_on_as_if_it_had_never_stopped(finished, tmp_path):
    trial = run(tmp_path, "trainer.max_steps=3")
    run(tmp_path, "resume=LAST")
    assert_same_training(last(trial), last(finished))


def test_the_seed_decides(finished, tmp_path):
    other = last(run(tmp_path, "seed=1"))["state_dict"]
    same = last(finished)["state_dict"]
    assert not torch.equal(other["geometry.network.weight"], same["geometry.network.weight"])


def test_test_validate_and_export_take_a_checkpoint(finished):
    config = finished / "configs" / "parsed.yaml"
    resume = f"resume={finished}/ckpts/last.ckpt"
    film = finished / "save" / "it6-test.mp4"
    film.unlink()
    arguments = {"device": "cpu", "quiet": True}
    assert launch("test", [config], [resume], **arguments) == finished.resolve()
    assert film.exists()
    launch("validate", [config], [resume], **arguments)
    launch("export", [config], [resume, "system.exporter.fmt=glb"], **arguments)
    assert (finished / "save" / "it6-export" / "model.glb").stat().st_size > 100
    assert len((finished / "cmd.txt").read_text().splitlines()) == 4


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["trainer.max_step=3"], "trainer.max_step: found an unknown key, expected max_steps"),
        (["trainer.max_steps=0"], "trainer.max_steps: found 0"),
        (["checkpoint.save_lst=true"], "checkpoint.save_lst: found an unknown key"),
        (["system.loggers.wandb.enable=true"], "loggers.wandb: found enabled"),
        (["resume=nowhere.ckpt"], "nowhere.ckpt: checkpoint: found no such file"),
        (["resume=LAST"], "resume=LAST: found no checkpoint"),
        (["data.batch=2"], "batch: found an unknown key, expected batch_size"),
        (["seed"], "override"),
    ],
)
def test_bad_input_is_named(tmp_path, overrides, words):
    with pytest.raises(InputError, match=words):
        run(tmp_path, *overrides)


def test_evaluation_needs_weights(tmp_path):
    with pytest.raises(InputError, match="resume: found nothing"):
        run(tmp_path, mode="test")


def test_a_checkpoint_of_another_config_is_refused(finished, tmp_path):
    path = tmp_path / "other.ckpt"
    torch.save({**last(finished), "state_dict": {"x": torch.zeros(1)}}, path)
    with pytest.raises(InputError, match="state_dict: found"):
        run(tmp_path, f"resume={path}")
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(InputError, match="checkpoint: found"):
        run(tmp_path, f"resume={path}")


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="folder: found"):
        run(tmp_path, f"exp_root_dir={tmp_path}/file/outputs")


def test_a_checkpoint_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "last.ckpt"
    path.write_text("before")

    def full_disk(_, file):
        file.write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(InputError, match="No space left"):
        WholeCheckpoints().save_checkpoint({}, path)
    assert [p.read_text() for p in tmp_path.iterdir()] == ["before"]


def test_random_states_survive_a_file(tmp_path):
    def draw():
        return random.random(), np.random.rand(), torch.rand(1).item()  # noqa: NPY002

    random.gauss(0, 1)
    torch.save(random_state(), tmp_path / "state")
    first = draw()
    assert draw() != first
    restore_random_state(torch.load(tmp_path / "state", weights_only=True))
    assert draw() == first


REAL_PARTS = {
    "data_type": "random-camera-datamodule",
    "data": {"height": 8, "width": 8, "eval_height": 9, "eval_width": 9, "n_test_views": 2},
    "system.geometry_type": "implicit-volume",
    "system.geometry": {
        "normal_type": None,
        "pos_encoding_config": {
            "otype": "HashGrid",
            "n_levels": 3,
            "n_features_per_level": 2,
            "log2_hashmap_size": 8,
            "base_resolution": 4,
            "per_level_scale": 1.5,
        },
    },
    "system.material_type": "no-material",
    "system.background_type": "neural-environment-map-background",
    "system.background": {"random_aug": True},
    "system.renderer_type": "nerf-volume-renderer",
    "system.renderer": {"num_samples_per_ray": 16},
    "system.prompt_processor_type": "stable-diffusion-prompt-processor",
    "system.guidance_type": "eeg-vsd-guidance",
}


def test_vsd_on_a_field_resumes_bit_for_bit(tmp_path, monkeypatch):
    from tests.tiny import tiny_pipeline
    from threestudio_eeg import host

    monkeypatch.setenv("THREESTUDIO_EEG_HOST", "builtin")
    assert host.name == "builtin"
    model = {"pretrained_model_name_or_path": str(tiny_pipeline(tmp_path / "pipeline"))}
    changes = {
        **REAL_PARTS,
        "system.guidance": model,
        "system.prompt_processor": {"prompt": "a red mug", **model},
    }
    whole = run(tmp_path / "whole", **changes)
    parts = run(tmp_path / "parts", "trainer.max_steps=3", **changes)
    assert run(tmp_path / "parts", "resume=LAST", **changes) == parts.resolve()
    assert_same_training(last(parts), last(whole))
    assert any(".lora" in key or "lora_" in key for key in last(whole)["state_dict"])
