"""The figures of benchmarks/stages.py and benchmarks/particles.py."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from threestudio_eeg.evaluation.views import orbit
from threestudio_eeg.phantom.objects import make_instances

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import particles
import stages
from phantom_objects import Job

TRIAL = Job("eeg", "n99000000_20000", "s1-n99000000_20000", "a red mug", 0)


def test_the_true_object_is_as_sharp_as_itself_and_a_blurred_one_is_not():
    truth = make_instances("test", 1, 0)[0]
    rgba = stages.true_views(truth, orbit(4), 32)
    views = {"rgb": rgba[..., :3], "opacity": rgba[..., 3:], "cameras": orbit(4)}
    same = stages.sharpness_figures(views, truth, 32)
    assert same == pytest.approx({"sharpness": 1, "detail": 1, "edges": 1}, rel=1e-4)
    soft = torch.nn.functional.avg_pool2d(rgba.permute(0, 3, 1, 2), 5, stride=1, padding=2)
    soft = soft.permute(0, 2, 3, 1)
    views |= {"rgb": soft[..., :3] / soft[..., 3:].clamp(min=1e-3), "opacity": soft[..., 3:]}
    blurred = stages.sharpness_figures(views, truth, 32)
    assert blurred["sharpness"] < 0.8
    assert blurred["detail"] < 0.5
    assert blurred["edges"] > 1.5


def test_stages_that_failed_are_made_again():
    plan = stages.Plan(None, (), stages.STAGES, (), ())
    key = {stage: stages.of_stage(TRIAL, stage).key for stage in stages.STAGES}
    done = {key["coarse"]: {"fscore": 0.9}, key["geometry"]: {"error": "the worker died"}}
    assert stages.missing(TRIAL, plan, done) == ["geometry", "texture"]
    assert stages.missing(TRIAL, plan, {}) == list(stages.STAGES)


def test_changes_are_paired_by_trial():
    coarse = {"a": {"fscore": 0.5}, "b": {"fscore": 0.8}, "c": {"fscore": 0.1}}
    other = {"a": {"fscore": 0.7}, "b": {"fscore": 0.7}, "c": {"error": "x"}}
    change = stages.compare(coarse, other)["fscore"]
    assert change["mean"] == pytest.approx(0.05)
    assert (change["more"], change["n"]) == (1, 2)


def test_diversity_is_the_mean_distance_of_the_pairs(tmp_path):
    jobs = particles.objects_of_trial(TRIAL, "single")[:3]
    for job, direction in zip(jobs, ([1.0, 0], [3.0, 0], [0, 1.0]), strict=True):
        np.save(tmp_path / f"{job.key}.npy", np.array([direction]))
    assert particles.diversity(tmp_path, jobs) == pytest.approx(2 / 3)
    (tmp_path / f"{jobs[0].key}.npy").unlink()
    assert particles.diversity(tmp_path, jobs) is None


def test_particles_are_one_run_and_four_objects():
    runs = particles.plan([TRIAL])
    assert [run.condition for run in runs] == ["particles", *["single"] * 4]
    made = [job.key for run in runs for job in particles.objects_of(run)]
    assert len(set(made)) == 8
