"""Runs looked at afterwards: multi-view sets, and runs beside each other."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from eeg_encoder.conditioning import load_conditioning, save_conditioning
from eeg_encoder.errors import InputError
from tests.tiny import tiny_conditioning
from threestudio_eeg.builtin.launch import launch
from threestudio_eeg.cli import app
from threestudio_eeg.comparison import runs as run_rows
from threestudio_eeg.comparison.command import CompareOptions, compare
from threestudio_eeg.evaluation.runs import open_run
from threestudio_eeg.evaluation.views import camera_batch, load_depth, rings
from threestudio_eeg.experiments import experiment_config
from threestudio_eeg.views.exporting import ViewOptions, export_views
from threestudio_eeg.views.normals import normals_of_depth

from .phantom_world import SMALL_FIELD, World, make_world
from .test_views import BallSystem


@pytest.fixture(scope="module", autouse=True)
def _builtin():
    patch = pytest.MonkeyPatch()
    patch.setenv("THREESTUDIO_EEG_HOST", "builtin")
    torch.set_num_threads(1)
    yield
    patch.undo()


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("world"))


def train(world: World, out: Path, name: str, *words: str, config: str = "phantom/eeg.yaml"):
    part = "pretrained_model_name_or_path"
    overrides = [
        *SMALL_FIELD,
        *(
            f"system.{module}.{part}={world.pipeline}"
            for module in ("prompt_processor", "guidance")
        ),
        f"exp_root_dir={out}",
        "name=runs",
        f"tag={name}",
        "use_timestamp=false",
        "trainer.max_steps=2",
        *words,
    ]
    return launch("train", [experiment_config(config)], overrides, device="cpu", quiet=True)


@pytest.fixture(scope="module")
def trained(world, tmp_path_factory):
    """Two EEG trials, the same trials shuffled, and a text."""
    out = tmp_path_factory.mktemp("trained")
    file = tiny_conditioning(out / "eeg.safetensors", world.pipeline, n=2)
    control = load_conditioning(file)
    control.protocol["condition"] = "shuffled"
    save_conditioning(out / "shuffled.safetensors", control)
    folders = {}
    for kind in ("eeg", "shuffled"):
        for trial in (0, 1):
            words = (
                f"system.prompt_processor.conditioning={out / kind}.safetensors",
                f"system.prompt_processor.trial={trial}",
            )
            folders[kind, trial] = train(world, out, f"{kind}-{trial}", *words)
    text = ("system.prompt_processor.prompt=a red mug",)
    folders["text", 0] = train(world, out, "text-0", *text, config="phantom/text.yaml")
    return folders


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    out = tmp_path_factory.mktemp("views")
    arguments = ["views", trained["eeg", 0], "--n", 5, "--out", out, "--size", 24]
    arguments += ["--elevation", 0, "--elevation", 40, "--device", "cpu"]
    result = CliRunner().invoke(app, [str(word) for word in arguments])
    assert result.exit_code == 0, result.output
    return out


def test_every_view_has_its_files(exported):
    cameras = json.loads((exported / "cameras.json").read_text())
    assert [view["elevation"] for view in cameras["views"]] == [0, 0, 0, 40, 40]
    for number, view in enumerate(cameras["views"]):
        with Image.open(exported / view["picture"]) as picture:
            assert (picture.mode, picture.size) == ("RGBA", (24, 24))
        with Image.open(exported / view["depth"]) as picture:
            assert picture.mode in ("I;16", "I")
        with Image.open(exported / view["normal"]) as picture:
            assert picture.mode == "RGB"
        exact = np.load(exported / f"{number:03d}_depth.npy", allow_pickle=False)
        stored = load_depth(exported / f"{number:03d}_depth.png")
        np.testing.assert_allclose(stored, exact, atol=cameras["depth_scale"])
    assert cameras["normals"] == "of the depth"
    assert cameras["source"]["step"] == 2
    assert cameras["source"]["trial"]["id"] == "trial-0"
    with Image.open(exported / "sheet.png") as sheet:
        assert sheet.width > 3 * 24


def test_the_film_has_a_frame_a_view(exported):
    import imageio.v3 as imageio

    assert imageio.imread(exported / "views.mp4", plugin="pyav").shape[:3] == (5, 24, 24)


def test_a_shorter_set_leaves_nothing_of_a_longer_one(trained, exported, tmp_path):
    out = tmp_path / "views"
    shutil.copytree(exported, out)
    (out / "notes.png").write_bytes(b"mine")
    export_views(ViewOptions(trained["eeg", 0], out, n=2, size=16))
    assert sorted(p.name for p in out.glob("*.png")) == [
        *(f"00{i}{kind}.png" for i in range(2) for kind in ("", "_depth", "_normal")),
        "notes.png",
        "sheet.png",
    ]


def test_a_known_point_is_projected_to_its_pixel_by_both_camera_files(exported):
    """By the conventions as the files state them, with nothing of ours but the numbers."""
    point = np.array([0.21, -0.17, 0.3, 1.0])
    nerf = json.loads((exported / "transforms.json").read_text())
    cameras = json.loads((exported / "cameras.json").read_text())
    c2w = torch.tensor(np.stack([view["c2w"] for view in cameras["views"]]))
    batch = camera_batch(
        [{**view, "c2w": np.array(view["c2w"])} for view in cameras["views"]], size=24, device="cpu"
    )
    for number, frame in enumerate(nerf["frames"]):
        x, y, z, _ = np.linalg.inv(np.array(frame["transform_matrix"])) @ point
        assert z < 0
        column = nerf["cx"] + nerf["fl_x"] * x / -z
        row = nerf["cy"] - nerf["fl_y"] * y / -z
        assert 0 < column < nerf["w"]
        origin = c2w[number, :3, 3].numpy()
        towards = (point[:3] - origin) / np.linalg.norm(point[:3] - origin)
        ray = batch["rays_d"][number, int(row), int(column)].numpy()
        half_a_pixel = np.hypot(0.5, 0.5) / nerf["fl_y"]
        assert np.linalg.norm(towards - ray) < half_a_pixel
        assert frame["file_path"] == cameras["views"][number]["picture"]


def test_normals_of_a_ball_point_outwards():
    from threestudio_eeg.evaluation.views import render_cameras

    views = render_cameras(BallSystem(), rings(4, [0, 30]), size=48)
    normal = normals_of_depth(views)
    inside = (normal > 0).any(-1)
    batch = camera_batch(views["cameras"], size=48, device="cpu")
    points = batch["rays_o"] + views["depth"] * batch["rays_d"]
    found = torch.nn.functional.normalize(normal / 0.8 * 2 - 1, dim=-1)[inside]
    cosine = (found * torch.nn.functional.normalize(points[inside], dim=-1)).sum(-1)
    assert inside.sum() > 0.9 * (views["depth"][..., 0] > 0).sum()
    assert cosine.median() > 0.99
    assert (normal[~inside] == 0).all()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"run": Path("nowhere")}, "nowhere: run"),
        ({"n": 0}, "n: found 0"),
        ({"elevations": (90.0,)}, "elevation"),
        ({"fovy_deg": 180.0}, "fovy"),
        ({"checkpoint": Path("nowhere.ckpt")}, "nowhere.ckpt"),
        ({"particle": 3}, "particle: found 3"),
    ],
)
def test_bad_input_is_named_before_a_file_is_written(trained, tmp_path, change, words):
    given = {"run": trained["eeg", 0], "out": tmp_path / "out", **change}
    with pytest.raises(InputError, match=words):
        export_views(ViewOptions(**given))
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_of_another_representation_is_named(trained, tmp_path):
    from omegaconf import OmegaConf

    run = tmp_path / "run"
    shutil.copytree(trained["eeg", 0], run)
    config = OmegaConf.load(run / "configs" / "parsed.yaml")
    config.system.geometry_type = "volume-grid"
    config.system.geometry = {"radius": 1.0, "grid_size": [8, 8, 8]}
    OmegaConf.save(config, run / "configs" / "parsed.yaml")
    with pytest.raises(InputError, match=r"weights: found geometry\..* expected .*volume-grid"):
        open_run(run)
    record = run / "provenance.json"
    record.write_text(record.read_text().replace('"builtin"', '"upstream"'))
    with pytest.raises(InputError, match=r"host: found a run of threestudio .*--host upstream"):
        open_run(run)


def test_a_half_written_run_is_named(trained, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained["eeg", 0], run)
    last = run / "ckpts" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:1000])
    with pytest.raises(InputError, match="checkpoint"):
        open_run(run)
    last.unlink()
    with pytest.raises(InputError, match="ckpts/last.ckpt"):
        run_rows.read_run(run)


def options(world, sources, out, **more):
    given = {"pipeline": str(world.pipeline), "size": 16, **more}
    return CompareOptions([str(source) for source in sources], out, **given)


def test_runs_are_compared_trial_by_trial(trained, world, tmp_path):
    sources = [trained["eeg", 0].parent / "eeg-0", trained["eeg", 1]]
    sources += [trained["shuffled", 0], trained["shuffled", 1]]
    words = f"{trained['text', 0]}::n90000001_0"
    comparison, files = compare(options(world, [*sources, words], tmp_path / "out"))
    assert comparison.conditions == ["text", "eeg", "shuffled"]
    assert comparison.estimates["view_agreement"]["eeg"].n == 2
    assert comparison.differences["view_agreement"]["text"].n == 1
    assert set(comparison.sets) == {"text", "eeg", "shuffled"}
    assert all(path.is_file() for path in files.values())
    assert len(list((tmp_path / "out" / "views").glob("*.png"))) == 5


def test_a_folder_of_runs_stands_for_its_runs(trained, world, tmp_path):
    with pytest.raises(InputError, match=r"text-0: stimulus: .* give RUN::STIMULUS"):
        compare(options(world, [trained["eeg", 0].parent], tmp_path / "out"))


def test_runs_of_another_budget_are_refused_before_rendering(trained, world, tmp_path, monkeypatch):
    run = tmp_path / "short"
    shutil.copytree(trained["shuffled", 0], run)
    parsed = run / "configs" / "parsed.yaml"
    parsed.write_text(parsed.read_text().replace("max_steps: 2\n", "max_steps: 9\n"))
    monkeypatch.setattr(run_rows, "open_run", lambda *_, **__: pytest.fail("rendered"))
    with pytest.raises(InputError, match=r"max_steps: found 9, expected 2, as in .*eeg-0"):
        compare(options(world, [trained["eeg", 0], run], tmp_path / "out"))


def test_a_run_that_stopped_early_is_refused(trained, world, tmp_path):
    run = tmp_path / "short"
    shutil.copytree(trained["shuffled", 0], run)
    parsed = run / "configs" / "parsed.yaml"
    parsed.write_text(parsed.read_text().replace("max_steps: 2\n", "max_steps: 9\n"))
    allowed = ["trainer.max_steps", "system.guidance.trainer_max_steps"]
    with pytest.raises(InputError, match=r"step: found 2, expected 9"):
        compare(options(world, [trained["eeg", 0], run], tmp_path / "out", allowed=allowed))
