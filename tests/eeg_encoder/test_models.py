from __future__ import annotations

import pytest
import torch
from safetensors.torch import load, save

from eeg_encoder import models
from eeg_encoder.errors import InputError
from eeg_encoder.models.base import TokenEncoder
from eeg_encoder.models.layers import (
    PositionMixing,
    SubjectMixing,
    random_mask,
    visible_tokens,
)
from eeg_encoder.models.token_head import TokenHead

SMALL = {
    "atm": {"hidden": 32},
    "braindecode": {"network": "EEGNet"},
    "compact": {"width": 32, "head_width": 32},
    "dual_self_attention": {"width": 16, "token_width": 32, "head_width": 32},
    "eeg_project": {"hidden": 32},
    "eegnet": {},
    "masked_autoencoder": {"preset": "small", "width": 32},
    "tsconv": {"hidden": 32},
}
SHAPES = [(17, 250), (128, 110)]
P = 24


def small(name: str, channels: int = 17, samples: int = 250, **settings):
    if name == "braindecode":
        pytest.importorskip("braindecode")
    torch.manual_seed(0)
    sizes = {"channels": channels, "samples": samples, "embedding": P, "subjects": [1, 2]}
    return models.build(name, **{**sizes, **SMALL[name], **settings})


def signals_of(channels: int = 17, samples: int = 250, batch: int = 4):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, channels, samples, generator=generator)


def token_models() -> list[str]:
    return [
        n for n in models.names() if n != "braindecode" and issubclass(models.find(n), TokenEncoder)
    ]


@pytest.mark.parametrize(("channels", "samples"), SHAPES)
@pytest.mark.parametrize("name", models.names())
def test_every_model(name, channels, samples):
    model = small(name, channels, samples)
    signals, subject = signals_of(channels, samples), torch.tensor([1, 2, 7, 1])

    model.train()
    found = model(signals, subject)
    assert found.shape == (4, P)
    assert found.dtype == torch.float32
    (found**2).sum().backward()
    used = [p for n, p in model.named_parameters() if not _of_decoder(n)]
    given = [p.grad for p in used if p.grad is not None]
    assert len(given) >= 0.9 * len(used)
    assert all(bool(g.isfinite().all()) for g in given)
    assert sum(bool(g.any()) for g in given) >= 0.7 * len(used)

    model.eval()
    expected = model(signals, subject)
    assert torch.equal(model(signals, subject), expected)
    assert torch.isfinite(expected).all()
    torch.testing.assert_close(model(signals[:1], subject[:1]), expected[:1], atol=1e-5, rtol=1e-4)
    assert model(signals).shape == (4, P)

    torch.manual_seed(9)
    again = small(name, channels, samples).eval()
    with torch.no_grad():
        for parameter in again.parameters():
            parameter.add_(1.0)
    again.load_state_dict(load(save({k: v.contiguous() for k, v in model.state_dict().items()})))
    assert torch.equal(again(signals, subject), expected)


def _of_decoder(name: str) -> bool:
    return name.startswith(("decoder", "to_decoder", "to_signal", "mask_token"))


