"""Group normalisation and SiLU in one kernel against the torch code."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from eeg_encoder.errors import InputError
from tests.tiny import tiny_unet
from threestudio_eeg.acceleration.networks import attend_by_products
from threestudio_eeg.acceleration.norm_silu import NormSiLU, fuse_norms, reference

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
def test_values_and_gradients(shape, innermost):
    from threestudio_eeg.acceleration.norm_silu_triton import norm_silu

    x, groups, weight, bias, gradient = case(shape)
    given = x.detach().to(memory_format=torch.channels_last) if innermost else x.detach().clone()
    given.requires_grad_()
    found = norm_silu(given, groups, weight, bias, 1e-6)
    expected = reference(x, groups, weight, bias, 1e-6)
    assert found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)
    (of_x,) = torch.autograd.grad(found, given, gradient)
    torch.testing.assert_close(
        of_x, torch.autograd.grad(expected, x, gradient)[0], atol=5e-5, rtol=1e-3
    )


@runs_kernels
def test_half_precision_sums_in_single():
    from threestudio_eeg.acceleration.norm_silu_triton import norm_silu

    x, groups, weight, bias, gradient = case((1, 16, 64, 64), torch.float16)
    found = norm_silu(x, groups, weight, bias, 1e-6)
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
            fuse_norms(vae.encoder)
            fused = [part for part in vae.encoder.modules() if isinstance(part, NormSiLU)]
            assert len(fused) == 2 * 4 + 1
    for found, expected in zip(*reversed(results), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-3)


@runs_kernels
def test_a_unet_with_fused_norms_is_the_same_unet(single_precision):
    torch.manual_seed(0)
    unet = tiny_unet(
        block_out_channels=(8, 16), norm_num_groups=4, cross_attention_dim=8, attention_head_dim=4
    )
    unet = unet.eval().requires_grad_(False).to(DEVICE)
    seed = torch.Generator().manual_seed(1)
    noisy, context = (torch.randn(size, generator=seed) for size in ((2, 4, 8, 8), (2, 3, 8)))
    noisy, context = noisy.to(DEVICE).requires_grad_(), context.to(DEVICE)
    results = []
    for _ in range(2):
        said = unet(noisy, torch.tensor([3, 700], device=DEVICE), context).sample
        results.append([said, *torch.autograd.grad(said.square().sum(), noisy)])
        if len(results) == 1:
            fuse_norms(unet)
    for found, expected in zip(*reversed(results), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-3)


def test_another_kind_of_encoder_is_refused():
    vae = tiny_vae()
    vae.encoder.conv_act = nn.ReLU()
    with pytest.raises(InputError, match="fused_norms"):
        fuse_norms(vae.encoder)


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
