from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from eeg_encoder import models
from eeg_encoder.errors import InputError
from eeg_encoder.models.cross_modal import CrossBlock, JointAutoencoder
from eeg_encoder.models.image_autoencoder import ImageAutoencoder, load_tower
from eeg_encoder.objectives import (
    InfoNCE,
    masked_contrast,
    masked_mse,
    mean_view,
    merl_loss,
    merl_stage_1,
    merl_stage_2,
    reconstruction_correlation,
    signal_patches,
)


def written_out(view, positive, temperature):
    """The formula, one term at a time."""
    b, c, _ = view.shape
    total = 0.0
    for channel in range(c):
        for i in range(b):
            r, x = view[i, channel], positive[i, channel]
            own = math.exp(float(F.cosine_similarity(r, x, dim=0)) / temperature)
            rest = sum(
                math.exp(float(F.cosine_similarity(r, view[j, channel], dim=0)) / temperature)
                for j in range(b)
                if j != i
            )
            total -= math.log(own / (own + rest)) / (b * c)
    return total


@pytest.fixture
def signals():
    return torch.randn(3, 5, 4, 20, generator=torch.Generator().manual_seed(0))


def test_contrast_is_the_formula(signals):
    view, positive, _ = signals
    assert float(masked_contrast(view, positive)) == pytest.approx(
        written_out(view, positive, 0.1), rel=1e-5
    )
    flat = masked_contrast(view, positive, granularity="signal", temperature=0.5)
    expected = written_out(view.reshape(5, 1, -1), positive.reshape(5, 1, -1), 0.5)
    assert float(flat) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("granularity", ["channel", "signal"])
@pytest.mark.parametrize("batch", [2, 10])
def test_equal_similarity_gives_ln_b(batch, granularity):
    same = torch.randn(1, 4, 20).expand(batch, -1, -1)
    loss = masked_contrast(same, same, granularity=granularity)
    assert float(loss) == pytest.approx(math.log(batch), rel=1e-5)


def test_merl_weights(signals):
    one, two, x = signals
    found = merl_loss(one, two, x, self_weight=2.0, cross_weight=0.25)
    expected = 2.0 * masked_contrast(one, x) + 0.25 * masked_contrast(one, two)
    torch.testing.assert_close(found, expected)


def test_negatives_carry_gradients(signals):
    view = signals[0].clone().requires_grad_()
    masked_contrast(view, signals[1]).backward()
    only_own = signals[0].clone().requires_grad_()
    n = F.normalize(only_own, dim=2), F.normalize(signals[1], dim=2)
    others = torch.einsum("ict,jct->cij", n[0], n[0]).detach() / 0.1
    own = (n[0] * n[1]).sum(2).T / 0.1
    eye = torch.eye(5, dtype=torch.bool)
    (torch.where(eye, own[..., None], others).logsumexp(2) - own).mean().backward()
    assert not torch.allclose(view.grad, only_own.grad)


def test_masked_error_ignores_visible_samples(signals):
    drawn, x, _ = signals
    hidden = torch.zeros(5, 20, dtype=torch.bool)
    hidden[:, :7] = True
    changed = drawn.clone()
    changed[:, :, 7:] += 100
    torch.testing.assert_close(masked_mse(changed, x, hidden), masked_mse(drawn, x, hidden))
    expected = ((drawn - x)[:, :, :7] ** 2).mean()
    torch.testing.assert_close(masked_mse(drawn, x, hidden), expected)


def test_info_nce_at_equal_similarity_is_ln_b():
    same = torch.randn(1, 8).expand(16, -1)
    assert InfoNCE()(same, same).item() == pytest.approx(math.log(16), rel=1e-5)


def test_info_nce_scale_is_clamped():
    loss = InfoNCE(max_scale=100.0)
    loss.log_scale.data.fill_(50.0)
    assert loss.scale.item() == pytest.approx(100.0)
    assert torch.isfinite(loss(torch.randn(4, 8), torch.randn(4, 8)))


@pytest.mark.parametrize(
    ("normalise", "eeg_matters", "image_matters"),
    [("image", True, False), ("both", False, False), ("none", True, True)],
)
def test_info_nce_normalises_the_side_asked_for(normalise, eeg_matters, image_matters):
    loss = InfoNCE(normalise=normalise)
    eeg, image = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(0))
    plain = loss(eeg, image)
    assert torch.allclose(loss(3 * eeg, image), plain) != eeg_matters
    assert torch.allclose(loss(eeg, 3 * image), plain) != image_matters


