"""Systems of either host train with the extension's parts, save them, and go on from there."""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from eeg_encoder.errors import InputError

from .world import World

VSD = {"lambda_vsd": 1.0, "lambda_lora": 1.0}
OWN = {"lora_optimizer": {"name": "AdamW", "args": {"lr": 0.01}}}
EXPERIMENTS: dict[str, tuple[Any, ...]] = {
    "ours": ("eeg-prolificdreamer-system", "eeg-vsd-guidance", VSD, {}),
    "early": ("prolificdreamer-system", "eeg-vsd-guidance", VSD, {}),
    "late": ("dreamfusion-system", "eeg-sds-guidance", {"lambda_sds": 1.0}, {}),
    "late-recorded": (
        "dreamfusion-system:eeg-system",
        "eeg-sds-guidance",
        {"lambda_sds": 1.0},
        {},
    ),
    "late-vsd": (
        "dreamfusion-system:eeg-system",
        "eeg-vsd-guidance",
        {"lambda_vsd": 1.0},
        OWN,
    ),
}


def experiment(world: World, name: str, **more: Any) -> Any:
    system_type, guidance_type, loss, guidance = EXPERIMENTS[name]
    return world.experiment(system_type, guidance_type, loss, **guidance, **more)


def read(trial: Path) -> dict[str, Any]:
    return torch.load(trial / "ckpts" / "last.ckpt", weights_only=True)


def lora(checkpoint: dict[str, Any], name: str) -> dict[str, torch.Tensor]:
    if name == "late-vsd":
        return checkpoint["eeg_guidance"]["module"]
    state = checkpoint["state_dict"]
    return {k.removeprefix("guidance."): v for k, v in state.items() if k.startswith("guidance.")}


@pytest.mark.parametrize("name", list(EXPERIMENTS))
def test_two_steps_then_a_third_after_a_resume(world: World, name: str, tmp_path: Path) -> None:
    first = experiment(world, name)
    before = {k: v.clone() for k, v in first[0].geometry.state_dict().items()}
    world.train(first, tmp_path, 2)
    saved = read(tmp_path)
    assert saved["global_step"] == 2
    assert {"geometry", "renderer"} <= {key.split(".")[0] for key in saved["state_dict"]}
    assert any((saved["state_dict"][f"geometry.{k}"] != v).any() for k, v in before.items())
    assert bool(lora(saved, name)) == (EXPERIMENTS[name][1] == "eeg-vsd-guidance")

    second = experiment(world, name, resumed=True)
    resumed = world.train(second, tmp_path, 3, resume=tmp_path / "ckpts" / "last.ckpt")
    assert resumed.global_step == 3
    after = lora(read(tmp_path), name)
    assert set(after) == set(lora(saved, name))
    for key, value in after.items():
        if ".up." in key:
            old = lora(saved, name)[key]
            assert old.abs().sum() > 0
            # one step of AdamW moves an entry by about its learning rate, 0.01, not back to zero
            assert 0 < float((value - old).abs().max()) < 0.03


@pytest.mark.parametrize("name", ["ours", "late-recorded"])
def test_the_trial_says_what_it_was_made_from(world: World, name: str, tmp_path: Path) -> None:
    world.train(experiment(world, name), tmp_path, 1)
    record = json.loads((tmp_path / "conditioning.json").read_text())
    assert record["host"] == world.host.name
    assert record["trial"]["id"] == "trial-1"
    assert len(record["conditioning_sha256"]) == len(record["encoder_sha256"]) == 64
    made = json.loads((tmp_path / "provenance.json").read_text())
    assert made["host"] == world.host.name
    assert torch.__version__.startswith(made["packages"]["torch"].partition("+")[0])


def test_a_resumed_lora_goes_on_where_it_stopped(world: World, tmp_path: Path) -> None:
    """The optimiser's own state comes back too: its step count."""
    world.train(experiment(world, "late-vsd"), tmp_path, 2)
    steps = [v["step"] for v in read(tmp_path)["eeg_guidance"]["optimizer"]["state"].values()]
    assert {int(s) for s in steps} == {2}
    last = tmp_path / "ckpts" / "last.ckpt"
    world.train(experiment(world, "late-vsd", resumed=True), tmp_path, 3, resume=last)
    steps = [v["step"] for v in read(tmp_path)["eeg_guidance"]["optimizer"]["state"].values()]
    assert {int(s) for s in steps} == {3}


def test_a_system_that_logs_all_that_it_is_told(world: World, tmp_path: Path) -> None:
    """Threestudio's magic3d takes nothing but scalars from a guidance."""
    arguments = ("magic3d-system:eeg-system", "eeg-vsd-guidance", {"lambda_vsd": 1.0})
    if world.host.name == "builtin":
        with pytest.raises(InputError, match="magic3d-system"):
            world.experiment(*arguments, **OWN)
        return
    system = world.train(world.experiment(*arguments, **OWN), tmp_path, 2)
    assert system.global_step == 2


def test_a_fresh_geometry_gets_its_shape_once(world: World, tmp_path: Path) -> None:
    name = f"shaped-{uuid.uuid4().hex}"
    volume = world.host.find("implicit-volume")

    @dataclass
    class ShapedConfig(volume.Config):
        shape_init: Any = "sphere"

    class Shaped(volume):
        Config = ShapedConfig
        shaped = 0

        def initialize_shape(self) -> None:
            self.shaped += 1

    world.host.register(name)(Shaped)
    fresh = experiment(world, "late-recorded", geometry_type=name)
    assert world.train(fresh, tmp_path, 1).geometry.shaped == 1
    last = tmp_path / "ckpts" / "last.ckpt"
    resumed = experiment(world, "late-recorded", geometry_type=name, resumed=True)
    assert world.train(resumed, tmp_path, 2, resume=last).geometry.shaped == 0
