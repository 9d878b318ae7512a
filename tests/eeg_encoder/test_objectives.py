from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from eeg_encoder.errors import InputError
from eeg_encoder.objectives import InfoNCE, masked_contrast, masked_mse, merl_loss


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
