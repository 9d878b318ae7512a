"""Figures about objects, runs opened for looking, and the benchmark that makes many objects."""

from __future__ import annotations

import importlib
import json
import os
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from eeg_encoder.errors import InputError
from threestudio_eeg.evaluation.objects import (
    evaluate_object,
    judge_sides,
    judge_views,
    load_judge,
    on_background,
    true_mesh,
)
from threestudio_eeg.evaluation.shape import compare_meshes
from threestudio_eeg.evaluation.views import orbit
from threestudio_eeg.phantom.categories import CATEGORIES, COLOURS
from threestudio_eeg.phantom.objects import Instance, solids_of
from threestudio_eeg.phantom.pictures import SIDES, Cameras, mesh_of, render

from .phantom_world import SMALL_FIELD, make_world
from .toy_work import leave_together, look_around, square

MUG = Instance("mug", "red", (0.5, 0.5, 0.5, 0.5), "test", 0)
BOTTLE = Instance("bottle", "blue", (0.5, 0.5, 0.5, 0.5), "test", 0)


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def coarse(truth):
    return mesh_of(solids_of([truth]), resolution=48)


def true_views(truth, n=4, size=32):
    cameras = orbit(n)
    places = Cameras(
        *(torch.tensor([c[name] for c in cameras]) for name in ("elevation", "azimuth", "distance"))
    )
    solids = solids_of([truth]).select(torch.zeros(n, dtype=torch.long))
    rgba = render(solids, places, size).permute(0, 2, 3, 1)
    return {"rgb": rgba[..., :3], "opacity": rgba[..., 3:], "cameras": cameras}


class Scripted(nn.Module):
    """A judge that says what it is told, view by view."""

    def __init__(self, category, colour, side):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.answers = {"category": category, "colour": colour, "side": side}

    def probabilities(self, rgb):
        assert len(rgb) == len(self.answers["side"])
        return self.answers


def peaked(n, *rows):
    out = torch.zeros(len(rows), n)
    for i, row in enumerate(rows):
        for index, value in row.items():
            out[i, index] = value
    return out


def scripted(sides, category=None, colour=None):
    n = len(sides)
    return Scripted(
        category if category is not None else peaked(20, *[{0: 1.0}] * n),
        colour if colour is not None else peaked(10, *[{0: 1.0}] * n),
        peaked(4, *sides),
    )


RIGHT = [{0: 1.0}, {1: 1.0}, {2: 1.0}, {3: 1.0}]


def test_the_mean_probability_decides_not_the_votes():
    mug, bed = CATEGORIES.index("mug"), CATEGORIES.index("bed")
    rows = [{mug: 0.4, bed: 0.35}, {mug: 0.4, bed: 0.35}, {bed: 0.9}, {mug: 0.4, bed: 0.35}]
    judge = scripted(RIGHT, category=peaked(20, *rows))
    figures = judge_views(true_views(MUG), MUG, judge)
    assert figures["category"] == "bed"
    assert not figures["category_right"]
    assert figures["category_probability"] == pytest.approx(0.3)
    assert figures["colour"] == next(iter(COLOURS)) == "red"
    assert figures["colour_right"]


def test_sides_are_read_at_the_four_right_angles():
    rows = [{2: 1.0}] * 12
    for place, side in ((0, 0), (3, 1), (6, 2), (9, 3)):
        rows[place] = {side: 1.0}
    figures = judge_sides(true_views(MUG, n=12), MUG, scripted(rows))
    assert figures["side_right"] == 1.0
    assert figures["sides"] == dict(zip(SIDES, SIDES, strict=True))
    assert figures["asymmetric"]
    assert not figures["two_fronts"]
    assert not judge_sides(true_views(BOTTLE), BOTTLE, scripted(RIGHT))["asymmetric"]


@pytest.mark.parametrize(
    ("front", "back", "two"), [(0.6, 0.6, True), (0.6, 0.4, False), (0.4, 0.6, False)]
)
def test_two_fronts_need_a_sure_front_on_both_ends(front, back, two):
    rows = [{0: front, 1: 1 - front}, {1: 1.0}, {0: back, 2: 1 - back}, {3: 1.0}]
    assert judge_sides(true_views(MUG), MUG, scripted(rows))["two_fronts"] is two


