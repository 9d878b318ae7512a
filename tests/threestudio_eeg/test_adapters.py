from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from tests.tiny import tiny_unet
from threestudio_eeg.adapters import PROJECTIONS, AdaptedLinear, CameraLoRA, adapter_state


def stable_diffusion_unet() -> Any:
    """SD 1.5's U-Net without weights (diffusers' defaults have its blocks and widths)."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        return UNet2DConditionModel(
            sample_size=64, cross_attention_dim=768, attention_head_dim=8, layers_per_block=2
        )


@pytest.fixture
def unet() -> Any:
    torch.manual_seed(0)
    return tiny_unet().eval().requires_grad_(False)


def batch() -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    shapes = (2, 4, 8, 8), (2, 10, 32), (2, 16)
    latents, context, camera = (torch.randn(s, generator=generator) for s in shapes)
    return latents, torch.tensor([10, 700]), context, camera


def plain(unet: Any) -> torch.Tensor:
    latents, t, context, _ = batch()
    with torch.no_grad():
        return unet(latents, t, encoder_hidden_states=context).sample


def test_parameter_counts_on_stable_diffusion_shapes() -> None:
    adapter = CameraLoRA(stable_diffusion_unet(), rank=4)
    assert sum(p.numel() for p in adapter.lora_layers.parameters()) == 797_184
    assert sum(p.numel() for p in adapter.camera_embedding.parameters()) == 1_661_440
    assert len(adapter.lora_layers["layers"]) == 32


def test_teacher_is_untouched_bit_for_bit_and_the_adapter_differs_after_an_update(
    unet: Any,
) -> None:
    before = plain(unet)
    adapter = CameraLoRA(unet, rank=4)
    assert torch.equal(plain(unet), before)
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=1e-2)
    adapter(*batch()).square().mean().backward()
    optimizer.step()
    assert torch.equal(plain(unet), before)
    with torch.no_grad():
        assert not torch.allclose(adapter(*batch()), before, atol=1e-3)
    assert torch.equal(plain(unet), before)


def test_a_fresh_adapter_with_a_silent_camera_predicts_as_the_teacher(unet: Any) -> None:
    adapter = CameraLoRA(unet, rank=4)
    torch.nn.init.zeros_(adapter.camera_embedding.module.linear_2.weight)
    torch.nn.init.zeros_(adapter.camera_embedding.module.linear_2.bias)
    with torch.no_grad():
        torch.testing.assert_close(adapter(*batch()), plain(unet))


def test_only_adapters_and_camera_get_gradients_even_when_switched_off_in_between(
    unet: Any,
) -> None:
    adapter = CameraLoRA(unet, rank=2)
    loss = adapter(*batch()).square().mean()
    plain(unet)
    loss.backward()
    ups = [p for n, p in adapter.named_parameters() if ".up." in n or "camera" in n]
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in ups)
    own = {id(p) for p in adapter.parameters()}
    assert all(p.grad is None for p in unet.parameters() if id(p) not in own)


def test_the_camera_matters(unet: Any) -> None:
    adapter = CameraLoRA(unet, rank=2)
    latents, t, context, camera = batch()
    with torch.no_grad():
        there, elsewhere = (adapter(latents, t, context, c) for c in (camera, camera.flip(0)))
    assert not torch.allclose(there, elsewhere)


def test_adapters_stay_float32_on_a_half_precision_network(unet: Any) -> None:
    adapter = CameraLoRA(unet.to(torch.bfloat16), rank=2)
    assert {p.dtype for p in adapter.parameters()} == {torch.float32}
    latents, t, context, camera = batch()
    out = adapter(latents.bfloat16(), t, context.bfloat16(), camera)
    assert out.dtype == torch.bfloat16


def test_state_dict_names_are_those_of_threestudio(unet: Any) -> None:
    names = set(CameraLoRA(unet, rank=2).state_dict())
    assert "lora_layers.layers.0.to_out_lora.down.weight" in names
    assert "camera_embedding.module.linear_2.bias" in names
    assert all(name.startswith(("lora_layers.", "camera_embedding.")) for name in names)


def test_the_adapters_are_pefts(unet: Any) -> None:
    """The same start from the same seed, and the same function."""
    from peft import LoraConfig, inject_adapter_in_model

    theirs = copy.deepcopy(unet)
    torch.manual_seed(2)
    adapter = CameraLoRA(unet, rank=3)
    config = LoraConfig(
        r=3,
        lora_alpha=3,
        target_modules=list(PROJECTIONS.values()),
        init_lora_weights="gaussian",
    )
    torch.manual_seed(2)
    inject_adapter_in_model(config, theirs)
    ours = {name: m for name, m in unet.named_modules() if isinstance(m, AdaptedLinear)}
    assert len(ours) == 4 * len(unet.attn_processors)
    for name, adapted in ours.items():
        tuner = theirs.get_submodule(name)
        assert torch.equal(adapted.down.weight, tuner.lora_A["default"].weight)
        torch.nn.init.normal_(adapted.up.weight)
        tuner.lora_B["default"].weight.data.copy_(adapted.up.weight)
    torch.nn.init.zeros_(adapter.camera_embedding.module.linear_2.weight)
    torch.nn.init.zeros_(adapter.camera_embedding.module.linear_2.bias)
    with torch.no_grad():
        torch.testing.assert_close(adapter(*batch()), plain(theirs))
        assert not torch.allclose(plain(unet), plain(theirs), atol=1e-3)


def scrambled(unet: Any, n: int = 1) -> CameraLoRA:
    adapter = CameraLoRA(unet, rank=2, n_adapters=n)
    generator = torch.Generator().manual_seed(8)
    for parameter in adapter.parameters():
        parameter.data.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return adapter


def test_bare_samples_of_a_batch_are_the_teachers(unet: Any) -> None:
    adapter = scrambled(unet)
    latents, t, context, camera = batch()
    with torch.no_grad():
        alone = adapter(latents, t, context, camera)
        both = adapter(
            torch.cat([latents] * 2), t.repeat(2), context.repeat(2, 1, 1), camera, bare=2
        )
    torch.testing.assert_close(both[:2], plain(unet))
    torch.testing.assert_close(both[2:], alone)
    assert not torch.allclose(both[:2], both[2:], atol=1e-2)


def test_the_gradient_of_a_mixed_batch_is_that_of_the_adapted_samples(unet: Any) -> None:
    adapter = scrambled(unet)
    latents, t, context, camera = batch()
    grads = []
    for bare in (0, 1):
        adapter.zero_grad()
        out = adapter(latents, t, context, camera[bare:], bare=bare)
        out[1:].square().sum().backward()
        grads.append([p.grad.clone() for p in adapter.parameters()])
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-4, atol=1e-5)


def test_every_sample_goes_through_its_own_of_several_adapters(unet: Any) -> None:
    latents, t, context, camera = batch()
    which = torch.tensor([2, 0])
    several = scrambled(unet, n=3)
    state = several.state_dict()
    out = several(latents, t, context, camera, which)
    out.square().sum().backward()
    assert all(tensor.shape[0] == 3 for tensor in state.values())
    for sample, adapter in enumerate(which.tolist()):
        alone = CameraLoRA(bare_copy(several.unet), rank=2)
        alone.load_state_dict(adapter_state(state, adapter))
        rows = slice(sample, sample + 1)
        own = alone(latents[rows], t[rows], context[rows], camera[rows])
        torch.testing.assert_close(out[rows], own, rtol=1e-4, atol=1e-5)
        own.square().sum().backward()
        for name, parameter in alone.named_parameters():
            stacked = several.get_parameter(name).grad[adapter]
            torch.testing.assert_close(stacked, parameter.grad, rtol=1e-3, atol=1e-5)
    assert all(p.grad[1].abs().sum() == 0 for p in several.parameters())


def bare_copy(unet: Any) -> Any:
    """A copy of a network without the adapters that were put into it."""
    other = type(unet).from_config(unet.config).eval().requires_grad_(False)
    weights = {
        name.replace(".base.", "."): value
        for name, value in unet.state_dict().items()
        if not any(part in name for part in (".down.", ".up.", "class_embedding"))
    }
    other.load_state_dict(weights)
    return other


def test_checkpoints_remember_the_route_of_the_forward_pass(unet: Any) -> None:
    adapter = scrambled(unet)
    results = []
    for checkpoints in (False, True):
        if checkpoints:
            unet.enable_gradient_checkpointing(adapter.checkpointing())
        adapter.zero_grad()
        loss = adapter(*batch()).square().mean()
        plain(unet)
        loss.backward()
        results.append([loss.detach(), *(p.grad.clone() for p in adapter.parameters())])
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-6)


def test_attention_is_torchs_fused_kind(unet: Any) -> None:
    CameraLoRA(unet, rank=2)
    assert {type(p).__name__ for p in unet.attn_processors.values()} == {"AttnProcessor2_0"}
