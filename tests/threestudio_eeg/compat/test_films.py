import imageio
import imageio.v3
import numpy as np

from threestudio_eeg.compat import films

FRAMES = [np.full((25, 40, 3), value, np.uint8) for value in (0, 100, 200)]


def test_needed_without_imageio_ffmpeg(absent, fake):
    absent("imageio_ffmpeg")
    assert films.reason("cuda")
    fake("imageio_ffmpeg")
    assert films.reason("cuda") is None


def test_a_film_is_written_as_threestudio_asks(tmp_path):
    films.apply("cpu")
    imageio.mimsave(str(tmp_path / "a.mp4"), FRAMES, fps=30)
    found = imageio.v3.imread(tmp_path / "a.mp4", plugin="pyav")
    assert found.shape == (3, 26, 40, 3)
    np.testing.assert_allclose(found.mean((1, 2, 3)), [0, 100, 200], atol=3)
    assert imageio.v3.immeta(tmp_path / "a.mp4", plugin="pyav")["fps"] == 30


def test_other_formats_are_imageios_own(tmp_path):
    films.apply("cpu")
    imageio.mimsave(tmp_path / "a.gif", FRAMES, duration=50)
    assert imageio.v3.imread(tmp_path / "a.gif").shape == (3, 25, 40, 3)
