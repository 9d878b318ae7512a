"""Stages on small banks: losses fall, resumed runs equal whole ones, frozen weights stay."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from eeg_encoder import models
from eeg_encoder.errors import InputError
from eeg_encoder.image_space import embed_pictures
from eeg_encoder.models.context_head import LinearMappers, build_context_head, eeg_tokens
from eeg_encoder.stages.adapters import add_lora, free_keys_and_values, merged
from eeg_encoder.stages.align import AlignConfig, Alignment, align
from eeg_encoder.stages.batches import BankLoader, TrialBank
from eeg_encoder.stages.condition import (
    ConditionConfig,
    ConditionedDenoising,
    condition,
    conditioner,
)
from eeg_encoder.stages.diffusion import PictureLatents, drop_tokens, load_denoiser
from eeg_encoder.stages.joint import JointConfig, join, joint_autoencoder, named_tower
from eeg_encoder.stages.masking import SilencedPatches
from eeg_encoder.stages.pictures import picture_bank, random_crops
from eeg_encoder.stages.pretrain import PretrainConfig, Pretraining, pretrain
from eeg_encoder.stages.refine import RefineConfig, refine
from eeg_encoder.stages.running import Running
from eeg_encoder.stages.stage import ExponentialAverage
from eeg_encoder.stages.targets import TargetConfig, picture_targets

from .conftest import small_trials

QUIET = Running(progress=False)
SMALL = {
    "masked_autoencoder": {
        "preset": "small", "patch": 10, "width": 32, "depth": 1, "decoder_depth": 1,
    },
    "compact": {"width": 16, "depth": 1, "head_width": 16, "patch": 10},
    "eeg_project": {"hidden": 16},
}  # fmt: skip


@pytest.fixture(scope="module")
def bank():
    trials = small_trials(sfreq=100.0, snr_db=10.0)
    signals = trials.signals / trials.signals.std()
    return TrialBank.of(trials, signals[:, :, :50].copy(), "cpu")


def network(name: str, seed: int = 0, embedding: int = 16):
    torch.manual_seed(seed)
    return models.build(
        name, channels=16, samples=50, embedding=embedding, subjects=[1], **SMALL[name]
    )


def stage1_loss(encoder, bank) -> float:
    stage = Pretraining(encoder, PretrainConfig(shift=0), 1, 0, torch.Generator())
    stage.on_validation_epoch_start()
    with torch.no_grad():
        stage.validation_step(bank.batch(torch.arange(len(bank))), 0)
    return float(stage._losses[0])


@pytest.mark.parametrize("name", sorted(SMALL))
@pytest.mark.parametrize("granularity", ["channel", "signal"])
def test_pretraining_lowers_its_loss_on_any_encoder(bank, name, granularity):
    encoder = network(name).eval()
    torch.manual_seed(0)
    before = stage1_loss(encoder, bank)
    config = PretrainConfig(epochs=15, batch_size=9, lr=3e-3, granularity=granularity)
    pretrain(encoder.train(), bank, config, QUIET, seed=0)
    if name != "eeg_project":  # its decoder is thrown away
        assert stage1_loss(encoder.eval(), bank) < before


def test_recorded_passes_are_those_of_the_stage(bank, monkeypatch):
    """Without the recording itself, which takes a GPU."""
    recorded = []
    monkeypatch.setattr(Pretraining, "_can_record", lambda stage, _: stage.config.graphs)
    monkeypatch.setattr(
        "eeg_encoder.stages.pretrain.record", lambda passes, *_: recorded.append(1) or passes
    )
    weights = []
    for graphs in (False, True):
        encoder = network("masked_autoencoder")
        config = PretrainConfig(epochs=2, batch_size=9, mse_weight=0.5, graphs=graphs)
        pretrain(encoder, bank, config, QUIET, seed=0)
        weights.append(encoder.state_dict())
    assert recorded == [1]
    for name, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][name])


@pytest.mark.gpu
def test_recorded_passes_on_a_gpu(bank):
    found = []
    for graphs in (False, True):
        encoder = network("masked_autoencoder").cuda()
        moved = TrialBank(
            bank.signals.cuda(), bank.members.cuda(), bank.subjects.cuda(), bank.stimuli.cuda(),
            bank.stimulus_ids,
        )  # fmt: skip
        config = PretrainConfig(epochs=2, batch_size=9, graphs=graphs)
        pretrain(encoder, moved, config, Running(device="cuda", progress=False), seed=0)
        found.append(encoder.cpu().state_dict())
    for name, value in found[0].items():
        torch.testing.assert_close(value, found[1][name], atol=1e-4, rtol=1e-3)


def test_a_convolutional_encoder_hears_nothing_of_hidden_patches(bank):
    encoder = network("eeg_project").eval()
    drawing = SilencedPatches(encoder)
    signals = bank.signals[:4].clone()
    first, hidden = drawing.reconstruct(signals, None, 0.75, torch.Generator().manual_seed(0))
    assert first.shape == signals.shape
    assert int(hidden[0].sum()) > 25
    signals[hidden[:, None].expand_as(signals)] = 99.0
    second, _ = drawing.reconstruct(signals, None, 0.75, torch.Generator().manual_seed(0))
    assert torch.equal(first, second)


class Stop(RuntimeError):
    pass


def state_of(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def assert_equal(one, other):
    assert set(one) == set(other)
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def test_a_resumed_pretraining_equals_an_uninterrupted_one(bank, tmp_path, monkeypatch):
    config = PretrainConfig(epochs=4, batch_size=6)
    whole = network("compact")
    pretrain(whole, bank, config, QUIET, seed=3)

    def stop(self):
        if self.current_epoch == 2:
            raise Stop

    torch.manual_seed(99)
    running = Running(progress=False, checkpoints=tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Pretraining, "on_train_epoch_end", stop)
        with pytest.raises(Stop):
            pretrain(network("compact"), bank, config, running, seed=3)
    assert (tmp_path / "pretrain" / "last.ckpt").is_file()
    resumed = network("compact", seed=5)
    running.resume = True
    pretrain(resumed, bank, config, running, seed=3)
    assert_equal(state_of(whole), state_of(resumed))
    assert not (tmp_path / "pretrain").exists()


def test_a_resumed_alignment_keeps_its_best_epoch(bank, tmp_path, monkeypatch):
    targets = nn.functional.normalize(torch.randn(18, 16), dim=1)
    config = AlignConfig(epochs=4, batch_size=6, validate_every=1, lr=1e-2)

    def run(encoder, running):
        return align(encoder, bank, targets, bank, targets, config, running, seed=0)

    whole = network("compact")
    expected = run(whole, QUIET)

    def stop(self):
        if self.current_epoch == 3:
            raise Stop

    running = Running(progress=False, checkpoints=tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Alignment, "on_train_epoch_end", stop)
        with pytest.raises(Stop):
            run(network("compact"), running)
    running.resume = True
    resumed = network("compact", seed=5)
    assert run(resumed, running) == expected
    assert_equal(state_of(whole), state_of(resumed))


def test_a_foreign_checkpoint_is_refused(bank, tmp_path):
    (tmp_path / "pretrain").mkdir()
    file = tmp_path / "pretrain" / "last.ckpt"
    torch.save({"state_dict": {}, "pytorch-lightning_version": "2.0.0"}, file)
    running = Running(progress=False, checkpoints=tmp_path, resume=True)
    with pytest.raises(InputError, match="checkpoint"):
        pretrain(network("compact"), bank, PretrainConfig(epochs=2), running, seed=0)


def test_early_stop_goes_by_validation(bank):
    encoder = network("compact")
    config = PretrainConfig(epochs=40, batch_size=6, lr=1e-12, patience=1)
    seen = []
    original = Pretraining.on_train_epoch_start

    class Counting(Pretraining):
        pass

    def count(self):
        seen.append(self.current_epoch)
        original(self)

    Pretraining.on_train_epoch_start = count
    try:
        pretrain(encoder, bank, config, QUIET, seed=0, val=bank)
        stopped = len(seen)
        seen.clear()
        pretrain(encoder, bank, PretrainConfig(epochs=5, batch_size=6), QUIET, seed=0, val=bank)
        assert len(seen) == 5
    finally:
        Pretraining.on_train_epoch_start = original
    assert stopped < 6


def test_processes_share_the_batches(bank, monkeypatch):
    def groups(rank: int) -> list[int]:
        monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
        monkeypatch.setattr(torch.distributed, "get_rank", lambda: rank)
        loader = BankLoader(bank, 4, torch.Generator().manual_seed(0), processes=2)
        assert len(loader) == 2
        return [int(row) for batch in loader for row in batch.stimuli]

    first, second = groups(0), groups(1)
    assert not set(first) & set(second)
    assert len(first) == len(second) == 8


@pytest.fixture(scope="module")
def denoiser(world):
    return load_denoiser(world.pipeline, "cpu")


@pytest.fixture(scope="module")
def shown(world, bank):
    return picture_bank(world.pictures, bank.stimulus_ids, 16, "cpu")


def test_the_loss_is_the_base_models_own(denoiser):
    alphas = denoiser.schedule.alphas_cumprod
    assert float(alphas[500]) == pytest.approx(0.2763, abs=1e-4)
    assert float(alphas[980]) == pytest.approx(0.005844, abs=1e-5)
    latents, tokens = torch.randn(5, 4, 8, 8), torch.randn(5, 8, 32)
    found = denoiser.loss(latents, tokens, torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(1)
    t = torch.randint(1000, (5,), generator=generator)
    noise = torch.randn(5, 4, 8, 8, generator=generator)
    a = alphas[t].view(-1, 1, 1, 1)
    context = torch.cat([tokens, denoiser.view_tokens.expand(5, -1, -1)], dim=1)
    drawn = denoiser.unet(
        a.sqrt() * latents + (1 - a).sqrt() * noise, t, encoder_hidden_states=context
    ).sample
    torch.testing.assert_close(found, ((drawn - noise) ** 2).mean(), atol=1e-6, rtol=1e-5)


def test_velocity_models_are_asked_for_velocity(denoiser):
    other = copy.copy(denoiser)
    other.schedule = copy.deepcopy(denoiser.schedule)
    other.schedule.register_to_config(prediction_type="v_prediction")
    latents, tokens = torch.randn(3, 4, 8, 8), torch.randn(3, 8, 32)
    losses = [
        float(d.loss(latents, tokens, torch.Generator().manual_seed(1))) for d in (denoiser, other)
    ]
    assert losses[0] != pytest.approx(losses[1], rel=1e-3)


def test_null_dropout_rate():
    generator = torch.Generator().manual_seed(0)
    null = torch.zeros(2, 3)
    tokens, dropped = drop_tokens(torch.ones(20000, 2, 3), null, 0.1, generator)
    assert float(dropped.float().mean()) == pytest.approx(0.1, abs=0.01)
    assert torch.equal(tokens.sum((1, 2)) == 0, dropped)


def test_latents_are_scaled_draws_of_the_posterior(denoiser, shown):
    latents = PictureLatents(denoiser, shown)
    rows = torch.tensor([3] * 400)
    drawn = latents.draw(rows, torch.Generator().manual_seed(0))
    with torch.no_grad():
        rgb = shown[3:4].float() / 127.5 - 1
        posterior = denoiser.vae.encode(rgb).latent_dist
    torch.testing.assert_close(
        drawn.mean(0), 0.5 * posterior.mean[0], atol=0.25 * float(posterior.std.max()), rtol=0
    )
    torch.testing.assert_close(
        drawn.std(0).mean(), 0.5 * posterior.std.mean(), rtol=0.05, atol=1e-6
    )


def test_crops_keep_their_share_and_range():
    rgb = torch.linspace(0, 1, 16).expand(200, 3, 16, 16).contiguous()
    cropped = random_crops(rgb, 0.5, torch.Generator().manual_seed(0))
    same = torch.isclose(cropped, rgb, atol=1e-5).flatten(1).all(1).float().mean()
    assert 0.4 < float(same) < 0.6
    span = (cropped.amax((1, 2, 3)) - cropped.amin((1, 2, 3))).amin()
    assert 0.7 < float(span) < 0.85
    assert random_crops(rgb, 0.0, torch.Generator()) is rgb


@pytest.mark.parametrize("adapt", ["frozen", "lora"])
def test_conditioning_lowers_the_loss_and_moves_only_what_it_may(world, bank, shown, adapt):
    denoiser = load_denoiser(world.pipeline, "cpu")
    before = state_of(denoiser.unet)
    encoder = network("compact")
    config = ConditionConfig(
        epochs=12, batch_size=9, lr=1e-2, adapt=adapt, rank=2, null_dropout=0.1, ema=0.0
    )
    model = conditioner(encoder, denoiser, config)

    def loss() -> float:
        model.eval()
        generator, total = torch.Generator().manual_seed(7), 0.0
        with torch.no_grad():
            batch = bank.batch(torch.arange(len(bank)))
            latents = PictureLatents(denoiser, shown).draw(batch.stimuli, generator)
            tokens = model(batch.signals, batch.subjects)
            for _ in range(8):
                total += float(denoiser.loss(latents, tokens, generator))
        model.train()
        return total

    first = loss()
    found = condition(model, denoiser, bank, shown, None, None, config, QUIET, seed=0)
    assert loss() < first
    assert found["null_share"] == pytest.approx(0.1, abs=0.06)
    unet = denoiser.unet if found["adapted"] is None else found["adapted"]
    kept = {
        name.replace("base_model.model.", "").replace(".base_layer", ""): value
        for name, value in unet.state_dict().items()
        if "lora" not in name
    }
    assert_equal(before, kept)


def test_a_frozen_encoder_stays(world, bank, shown, denoiser):
    encoder = network("compact").eval()
    before = state_of(encoder)
    config = ConditionConfig(epochs=2, batch_size=9, train_encoder=False)
    model = conditioner(encoder, denoiser, config)
    head = state_of(model.head)
    condition(model, denoiser, bank, shown, bank, shown, config, QUIET, seed=0)
    assert_equal(before, state_of(encoder))
    assert any(not torch.equal(v, head[n]) for n, v in model.head.state_dict().items())


@pytest.mark.parametrize("adapt", ["keys_values", "lora", "all"])
def test_refining_trains_what_it_says(world, bank, shown, adapt):
    denoiser = load_denoiser(world.pipeline, "cpu")
    original = copy.deepcopy(denoiser.unet)
    tokens = torch.randn(18, 8, 32)
    config = RefineConfig(epochs=2, batch_size=9, adapt=adapt, rank=2, lr=1e-2, ema=0.9)
    unet, found = refine(
        denoiser, lambda s, _: tokens[: len(s)], bank, shown, bank, shown, config, QUIET, seed=0
    )
    after = dict(merged(unet).named_parameters())
    changed = {n for n, p in original.named_parameters() if not torch.equal(p, after[n])}
    if adapt == "all":
        assert "conv_in.weight" in changed
    elif adapt == "keys_values":
        assert changed == {n for n in after if ".attn2.to_k." in n or ".attn2.to_v." in n}
    else:
        assert changed
        assert all(".attn2." in n for n in changed)
    assert found["trained_parameters"] > 0


def test_lora_starts_as_the_base_model(denoiser):
    unet = copy.deepcopy(denoiser.unet)
    inputs = (torch.randn(2, 4, 8, 8), torch.tensor([3, 700]), torch.randn(2, 8, 32))
    with torch.no_grad():
        plain = unet(*inputs[:2], encoder_hidden_states=inputs[2]).sample
        adapted = add_lora(unet, 4)
        torch.testing.assert_close(
            adapted(*inputs[:2], encoder_hidden_states=inputs[2]).sample, plain
        )
    with pytest.raises(InputError, match="rank"):
        add_lora(copy.deepcopy(denoiser.unet), 0)
    free = free_keys_and_values(copy.deepcopy(denoiser.unet))
    names = [n for n, p in free.named_parameters() if p.requires_grad]
    assert names
    assert all("attn2.to_k" in n or "attn2.to_v" in n for n in names)


def test_the_average_follows_the_weights():
    stage = Pretraining(network("compact"), PretrainConfig(), 1, 0, torch.Generator())
    average = ExponentialAverage(0.5)
    average.on_fit_start(None, stage)  # type: ignore[arg-type]
    name, weight = next((n, p) for n, p in stage.named_parameters() if p.requires_grad)
    start = weight.detach().clone()
    expected = start.clone()
    for step in range(1, 4):
        with torch.no_grad():
            weight += 1
        average.on_train_batch_end(None, stage)  # type: ignore[arg-type]
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * weight.detach()
    torch.testing.assert_close(average.average[name], expected)
    average.on_validation_start(None, stage)  # type: ignore[arg-type]
    torch.testing.assert_close(weight.detach(), expected)
    average.on_validation_end(None, stage)  # type: ignore[arg-type]
    torch.testing.assert_close(weight.detach(), start + 3)
    again = ExponentialAverage(0.5)
    again.load_state_dict(average.state_dict())
    torch.testing.assert_close(again.average[name], expected)


def test_joint_training_lowers_its_loss_and_leaves_the_tower(world, bank, shown):
    encoder = network("masked_autoencoder")
    config = JointConfig(
        epochs=8, batch_size=9, lr=3e-3, blocks=1, heads=4, decoder_width=32, decoder_depth=1,
        decoder_heads=4, select="best",
    )  # fmt: skip
    both = joint_autoencoder(encoder, named_tower("pipeline", world.pipeline), config)
    before = state_of(both.picture.tower)
    rest = state_of(both.eeg)
    short = JointConfig(**{**vars(config), "epochs": 1})
    first = join(both, bank, shown, bank, shown, short, QUIET, seed=0)
    last = join(both, bank, shown, bank, shown, config, QUIET, seed=0)
    assert last["val_loss"] < first["val_loss"]
    assert last["selected"] == "best"
    assert_equal(before, state_of(both.picture.tower))
    moved = {n for n, v in both.eeg.state_dict().items() if not torch.equal(v, rest[n])}
    assert any(n.startswith("encoder.") for n in moved)
    assert any(n.startswith("decoder.") for n in moved)
    with pytest.raises(InputError, match="masked_autoencoder"):
        joint_autoencoder(network("eeg_project"), both.picture.tower, config)


def test_towers_in_half_precision_are_read_as_float32(world, tmp_path):
    from transformers import CLIPVisionModelWithProjection

    tower = CLIPVisionModelWithProjection.from_pretrained(world.pipeline / "image_encoder")
    tower.half().save_pretrained(tmp_path / "image_encoder")
    found = named_tower("pipeline", tmp_path)
    assert {weight.dtype for weight in found.parameters()} == {torch.float32}


@pytest.mark.parametrize("name", ["vit-mae", "clip"])
def test_towers_of_the_hub_are_named_when_absent(name, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError, match=f"tower {name}"):
        named_tower(name, "")
    with pytest.raises(InputError, match="one of pipeline, vit-mae, clip"):
        named_tower("resnet", "")


def test_published_mappers():
    head = build_context_head("linear", tokens_in=128, width_in=1024, n_tokens=77, width=768)
    assert isinstance(head, LinearMappers)
    assert sum(p.numel() for p in head.channel_mapper.parameters()) == 13_261
    assert sum(p.numel() for p in head.dim_mapper.parameters()) == 787_200


@pytest.mark.parametrize("kind", ["queries", "linear"])
@pytest.mark.parametrize("name", sorted(SMALL))
def test_heads_fit_every_encoder(kind, name, denoiser):
    encoder = network(name).eval()
    model = conditioner(encoder, denoiser, ConditionConfig(head=kind))
    signals = torch.randn(3, 16, 50)
    found = model(signals, torch.tensor([1, 1, 1]))
    assert found.shape == (3, *denoiser.null_tokens.shape)
    found.square().sum().backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in encoder.parameters())
    assert torch.equal(model.head.null_tokens, denoiser.null_tokens)
    assert eeg_tokens(encoder, signals, None).shape[2] == model.head.settings["width_in"]


def test_targets_are_the_towers_own_embeddings(world, bank):
    names = {"train": bank.stimulus_ids[:12], "val": bank.stimulus_ids[12:]}
    plain = picture_targets(world.pipeline, world.pictures, names, TargetConfig(), device="cpu")
    own = embed_pictures(world.pipeline, world.pictures, names["val"])
    torch.testing.assert_close(plain["val"], own, atol=1e-5, rtol=1e-5)
    several = TargetConfig(views=["sharp", "blur", "noise", "coarse", "mosaic"])
    mixed = picture_targets(world.pipeline, world.pictures, names, several, device="cpu")
    torch.testing.assert_close(mixed["val"].norm(dim=1), torch.ones(6))
    assert float((mixed["val"] * own).sum(1).max()) < 0.9999
    middle = picture_targets(
        world.pipeline, world.pictures, names, TargetConfig(layer=1), device="cpu"
    )
    assert middle["val"].shape == (6, 32)
    with pytest.raises(InputError, match="1 to 1"):
        picture_targets(world.pipeline, world.pictures, names, TargetConfig(layer=9), device="cpu")


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: PretrainConfig(granularity="sample"), "channel or signal"),
        (lambda: PretrainConfig(mask_ratio=1.0), "mask_ratio"),
        (lambda: JointConfig(mask_ratio=0.0), "mask_ratio"),
        (lambda: ConditionConfig(adapt="all"), "frozen or lora"),
        (lambda: ConditionConfig(null_dropout=1.0), "null_dropout"),
        (lambda: RefineConfig(adapt="everything"), "keys_values"),
        (lambda: RefineConfig(select="test"), "best or last"),
        (lambda: TargetConfig(views=["upside-down"]), "sharp"),
        (lambda: build_context_head("mlp"), "queries"),
    ],
)
def test_bad_settings_are_named(make, word):
    with pytest.raises(InputError, match=word):
        make()


def test_a_resumed_conditioning_keeps_its_average(
    world, bank, shown, denoiser, tmp_path, monkeypatch
):
    config = ConditionConfig(epochs=3, batch_size=9, lr=1e-2, ema=0.9, head="linear")

    def run(running, seed=0):
        encoder = network("compact", seed)
        model = conditioner(encoder, denoiser, config)
        torch.manual_seed(seed)
        for name, weight in model.head.named_parameters():
            nn.init.normal_(weight, std=0.1, generator=torch.Generator().manual_seed(len(name)))
        found = condition(model, denoiser, bank, shown, bank, shown, config, running, seed=0)
        return state_of(model), found["val_loss"]

    whole, loss = run(QUIET)

    def stop(self):
        if self.current_epoch == 1:
            raise Stop

    running = Running(progress=False, checkpoints=tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(ConditionedDenoising, "on_train_epoch_end", stop)
        with pytest.raises(Stop):
            run(running)
    saved = torch.load(tmp_path / "condition" / "last.ckpt", weights_only=True)
    assert not any(name.startswith("denoiser") for name in saved["state_dict"])
    running.resume = True
    resumed, again = run(running, seed=5)
    assert again == loss
    assert_equal(whole, resumed)
