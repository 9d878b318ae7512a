from __future__ import annotations

from typing import Any

import pytest
import torch

from threestudio_eeg.adapters import CameraLoRA


def stable_diffusion_unet() -> Any:
    """SD 1.5's U-Net without weights (diffusers' defaults have its blocks and widths)."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        return UNet2DConditionModel(
            sample_size=64, cross_attention_dim=768, attention_head_dim=8, layers_per_block=2
        )


@pytest.fixture
def unet() -> Any:
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    net = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 32),
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=32,
        attention_head_dim=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )
    return net.eval().requires_grad_(False)


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