@pytest.mark.parametrize(("other", "apart"), [(2, False), (3, False), (4, True), (7, True)])
def test_fronts_far_apart_are_two_whichever_way_the_object_is_turned(other, apart):
    rows = [{2: 1.0}] * 12
    rows[1] = rows[1 + other] = {0: 0.6, 2: 0.4}
    figures = judge_sides(true_views(MUG, n=12), MUG, scripted(rows))
    assert figures["fronts_apart"] is apart
    assert figures["two_fronts"] is False


def test_a_ring_without_the_four_sides_is_refused():
    with pytest.raises(InputError, match="azimuths"):
        judge_sides(true_views(MUG, n=5), MUG, scripted([{0: 1.0}] * 5))


class Tower:
    device = torch.device("cpu")

    def encode_pictures(self, rgb):
        return nn.functional.normalize(rgb.flatten(1), dim=1)


def test_the_truth_itself_is_found_right():
    figures = evaluate_object(true_views(MUG), true_mesh(MUG), MUG, scripted(RIGHT), Tower())
    assert figures["category_right"]
    assert figures["side_right"] == 1
    assert figures["fscore"] > 0.99
    assert figures["chamfer"] < 0.01
    assert figures["iou"] > 0.95
    assert figures["yaw"] == 0
    assert 0.5 < figures["view_agreement"] < 1


def test_fog_beside_the_object_is_left_out_and_another_shape_is_far():
    mesh = coarse(MUG)
    fog = mesh.copy()
    fog.apply_scale(0.05)
    fog.apply_translation((0.7, 0.7, 0.7))
    both = mesh + fog
    judge, views = scripted(RIGHT), true_views(MUG)
    clean = evaluate_object(views, both, MUG, judge, truth_mesh=mesh)
    other = evaluate_object(views, coarse(BOTTLE), MUG, judge, truth_mesh=mesh)
    assert clean["fscore"] > 0.99
    assert other["fscore"] < 0.8
    assert other["chamfer"] > 5 * clean["chamfer"]
    assert "view_agreement" not in clean


def test_an_empty_field_counts_as_nothing():
    figures = evaluate_object(true_views(MUG), None, MUG, scripted(RIGHT), truth_mesh=coarse(MUG))
    assert figures["fscore"] == figures["iou"] == 0
    assert figures["chamfer"] is None
    assert figures["faces"] == 0


def test_without_a_truth_only_what_is_seen_is_said():
    figures = evaluate_object(true_views(MUG), coarse(MUG), None, scripted(RIGHT))
    assert {"category", "colour", "sides", "two_fronts", "fronts_apart", "faces"} == set(figures)


def test_views_over_a_background():
    views = {"rgb": torch.full((1, 2, 2, 3), 0.5), "opacity": torch.zeros(1, 2, 2, 1)}
    views["opacity"][0, 0, 0] = 1
    rgb = on_background(views, (1.0, 0.0, 0.0))
    assert rgb.shape == (1, 3, 2, 2)
    assert rgb[0, :, 0, 0].tolist() == [0.5, 0.5, 0.5]
    assert rgb[0, :, 1, 1].tolist() == [1.0, 0.0, 0.0]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("objects"))


