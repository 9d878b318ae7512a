import importlib
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from eeg_encoder.errors import InputError
from threestudio_eeg.compat import torchvision


@pytest.fixture
def picture():
    values = np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(values)


def test_the_real_one_is_left_alone(fake):
    fake("torchvision")
    assert torchvision.reason("cpu") is None


def test_others_are_asked_before_it_is_there(absent, monkeypatch):
    absent("torchvision")
    monkeypatch.delitem(sys.modules, "torchvision")
    seen = []

    def importing(name):
        seen.append((name, sys.modules.get("torchvision", "missing")))
        return real(name)

    real = importlib.import_module
    monkeypatch.setattr(torchvision.importlib, "import_module", importing)
    torchvision.apply("cpu")
    assert [name for name, _ in seen[:3]] == list(torchvision.ASK_FIRST)
    assert all(there is None for _, there in seen)
    assert not real("transformers.utils").is_torchvision_available()
    assert sys.modules["torchvision"].transforms.functional.to_tensor is torchvision.to_tensor


def test_pictures_and_tensors_convert_both_ways(picture):
    tensor = torchvision.to_tensor(picture)
    assert tensor.shape == (3, 4, 5)
    assert tensor.dtype == torch.float32
    assert float(tensor[2, 1, 3]) == pytest.approx(picture.getpixel((3, 1))[2] / 255)
    assert torchvision.to_pil_image(tensor).tobytes() == picture.tobytes()
    assert torchvision.to_pil_image(np.array(picture)).tobytes() == picture.tobytes()


def test_grey_pictures(picture):
    grey = picture.convert("L")
    tensor = torchvision.to_tensor(grey)
    assert tensor.shape == (1, 4, 5)
    assert torchvision.to_pil_image(tensor).tobytes() == grey.tobytes()


def test_float_arrays_are_not_scaled():
    values = np.array([[[2.0]]], np.float32)
    assert torchvision.to_tensor(values).item() == 2


def test_models_are_an_error_on_use():
    torchvision.apply("cpu")
    models = importlib.import_module("torchvision.models")
    with pytest.raises(InputError, match=r"torchvision: models\.vgg16"):
        models.vgg16(pretrained=True)