def test_info_nce_leaves_out_pairs_of_the_same_stimulus():
    loss = InfoNCE()
    eeg, image = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0))
    stimuli = torch.tensor([0, 1, 2, 0])
    found = loss(eeg, image, stimuli[:, None] == stimuli)
    logits = loss.scale * eeg @ F.normalize(image, dim=1).T
    logits[0, 3] = logits[3, 0] = -torch.inf
    target = torch.arange(4)
    expected = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    torch.testing.assert_close(found, expected)


def test_unknown_choices_are_named():
    with pytest.raises(InputError, match="granularity"):
        masked_contrast(torch.randn(2, 2, 4), torch.randn(2, 2, 4), granularity="patch")
    with pytest.raises(InputError, match="normalise"):
        InfoNCE(normalise="eeg")


def test_stage_1_adds_the_masked_error(signals):
    one, two, x = signals
    hidden = torch.rand(2, 5, 20, generator=torch.Generator().manual_seed(1)) < 0.75
    views = torch.stack([one, two])
    found = merl_stage_1(views, x, hidden, mse_weight=0.5)
    error = (masked_mse(one, x, hidden[0]) + masked_mse(two, x, hidden[1])) / 2
    torch.testing.assert_close(found["contrast"], merl_loss(one, two, x))
    torch.testing.assert_close(found["loss"], merl_loss(one, two, x) + 0.5 * error)
    torch.testing.assert_close(merl_stage_1(views, x, hidden)["loss"], merl_loss(one, two, x))


def test_signal_patches_are_time_major_and_inverted_by_the_model():
    x = torch.arange(24.0).reshape(1, 3, 8)
    patches = signal_patches(x, 4)
    assert patches.shape == (1, 2, 12)
    assert patches[0, 1, :6].tolist() == [4.0, 12.0, 20.0, 5.0, 13.0, 21.0]
    torch.testing.assert_close(patches.reshape(1, 8, 3).transpose(1, 2), x)


def small_joint(faithful: bool = False, kind: str = "clip"):
    from transformers import CLIPVisionConfig, CLIPVisionModel, ViTMAEConfig, ViTMAEModel

    torch.manual_seed(0)
    sizes = {
        "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 4, "image_size": 32, "patch_size": 8,
    }  # fmt: skip
    tower = (
        CLIPVisionModel(CLIPVisionConfig(**sizes))
        if kind == "clip"
        else ViTMAEModel(ViTMAEConfig(**sizes))
    )
    picture = ImageAutoencoder(tower, decoder_width=16, decoder_depth=1, decoder_heads=2)
    eeg = models.build(
        "masked_autoencoder", preset="small", channels=6, samples=40, embedding=8, width=16
    )
    return JointAutoencoder(eeg, picture, blocks=2, heads=4, faithful=faithful)


@pytest.fixture
def pairs():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(3, 6, 40, generator=generator), torch.rand(3, 3, 32, 32, generator=generator)


@pytest.mark.parametrize("kind", ["clip", "vit_mae"])
@pytest.mark.parametrize("faithful", [False, True])
def test_joint_stage(pairs, faithful, kind):
    joint, (x, pictures) = small_joint(faithful, kind), pairs
    answer = joint.train()(x, pictures, generator=torch.Generator().manual_seed(1))
    assert answer.eeg.shape == (3, 8, 30)
    assert answer.pixels.shape == (3, 16, 192)
    assert (~answer.eeg_hidden).sum(1).tolist() == [2] * 3
    assert (~answer.pixels_hidden).sum(1).tolist() == [8] * 3
    targets = signal_patches(x, 5), joint.picture.patches(pictures)
    losses = merl_stage_2(answer, *targets)
    torch.testing.assert_close(losses["loss"], 0.25 * losses["eeg"] + 1.5 * losses["picture"])
    expected = ((answer.eeg - targets[0]) ** 2)[answer.eeg_hidden].mean()
    torch.testing.assert_close(losses["eeg"], expected)
    losses["loss"].backward()
    assert all(p.grad is None for p in joint.picture.tower.parameters())
    assert not joint.picture.tower.training
    trained = [p for n, p in joint.named_parameters() if p.requires_grad and "eeg.head" not in n]
    assert all(p.grad is not None for p in trained)


