import importlib
from types import SimpleNamespace
from typing import Union

import pytest

from eeg_encoder.errors import InputError
from threestudio_eeg.compat import nvdiffrast


@pytest.fixture
def stand_in():
    nvdiffrast.apply("cpu")
    yield importlib.import_module("nvdiffrast.torch")
    nvdiffrast.use_rasteriser(None)


def test_needed_on_a_cpu_and_where_it_is_not_installed(absent):
    absent("nvdiffrast")
    assert nvdiffrast.reason("cpu") == "nvdiffrast has no CPU kernels"
    assert nvdiffrast.reason("cuda")


def test_the_real_one_is_left_alone_on_cuda(fake):
    fake("nvdiffrast")
    fake("nvdiffrast.torch", RasterizeGLContext=object)
    assert nvdiffrast.reason("cuda") is None
    assert nvdiffrast.reason_gl("cuda") is None


def test_contexts_cost_nothing_and_are_classes(stand_in):
    gl, cuda = stand_in.RasterizeGLContext, stand_in.RasterizeCudaContext
    assert Union[gl, cuda] is not None  # noqa: UP007 (as threestudio annotates)
    assert gl(device="cpu").device == "cpu"
    assert isinstance(cuda(), cuda)


@pytest.mark.parametrize("operation", nvdiffrast.OPERATIONS)
def test_rasterising_says_what_is_missing(stand_in, operation):
    with pytest.raises(InputError, match=rf"nvdiffrast\.torch: {operation}: .*NVlabs/nvdiffrast"):
        getattr(stand_in, operation)(None, 1)


def test_a_rasteriser_can_be_plugged_in(stand_in):
    mine = SimpleNamespace(rasterize=lambda *args, **kwargs: (args, kwargs))
    nvdiffrast.use_rasteriser(mine)
    assert stand_in.rasterize(1, 2, grad_db=True) == ((1, 2), {"grad_db": True})
    with pytest.raises(InputError, match="antialias"):
        stand_in.antialias()


def test_a_version_without_opengl_uses_its_cuda_context(fake):
    fake("nvdiffrast")
    real = fake("nvdiffrast.torch", RasterizeCudaContext=object())
    assert nvdiffrast.reason_gl("cpu") is None
    assert nvdiffrast.reason_gl("cuda") == "this nvdiffrast has no RasterizeGLContext"
    nvdiffrast.apply_gl("cuda")
    assert real.RasterizeGLContext is real.RasterizeCudaContext
