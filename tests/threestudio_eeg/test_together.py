from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from eeg_encoder.errors import InputError
from tests.tiny import tiny_conditioning, tiny_pipeline
from threestudio_eeg import plugin
from threestudio_eeg.batch.streams import Stream, merged_draws
from threestudio_eeg.batch.together import Together
from threestudio_eeg.builtin.launch import launch
from threestudio_eeg.noise import Draws
from threestudio_eeg.own_optimizer import PATIENCE

from .tiny_experiment import tiny_experiment

CASES: dict[str, dict[str, Any]] = {
    "vsd": {},
    "shared noise": {"lora_shares_noise": True},
    "two timesteps, shared t": {"lora_n_timestamp_samples": 2, "shared_t": True},
    "recorded": {"acceleration": "graphs"},
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    plugin.register_all()
    folder = tiny_pipeline(tmp_path_factory.mktemp("pipeline") / "tiny")
    return folder, tiny_conditioning(folder.parent / "eeg.safetensors", folder)


def words(out: Path, eeg: Path, trial: int, *more: str) -> list[str]:
    prompt = "system.prompt_processor"
    return [
        f"exp_root_dir={out}",
        "name=trials",
        f"tag=t{trial}",
        "use_timestamp=false",
        f"seed={trial}",
        f"{prompt}.conditioning={eeg}",
        f"{prompt}.trial={trial}",
        *more,
    ]


def last(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "ckpts" / "last.ckpt", weights_only=True)


def assert_near(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], msg=name, rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("name", CASES)
def test_each_object_is_what_it_would_be_alone(
    inputs: tuple[Path, Path], tmp_path: Path, name: str
) -> None:
    pipeline, eeg = inputs
    config = tiny_experiment(tmp_path / "tiny.yaml", pipeline, **CASES[name])
    both = Together([config], [words(tmp_path / "both", eeg, i) for i in (0, 1)], "cpu")
    before = {k: v.clone() for k, v in both.members[1].system.state_dict().items()}
    both.train()
    for i in (0, 1):
        alone = launch(
            "train", [config], words(tmp_path / "alone", eeg, i), device="cpu", quiet=True
        )
        found, wanted = last(both.members[i].folder), last(alone)
        assert found["global_step"] == wanted["global_step"] == 4
        assert_near(found["state_dict"], wanted["state_dict"])
    moved = both.members[1].system.state_dict()
    up = next(k for k in moved if k.startswith("guidance.") and ".up." in k)
    grid = next(k for k in moved if k.startswith("geometry.encoding"))
    assert all(float((moved[k] - before[k]).abs().max()) > 1e-3 for k in (up, grid))


def test_the_guidance_sees_that_it_is_trained(inputs: tuple[Path, Path], tmp_path: Path) -> None:
    pipeline, eeg = inputs
    config = tiny_experiment(tmp_path / "tiny.yaml", pipeline, steps=PATIENCE + 2)
    both = Together([config], [words(tmp_path, eeg, i) for i in (0, 1)], "cpu")
    both.train()
    assert both.step == PATIENCE + 2


def test_an_interrupted_pair_goes_on_as_if_nothing_had_happened(
    inputs: tuple[Path, Path], tmp_path: Path
) -> None:
    pipeline, eeg = inputs
    config = tiny_experiment(tmp_path / "tiny.yaml", pipeline)

    def made(out: str) -> Together:
        return Together([config], [words(tmp_path / out, eeg, i) for i in (0, 1)], "cpu")

    def interrupt(step: int) -> None:
        if step == 3:
            raise KeyboardInterrupt

    whole = made("whole")
    whole.train()
    with pytest.raises(KeyboardInterrupt):
        made("halves").train(interrupt)
    again = made("halves")
    assert again.step == 3
    again.train()
    for one, other in zip(again.members, whole.members, strict=True):
        assert_near(last(one.folder)["state_dict"], last(other.folder)["state_dict"])


def test_checkpoints_hold_one_object_each(inputs: tuple[Path, Path], tmp_path: Path) -> None:
    pipeline, eeg = inputs
    config = tiny_experiment(tmp_path / "tiny.yaml", pipeline, 1)
    sizes = []
    for trials in ((0,), (0, 1)):
        out = tmp_path / str(len(trials))
        group = Together([config], [words(out, eeg, i) for i in trials], "cpu")
        group.train()
        sizes.append(group.members[0].last.stat().st_size)
    assert sizes[1] < 1.05 * sizes[0]


def test_checkpoints_of_different_steps_are_refused(
    inputs: tuple[Path, Path], tmp_path: Path
) -> None:
    pipeline, eeg = inputs
    config = tiny_experiment(tmp_path / "tiny.yaml", pipeline, 1)
    Together([config], [words(tmp_path, eeg, 0)], "cpu").train()
    with pytest.raises(InputError, match=r"found 0, 1, expected one step"):
        Together([config], [words(tmp_path, eeg, i) for i in (0, 1)], "cpu")


@pytest.mark.parametrize(
    ("more", "match"),
    [
        ("trainer.precision=16-mixed", "trainer.precision"),
        ("system.n_particles=2", "n_particles"),
    ],
)
def test_what_cannot_be_shared_is_refused(
    inputs: tuple[Path, Path], tmp_path: Path, more: str, match: str
) -> None:
    pipeline, eeg = inputs
    config = tiny_experiment(tmp_path / "tiny.yaml", pipeline, 1)
    with pytest.raises(InputError, match=match):
        Together([config], [words(tmp_path, eeg, i, more) for i in (0, 1)], "cpu")


def test_streams_draw_as_if_alone() -> None:
    torch.manual_seed(1)
    first = Stream(torch.device("cpu"))
    wanted = torch.rand(4)
    torch.manual_seed(2)
    second = Stream(torch.device("cpu"))
    outside = torch.rand(1)
    torch.manual_seed(2)
    pieces = []
    for _ in range(2):
        with first.drawing():
            pieces.append(torch.rand(2))
        with second.drawing():
            torch.rand(3)
    assert torch.equal(torch.cat(pieces), wanted)
    assert torch.equal(torch.rand(1), outside)


def test_draws_for_several_timesteps_stay_with_their_trials() -> None:
    def of(i: int) -> Draws:
        return Draws(
            None, torch.full((2,), i), torch.full((2, 1), i), lora_t=10 * i + torch.arange(4)
        )

    merged = merged_draws([of(1), of(2)])
    assert merged.t.tolist() == [1, 1, 2, 2]
    assert merged.lora_t is not None
    assert merged.lora_t.tolist() == [10, 11, 20, 21, 12, 13, 22, 23]
    assert merged.posterior is None
