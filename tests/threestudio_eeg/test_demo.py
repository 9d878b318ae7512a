"""The demo end to end, with few steps and tiny networks in the places of those that ship."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import torch

from eeg_encoder.conditioning import load_conditioning
from eeg_encoder.errors import InputError
from eeg_encoder.image_space import embed_pictures
from threestudio_eeg import demo as room
from threestudio_eeg.builtin.config import load_config
from threestudio_eeg.demo import DemoOptions, run_demo, summary
from threestudio_eeg.evaluation.runs import evaluate_run, open_run, run_record
from threestudio_eeg.evaluation.shape import load_mesh
from threestudio_eeg.evaluation.views import render_views
from threestudio_eeg.experiments import experiment_config
from threestudio_eeg.phantom.objects import Instance, solids_of
from threestudio_eeg.phantom.pictures import mesh_of
from threestudio_eeg.phantom.recording import Recording, load_objects

from .phantom_world import SMALL_FIELD, make_world


@pytest.fixture(scope="module", autouse=True)
def _small():
    patch = pytest.MonkeyPatch()
    patch.setenv("THREESTUDIO_EEG_HOST", "builtin")
    for name, value in {"REPETITIONS": 2, "PER_CATEGORY": 1, "N_VIEWS": 4, "VIEW_SIZE": 24}.items():
        patch.setattr(room, name, value)
    patch.setattr(
        "threestudio_eeg.evaluation.objects.true_mesh",
        lambda truth: mesh_of(solids_of([truth]), resolution=48),
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    patch.undo()


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("demo"))


def options(world, out, **changes):
    return DemoOptions(
        **{
            "trial": 1,
            "out": out,
            "device": "cpu",
            "steps": 3,
            "quiet": True,
            "pipeline": str(world.pipeline),
            "encoder": world.encoder,
            "judge": world.judge,
            "overrides": (*SMALL_FIELD, "trainer.log_every_n_steps=1"),
            **changes,
        }
    )


@pytest.fixture(scope="module")
def demo(world, tmp_path_factory):
    return run_demo(options(world, tmp_path_factory.mktemp("demo") / "out"))


def test_every_file_is_there(demo):
    names = {str(path.relative_to(demo.folder)) for path in demo.folder.rglob("*")}
    assert names >= {
        "object.glb",
        "turntable.mp4",
        "metrics.json",
        "report.html",
        "conditioning.safetensors",
        "views/000.png",
        "views/003_depth.png",
        "views/cameras.json",
        "recording/recording.pth",
        "recording/splits.pth",
        "recording/objects.json",
        f"run/{demo.trial_id}/ckpts/last.ckpt",
        f"run/{demo.trial_id}/conditioning.json",
    }
    assert all(path.exists() for path in demo.files.values())


def test_it_is_the_trial_that_was_asked_for(demo):
    assert demo.truth.category == "chair"
    assert demo.trial_id == f"s1-{demo.truth.stimulus}"
    record = run_record(demo.run)
    assert record["trial"] == {
        "id": demo.trial_id,
        "subject": 1,
        "stimulus": demo.truth.stimulus,
        "label": "chair",
    }
    conditioning = load_conditioning(demo.folder / "conditioning.safetensors")
    assert len(conditioning) == 20
    assert conditioning.protocol["simulated"]
    assert conditioning.protocol["repetitions"] == [2, 2]


def test_the_figures_are_complete_and_marked(demo):
    metrics = json.loads((demo.folder / "metrics.json").read_text())
    assert metrics["simulated"]
    assert metrics["seen"]["caption"] == demo.truth.caption
    assert 0 <= metrics["fscore"] <= 1
    assert metrics["chamfer"] > 0
    assert -1 <= metrics["view_agreement"] <= 1
    assert 1 <= metrics["decoding"]["rank"]["value"] <= 20
    assert metrics["decoding"]["snr_db"]["value"] < 0
    assert metrics["run"]["seconds"]["value"] > 0
    assert metrics["run"]["peak_memory"]["value"] > 0.1


def test_the_mesh_stands_in_world_axes(demo):
    mesh = load_mesh(demo.files["object"])
    np.testing.assert_allclose(mesh.bounds, demo.mesh.bounds, atol=1e-4)


def test_the_report_shows_truth_and_eeg(demo):
    page = (demo.folder / "report.html").read_text()
    assert "simulated" in page
    assert "True shape" in page
    assert "The recording" in page
    assert demo.truth.caption in page
    assert "train/loss_vsd" in page


def test_the_summary_names_the_files(demo):
    from rich.console import Console

    console = Console(width=250, record=True, file=io.StringIO())
    console.print(summary(demo))
    text = console.export_text()
    for words in (demo.truth.caption, "object.glb", "report.html", "rank of the picture seen"):
        assert words in text


def test_an_opened_run_renders_what_training_rendered(demo):
    system = open_run(demo.run)
    assert not hasattr(system, "guidance")
    again = render_views(system, n_views=4, size=24)
    from threestudio_eeg.evaluation.views import open_picture

    first = np.asarray(open_picture(demo.files["views"] / "000.png"))
    rgba = torch.cat([again["rgb"], again["opacity"]], dim=-1)[0]
    np.testing.assert_array_equal(first, (rgba * 255).round().numpy().astype(np.uint8))


def test_a_run_is_evaluated_afterwards(demo, world, tmp_path):
    figures = evaluate_run(
        demo.run,
        tmp_path,
        objects=demo.folder / "recording" / "objects.json",
        pipeline=world.pipeline,
        judge=world.judge,
        n_views=4,
        size=24,
    )
    for name in ("category", "fscore", "side_right", "view_agreement"):
        assert figures[name] == pytest.approx(demo.metrics[name]), name
    assert json.loads((tmp_path / "metrics.json").read_text()) == figures
    with pytest.raises(InputError, match=r"parsed\.yaml: found nothing"):
        open_run(tmp_path)


def shown_before(demo, world):
    """The demo's recording, without simulating it again."""
    folder = demo.folder / "recording"
    objects = load_objects(folder / "objects.json")
    embeddings = embed_pictures(world.pipeline, folder / "pictures", list(objects))
    return Recording(folder, list(objects.values()), embeddings)


