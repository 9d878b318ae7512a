from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from eeg_encoder.conditioning import load_conditioning, save_conditioning
from eeg_encoder.errors import InputError
from tests.tiny import tiny_conditioning, tiny_pipeline
from threestudio_eeg.builtin.base import device_scope
from threestudio_eeg.prompt_processor import EEGPromptProcessor

ELEVATION = torch.tensor([0.0, 10.0, 0.0, 70.0])
AZIMUTH = torch.tensor([90.0, 5.0, 180.0, 0.0])
DISTANCES = torch.full((4,), 2.0)
VIEWS = (ELEVATION, AZIMUTH, DISTANCES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_pipeline(tmp_path_factory.mktemp("pipeline") / "tiny")


@pytest.fixture(scope="module")
def wordy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_pipeline(tmp_path_factory.mktemp("pipeline") / "wordy", view_tokens=False)


def processor(pipeline: Path, file: Path, **config: Any) -> EEGPromptProcessor:
    with device_scope("cpu"):
        return EEGPromptProcessor(
            {
                "conditioning": str(file),
                "pretrained_model_name_or_path": str(pipeline),
                **config,
            }
        )


@pytest.fixture(scope="module")
def file(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_conditioning(tmp_path_factory.mktemp("eeg") / "eeg.safetensors", folder)


def test_eeg_is_in_the_conditional_half_only(folder: Path, file: Path) -> None:
    first, second = (
        processor(folder, file, trial=i)().get_text_embeddings(*VIEWS) for i in (0, "trial-1")
    )
    assert first.shape == (8, 10, 32)
    assert not torch.allclose(first[:4], second[:4])
    assert torch.equal(first[4:], second[4:])
    conditioning = load_conditioning(file)
    torch.testing.assert_close(first[0, :8], conditioning.tokens[0])
    torch.testing.assert_close(second[0, :8], conditioning.tokens[1])
    torch.testing.assert_close(first[4, :8], conditioning.null_tokens)


def test_view_tokens_follow_the_camera_and_the_unconditional_half_gets_the_null_ones(
    folder: Path, file: Path
) -> None:
    eeg = processor(folder, file)
    assert eeg.view_mode == "tokens"
    tokens = eeg().get_text_embeddings(*VIEWS)[:, 8:]
    torch.testing.assert_close(tokens[:4], eeg.camera_tokens(*VIEWS))
    torch.testing.assert_close(tokens[4:], eeg.camera_tokens.null_tokens.expand(4, -1, -1))
    without = eeg().get_text_embeddings(*VIEWS, view_dependent_prompting=False)[:, 8:]
    torch.testing.assert_close(without, eeg.camera_tokens.null_tokens.expand(8, -1, -1))


def test_none_gives_every_view_the_same(folder: Path, file: Path) -> None:
    embeddings = processor(folder, file, view_dependent="none")().get_text_embeddings(*VIEWS)
    assert embeddings.shape == (8, 10, 32)
    assert torch.equal(embeddings[0], embeddings[2])


def test_text_directions_where_there_are_no_view_tokens(wordy: Path, tmp_path: Path) -> None:
    from threestudio_eeg.pipeline import load_pipeline

    file = tiny_conditioning(tmp_path / "eeg.safetensors", wordy)
    eeg = processor(wordy, file, view_dependent="auto", view_text_scale=0.5)
    assert eeg.view_mode == "text"
    output = eeg()
    assert output.text_embeddings_vd.shape == (4, 8, 32)
    embeddings = output.get_text_embeddings(*VIEWS)
    assert embeddings.shape == (8, 8, 32)
    pipeline = load_pipeline(wordy, device="cpu", parts=("tokenizer", "text_encoder"))
    plain, back = pipeline.encode_text(["an object", "an object, back view"])
    tokens = load_conditioning(file).tokens[0]
    torch.testing.assert_close(embeddings[2], tokens + 0.5 * (back - plain))
    for row, name in enumerate(("side", "front", "back", "overhead")):
        view = output.text_embeddings_vd[output.direction2idx[name]]
        torch.testing.assert_close(embeddings[row], view)
    torch.testing.assert_close(embeddings[4:], load_conditioning(file).null_tokens.expand(4, 8, 32))


def test_provenance_identifies_file_trial_and_encoder(folder: Path, file: Path) -> None:
    import hashlib

    record = processor(folder, file, trial=2)().provenance
    assert record["conditioning_sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert record["trial"]["id"] == "trial-2"
    assert record["encoder_sha256"] == "0" * 64
    assert record["base_model"] == record["pipeline"]


def refused(pipeline: Path, file: Path, field: str, **config: Any) -> InputError:
    with pytest.raises(InputError) as caught:
        processor(pipeline, file, **config)
    assert caught.value.field == field
    assert "\n" not in str(caught.value)
    return caught.value


def test_missing_file(folder: Path, tmp_path: Path) -> None:
    error = refused(folder, tmp_path / "absent.safetensors", "file")
    assert "absent.safetensors" in str(error)


def test_truncated_file(folder: Path, file: Path, tmp_path: Path) -> None:
    (tmp_path / "cut").write_bytes(file.read_bytes()[:-50])
    refused(folder, tmp_path / "cut", "file")


def test_foreign_safetensors(folder: Path, tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(2)}, tmp_path / "foreign")
    refused(folder, tmp_path / "foreign", "format")


def test_other_version(folder: Path, file: Path, tmp_path: Path) -> None:
    with safe_open(str(file), framework="pt") as source:
        header = source.metadata() | {"version": "99"}
        tensors = {name: source.get_tensor(name) for name in source.keys()}  # noqa: SIM118
    save_file(tensors, tmp_path / "later", metadata=header)
    assert refused(folder, tmp_path / "later", "version").found == "99"


def test_values_that_are_not_finite(folder: Path, file: Path, tmp_path: Path) -> None:
    with safe_open(str(file), framework="pt") as source:
        header = source.metadata()
        tensors = {name: source.get_tensor(name) for name in source.keys()}  # noqa: SIM118
    tensors["tokens"][0, 0, 0] = float("nan")
    save_file(tensors, tmp_path / "nan", metadata=header)
    with pytest.raises(InputError, match="tokens"):
        processor(folder, tmp_path / "nan")


def changed(file: Path, target: Path, **fields: Any) -> Path:
    save_conditioning(target, dataclasses.replace(load_conditioning(file), **fields))
    return target


def test_other_base_model_unless_allowed(folder: Path, file: Path, tmp_path: Path) -> None:
    other = changed(file, tmp_path / "other", base_model="sd15:0123456789ab")
    error = refused(folder, other, "base_model")
    assert error.found == "sd15:0123456789ab"
    assert load_conditioning(file).base_model in str(error.expected)
    processor(folder, other, allow_other_base_model=True)


def test_other_width_even_if_another_base_model_is_allowed(
    folder: Path, file: Path, tmp_path: Path
) -> None:
    wide = changed(
        file, tmp_path / "wide", tokens=torch.zeros(3, 8, 48), null_tokens=torch.zeros(8, 48)
    )
    assert refused(folder, wide, "width of tokens", allow_other_base_model=True).found == 48


def test_other_length_with_text_directions(wordy: Path, tmp_path: Path) -> None:
    file = tiny_conditioning(tmp_path / "eeg", wordy)
    short = changed(
        file, tmp_path / "short", tokens=torch.zeros(3, 5, 32), null_tokens=torch.zeros(5, 32)
    )
    assert refused(wordy, short, "number of tokens").found == 5
    processor(wordy, short, view_dependent="none")


@pytest.mark.parametrize("trial", [3, "-1", "no-such-trial"])
def test_unknown_trial_names_the_file(folder: Path, file: Path, trial: Any) -> None:
    assert refused(folder, file, "trial", trial=trial).where == file


@pytest.mark.parametrize(
    ("field", "config"),
    [
        ("conditioning", {"conditioning": ""}),
        ("view_dependent", {"view_dependent": "words"}),
        ("negative_prompt", {"negative_prompt": "blurry"}),
        ("use_perp_neg", {"use_perp_neg": True}),
        ("unet/config.json", {"pretrained_model_name_or_path": "nowhere"}),
    ],
)
def test_settings_without_meaning(
    folder: Path, file: Path, field: str, config: dict[str, Any]
) -> None:
    refused(folder, file, field, **config)


def test_view_tokens_from_a_pipeline_without_them(wordy: Path, tmp_path: Path) -> None:
    file = tiny_conditioning(tmp_path / "eeg", wordy)
    refused(wordy, file, "view_encoder", view_dependent="tokens")
