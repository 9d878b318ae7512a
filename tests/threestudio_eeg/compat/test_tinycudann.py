import importlib
import sys

import pytest
import torch

from threestudio_eeg.compat import tinycudann


def test_needed_on_a_cpu_and_where_it_cannot_be_imported(absent):
    absent("tinycudann")
    assert tinycudann.reason("cpu") == "tinycudann has no CPU kernels"
    assert tinycudann.reason("cuda")


def test_the_real_one_is_left_alone_on_cuda(fake):
    fake("tinycudann", Encoding=object)
    assert tinycudann.reason("cuda") is None


def test_the_reason_names_a_build_that_fails(tmp_path, monkeypatch):
    (tmp_path / "tinycudann.py").write_text("raise OSError('Unknown compute capability')")
    monkeypatch.delitem(sys.modules, "tinycudann", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    assert tinycudann.reason("cuda") == (
        "tinycudann cannot be imported (OSError: Unknown compute capability)"
    )


@pytest.mark.parametrize(
    ("config", "n_output_dims", "n_params"),
    [
        ({"otype": "Grid", "type": "Hash", "n_levels": 2, "log2_hashmap_size": 8}, 4, 1024),
        ({"otype": "SphericalHarmonics", "degree": 3}, 9, 0),
        ({"otype": "Frequency", "n_frequencies": 4}, 24, 0),
    ],
)
def test_what_threestudio_asks_of_it(config, n_output_dims, n_params):
    tinycudann.apply("cpu")
    tcnn = importlib.import_module("tinycudann")
    encoding = tcnn.Encoding(3, config, dtype=torch.float32)
    assert encoding.n_output_dims == n_output_dims
    assert dict(encoding.named_parameters())["params"].numel() == n_params
    assert encoding(torch.rand(5, 3)).shape == (5, n_output_dims)
    tcnn.free_temporary_memory()
