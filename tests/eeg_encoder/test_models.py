from __future__ import annotations

import pytest
import torch

from eeg_encoder import models
from eeg_encoder.errors import InputError
from eeg_encoder.models.layers import SubjectMixing, random_mask
from eeg_encoder.models.token_head import TokenHead

SIZES = {"channels": 128, "samples": 110, "embedding": 192, "subjects": [1, 2]}


@pytest.mark.parametrize("name", models.names())
def test_every_model_answers(name):
    torch.manual_seed(0)
    model = models.build(name, **SIZES).eval()
    signals, subject = torch.randn(3, 128, 110), torch.tensor([1, 2, 7])
    assert model(signals, subject).shape == (3, 192)
    drawn, hidden = model.reconstruct(signals, subject, 0.75)
    assert drawn.shape == signals.shape
    assert hidden.shape == (3, 110)
    assert sum(p.numel() for p in model.parameters()) <= 2_500_000


@pytest.mark.parametrize("name", models.names())
def test_hidden_samples_are_not_seen(name):
    torch.manual_seed(0)
    model = models.build(name, **SIZES).eval()
    signals, subject = torch.randn(2, 128, 110), torch.tensor([1, 2])
    drawn, hidden = model.reconstruct(signals, subject, 0.5, torch.Generator().manual_seed(1))
    changed = signals + 5 * hidden[:, None]
    again, _ = model.reconstruct(changed, subject, 0.5, torch.Generator().manual_seed(1))
    torch.testing.assert_close(drawn, again)


def test_mask_keeps_32_of_128():
    for n, kept in ((128, 32), (196, 49)):
        hidden = random_mask(5, n, 0.75, device="cpu")
        assert (~hidden).sum(1).tolist() == [kept] * 5
    assert (~random_mask(1, 196, 0.5, device="cpu")).sum() == 98


def test_mask_is_uniform():
    hidden = random_mask(4000, 8, 0.5, device="cpu", generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(hidden.float().mean(0), torch.full((8,), 0.5), atol=0.04, rtol=0)


def test_subject_layer():
    layer = SubjectMixing(4, 3, [2, 5])
    layer.own.data.normal_()
    x = torch.randn(1, 4, 6).expand(3, -1, -1)
    two, five, unknown = layer(x, torch.tensor([2, 5, 9]))
    torch.testing.assert_close(unknown, layer.shared(x[:1])[0])
    torch.testing.assert_close(two, unknown + layer.own[1] @ x[0])
    torch.testing.assert_close(five, unknown + layer.own[2] @ x[0])


def test_token_head_is_diffusers_image_projection():
    from diffusers.models.embeddings import ImageProjection

    torch.manual_seed(0)
    theirs = ImageProjection(image_embed_dim=16, cross_attention_dim=32, num_image_text_embeds=8)
    theirs.norm.weight.data.normal_()
    null = torch.randn(8, 32)
    ours = TokenHead.from_weights(theirs.state_dict(), null)
    pooled = torch.randn(5, 16)
    torch.testing.assert_close(ours(pooled), theirs(pooled))
    assert torch.equal(ours.null_tokens, null)


def test_unknown_names_and_settings():
    with pytest.raises(InputError, match="found gpt, expected one of compact"):
        models.build("gpt")
    with pytest.raises(InputError, match="colour"):
        models.build("compact", **SIZES, colour="red")
    with pytest.raises(InputError, match="patch: found 7"):
        models.build("compact", **SIZES, patch=7)
