"""Every stage through the command line, each starting from the folder of the one before."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from eeg_encoder import models
from eeg_encoder.cli import app
from eeg_encoder.conditioning import load_conditioning, pipeline_fingerprint
from eeg_encoder.configs import config_path
from eeg_encoder.diffusion_training import ConditionRunConfig, RefineRunConfig
from eeg_encoder.errors import InputError
from eeg_encoder.pretrained import file_hash, from_pretrained, save_pretrained
from eeg_encoder.pretraining import JointRunConfig, PretrainRunConfig
from eeg_encoder.protocols import find_protocol
from eeg_encoder.settings import load_config
from eeg_encoder.sources import read_again
from eeg_encoder.training import TrainConfig

runner = CliRunner()
CONFIGS = {
    "pretrain": PretrainRunConfig,
    "joint": JointRunConfig,
    "align": TrainConfig,
    "condition": ConditionRunConfig,
    "refine": RefineRunConfig,
}
NETWORK = ["model.width=32", "model.depth=1", "model.decoder_depth=1", "model.patch=10"]
JOINT = [
    "joint.epochs=2", "joint.batch_size=6", "joint.blocks=1", "joint.heads=4",
    "joint.decoder_width=32", "joint.decoder_depth=1", "joint.decoder_heads=4",
]  # fmt: skip


def run(*arguments):
    return runner.invoke(app, [str(argument) for argument in arguments])


def settings(world, out, *more, pictures=True):
    words = [f"recording={world.recording}", f"out={out}", "device=cpu", "progress=false", *more]
    if not any(word.startswith(("splits=", "protocol.")) for word in more):
        words.append(f"splits={world.splits}")
    if pictures:
        words += [f"pictures={world.pictures}", f"pipeline={world.pipeline}"]
    return words


def succeeds(result):
    assert result.exit_code == 0, result.output
    return result


def fails(result, *words):
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("error: ")
    assert len(result.stderr.strip().splitlines()) == 1
    for word in words:
        assert str(word) in result.stderr


@pytest.fixture(scope="module")
def stage1(world):
    out = world.folder / "stage1"
    succeeds(
        run("pretrain", *settings(world, out, pictures=False), "pretrain.epochs=2",
            "pretrain.batch_size=6", *NETWORK)
    )  # fmt: skip
    return out


@pytest.fixture(scope="module")
def stage2(world, stage1):
    out = world.folder / "stage2"
    succeeds(run("joint", *settings(world, out), f"init={stage1}", *JOINT))
    return out


@pytest.fixture(scope="module")
def aligned(world, stage2):
    out = world.folder / "aligned"
    succeeds(
        run("align", *settings(world, out), f"init={stage2}", "model.name=masked_autoencoder",
            "align.epochs=2", "align.batch_size=6", "memory=true")
    )  # fmt: skip
    return out


@pytest.fixture(scope="module")
def conditioner(world, aligned):
    out = world.folder / "conditioner"
    succeeds(
        run("condition", *settings(world, out), f"init={aligned}", "condition.epochs=2",
            "condition.batch_size=6")
    )  # fmt: skip
    return out


@pytest.fixture(scope="module")
def refined(world, conditioner):
    out = world.folder / "refined"
    succeeds(
        run("refine", *settings(world, out), f"init={conditioner}", "refine.epochs=1",
            "refine.batch_size=6", "refine.adapt=lora", "refine.rank=2")
    )  # fmt: skip
    return out


def config_of(folder):
    return json.loads((folder / "config.json").read_text())


def test_stages_follow_each_other(stage1, stage2, aligned, conditioner, world):
    expected = ["pretrain", "joint", "align", "condition"]
    for number, folder in enumerate((stage1, stage2, aligned, conditioner)):
        assert config_of(folder)["trained"] == expected[: number + 1]
    one, two = (from_pretrained(folder).encoder.state_dict() for folder in (stage1, stage2))
    assert set(one) == set(two)
    assert not torch.equal(one["encoder.embed.weight"], two["encoder.embed.weight"])
    assert (stage2 / "joint.safetensors").is_file()
    assert config_of(conditioner)["base_model"] == pipeline_fingerprint(world.pipeline)


def test_conditioning_keeps_the_memory_and_fits_it_again(aligned, conditioner):
    before, after = from_pretrained(aligned), from_pretrained(conditioner)
    assert torch.equal(before.memory.pictures, after.memory.pictures)
    assert (before.evidence is None) == (config_of(aligned)["evidence"] is None)
    found = config_of(conditioner)["validation"]["memory"]
    assert found["cosine_recalled"] > 0
    assert found != config_of(aligned)["validation"]


def test_conditioning_leaves_the_memory_of_another_pipeline_out(aligned):
    from eeg_encoder.diffusion_training import _remember_again

    pretrained = from_pretrained(aligned)
    assert _remember_again(pretrained, None, None, "another").startswith("left out: another")
    assert pretrained.memory is None
    assert pretrained.evidence is None


@pytest.mark.parametrize("stage", ["stage1", "stage2", "conditioner"])
def test_cards_are_complete(stage, request):
    folder = request.getfixturevalue(stage)
    for name in ("config.json", "model.safetensors", "preprocessing.json", "card.md"):
        assert (folder / name).is_file()
    card, config = (folder / "card.md").read_text(), config_of(folder)
    for word in (
        "masked_autoencoder", f"{config['training']['parameters']:,}", "eeg.pth", "by stimulus",
        "'seed': 0", "validation", *config["trained"],
    ):  # fmt: skip
        assert word in card
    name = config["trained"][-1]
    assert (folder / "logs" / name / "metrics.csv").is_file()
    assert list((folder / "logs" / name).glob("events.out.tfevents.*"))
    assert not (folder / "checkpoints").exists()


def test_context_tokens_pass_the_seam(world, conditioner, tmp_path):
    out = tmp_path / "test.safetensors"
    succeeds(
        run("embed", world.recording, "--encoder", conditioner, "--splits", world.splits, "--out",
            out, "--device", "cpu")
    )  # fmt: skip
    found = load_conditioning(out)
    pretrained = from_pretrained(conditioner)
    assert found.tokens.shape[1:] == (8, 32)
    assert torch.equal(found.null_tokens, pretrained.null_tokens)
    assert found.encoder == file_hash(conditioner / "model.safetensors")
    assert found.protocol["split"] == "by stimulus"
    assert found.protocol["recording"] == world.recording.name
    averaged = read_again(world.recording, pretrained.config).average()
    rows = [averaged.stimuli.tolist().index(trial.stimulus) for trial in found.trials]
    again = pretrained.to_context(averaged.select(np.array(rows)))
    torch.testing.assert_close(found.tokens, again, atol=1e-4, rtol=1e-4)


def test_a_refined_pipeline_is_a_pipeline(world, refined):
    from threestudio_eeg.pipeline import load_pipeline

    pipeline = load_pipeline(refined, device="cpu")
    base = load_pipeline(world.pipeline, device="cpu")
    before, after = base.unet.state_dict(), pipeline.unet.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all(".attn2." in name for name in changed)
    digits = pipeline_fingerprint(world.pipeline).partition(":")[2]
    assert pipeline_fingerprint(refined) == f"refined:{digits}"
    record = json.loads((refined / "refine.json").read_text())
    assert record["variant"] == "amortised"
    assert "by stimulus" in (refined / "card.md").read_text()

    from peft import PeftModel

    with_adapter = PeftModel.from_pretrained(base.unet, refined / "adapter").merge_and_unload()
    for name, value in with_adapter.state_dict().items():
        torch.testing.assert_close(value, after[name], atol=1e-6, rtol=1e-5)


def test_what_was_made_for_the_base_model_fits_the_refined_one(world, refined, tmp_path):
    from tests.tiny import tiny_conditioning
    from threestudio_eeg.prompt_processor import check_base_model

    file = tiny_conditioning(tmp_path / "c.safetensors", world.pipeline)
    check_base_model(file, load_conditioning(file), refined)
    other = shutil.copytree(refined, tmp_path / "other")
    (other / "refine.json").write_text('{"base_model": "sd:0"}')
    with pytest.raises(InputError, match="base_model"):
        check_base_model(file, load_conditioning(file), other)
    (other / "refine.json").write_text("{")
    with pytest.raises(InputError, match=r"refine\.json"):
        check_base_model(file, load_conditioning(file), other)


def test_the_oracle_says_that_it_is_one(world, aligned, tmp_path):
    stimulus = str(world.trials.stimuli[0])
    words = [
        *settings(world, tmp_path / "oracle"), f"init={aligned}", "refine.epochs=1",
        "--config", "refine-oracle-class.yaml",
    ]  # fmt: skip
    succeeds(run("refine", *words, f"refine.stimulus={stimulus}"))
    record = json.loads((tmp_path / "oracle" / "refine.json").read_text())
    assert record["variant"] == "oracle_class"
    assert "Oracle" in (tmp_path / "oracle" / "card.md").read_text()
    fails(run("refine", *words), "stimulus: found nothing")
    fails(run("refine", *words, "refine.stimulus=n0_0"), "n0_0")


def test_an_adapted_unet_is_written_beside_the_encoder(world, aligned, tmp_path):
    out = tmp_path / "lora"
    succeeds(
        run("condition", *settings(world, out), f"init={aligned}", "condition.epochs=1",
            "condition.adapt=lora", "condition.rank=2", "condition.head=linear",
            "condition.train_encoder=false")
    )  # fmt: skip
    assert (out / "pipeline" / "adapter" / "adapter_config.json").is_file()
    assert (out / "pipeline" / "unet" / "config.json").is_file()
    frozen, before = from_pretrained(out), from_pretrained(aligned)
    for name, value in before.encoder.state_dict().items():
        assert torch.equal(value, frozen.encoder.state_dict()[name])
    assert frozen.memory is not None


def test_any_format_trains_and_embeds_by_protocol(world, tmp_path):
    recording = tmp_path / "trials.npz"
    trials = world.trials
    np.savez(
        recording, X=trials.signals, y=trials.labels, stimulus=trials.stimuli,
        subject=trials.subjects, ch_names=np.array(trials.channels), sfreq=trials.sfreq,
    )  # fmt: skip
    out = tmp_path / "encoder"
    words = [
        f"recording={recording}", "options.unit=V", f"out={out}", "device=cpu", "progress=false",
        f"pictures={world.pictures}", f"pipeline={world.pipeline}", "protocol.k=3",
        "pretrain.epochs=1", "align.epochs=1", "model.width=32", "model.depth=1", "model.patch=1",
    ]  # fmt: skip
    succeeds(run("train", *words, "protocol.name=k-fold-by-stimulus", "protocol.fold=1"))
    config = config_of(out)
    assert config["format"] == "npz"
    assert config["options"] == {"unit": "V"}
    assert config["protocol"]["name"] == "k-fold-by-stimulus/fold-1"
    chosen = list(find_protocol("k-fold-by-stimulus", k=3).splits(trials))[1]
    chosen.save(tmp_path / "split.json")
    found = tmp_path / "test.safetensors"
    succeeds(
        run("embed", recording, "--encoder", out, "--splits", tmp_path / "split.json", "--out",
            found, "--device", "cpu")
    )  # fmt: skip
    conditioning = load_conditioning(found)
    assert {t.stimulus for t in conditioning.trials} == set(trials.at(chosen.test).stimuli.tolist())
    assert conditioning.protocol["protocol"] == "k-fold-by-stimulus"
    fails(run("train", *words, "protocol.name=k-fold-by-stimulus", "protocol.fold=7"), "0 to 2")
    fails(run("train", *words, "protocol.name=random"), "k-fold-by-stimulus")
    fails(run("train", *words), "protocol.name")


def test_unlabelled_recordings_pretrain_whole(tmp_path):
    generator = np.random.default_rng(0)
    folder = tmp_path / "signals"
    folder.mkdir()
    for number in range(3):
        np.save(folder / f"{number}.npy", generator.normal(size=(4, 8, 70)).astype(np.float32))
    out = tmp_path / "stage1"
    succeeds(
        run("pretrain", f"recording={folder}", "options.sfreq=100", "options.n_channels=8",
            "options.samples=64", "preprocessing.sfreq=0", "preprocessing.whiten=false",
            f"out={out}", "device=cpu", "progress=false", "model.patch=8", "model.width=32",
            "model.depth=1", "pretrain.epochs=1", "pretrain.granularity=signal")
    )  # fmt: skip
    config = config_of(out)
    assert config["protocol"]["train_trials"] == 12
    assert config["format"] == "npy-folder"


def test_a_labelled_recording_needs_a_split(world, tmp_path):
    words = [f"recording={world.recording}", f"out={tmp_path / 'x'}", "device=cpu"]
    fails(run("pretrain", *words), "splits", "test trials would be trained on")


@pytest.mark.parametrize(
    ("command", "words", "said"),
    [
        ("pretrain", ["pretrain.granularity=sample"], "channel or signal"),
        ("pretrain", ["pretrain.epoch=3"], "epoch"),
        ("pretrain", ["model.name=gpt"], "compact"),
        ("pretrain", ["devices=0"], "devices"),
        ("pretrain", ["precision=fp8"], "bf16-mixed"),
        ("pretrain", ["subjects=[9]"], "9"),
        ("pretrain", ["init=/nowhere"], "config.json"),
        ("pretrain", ["preprocessing.whiten=false", "init=STAGE1"], "preprocessing.whiten"),
        ("pretrain", ["model.width=64", "init=STAGE1"], "shape"),
        ("pretrain", ["protocol.name=k-fold-by-stimulus"], "one of the two"),
    ],
)
def test_bad_settings_are_one_line(world, stage1, tmp_path, command, words, said):
    words = [word.replace("STAGE1", str(stage1)) for word in words]
    if "init=" not in " ".join(words):
        words = [*NETWORK, *words]
    fails(run(command, *settings(world, tmp_path / "x", pictures=False), *words), said)
    assert not (tmp_path / "x" / "model.safetensors").exists()


def test_diffusion_stages_refuse_what_does_not_fit(world, stage1, aligned, tmp_path):
    words = settings(world, tmp_path / "x")
    fails(run("condition", *words, f"init={stage1}", "condition.clip_weight=1"), "embedding")
    fails(run("refine", *words, f"init={stage1}"), "token head")
    fails(run("refine", *settings(world, world.pipeline), f"init={aligned}"), "another folder")
    bare = tmp_path / "bare"
    shutil.copytree(world.pipeline, bare)
    shutil.rmtree(bare / "vae")
    words = [word if not word.startswith("pipeline=") else f"pipeline={bare}" for word in words]
    fails(run("condition", *words, f"init={aligned}", "condition.clip_weight=0"), "vae")


@pytest.mark.parametrize(
    "name",
    sorted(p.name for p in config_path("phantom.yaml").parent.glob("*.yaml")),
)
def test_every_config_is_known_to_its_command(name):
    kind = CONFIGS.get(name.removesuffix(".yaml").partition("-")[0], TrainConfig)
    words = [f"{key}=x" for key in ("recording", "pictures", "pipeline", "init", "out")]
    fields = kind.__dataclass_fields__
    words = [word for word in words if word.partition("=")[0] in fields]
    if "oracle" in name:
        words.append("refine.stimulus=x")
    config = load_config(kind, config_path(name), words)
    if "faithful" in name and getattr(config, "model", None):
        assert models.find(config.model["name"]).presets[config.model["preset"]]["width"] == 1024


@pytest.mark.parametrize("command", ["joint", "condition", "refine"])
def test_every_stage_runs_in_bfloat16(world, stage1, aligned, tmp_path, command):
    start = stage1 if command == "joint" else aligned
    words = [*settings(world, tmp_path / "x"), f"init={start}", "precision=bf16-mixed"]
    words += JOINT if command == "joint" else [f"{command}.epochs=1", f"{command}.batch_size=6"]
    succeeds(run(command, *words))
    losses = (tmp_path / "x" / "logs" / command / "metrics.csv").read_text()
    assert "nan" not in losses


def test_resume_is_an_option_of_every_stage():
    for command in ("train", *CONFIGS):
        result = run(command, "--help")
        assert result.exit_code == 0
        assert "Example" in result.output
        assert "--resume" in result.output


def test_the_hub_is_used_only_when_named(stage1, tmp_path, monkeypatch):
    asked = []

    def download(name, **_):
        asked.append(name)
        return str(stage1)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    with pytest.raises(InputError, match=r"config\.json"):
        from_pretrained("lab/encoder")
    assert not asked
    found = from_pretrained("hf://lab/encoder")
    assert asked == ["lab/encoder"]
    assert found.config["model"]["name"] == "masked_autoencoder"

    sent = {}

    class Api:
        def create_repo(self, name, exist_ok):
            sent["repo"] = name

        def upload_folder(self, repo_id, folder_path):
            shutil.copytree(folder_path, tmp_path / "hub")

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    save_pretrained("hf://lab/encoder", found, card="# card\n")
    assert sent == {"repo": "lab/encoder"}
    again = from_pretrained(tmp_path / "hub")
    assert again.weights_hash == file_hash(stage1 / "model.safetensors")


def test_offline_the_hub_is_a_one_line_error(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError, match="hf://lab/encoder: repository"):
        from_pretrained("hf://lab/encoder")