@pytest.mark.parametrize("name", models.names())
def test_half_precision(name):
    model = small(name).eval()
    plain = model(signals_of(), torch.tensor([1, 2, 7, 1]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = model(signals_of(), torch.tensor([1, 2, 7, 1]))
    torch.testing.assert_close(half.float(), plain, atol=0.1, rtol=0.1)


@pytest.mark.parametrize("name", models.names())
def test_a_model_learns(name):
    model = small(name, subject_layer=True) if name != "compact" else small(name)
    signals, target = signals_of(batch=8), torch.randn(8, P)
    subject = torch.tensor([1, 2] * 4)
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    losses = []
    for _ in range(25):
        loss = ((model(signals, subject) - target) ** 2).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("name", token_models())
def test_hidden_samples_are_not_seen(name):
    model = small(name).eval()
    signals, subject = signals_of(), torch.tensor([1, 2, 7, 1])
    drawn, hidden = model.reconstruct(signals, subject, 0.5, torch.Generator().manual_seed(1))
    assert drawn.shape == signals.shape
    assert hidden.shape == (4, 250)
    assert hidden.float().mean(1).tolist() == pytest.approx([0.5] * 4, abs=0.03)
    changed = signals + 5 * hidden[:, None]
    again, _ = model.reconstruct(changed, subject, 0.5, torch.Generator().manual_seed(1))
    torch.testing.assert_close(drawn, again)
    other = model.reconstruct(signals + 5 * ~hidden[:, None], subject, 0.5,
                              torch.Generator().manual_seed(1))[0]  # fmt: skip
    assert not torch.allclose(drawn, other)


@pytest.mark.parametrize("name", token_models())
def test_pretraining_reaches_the_encoder(name):
    model = small(name)
    drawn, _ = model.reconstruct(signals_of(), torch.tensor([1, 2, 7, 1]), 0.5)
    (drawn**2).mean().backward()
    without = [n for n, p in model.named_parameters() if p.grad is None]
    assert all(n.startswith(("head", "cls")) for n in without), without


@pytest.mark.parametrize("name", token_models())
def test_tokens(name):
    model = small(name).eval()
    hidden = random_mask(4, model.n_tokens, 0.75, device="cpu")
    visible = int(model.n_tokens * 0.25)
    whole = model.encode(signals_of())
    part = model.encode(signals_of(), None, hidden)
    assert whole.shape[2] == part.shape[2] == model.width
    assert whole.shape[1] - part.shape[1] == model.n_tokens - visible


def test_counted_tokens_are_the_visible_ones():
    hidden = random_mask(4, 12, 0.75, device="cpu")
    for tokens in (torch.randn(4, 12, 3), torch.randn(4, 12, 3, 2)):
        torch.testing.assert_close(
            visible_tokens(tokens, hidden, 3), visible_tokens(tokens, hidden), rtol=0, atol=0
        )


def test_redrawing_puts_tokens_back_in_their_places():
    model = small("masked_autoencoder").eval()
    hidden = random_mask(4, model.n_tokens, 0.75, device="cpu")
    seen = []
    model.decoder.blocks[0].register_forward_hook(lambda _, given, __: seen.append(given[0]))
    drawn = model.redraw(signals_of(), None, hidden, int(model.n_tokens * 0.25))
    tokens = model.encode(signals_of(), None, hidden)
    torch.testing.assert_close(drawn, model.draw(tokens, hidden))
    entered = model.decoder.enter(tokens)
    whole = model.decoder.mask_token.repeat(4, model.n_tokens, 1).detach()
    whole[~hidden] = entered[:, 1:].reshape(-1, whole.shape[2]).detach()
    expected = torch.cat([entered[:, :1], whole], dim=1) + model.decoder.positions
    torch.testing.assert_close(seen[0], expected)


@pytest.mark.parametrize(
    ("preset", "encoder", "decoder"),
    [("faithful", 151_769_088, 13_412_864), ("joint", 151_769_088, 13_412_864 - 2 * 1_577_984)],
)
def test_published_parameter_counts(preset, encoder, decoder):
    with torch.device("meta"):
        model = models.build("masked_autoencoder", preset=preset, embedding=768)
    assert sum(p.numel() for p in model.encoder.parameters()) == encoder
    assert sum(p.numel() for p in model.decoder.parameters()) == decoder
    assert model.n_tokens == 128


def test_published_initialisation():
    model = small("masked_autoencoder", width=64, patch=2, samples=64)
    assert model.encoder.embed.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert model.encoder.cls.std().item() == pytest.approx(0.02, rel=0.4)
    qkv = model.encoder.blocks[0].qkv
    assert qkv.weight.abs().max() <= (6 / (64 + 192)) ** 0.5
    assert not qkv.bias.any()


def test_drawn_patches_are_time_major():
    """Row ``t * C + c`` of the decoder's last layer draws channel c at sample t of the patch."""
    model = small("masked_autoencoder", channels=3, samples=10, patch=5).eval()
    model.decoder.leave.weight.data.zero_()
    model.decoder.leave.bias.data.copy_(torch.arange(15.0))
    drawn, _ = model.reconstruct(torch.zeros(1, 3, 10), None, 0.5)
    expected = torch.arange(15.0).reshape(5, 3).T
    torch.testing.assert_close(drawn[0], torch.cat([expected, expected], dim=1))


def test_mask_keeps_32_of_128():
    for n, kept in ((128, 32), (196, 49)):
        hidden = random_mask(5, n, 0.75, device="cpu")
        assert (~hidden).sum(1).tolist() == [kept] * 5
    assert (~random_mask(1, 196, 0.5, device="cpu")).sum() == 98


def test_mask_is_uniform():
    hidden = random_mask(4000, 8, 0.5, device="cpu", generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(hidden.float().mean(0), torch.full((8,), 0.5), atol=0.04, rtol=0)


def test_temporal_only_has_no_electrode_axis():
    """Swapping two electrodes and their filters changes nothing without the axis, but the axis's
    attention reads electrodes one by one."""
    time = small("dual_self_attention", preset="temporal_only")
    both = small("dual_self_attention", preset="dual")
    assert not hasattr(time.tokens, "across")
    assert len(both.tokens.across) == len(both.tokens.along) == 2
    assert time.n_tokens == both.n_tokens == 25


def test_electrode_attention_crosses_electrodes():
    model = small("dual_self_attention").eval()
    model.tokens.join.weight.data.zero_()
    model.tokens.join.weight.data[:, :16] = 1.0
    signals = signals_of(batch=1)
    changed = signals.clone()
    changed[:, 5] += 1.0
    assert not torch.allclose(model.encode(signals), model.encode(changed))
    for block in model.tokens.across:
        block.out.weight.data.zero_()
        block.out.bias.data.zero_()
    torch.testing.assert_close(model.encode(signals), model.encode(changed))


def places(n: int, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    xyz = torch.randn(n, 3, generator=generator)
    xyz[:, 2] = xyz[:, 2].abs()
    return torch.nn.functional.normalize(xyz, dim=1)


@pytest.mark.parametrize("name", ["eeg_project", "tsconv", "masked_autoencoder"])
def test_positions_let_another_montage_in(name):
    xyz = places(17)
    model = small(name, electrodes=xyz.tolist(), virtual=8).eval()
    signals = signals_of()
    order = torch.randperm(17)
    found = model(signals)
    torch.testing.assert_close(model(signals[:, order], None, xyz[order]), found)
    assert model(signals_of(channels=64), None, places(64)).shape == (4, P)


def test_position_mixing_is_a_weighted_mean():
    mixing = PositionMixing(places(6).tolist(), 3)
    constant = torch.full((2, 6, 5), 7.0)
    torch.testing.assert_close(mixing(constant), torch.full((2, 3, 5), 7.0))
    far = places(6) * 50
    torch.testing.assert_close(mixing(signals_of(6, 5), far), mixing(signals_of(6, 5)))


def test_subject_layer():
    layer = SubjectMixing(4, 3, [2, 5])
    layer.own.data.normal_()
    x = torch.randn(1, 4, 6).expand(3, -1, -1)
    two, five, unknown = layer(x, torch.tensor([2, 5, 9]))
    torch.testing.assert_close(unknown, layer.shared(x[:1])[0])
    torch.testing.assert_close(two, unknown + layer.own[1] @ x[0])
    torch.testing.assert_close(five, unknown + layer.own[2] @ x[0])


def test_subject_correction_leaves_others_alone():
    model = small("eeg_project", subject_layer=True).eval()
    signals = signals_of()
    before = model(signals, torch.tensor([1, 2, 7, 1]))
    model.correction.own.data[1].normal_()
    after = model(signals, torch.tensor([1, 2, 7, 1]))
    changed = (before - after).abs().amax(1) > 1e-6
    assert changed.tolist() == [False, True, False, False]


def test_eegnet_limits_spatial_filters():
    model = small("eegnet").eval()
    before = model(signals_of())
    model.spatial.data.mul_(100)
    grown = model(signals_of())
    model.spatial.data.mul_(100)
    torch.testing.assert_close(model(signals_of()), grown)
    assert not torch.allclose(before, grown)


def test_tsconv_has_the_published_features():
    assert small("tsconv", 63, 250).convolutions.features == 1440


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


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("gpt", {}, "found gpt, expected one of atm, braindecode, compact"),
        ("compact", {"colour": "red"}, "colour"),
        ("compact", {"patch": 7}, "patch: found 7"),
        ("masked_autoencoder", {"patch": 7}, "patch: found 7"),
        ("masked_autoencoder", {"preset": "huge"}, "faithful"),
        ("masked_autoencoder", {"width": 30, "patch": 5}, "width: found 30"),
        ("dual_self_attention", {"axes": "space"}, "axes: found space"),
        ("dual_self_attention", {"width": 12}, "width: found 12"),
        ("tsconv", {"samples": 60}, "samples: found 60, expected at least 75"),
        ("atm", {"samples": 3}, "heads"),
        ("eegnet", {"samples": 20}, "samples: found 20"),
    ],
)
def test_bad_settings_are_named(name, settings, message):
    sizes = {"channels": 16, "samples": 110, "embedding": 8}
    with pytest.raises(InputError, match=message):
        models.build(name, **{**sizes, **settings})


def test_braindecode_that_is_absent_is_named(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "braindecode", None)
    monkeypatch.setitem(sys.modules, "braindecode.models", None)
    with pytest.raises(InputError, match="eeg-baselines"):
        models.build("braindecode", channels=16, samples=110, embedding=8)


def test_the_shipped_encoder_loads():
    from pathlib import Path

    import threestudio_eeg
    from eeg_encoder.pretrained import from_pretrained

    folder = Path(threestudio_eeg.__file__).parent / "phantom" / "encoder"
    pretrained = from_pretrained(folder)
    assert pretrained.encoder(torch.zeros(1, 128, 110), torch.tensor([1])).shape == (1, 192)
    assert pretrained.preprocessing.output_samples == 110