def test_the_judge_is_loaded_or_named(world, tmp_path):
    assert load_judge(world.judge).probabilities(torch.rand(2, 3, 64, 64))["side"].shape == (2, 4)
    with pytest.raises(InputError, match=r"model\.safetensors: found nothing"):
        load_judge(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(InputError, match="weights: found"):
        load_judge(tmp_path)


# The benchmark: benchmarks/phantom_objects.py

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
phantom_objects = importlib.import_module("phantom_objects")
pool = importlib.import_module("pool")


def stimuli(**counts):
    return {
        f"n{99000000 + CATEGORIES.index(category)}_{20000 + i}": category
        for category, count in counts.items()
        for i in range(count)
    }


def test_trials_go_round_the_categories():
    chosen = phantom_objects.choose(stimuli(mug=3, chair=3, bed=1), 5)
    assert [stimuli(mug=3, chair=3, bed=1)[s] for s in chosen] == [
        "mug",
        "chair",
        "bed",
        "mug",
        "chair",
    ]
    assert chosen == sorted(chosen, key=lambda s: int(s.split("_")[1]))


@pytest.mark.parametrize("counts", [dict.fromkeys(CATEGORIES, 2), {"mug": 2, "bed": 1, "car": 1}])
def test_the_shuffle_moves_every_trial_to_another_category(counts):
    category_of = stimuli(**counts)
    other = phantom_objects.derange(category_of)
    assert sorted(other.values()) == sorted(category_of)
    assert all(category_of[s] != category_of[t] for s, t in other.items())
    assert other == phantom_objects.derange(dict(reversed(category_of.items())))


def test_means_and_standard_errors():
    figure = phantom_objects.mean_and_error([1.0, 0.0, 0.0, 0.0])
    assert figure == {"mean": 0.25, "se": 0.25, "n": 4}
    assert phantom_objects.mean_and_error([])["mean"] is None


def test_failed_and_symmetric_objects_do_not_count_where_they_do_not_belong():
    made = {
        "category_right": True,
        "colour_right": False,
        "chamfer": None,
        "fscore": 0.0,
        "iou": 0.0,
        "view_agreement": 0.9,
        "side_right": 1.0,
        "two_fronts": False,
        "seconds": 2.0,
        "empty": True,
        "asymmetric": True,
    }
    symmetric = {**made, "asymmetric": False, "side_right": 0.0, "chamfer": 0.1, "empty": False}
    summary = phantom_objects.summarise([made, symmetric, {"error": "out of memory"}])
    assert (summary["made"], summary["failed"], summary["empty"]) == (2, 1, 1)
    assert summary["side_right"] == {"mean": 1.0, "se": 0.0, "n": 1}
    assert summary["chamfer"]["n"] == 1
    assert "| eeg | 2 | 1 | 1 | 1.000 ± 0.000" in phantom_objects.table({"eeg": summary})


def test_a_worker_that_dies_loses_its_own_job_only():
    results = {}
    left = pool.run_jobs(
        [1, 2, 3, 4], square, 2, workers=2, on_result=lambda job, r: results.update({job: r})
    )
    assert results == {1: 1, 2: None, 3: 9, 4: 16}
    assert left == []


def test_threads_are_those_asked_for_or_one_beside_a_gpu(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 32)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert pool.threads_each(4, "cpu") == 8
    assert pool.threads_each(4, "cuda") == 1
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert pool.threads_each(4, "cpu") == pool.threads_each(4, "cuda") == 3


def test_out_of_time_starts_nothing():
    results = []
    left = pool.run_jobs(
        [1, 2], square, 0, workers=1, on_result=lambda *r: results.append(r), time_budget=-1
    )
    assert left == [1, 2]
    assert results == []


def test_environments_go_round_the_workers():
    name = "THREESTUDIO_EEG_TOY"
    results = {}
    left = pool.run_jobs(
        [1, 2, 3],
        look_around,
        name,
        workers=3,
        on_result=lambda job, r: results.update({job: r}),
        environments=[{name: "a"}, {name: "b"}],
    )
    assert left == []
    assert results == {1: "a", 2: "b", 3: "a"}
    assert name not in os.environ


def test_workers_that_finish_together_leave_together(tmp_path):
    results = []
    settings = {"folder": str(tmp_path), "number": 3}
    pool.run_jobs(
        [1, 2, 3], leave_together, settings, workers=3, on_result=lambda *r: results.append(r)
    )
    assert sorted(results) == [(1, 1), (2, 2), (3, 3)]
    assert sorted(file.name.split()[0] for file in tmp_path.iterdir()) == ["sent"] * 3


def run_here(jobs, work, settings, *, workers, on_result, time_budget=None, environments=({},)):
    """Stand in for the processes: one after the other, here."""
    eyes = phantom_objects.Eyes.open(settings)
    for job in jobs[:-1] if time_budget else jobs:
        on_result(job, phantom_objects.make_objects(job, settings, eyes))
    return jobs[-1:] if time_budget else []


@pytest.fixture(scope="module")
def recording(tmp_path_factory, world):
    from eeg_encoder.recordings.simulation import SimulationConfig
    from threestudio_eeg.demo import encode_recording
    from threestudio_eeg.phantom.recording import make_recording

    folder = tmp_path_factory.mktemp("recording")
    torch.set_num_threads(1)
    recording = make_recording(
        folder,
        per_category={"test": 1},
        categories=["mug", "bottle"],
        simulation=SimulationConfig(subjects=1, held_out_repetitions=2),
        pipeline=world.pipeline,
    )
    encode_recording(recording, folder, world.encoder, "cpu")
    return recording


def call(recording, world, out, *more, overrides=SMALL_FIELD):
    phantom_objects.main(
        [
            *("--objects", str(recording.objects)),
            *("--conditioning", str(recording.folder / "conditioning.safetensors")),
            *("--pipeline", str(world.pipeline), "--judge", str(world.judge)),
            *("--out", str(out), "--trials", "2", "--steps", "2", "--workers", "1"),
            *("--device", "cpu", "--size", "16"),
            *(word for pair in overrides for word in ("--override", pair)),
            *more,
        ]
    )


def test_the_benchmark_makes_objects_and_goes_on_where_it_stopped(
    recording, world, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("THREESTUDIO_EEG_HOST", "builtin")
    monkeypatch.setattr(phantom_objects, "run_jobs", run_here)
    monkeypatch.setattr("threestudio_eeg.evaluation.objects.true_mesh", coarse)
    conditions = ("--conditions", "eeg", "shuffled")
    call(recording, world, tmp_path, *conditions, "--time-budget", "1")
    assert "1 objects not started" in capsys.readouterr().out
    with (tmp_path / "results.jsonl").open("a") as file:
        file.write('{"key": "cut')
    call(recording, world, tmp_path, *conditions)
    assert "4 objects, 3 of them made before" in capsys.readouterr().out
    content = json.loads((tmp_path / "results.json").read_text())
    assert content["simulated"]
    assert {c: s["made"] for c, s in content["summary"].items()} == {"eeg": 2, "shuffled": 2}
    by_key = {entry["key"]: entry for entry in content["objects"]}
    mug = next(i for i in recording.instances if i.category == "mug").stimulus
    assert by_key[f"eeg-{mug}-0"]["source"] == f"s1-{mug}"
    assert by_key[f"shuffled-{mug}-0"]["source"] != f"s1-{mug}"
    made = tmp_path / "objects" / f"shuffled-{mug}-0" / "conditioning.json"
    assert json.loads(made.read_text())["trial"]["id"] == by_key[f"shuffled-{mug}-0"]["source"]
    from PIL import Image

    with Image.open(tmp_path / "contact-eeg.png") as sheet:
        assert np.asarray(sheet).std() > 5
    with pytest.raises(SystemExit, match="steps: found 3, expected 2"):
        call(recording, world, tmp_path, *conditions, "--steps", "3")


def test_groups_are_alike_and_in_the_order_of_their_jobs():
    jobs = [
        phantom_objects.Job(condition, f"n_{i}", f"s1-n_{i}", "a mug", 0)
        for i in range(3)
        for condition in ("eeg", "text", "shuffled")
    ]
    groups = phantom_objects.groups_of(jobs, 2)
    assert sorted(job.key for group in groups for job in group) == sorted(j.key for j in jobs)
    assert all(len({job.condition == "text" for job in group}) == 1 for group in groups)
    assert [jobs.index(group[0]) for group in groups] == [0, 1, 3, 6, 7]


def test_the_benchmark_makes_objects_together(recording, world, tmp_path, monkeypatch):
    monkeypatch.setenv("THREESTUDIO_EEG_HOST", "builtin")
    monkeypatch.setattr(phantom_objects, "run_jobs", run_here)
    monkeypatch.setattr("threestudio_eeg.evaluation.objects.true_mesh", coarse)
    call(recording, world, tmp_path, "--conditions", "eeg", "text", "--together", "4")
    entries = json.loads((tmp_path / "results.json").read_text())["objects"]
    assert [("error" in e, e["condition"]) for e in entries] == [
        (False, "eeg"),
        (False, "text"),
    ] * 2
    assert len(list((tmp_path / "truth").iterdir())) == 2


def test_the_benchmark_starts_a_representation_from_a_field(
    recording, world, tmp_path, monkeypatch
):
    monkeypatch.setenv("THREESTUDIO_EEG_HOST", "builtin")
    monkeypatch.setattr(phantom_objects, "run_jobs", run_here)
    monkeypatch.setattr("threestudio_eeg.evaluation.objects.true_mesh", coarse)
    bottle = next(i for i in recording.instances if i.category == "bottle").stimulus
    few = ("--override", "system.geometry.init_num_pts=40")
    pairs = [pair for pair in SMALL_FIELD if "encoding" not in pair]
    small = [word for pair in pairs for word in ("--begin-override", pair)]
    grid = ("--begin-overlay", "phantom/volume-grid.yaml")
    call(
        *(recording, world, tmp_path, "--conditions", "eeg", "--stimuli", bottle),
        *("--overlay", "phantom/gaussian-splatting.yaml", "--begin", "1", *grid, *small, *few),
        overrides=(),
    )
    (entry,) = json.loads((tmp_path / "results.json").read_text())["objects"]
    assert "error" not in entry
    assert entry["stimulus"] == bottle
    first = tmp_path / "objects" / f"{entry['key']}-begin" / "ckpts" / "last.ckpt"
    assert torch.load(first, weights_only=False)["global_step"] == 1
    with pytest.raises(SystemExit, match="stimuli: found n_0"):
        call(recording, world, tmp_path / "other", "--conditions", "eeg", "--stimuli", "n_0")


def test_trials_may_be_left_out(recording, world, tmp_path):
    words = ["--objects", str(recording.objects), "--out", str(tmp_path), "--conditions", "text"]
    plans = [
        phantom_objects.plan(phantom_objects._parser().parse_args([*words, *more]))
        for more in (["--trials", "2"], ["--trials", "1", "--skip", "1"])
    ]
    assert plans[1] == plans[0][1:]
    assert len(plans[1]) == 1


def test_a_benchmark_of_one_category_cannot_shuffle(recording, world, tmp_path):
    with pytest.raises(SystemExit, match="shuffled: found"):
        call(recording, world, tmp_path, "--conditions", "shuffled", "--trials", "1")


def test_the_comparison_benchmark_makes_controls_objects_and_tables(
    recording, world, tmp_path, monkeypatch
):
    monkeypatch.setenv("THREESTUDIO_EEG_HOST", "builtin")
    monkeypatch.setattr(phantom_objects, "run_jobs", run_here)
    monkeypatch.setattr("threestudio_eeg.evaluation.objects.true_mesh", coarse)
    quick = partial(compare_meshes, n_points=500, resolution=16)
    monkeypatch.setattr("threestudio_eeg.evaluation.objects.compare_meshes", quick)
    comparison = importlib.import_module("comparison")
    overrides = [word for pair in SMALL_FIELD for word in ("--override", pair)]
    words = [
        *("--objects", str(recording.objects), "--judge", str(world.judge)),
        *("--conditioning", str(recording.folder / "conditioning.safetensors")),
        *("--pipeline", str(world.pipeline), "--out", str(tmp_path), "--device", "cpu"),
        *("--trials", "2", "--seeds", "0", "--conditions", "eeg", "image"),
        *("--steps", "2", "--workers", "1", "--size", "16"),
        *overrides,
    ]
    comparison.main(words)
    comparison.main([*words, "--rows-only"])
    table = json.loads((tmp_path / "comparison" / "comparison.json").read_text())
    assert table["conditions"] == ["image", "eeg"]
    assert {n for of in table["differences"].values() for n in of} == {"image"}
    assert {"category_10way_top1", "similarity", "fscore"} <= set(table["estimates"])
    assert table["sets"]["eeg"]["views"] == 8
    assert "Fréchet distance (image tower)" in table["sets"]["image"]
    from PIL import Image

    with Image.open(tmp_path / "comparison" / "comparison.png") as sheet:
        assert sheet.height > 3 * 128