def test_towers_see_all_patches_as_transformers_does(pairs):
    for kind in ("clip", "vit_mae"):
        picture = small_joint(kind=kind).picture
        ours = picture.encode(pairs[1])
        pixels = picture.normalised(pairs[1])
        if kind == "clip":
            theirs = picture.tower(pixel_values=pixels).last_hidden_state
            theirs = picture._vision().post_layernorm(theirs)
        else:
            picture.tower.config.mask_ratio = 0.0
            picture.tower.embeddings.config.mask_ratio = 0.0
            noise = torch.arange(16.0).expand(3, -1)
            theirs = picture.tower(pixel_values=pixels, noise=noise).last_hidden_state
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_picture_patches_round_trip(pairs):
    picture = small_joint().picture
    torch.testing.assert_close(picture.pictures(picture.patches(pairs[1])), pairs[1])


def test_pictures_help_to_draw_eeg(pairs):
    joint, (x, pictures) = small_joint(faithful=True).eval(), pairs

    def drawn(seen):
        return joint(x, seen, generator=torch.Generator().manual_seed(1)).eeg

    assert not torch.allclose(drawn(pictures), drawn(1 - pictures))


def test_joint_starts_from_stage_1(pairs):
    """With the residual, the first stage's decoder sees at first what it was trained on."""
    joint, (x, pictures) = small_joint().eval(), pairs
    answer = joint(x, pictures, generator=torch.Generator().manual_seed(1))
    alone = joint.eeg.decoder(joint.eeg.encode(x, None, answer.eeg_hidden), answer.eeg_hidden)
    torch.testing.assert_close(answer.eeg, alone, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(("faithful", "norms"), [(True, 2), (False, 3)])
def test_cross_block_parameters(faithful, norms):
    with torch.device("meta"):
        block = CrossBlock(768, 12, faithful=faithful)
    found = sum(p.numel() for p in block.parameters())
    assert found == 9_450_240 + (norms - 2) * 2 * 768


def test_cross_block_residuals():
    x, other = torch.randn(2, 2, 5, 8, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    block, published = CrossBlock(8, 2), CrossBlock(8, 2, faithful=True)
    for each in (block, published):
        for silent in (each.cross_out, each.mlp[2]):
            torch.nn.init.zeros_(silent.weight)
            torch.nn.init.zeros_(silent.bias)
    torch.testing.assert_close(published(x, other), x)
    assert not torch.allclose(block(x, other), x)


def test_correlation_is_of_prediction_and_target():
    generator = torch.Generator().manual_seed(0)
    drawn, target = torch.randn(2, 3, 6, 4, generator=generator)
    hidden = torch.rand(3, 6, generator=generator) < 0.5
    hidden[:, 0] = True
    found = reconstruction_correlation(drawn, target, hidden)
    for i in range(3):
        pair = torch.stack([drawn[i][hidden[i]].flatten(), target[i][hidden[i]].flatten()])
        assert found[i].item() == pytest.approx(torch.corrcoef(pair)[0, 1].item(), abs=1e-5)
    torch.testing.assert_close(
        reconstruction_correlation(3 * target + 1, target, hidden), torch.ones(3)
    )


def test_several_views_are_averaged():
    loss = InfoNCE()
    eeg, views = torch.randn(4, 8), torch.randn(4, 3, 8)
    torch.testing.assert_close(loss(eeg, views), loss(eeg, mean_view(views)))
    same = views[:, :1].expand(-1, 5, -1)
    torch.testing.assert_close(loss(eeg, same), loss(eeg, views[:, 0]))
    assert torch.allclose(mean_view(views).norm(dim=1), torch.ones(4))


def test_unknown_towers_are_named():
    from transformers import ViTConfig, ViTModel

    tiny = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    with pytest.raises(InputError, match="tower: found vit"):
        ImageAutoencoder(ViTModel(ViTConfig(**tiny, intermediate_size=8)))
    with pytest.raises(InputError, match="image tower"):
        load_tower("/nowhere/at/all")