def test_ctrl_c_then_resume_ends_as_if_nothing_had_happened(demo, world, tmp_path, monkeypatch):
    from threestudio_eeg.builtin.launch import StopAfterStep

    original = StopAfterStep.on_train_batch_end
    monkeypatch.setattr(room, "_record", lambda *_: shown_before(demo, world))

    def press(self, trainer, *rest, **more):
        if trainer.global_step == 2:
            self._ask()
        original(self, trainer, *rest, **more)

    with monkeypatch.context() as patch:
        patch.setattr(StopAfterStep, "on_train_batch_end", press)
        with pytest.raises(KeyboardInterrupt):
            run_demo(options(world, tmp_path))
    assert not (tmp_path / "report.html").exists()
    again = run_demo(options(world, tmp_path, resume=True))
    one, other = (
        torch.load(d.run / "ckpts" / "last.ckpt", weights_only=True) for d in (demo, again)
    )
    assert other["global_step"] == 3
    for name, value in one["state_dict"].items():
        assert torch.equal(value, other["state_dict"][name]), name
    assert again.metrics["fscore"] == demo.metrics["fscore"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"trial": 20}, "trial: found 20, expected 0 to 19"),
        ({"trial": -1}, "trial: found -1"),
        ({"device": "tpu"}, "auto, cpu or cuda"),
        ({"pipeline": "nowhere"}, "unet/config.json: found nothing"),
    ],
)
def test_bad_options_are_named(world, tmp_path, changes, words):
    with pytest.raises(InputError, match=words):
        run_demo(options(world, tmp_path, **changes))


def test_missing_networks_are_named(world, tmp_path, monkeypatch):
    monkeypatch.setattr(room, "_record", lambda *_: None)
    with pytest.raises(InputError, match=r"config\.json: file: found"):
        run_demo(options(world, tmp_path, encoder=tmp_path))


def test_a_folder_that_cannot_be_written_is_named(world, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="a folder that can be written"):
        run_demo(options(world, tmp_path / "file" / "out"))


def test_the_demo_trains_on_one_view_a_step():
    config = load_config(
        *(experiment_config(name) for name in room.CONFIGS),
        cli_args=["system.prompt_processor.conditioning=none.safetensors"],
    )
    encoding = config.system.optimizer.params["geometry.encoding"]
    assert config.data.batch_size == 1
    assert (encoding.lr, encoding.eps, encoding.weight_decay) == (0.027, 0.001, 0.3)
    assert config.system.optimizer.params.guidance.lr == 0.001


def test_the_trials_are_two_of_each_category_by_default(monkeypatch):
    monkeypatch.setattr(room, "PER_CATEGORY", 2)
    shown = [room._choose(number) for number in range(40)]
    assert [i.category for i in shown[:4]] == ["mug", "mug", "chair", "chair"]
    assert all(isinstance(i, Instance) and i.split == "test" for i in shown)
    assert len({i.stimulus for i in shown}) == 40
