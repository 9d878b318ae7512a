"""Training of the phantom's prior: the loop, every stage for two steps, going on after a stop."""

from __future__ import annotations

import functools
import hashlib
import shutil

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file
from torch import nn

from threestudio_eeg.evaluation import judge as judging
from threestudio_eeg.phantom import networks, prior, stages
from threestudio_eeg.phantom.bank import all_captions
from threestudio_eeg.phantom.training import fit
from threestudio_eeg.pipeline import PARTS, load_pipeline

TINY = OmegaConf.create(
    {"seed": 0, "instances": 1, "views": 2, "stimuli": 1}
    | {part: {"steps": 2, "batch": 4} for part in ("vae", "clip", "unet", "judge")}
)


class Point(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.at = nn.Parameter(torch.zeros(1))


def descend(**settings) -> tuple[float, float]:
    point, settings = Point(), {"steps": 60, "learning_rate": 0.2, **settings}
    loss = fit(
        "point", [point], lambda _: (point.at - 3).square().sum(), warm_up=5, log=str, **settings
    )
    return float(point.at.detach()), loss


def test_the_loop_finds_a_minimum():
    at, loss = descend(steps=200, weight_decay=0.0)
    assert at == pytest.approx(3, abs=0.05)
    assert 0 < loss < 1


def test_averaged_weights_lag_behind_the_last_ones():
    last, _ = descend(steps=20, weight_decay=0.0)
    averaged, _ = descend(steps=20, weight_decay=0.0, average=0.9)
    assert 0 < averaged < last


def test_the_loop_reports_its_progress():
    said: list[str] = []
    point = Point()
    fit("name", [point], lambda _: point.at.square().sum(), steps=16, learning_rate=0.1,
        log=said.append)  # fmt: skip
    assert len(said) == 8
    assert said[-1].startswith("name 16/16: ")


def test_blurred_embeddings_have_the_cosine_that_is_said():
    generator = torch.Generator().manual_seed(0)
    clean = nn.functional.normalize(torch.randn(500, 192, generator=generator), dim=1)
    for strength in (0.5, 1.2):
        blurred = stages.blur(clean, torch.full((500, 1), strength), generator)
        torch.testing.assert_close(blurred.norm(dim=1), torch.ones(500))
        cosine = float((blurred * clean).sum(1).mean())
        assert cosine == pytest.approx((1 + strength**2) ** -0.5, abs=0.02)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder, and what was said while it was made."""
    out, said = tmp_path_factory.mktemp("prior"), []
    with pytest.MonkeyPatch.context() as patch:
        small(patch)
        prior.train_prior(TINY, out, device="cpu", log=said.append)
    return out, said


render_bank = prior._bank


@functools.cache
def small_bank():
    """One object of every category."""
    return render_bank(TINY, "cpu", "train", TINY.instances)


def small(patch: pytest.MonkeyPatch) -> None:
    """Render the objects once for all tests, and judge few pictures."""
    patch.setattr(prior, "_bank", lambda *_: small_bank())
    patch.setattr(judging, "judge_accuracy", functools.partial(judging.judge_accuracy, n=8))


def hashes(folder):
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in folder.rglob("*.safetensors")
    }


def test_every_stage_is_trained_and_saved(trained):
    out, said = trained
    text = "\n".join(said)
    assert "pictures: 20 objects x 3 views" in text
    assert "latents: (20, 3, 2, 4, 16, 16)" in text
    for stage in ("judge", "VAE", "CLIP", "U-Net"):
        assert f"{stage} 2/2: " in text
    assert (out / "judge" / "card.json").is_file()
    assert (out / "pipeline" / "model_index.json").is_file()


def test_the_pipeline_loads_whole_with_the_sizes_meant(trained):
    pipeline = load_pipeline(trained[0] / "pipeline", device="cpu")
    assert all(getattr(pipeline, part) is not None for part in PARTS)
    assert (pipeline.latent_size, pipeline.image_size) == (16, networks.PICTURE)
    assert pipeline.encode_text(["a red mug"]).shape == (1, networks.LENGTH, networks.WIDTH)
    seen = pipeline.encode_pictures(torch.rand(2, 3, 64, 64))
    assert seen.shape == (2, networks.EMBEDDING)
    assert pipeline.image_projection(seen).shape == (2, networks.LENGTH, networks.WIDTH)
    known = len(pipeline.tokenizer)
    ids = pipeline.tokenizer(all_captions()).input_ids
    assert max(map(len, ids)) <= networks.LENGTH
    assert max(map(max, ids)) < known


def test_latents_have_unit_variance(trained):
    out = trained[0] / "pipeline"
    vae = load_pipeline(out, device="cpu", parts=("vae",)).vae
    _, _, rgb = small_bank().draw(16, torch.Generator().manual_seed(0))
    latents = vae.encode(rgb * 2 - 1).latent_dist.sample() * vae.config.scaling_factor
    assert float(latents.std()) == pytest.approx(1, abs=0.1)


def test_weights_are_half_precision(trained):
    for part in ("vae", "text_encoder", "image_encoder", "unet", "image_projection"):
        for file in (trained[0] / "pipeline" / part).glob("*.safetensors"):
            assert {value.dtype for value in load_file(file).values()} == {torch.float16}


def refuse(*_, **__):
    raise AssertionError("trained again")


def test_a_finished_training_trains_nothing(trained, monkeypatch):
    out, _ = trained
    before = hashes(out)
    small(monkeypatch)
    for stage in ("train_vae", "train_clip", "encode_bank", "train_unet"):
        monkeypatch.setattr(stages, stage, refuse)
    monkeypatch.setattr(judging, "train_judge", refuse)
    prior.train_prior(TINY, out, device="cpu", log=str)
    assert hashes(out) == before


def test_an_interrupted_training_goes_on_with_its_stage(trained, tmp_path, monkeypatch):
    out = shutil.copytree(trained[0], tmp_path / "prior")
    shutil.rmtree(out / "pipeline" / "unet")
    small(monkeypatch)
    for stage in ("train_vae", "train_clip"):
        monkeypatch.setattr(stages, stage, refuse)
    monkeypatch.setattr(judging, "train_judge", refuse)
    monkeypatch.setattr(stages, "encode_bank", lambda *_, **__: small_latents())
    prior.train_prior(TINY, out, device="cpu", log=str)
    assert (out / "pipeline" / "unet" / "config.json").is_file()


def small_latents() -> stages.LatentBank:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    width, length = networks.WIDTH, networks.LENGTH
    return stages.LatentBank(
        draw(20, 3, 2, 4, 16, 16),
        nn.functional.normalize(draw(20, 2, networks.EMBEDDING), dim=-1),
        draw(len(all_captions()), length, width),
        draw(length, width),
    )


def test_a_stage_cut_short_while_saving_leaves_no_folder(tmp_path):
    class Cut(nn.Linear):
        def save_pretrained(self, folder, **_):
            folder.mkdir()
            (folder / "config.json").write_text("{}")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prior.save_half(Cut(1, 1), tmp_path / "pipeline" / "unet")
    assert list((tmp_path / "pipeline").iterdir()) == []
