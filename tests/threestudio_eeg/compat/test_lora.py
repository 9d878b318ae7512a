"""LoRA processors on a real U-Net: the teacher must not see the LoRA."""

import importlib

import pytest
import torch

from tests.tiny import tiny_unet
from threestudio_eeg.compat import lora

pytest.importorskip("diffusers")


def new_unet():
    torch.manual_seed(0)
    return tiny_unet(
        block_out_channels=(16, 16), norm_num_groups=4, cross_attention_dim=12, attention_head_dim=4
    ).requires_grad_(False)


def with_lora(unet, std=0.3):
    """Put processors in as threestudio does, and give the zero halves numbers."""
    processor = importlib.import_module("diffusers.models.attention_processor").LoRAAttnProcessor
    unet.set_attn_processor(
        {
            name: processor(hidden_size=16, cross_attention_dim=None if "attn1" in name else 12)
            for name in unet.attn_processors
        }
    )
    layers = importlib.import_module("diffusers.loaders").AttnProcsLayers(unet.attn_processors)
    for name, weight in layers.named_parameters():
        if ".up." in name:
            torch.nn.init.normal_(weight, std=std)
    return layers


def predict(unet, scale=None, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(2, 4, 8, 8, generator=generator).to(dtype)
    context = torch.randn(2, 5, 12, generator=generator).to(dtype)
    kwargs = None if scale is None else {"scale": scale}
    step = torch.tensor([3, 500])
    return unet(latents, step, encoder_hidden_states=context, cross_attention_kwargs=kwargs).sample


@pytest.fixture
def unet():
    lora.apply("cpu")
    return new_unet()


def test_needed_with_the_diffusers_that_is_installed():
    assert "empty class" in lora.reason("cuda") or "no LoRAAttnProcessor" in lora.reason("cuda")


def test_a_diffusers_that_still_has_them_is_left_alone(monkeypatch):
    class Real:
        def __init__(self, hidden_size, cross_attention_dim=None):
            pass

    module = importlib.import_module("diffusers.models.attention_processor")
    monkeypatch.setattr(module, "LoRAAttnProcessor", Real)
    assert lora.reason("cuda") is None


def test_scale_zero_is_the_network_without_lora_bit_for_bit(unet):
    plain = predict(unet)
    with_lora(unet)
    assert torch.equal(predict(unet, 0.0), plain)


def test_scale_one_differs_and_is_the_default(unet):
    plain = predict(unet)
    with_lora(unet)
    adapted = predict(unet, 1.0)
    assert (adapted - plain).norm() > 0.1 * plain.norm()
    assert torch.equal(predict(unet), adapted)


def test_the_scale_is_that_of_merged_weights(unet):
    merged, scale = new_unet(), 0.4
    layers = with_lora(unet)
    with torch.no_grad():
        for index, name in enumerate(merged.attn_processors):
            block = merged.get_submodule(name.removesuffix(".processor"))
            adapters = layers.layers[index]
            for projection in lora.PROJECTIONS:
                pair = getattr(adapters, f"{projection}_lora")
                linear = getattr(block, projection)
                linear = linear[0] if projection == "to_out" else linear
                linear.weight += scale * pair.up.weight @ pair.down.weight
    torch.testing.assert_close(predict(unet, scale), predict(merged), rtol=1e-4, atol=1e-5)


def test_the_scale_does_not_stay(unet):
    plain = predict(unet)
    with_lora(unet)
    adapted = predict(unet, 1.0)
    with pytest.raises(TypeError):
        unet(torch.zeros(1, 4, 8, 8), 1, cross_attention_kwargs={"scale": 0.0})
    assert torch.equal(predict(unet), adapted)
    assert torch.equal(predict(unet, 0.0), plain)


def test_without_the_wrapped_forward_the_teacher_would_see_the_lora(unet, monkeypatch):
    """Why the processor alone is not enough; fails when diffusers passes ``scale`` again."""
    plain = predict(unet)
    with_lora(unet)
    monkeypatch.setattr(type(unet), "forward", type(unet).forward.__wrapped__)
    assert not torch.equal(predict(unet, 0.0), plain)


def test_it_starts_as_the_network_itself(unet):
    plain = predict(unet)
    with_lora(unet, std=0.0)
    torch.testing.assert_close(predict(unet, 1.0), plain)


def test_gradients_reach_every_adapter_and_nothing_else(unet):
    layers = with_lora(unet)
    predict(unet, 1.0).square().sum().backward()
    assert all(weight.grad.abs().sum() > 0 for weight in layers.parameters())
    adapters = {id(weight) for weight in layers.parameters()}
    assert all(p.grad is None for p in unet.parameters() if id(p) not in adapters)


def test_no_gradient_at_scale_zero(unet):
    with_lora(unet)
    assert not predict(unet, 0.0).requires_grad


def test_names_of_threestudio_checkpoints(unet):
    layers = with_lora(unet)
    layers._state_dict_hooks.clear()
    expected = {
        f"layers.{index}.{projection}_lora.{part}.weight"
        for index in range(len(unet.attn_processors))
        for projection in lora.PROJECTIONS
        for part in ("down", "up")
    }
    assert set(layers.state_dict()) == expected
    assert layers.layers[0].to_q_lora.down.weight.shape == (4, 16)
    assert layers.layers[1].to_k_lora.down.weight.shape == (4, 12)


def test_single_precision_beside_a_half_precision_network(unet):
    unet.to(torch.bfloat16)
    layers = with_lora(unet)
    layers.to(torch.float32)
    found = predict(unet, 1.0, torch.bfloat16)
    assert found.dtype == torch.bfloat16
    assert found.isfinite().all()


def test_network_alpha_scales_the_additions():
    lora.apply("cpu")
    torch.manual_seed(0)
    half = lora.LoRAAttnProcessor(16, network_alpha=2.0)
    whole = lora.LoRAAttnProcessor(16)
    assert half.strength == 0.5
    assert whole.strength == 1
