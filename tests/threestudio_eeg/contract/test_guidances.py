"""What the guidances return, and what systems of either host read of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from eeg_encoder.errors import InputError
from threestudio_eeg.own_optimizer import PATIENCE

from .world import World, cameras

LOSSES = {"vsd": {"loss_vsd", "loss_lora"}, "sds": {"loss_sds"}}
KINDS = list(LOSSES)


def picture(n: int = 2, channels: int = 3, size: int = 16) -> torch.Tensor:
    return torch.rand(n, size, size, channels).requires_grad_(True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("as_latents", [False, True])
def test_losses_and_scalars(world: World, kind: str, as_latents: bool) -> None:
    rgb = picture(channels=4 if as_latents else 3)
    guidance, prompt = world.guidance(kind), world.prompt()()
    out = guidance(rgb, prompt, **cameras(), rgb_as_latents=as_latents)
    assert {name for name in out if name.startswith("loss_")} == LOSSES[kind]
    assert set(out) == LOSSES[kind] | {"grad_norm", "min_step", "max_step"}
    for value in out.values():
        assert not isinstance(value, torch.Tensor) or value.numel() == 1
    sum(out[name] for name in LOSSES[kind]).backward()
    assert rgb.grad.abs().sum() > 0
    assert all(p.grad is not None for p in guidance.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_of_the_denoising(world: World, kind: str) -> None:
    guidance, prompt = world.guidance(kind), world.prompt()()
    shown = guidance(picture(), prompt, **cameras(), guidance_eval=True)["eval"]
    assert shown["bs"] == len(shown["texts"]) == len(shown["noise_levels"]) == 2
    for name in ("imgs_noisy", "imgs_1step", "imgs_1orig", "imgs_final"):
        assert shown[name].shape == (2, 16, 16, 3)


def test_samples(world: World) -> None:
    guidance, prompt = world.guidance("vsd"), world.prompt()()
    for sampled in (
        guidance.sample(prompt, **cameras(), seed=3),
        guidance.sample_lora(prompt, **cameras()),
    ):
        assert sampled.shape == (2, 16, 16, 3)
        assert 0 <= sampled.min() <= sampled.max() <= 1


@pytest.mark.parametrize("size", [8, 5])
def test_latents_are_decoded_as_latent_systems_ask(world: World, size: int) -> None:
    guidance = world.guidance("sds")
    latents = torch.randn(1, 4, size, size)
    assert guidance.decode_latents(latents).shape == (1, 3, 16, 16)
    small = guidance.decode_latents(latents, latent_height=4, latent_width=4)
    assert small.shape == (1, 3, 8, 8)


@pytest.mark.parametrize("kind", KINDS)
def test_a_second_update_changes_nothing(world: World, kind: str) -> None:
    guidance = world.guidance(
        kind, max_step_percent=[0, 0.9, 0.5, 10], guidance_scale=[0, 8.0, 2.0, 10], grad_clip=1.0
    )

    def state() -> tuple[Any, ...]:
        return guidance.min_step, guidance.max_step, guidance.guidance_scale, guidance.grad_clip

    guidance.do_update_step(0, 5)
    once = state()
    guidance.do_update_step(0, 5)
    assert state() == once == (20, 700, 5.0, 1.0)


def test_only_the_lora_is_in_the_state(world: World) -> None:
    vsd = world.guidance("vsd").state_dict()
    assert "camera_embedding.module.linear_1.weight" in vsd
    assert "lora_layers.layers.0.to_q_lora.down.weight" in vsd
    assert all(name.startswith(("lora_layers.", "camera_embedding.")) for name in vsd)
    assert world.guidance("sds").state_dict() == {}


def test_perp_neg_is_refused_not_ignored(world: World) -> None:
    prompt = world.prompt(seeing=False, use_perp_neg=True)()
    with pytest.raises(InputError, match="use_perp_neg"):
        world.guidance("sds")(picture(), prompt, **cameras())


def test_a_lora_that_nobody_trains_is_noticed(world: World) -> None:
    guidance, prompt = world.guidance("vsd"), world.prompt()()

    def step_without_an_optimizer(step: int) -> None:
        guidance.do_update_step(0, step)
        guidance(picture(1, size=8), prompt, **cameras(1))

    for step in range(PATIENCE):
        step_without_an_optimizer(step)
    with pytest.raises(InputError, match="guidance.lora_optimizer"):
        step_without_an_optimizer(PATIENCE)


def test_a_lora_with_its_own_optimizer(world: World) -> None:
    own = {"name": "AdamW", "args": {"lr": 0.01, "betas": [0.9, 0.99]}}
    guidance, prompt = world.guidance("vsd", lora_optimizer=own), world.prompt()()
    assert guidance.state_dict() == {}
    with pytest.warns(UserWarning, match="eeg-system"):
        out = guidance(picture(), prompt, **cameras())
    assert {name for name in out if name.startswith("loss_")} == {"loss_vsd"}
    assert not out["lora_loss"].requires_grad
    state = guidance.own_optimizer.state_dict()
    ups = [v for k, v in state["module"].items() if ".up." in k]
    assert all(up.abs().sum() > 0 for up in ups)
    again = world.guidance("vsd", lora_optimizer=own)
    again.own_optimizer.load_state_dict(state)
    found = again.own_optimizer.state_dict()["module"]
    assert all(torch.equal(found[name], value) for name, value in state["module"].items())


@pytest.mark.parametrize("bad", ["AdamW", {"name": "Adamw"}, {"name": "AdamW", "args": {"rl": 1}}])
def test_an_optimizer_that_torch_lacks(world: World, bad: Any) -> None:
    with pytest.raises(InputError, match="lora_optimizer"):
        world.guidance("vsd", lora_optimizer=bad)
