"""Group normalisation, sums and gated units in our kernels against the torch code."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from eeg_encoder.errors import InputError
from tests.tiny import tiny_unet
from threestudio_eeg.acceleration.fused_blocks import PlainAttention, fuse_blocks
from threestudio_eeg.acceleration.group_norm import reference
from threestudio_eeg.acceleration.networks import attend_by_products, can_fuse
from threestudio_eeg.acceleration.pointwise import (
    add_biased,
    add_biased_reference,
    geglu,
    geglu_reference,
)
from threestudio_eeg.adapters import CameraLoRA

from .kernels import DEVICE, run_in_interpreter, runs_kernels


def case(shape, dtype=torch.float32, groups=4):
    seed = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=seed) * 2 + 0.5
    weight, bias = (torch.randn(shape[1], generator=seed) for _ in range(2))
    gradient = torch.randn(shape, generator=seed)
    x, weight, bias, gradient = (t.to(DEVICE, dtype) for t in (x, weight, bias, gradient))
    return x.requires_grad_(), groups, weight, bias, gradient


def test_in_the_interpreter():
    run_in_interpreter(__file__)


@runs_kernels
@pytest.mark.parametrize("shape", [(2, 8, 5, 7), (1, 12, 70, 40), (2, 64, 3, 3)])
@pytest.mark.parametrize("innermost", [True, False])
@pytest.mark.parametrize("plus", [True, False])
@pytest.mark.parametrize("activate", [True, False])
def test_values_and_gradients(shape, innermost, plus, activate):
    from threestudio_eeg.acceleration.group_norm_triton import group_norm

    x, groups, weight, bias, gradient = case(shape)
    added = torch.randn(shape[:2], generator=torch.Generator().manual_seed(1)).to(DEVICE)
    results = []
    for function in (group_norm, reference):
        given = x.detach().clone()
        if innermost:
            given = given.to(memory_format=torch.channels_last)
        inputs = [t.requires_grad_() for t in ((given, added.clone()) if plus else (given,))]
        out = function(given, groups, weight, bias, 1e-6, inputs[1] if plus else None, activate)
        results.append([out, *torch.autograd.grad(out, inputs, gradient)])
    assert results[0][0].is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(*(result[0] for result in results), atol=2e-5, rtol=1e-4)
    for found, expected in zip(*(result[1:] for result in results), strict=True):
        torch.testing.assert_close(found, expected, atol=5e-5, rtol=1e-3)


@runs_kernels
def test_many_programs_share_a_picture(monkeypatch):
    from threestudio_eeg.acceleration import group_norm_triton

    monkeypatch.setattr(group_norm_triton, "ENOUGH_PROGRAMS", 2)
    monkeypatch.setattr(group_norm_triton, "SUMMED", 4)
    monkeypatch.setattr(group_norm_triton, "ELEMENTS", 64)
    x, groups, weight, bias, gradient = case((2, 8, 16, 11))
    found = group_norm_triton.group_norm(x, groups, weight, bias, 1e-6)
    expected = reference(x, groups, weight, bias, 1e-6)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)
    pair = [torch.autograd.grad(out, x, gradient)[0] for out in (found, expected)]
    torch.testing.assert_close(*pair, atol=5e-5, rtol=1e-3)


@runs_kernels
def test_sums_with_a_bias():
    a, _, bias, _, gradient = case((2, 8, 5, 7))
    b = a.detach().flip(0).requires_grad_()
    found, expected = add_biased(a, b, bias), add_biased_reference(a, b, bias)
    torch.testing.assert_close(found, expected)
    assert found.is_contiguous(memory_format=torch.channels_last)
    for of_a in torch.autograd.grad(found, (a, b), gradient):
        torch.testing.assert_close(of_a, gradient)


@runs_kernels
@pytest.mark.parametrize("width", [6, 64])
def test_gated_linear_units(width):
    seed = torch.Generator().manual_seed(0)
    x = (torch.randn(3, 50, 2 * width, generator=seed) * 2).to(DEVICE).requires_grad_()
    gradient = torch.randn(3, 50, width, generator=seed).to(DEVICE)
    results = [
        [out, *torch.autograd.grad(out, x, gradient)] for out in (geglu(x), geglu_reference(x))
    ]
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@runs_kernels
def test_half_precision_sums_in_single():
    from threestudio_eeg.acceleration.group_norm_triton import group_norm

    x, groups, weight, bias, gradient = case((1, 16, 64, 64), torch.float16)
    found = group_norm(x, groups, weight, bias, 1e-6)
    assert found.dtype == torch.float16
    exact = [t.detach().float() for t in (x, weight, bias, gradient)]
    exact[0].requires_grad_()
    expected = reference(exact[0], groups, exact[1], exact[2], 1e-6)
    of_x = torch.autograd.grad(found, x, gradient)[0].float()
    (wanted,) = torch.autograd.grad(expected, exact[0], exact[3])
    assert (found.float() - expected).norm() < 1e-3 * expected.norm()
    assert (of_x - wanted).norm() < 1e-3 * wanted.norm()


@pytest.fixture
def single_precision():
    """Convolutions and products in single precision: not in TF32, which a GPU takes else."""
    convolutions, products = torch.backends.cudnn, torch.backends.cuda.matmul
    before = convolutions.allow_tf32, products.allow_tf32
    convolutions.allow_tf32 = products.allow_tf32 = False
    yield
    convolutions.allow_tf32, products.allow_tf32 = before


def tiny_vae():
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    return AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        sample_size=16,
    ).requires_grad_(False)


@runs_kernels
def test_an_encoder_with_fused_norms_is_the_same_encoder(single_precision):
    vae, seed = tiny_vae().to(DEVICE), torch.Generator().manual_seed(1)
    picture = torch.rand(1, 3, 16, 16, generator=seed).to(DEVICE).requires_grad_()
    results = []
    for _ in range(2):
        mean = vae.encode(picture).latent_dist.mean
        results.append([mean, *torch.autograd.grad(mean.square().sum(), picture)])
        if len(results) == 1:
            fuse_blocks(vae.encoder)
            kinds = [type(part).__name__ for part in vae.encoder.modules()]
            assert kinds.count("FusedResidualBlock") == 4
            assert kinds.count("NormSiLU") == 1
    for found, expected in zip(*reversed(results), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-3)


@runs_kernels
def test_a_unet_with_fused_norms_is_the_same_unet_with_its_adapters(single_precision):
    torch.manual_seed(0)
    unet = tiny_unet(
        block_out_channels=(8, 16), norm_num_groups=4, cross_attention_dim=8, attention_head_dim=4
    )
    adapter = CameraLoRA(unet.eval().requires_grad_(False), rank=2).to(DEVICE)
    seed = torch.Generator().manual_seed(1)
    for parameter in adapter.parameters():
        parameter.data.copy_(0.3 * torch.randn(parameter.shape, generator=seed))
    sizes = (2, 4, 8, 8), (2, 3, 8), (2, 16)
    noisy, context, camera = (torch.randn(size, generator=seed).to(DEVICE) for size in sizes)
    unet.to(DEVICE)
    inputs = [noisy.requires_grad_(), *adapter.parameters()]
    results = []
    for _ in range(2):
        said = adapter(noisy, torch.tensor([3, 700], device=DEVICE), context, camera)
        results.append([said, *torch.autograd.grad(said.square().sum(), inputs)])
        if len(results) == 1:
            fuse_blocks(unet)
            kinds = {type(part).__name__ for part in unet.modules()}
            assert {"FusedTransformer", "FusedGEGLU", "FusedResidualBlock"} <= kinds
            assert all(type(p) is PlainAttention for p in unet.attn_processors.values())
    for place, (found, expected) in enumerate(zip(*reversed(results), strict=True)):
        atol = 1e-5 if place < 2 else 1e-4  # values, gradient to the pictures; to the adapters
        torch.testing.assert_close(found, expected, atol=atol, rtol=1e-3)


def test_another_kind_of_encoder_is_refused():
    vae = tiny_vae()
    assert can_fuse(vae.encoder)
    vae.encoder.conv_act = nn.ReLU()
    assert not can_fuse(vae.encoder)
    with pytest.raises(InputError, match="fused_norms"):
        fuse_blocks(vae.encoder)


def test_wide_heads_by_products_are_the_same_attention(monkeypatch):
    from diffusers.models.attention_processor import AttnProcessor

    from threestudio_eeg.acceleration import networks

    monkeypatch.setattr(networks, "WIDEST_FUSED_HEAD", 4)
    vae = tiny_vae()
    picture = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    before = vae.encode(picture).latent_dist.mean
    attend_by_products(vae.encoder)
    kinds = [type(part.processor) for part in vae.encoder.modules() if hasattr(part, "processor")]
    assert kinds == [AttnProcessor]
    torch.testing.assert_close(vae.encode(picture).latent_dist.mean, before)
