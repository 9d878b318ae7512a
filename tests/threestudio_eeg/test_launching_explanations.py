"""What libraries say of a bad pipeline in a page, said in a line."""

from __future__ import annotations

import pytest

from eeg_encoder.errors import InputError
from threestudio_eeg.launching.explanations import explained


def load_tokenizer(folder):
    from transformers import AutoTokenizer

    AutoTokenizer.from_pretrained(folder, subfolder="tokenizer")


def load_text_encoder(folder):
    from transformers import CLIPTextModel

    CLIPTextModel.from_pretrained(folder, subfolder="text_encoder")


def load_unet(folder):
    from diffusers import UNet2DConditionModel

    UNet2DConditionModel.from_pretrained(folder, subfolder="unet")


def load_all(folder):
    from diffusers import StableDiffusionPipeline

    StableDiffusionPipeline.from_pretrained(folder)


@pytest.mark.parametrize(
    ("load", "part"),
    [
        (load_tokenizer, "tokenizer"),
        (load_text_encoder, "text_encoder"),
        (load_unet, "unet"),
        (load_all, "pipeline"),
    ],
)
def test_a_pipeline_without_a_part(tmp_path, load, part):
    with pytest.raises(InputError) as caught, explained("toy.yaml"):
        load(str(tmp_path))
    assert str(caught.value).startswith(f"{tmp_path}: {part}: found nothing that loads (")
    assert "\n" not in str(caught.value)


def test_other_errors_pass():
    for error in (ValueError("a"), OSError("b"), InputError("c", "d", "e", "f")):
        with pytest.raises(type(error)) as caught, explained("toy.yaml"):
            raise error
        assert caught.value is error
