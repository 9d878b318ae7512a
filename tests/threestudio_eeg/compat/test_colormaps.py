import pytest

from threestudio_eeg.compat import colormaps

cm = pytest.importorskip("matplotlib.cm")


def test_get_cmap_is_there_and_gives_the_map():
    if colormaps.reason("cpu"):
        colormaps.apply("cpu")
    magma = cm.get_cmap("magma")
    assert magma(0.0)[:3] == pytest.approx((0.001462, 0.000466, 0.013866))
    assert cm.get_cmap("magma", 8).N == 8


def test_an_old_matplotlib_is_left_alone(monkeypatch):
    monkeypatch.setattr(cm, "get_cmap", lambda name: name, raising=False)
    assert colormaps.reason("cpu") is None
