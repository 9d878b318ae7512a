from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from eeg_encoder.conditioning import (
    FORMAT,
    Conditioning,
    Trial,
    load_conditioning,
    pipeline_fingerprint,
    save_conditioning,
)
from eeg_encoder.errors import InputError


def example(n: int = 3) -> Conditioning:
    generator = torch.Generator().manual_seed(0)
    return Conditioning(
        tokens=torch.randn(n, 8, 32, generator=generator),
        null_tokens=torch.randn(8, 32, generator=generator),
        pooled=torch.randn(n, 16, generator=generator),
        trials=[Trial(f"s1-n1_{i}", 1, f"n1_{i}", "mug") for i in range(n)],
        base_model="prior:0123456789ab",
        encoder="0" * 64,
        preprocessing={"sfreq": 250.0},
        protocol={"part": "test", "repetitions": [4, 4]},
    )


def test_round_trip(tmp_path):
    saved = example()
    save_conditioning(tmp_path / "c.safetensors", saved)
    again = load_conditioning(tmp_path / "c.safetensors")
    for name in ("tokens", "null_tokens", "pooled"):
        assert torch.equal(getattr(again, name), getattr(saved, name))
    for name in ("trials", "base_model", "encoder", "preprocessing", "protocol"):
        assert getattr(again, name) == getattr(saved, name)


def test_index_of():
    conditioning = example()
    assert conditioning.index_of(2) == conditioning.index_of("2") == 2
    assert conditioning.index_of("s1-n1_1") == 1
    for missing in (3, -1, "s9"):
        with pytest.raises(InputError, match="0 to 2, or an id such as s1-n1_0"):
            conditioning.index_of(missing)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("tokens", torch.full((3, 8, 32), float("nan")), "tokens: found NaN"),
        ("tokens", torch.zeros(2, 8, 32), "tokens: found 2 rows, expected 3"),
        ("null_tokens", torch.zeros(8, 16), "null_tokens: found shape"),
        ("pooled", torch.zeros(3), "pooled: found shape"),
    ],
)
def test_bad_tensors_are_not_saved(tmp_path, name, value, message):
    conditioning = example()
    setattr(conditioning, name, value)
    with pytest.raises(InputError, match=message):
        save_conditioning(tmp_path / "c.safetensors", conditioning)
    assert not list(tmp_path.iterdir())


def rewritten(tmp_path, change_tensors=None, **header):
    path = tmp_path / "c.safetensors"
    save_conditioning(path, example())
    tensors = load_file(path)
    metadata = {
        "format": FORMAT,
        "version": "1",
        "base_model": "prior:0123456789ab",
        "encoder": "0" * 64,
        "preprocessing": "{}",
        "protocol": "{}",
        "trials": json.dumps(
            [{"id": str(i), "subject": 1, "stimulus": "x", "label": "y"} for i in range(3)]
        ),
        **header,
    }
    save_file({**tensors, **(change_tensors or {})}, path, metadata=metadata)
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": "2"}, "version: found 2, expected 1"),
        ({"format": "something else"}, "format: found something else"),
        ({"trials": "[{]"}, "metadata: found JSONDecodeError"),
        ({"trials": '[{"id": "0"}]'}, "metadata: found TypeError"),
        ({"change_tensors": {"pooled": torch.zeros(3, 16).half()}}, "pooled: found torch.float16"),
        ({"change_tensors": {"tokens": torch.full((3, 8, 32), torch.inf)}}, "tokens: found NaN"),
        ({"change_tensors": {"tokens": torch.zeros(3, 8, 30)}}, "null_tokens: found shape"),
    ],
)
def test_bad_files_are_named(tmp_path, change, message):
    path = rewritten(tmp_path, **change)
    with pytest.raises(InputError, match=message) as caught:
        load_conditioning(path)
    assert str(path) in str(caught.value)


def test_missing_truncated_and_foreign_files(tmp_path):
    with pytest.raises(InputError, match="found nothing"):
        load_conditioning(tmp_path / "none.safetensors")
    path = tmp_path / "c.safetensors"
    save_conditioning(path, example())
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match="a safetensors file"):
        load_conditioning(path)
    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(InputError, match="another kind of safetensors file"):
        load_conditioning(path)


def test_fingerprint(tmp_path):
    folder = tmp_path / "prior"
    for part in ("unet", "text_encoder"):
        (folder / part).mkdir(parents=True)
        (folder / part / "config.json").write_text(part)
    first = pipeline_fingerprint(folder)
    assert first.startswith("prior:")
    assert len(first) == len("prior:") + 12
    (folder / "unet" / "config.json").write_text("other")
    assert pipeline_fingerprint(folder) != first
    with pytest.raises(InputError, match="unet/config.json"):
        pipeline_fingerprint(tmp_path)
