import importlib

import pytest

from threestudio_eeg.compat import ipython


@pytest.fixture
def stand_in(absent):
    absent("IPython")
    assert ipython.reason("cpu")
    ipython.apply("cpu")
    return importlib.import_module("IPython.display")


def test_the_real_one_is_left_alone(fake):
    fake("IPython")
    fake("IPython.display")
    assert ipython.reason("cpu") is None


def test_clearing_does_nothing(stand_in):
    assert stand_in.clear_output(wait=True) is None


def test_matplotlib_sees_no_notebook(stand_in):
    """It asks the loaded IPython for its shell whenever a backend is chosen."""
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.uninstall_repl_displayhook()
    pyplot.install_repl_displayhook()
    pyplot.uninstall_repl_displayhook()


def test_matplotlib_draws_a_figure(stand_in):
    figure = pytest.importorskip("matplotlib.figure")
    backend = pytest.importorskip("matplotlib.backends.backend_agg")
    backend.FigureCanvasAgg(figure.Figure()).draw()
