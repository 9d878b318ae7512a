import importlib

import pytest

from eeg_encoder.errors import InputError
from threestudio_eeg.compat.optional_packages import REMEDIES

BY_NAME = {remedy.name: remedy for remedy in REMEDIES}
USES = {
    "controlnet_aux": lambda m: m.NormalBaeDetector.from_pretrained("x"),
    "envlight": lambda m: m.EnvLight(None, scale=1.0),
    "wandb": lambda m: m.log({}),
}


@pytest.mark.parametrize("name", BY_NAME)
def test_the_real_package_is_left_alone(name, fake):
    fake(name)
    assert BY_NAME[name].reason("cpu") is None


@pytest.mark.parametrize("name", USES)
def test_an_absent_package_imports_and_fails_on_use(name, absent):
    absent(name)
    assert BY_NAME[name].reason("cuda")
    BY_NAME[name].apply("cuda")
    with pytest.raises(InputError, match=f"{name}: .* pip install {name}"):
        USES[name](importlib.import_module(name))
