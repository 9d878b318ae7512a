"""Loading a pipeline's folder: sizes, precision, silence, and what is wrong with a bad one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from eeg_encoder.errors import InputError
from tests.tiny import tiny_pipeline
from threestudio_eeg.pipeline import PARTS, load_pipeline, phantom_prior, pipeline_folder

SIZES = "latent_size", "image_size", "scaling_factor"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tiny_pipeline(tmp_path_factory.mktemp("pipeline"))


def copy_of(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def refused(folder: Path, **options) -> InputError:
    with pytest.raises(InputError) as caught:
        load_pipeline(folder, device="cpu", **options)
    assert "\n" not in str(caught.value)
    return caught.value


def test_sizes_are_read_from_the_networks(folder):
    pipeline = load_pipeline(folder, device="cpu", parts=("unet", "vae"))
    assert [getattr(pipeline, name) for name in SIZES] == [8, 16, 0.5]
    latents = pipeline.vae.encode(torch.zeros(1, 3, 16, 16)).latent_dist.mean
    assert latents.shape[-1] == pipeline.latent_size


def test_everything_is_frozen_and_in_evaluation_mode(folder):
    pipeline = load_pipeline(folder, device="cpu")
    parts = [getattr(pipeline, name) for name in PARTS]
    networks = [part for part in parts if isinstance(part, torch.nn.Module)]
    assert len(networks) == 6
    for network in networks:
        assert not network.training
        assert not any(parameter.requires_grad for parameter in network.parameters())


def test_only_the_parts_asked_for_are_loaded(folder):
    pipeline = load_pipeline(folder, device="cpu", parts=("scheduler",))
    assert pipeline.scheduler.config.num_train_timesteps == 1000
    assert pipeline.unet is None
    assert pipeline.text_encoder is None


def test_absent_optional_parts_are_none(folder, tmp_path):
    plain = copy_of(folder, tmp_path)
    for part in ("image_encoder", "image_projection", "view_encoder"):
        shutil.rmtree(plain / part)
    pipeline = load_pipeline(plain, device="cpu")
    assert pipeline.image_encoder is pipeline.image_projection is pipeline.view_encoder is None
    assert pipeline.unet is not None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_precision(folder, dtype):
    pipeline = load_pipeline(folder, device="cpu", dtype=dtype)
    for part in ("unet", "vae", "text_encoder", "image_encoder", "image_projection"):
        assert {p.dtype for p in getattr(pipeline, part).parameters()} == {dtype}, part


def test_half_weights_load_as_whole_ones(folder, tmp_path):
    stored = copy_of(folder, tmp_path)
    for part in ("unet", "text_encoder"):
        network = getattr(load_pipeline(folder, device="cpu", parts=(part,)), part)
        network.half().save_pretrained(stored / part)
    pipeline = load_pipeline(stored, device="cpu")
    assert pipeline.unet.dtype == pipeline.text_encoder.dtype == torch.float32


def test_text_and_picture_embeddings(folder):
    pipeline = load_pipeline(folder, device="cpu")
    tokens = pipeline.encode_text(["a red mug", ""])
    assert tokens.shape == (2, 8, 32)
    assert not torch.equal(tokens[0], tokens[1])
    rgb = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    embeddings = pipeline.encode_pictures(rgb)
    assert embeddings.shape == (3, 16)
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(3))
    small = torch.nn.functional.interpolate(
        rgb, (16, 16), mode="bilinear", antialias=True, align_corners=False
    )
    torch.testing.assert_close(pipeline.encode_pictures(small), embeddings)


def test_loading_prints_nothing_and_leaves_the_libraries_as_they_were(folder, capfd):
    import diffusers
    import transformers

    loggings = diffusers.utils.logging, transformers.utils.logging
    for logging in loggings:
        logging.set_verbosity_warning()
        logging.enable_progress_bar()
    before = [logging.get_verbosity() for logging in loggings]
    load_pipeline(folder, device="cpu", dtype=torch.float16)
    assert capfd.readouterr() == ("", "")
    assert [logging.get_verbosity() for logging in loggings] == before
    assert all(logging.is_progress_bar_enabled() for logging in loggings)


def test_settings_come_back_after_an_error(folder, tmp_path):
    import transformers

    broken = copy_of(folder, tmp_path)
    (broken / "text_encoder" / "model.safetensors").write_bytes(b"short")
    transformers.utils.logging.set_verbosity_warning()
    before = transformers.utils.logging.get_verbosity()
    refused(broken)
    assert transformers.utils.logging.get_verbosity() == before


def test_no_such_folder(tmp_path):
    error = refused(tmp_path / "nothing")
    assert error.field == "unet/config.json"
    assert str(tmp_path / "nothing") in str(error)


def test_a_name_for_the_prior_that_ships():
    if not (phantom_prior() / "unet" / "config.json").is_file():
        pytest.skip("no prior in this checkout")
    assert pipeline_folder("phantom") == phantom_prior()


@pytest.mark.parametrize("part", ["unet", "vae"])
def test_truncated_weights(folder, tmp_path, part):
    broken = copy_of(folder, tmp_path)
    file = broken / part / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    error = refused(broken)
    assert error.where == broken / part
    assert error.field == "weights"


@pytest.mark.parametrize("part", ["unet", "text_encoder", "image_encoder"])
def test_weights_that_lack_a_tensor(folder, tmp_path, part):
    from safetensors.torch import load_file, save_file

    broken = copy_of(folder, tmp_path)
    (file,) = (broken / part).glob("*.safetensors")
    state = load_file(file)
    name = sorted(state)[0]
    del state[name]
    save_file(state, file, metadata={"format": "pt"})
    error = refused(broken)
    assert error.where == broken / part
    assert error.field.endswith(name.rpartition(".")[2])


def test_a_view_encoder_of_another_size(folder, tmp_path):
    broken = copy_of(folder, tmp_path)
    file = broken / "view_encoder" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "width": 48}))
    assert refused(broken).where == broken / "view_encoder"


def test_a_folder_without_an_autoencoder(folder, tmp_path):
    broken = copy_of(folder, tmp_path)
    shutil.rmtree(broken / "vae")
    assert refused(broken).where == broken / "vae" / "config.json"


def test_a_config_that_is_no_json(folder, tmp_path):
    broken = copy_of(folder, tmp_path)
    (broken / "vae" / "config.json").write_text("{")
    assert (broken / "vae") in [Path(refused(broken).where), Path(refused(broken).where).parent]
