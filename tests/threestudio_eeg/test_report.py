from __future__ import annotations

import base64
import json
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
import trimesh
from PIL import Image

from eeg_encoder.errors import InputError
from threestudio_eeg.report import charts, write_report
from threestudio_eeg.report.curves import read_curves
from threestudio_eeg.report.electrodes import find_montage, flatten
from threestudio_eeg.report.figures import read_figures, write_value
from threestudio_eeg.report.geometry import cluster_vertices, pack_mesh, split_creases
from threestudio_eeg.report.page import pick_latencies

from .browser import CHROMIUM, FLAGS

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not on PATH")
CHANNELS = ["Fp1", "Fp2", "F3", "F4", "C3", "C4", "P3", "P4", "O1", "O2", "Fz", "Cz", "Pz"]


def green_object() -> trimesh.Trimesh:
    mesh = trimesh.creation.box(extents=(1.0, 0.6, 0.4))
    mesh.visual.vertex_colors = np.tile([20, 160, 40, 255], (len(mesh.vertices), 1))
    return mesh


def inputs(folder: Path) -> dict:
    random = np.random.default_rng(0)
    rows = ["epoch,step,train/loss_vsd,train/note"]
    rows += [f"0,{step},{100 - step},text" for step in range(0, 50, 5)]
    (folder / "metrics.csv").write_text("\n".join(rows) + "\n")
    return {
        "title": "A <green> brick & more",
        "seen": "a green brick",
        "stimulus": Image.new("RGB", (32, 32), (20, 160, 40)),
        "eeg": {
            "signals": random.normal(size=(len(CHANNELS), 120)) * 1e-6,
            "channels": CHANNELS,
            "sfreq": 250.0,
        },
        "views": [np.full((16, 16, 3), shade) for shade in (0.2, 0.4, 0.6, 0.8)],
        "mesh": green_object(),
        "metrics": {"simulated": True, "chamfer": 0.0312, "note": "</script><b>x"},
        "provenance": {"command": "threestudio-eeg demo --trial 1", "seed": 3},
        "curves": folder / "metrics.csv",
    }


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    return write_report(
        folder, **inputs(folder), truth=green_object(), compare=[("text", np.zeros((8, 8, 3)))]
    )


def test_page_is_one_file_that_asks_for_nothing(report: Path) -> None:
    page = report.read_text(encoding="utf-8")
    assert "http:" not in page
    assert "https:" not in page
    assert "%%" not in page
    for target in re.findall(r'(?:src|href)="([^"]*)"', page):
        assert target.startswith(("data:", "#")), target
    assert re.search(r"Content-Security-Policy[^>]*default-src 'none'", page)
    assert sorted(path.name for path in report.parent.iterdir()) == ["metrics.csv", "report.html"]


def test_page_escapes_what_it_is_given(report: Path) -> None:
    page = report.read_text(encoding="utf-8")
    assert "<title>A &lt;green&gt; brick &amp; more</title>" in page
    assert "</script><b>" not in page
    assert "&lt;/script&gt;&lt;b&gt;x" in page


def test_page_has_its_sections_labels_and_alternatives(report: Path) -> None:
    page = report.read_text(encoding="utf-8")
    for key in ("object", "recording", "views", "figures", "compare", "curves", "provenance"):
        assert f'<section id="{key}"' in page
    assert "3.12 %" in page
    assert page.count(">simulated</span>") == 2
    assert page.count('alt="Potential over the head') >= 3
    assert "train/loss_vsd" in page
    assert "train/note" not in page
    for picture in re.findall(r"<img [^>]*>", page):
        assert re.search(r'alt="[^"]+"', picture), picture[:80]


def test_without_simulated_metrics_there_is_no_label_and_parts_may_be_left_out(tmp_path) -> None:
    given = inputs(tmp_path) | {"metrics": {"chamfer": 0.1}, "eeg": None, "curves": None}
    page = write_report(tmp_path, **given).read_text(encoding="utf-8")
    assert ">simulated<" not in page
    assert 'id="recording"' not in page
    assert "data-mesh=" not in page


def test_unknown_channel_names_give_a_page_without_maps(tmp_path) -> None:
    given = inputs(tmp_path)
    given["eeg"]["channels"] = [f"X{index}" for index in range(len(CHANNELS))]
    page = write_report(tmp_path, **given).read_text(encoding="utf-8")
    assert "no maps" in page
    assert "Potential over the head" not in page


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stimulus": "no-such-picture.png"}, "no-such-picture"),
        ({"mesh": "no-such-object.glb"}, "no-such-object"),
        ({"curves": "no-such.csv"}, "no-such.csv"),
        ({"eeg": {"signals": np.zeros((3, 9)), "channels": ["a"], "sfreq": 1}}, "eeg.signals"),
        ({"eeg": {"signals": np.zeros((1, 9))}}, "channels, sfreq"),
        ({"eeg": {"signals": np.full((1, 9), np.nan), "channels": ["a"], "sfreq": 1}}, "NaN"),
    ],
)
def test_bad_input_is_named_and_nothing_is_written(tmp_path, change: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        write_report(tmp_path / "out", **(inputs(tmp_path) | change))
    assert not (tmp_path / "out").exists()


def test_clustering_keeps_the_shape_and_the_colours() -> None:
    ball = trimesh.creation.icosphere(6, 1.0)
    upper = ball.vertices[:, 2] > 0
    colours = np.where(upper[:, None], [255, 0, 0, 255], [0, 0, 255, 255])
    ball.visual.vertex_colors = colours
    coarse = cluster_vertices(ball, 6000)
    assert 2000 < len(coarse.faces) <= 6000
    assert coarse.area == pytest.approx(4 * np.pi, rel=0.03)
    red = np.asarray(coarse.visual.vertex_colors)[coarse.vertices[:, 2] > 0.2]
    assert (red[:, :3] == [255, 0, 0]).all()
    assert cluster_vertices(ball, 10**6) is ball


def test_creases_stay_sharp_and_round_parts_smooth() -> None:
    box = split_creases(trimesh.creation.box())
    assert len(box["positions"]) == 24
    np.testing.assert_allclose(np.abs(box["normals"]).max(axis=1), 1)
    ball = trimesh.creation.icosphere(4, 1.0)
    smooth = split_creases(ball)
    assert len(smooth["positions"]) == len(ball.vertices)
    np.testing.assert_allclose(smooth["normals"], smooth["positions"], atol=0.02)


def test_packed_mesh_decodes_to_the_centred_shape() -> None:
    packed = pack_mesh(green_object())
    raw = np.frombuffer(base64.b64decode(packed["position"]), "<u2").reshape(-1, 4)[:, :3]
    places = raw / 65535 * 2 - 1
    assert np.linalg.norm(places, axis=1).max() == pytest.approx(1, abs=1e-4)
    extents = np.ptp(places, axis=0)
    np.testing.assert_allclose(extents / extents[0], [1, 0.6, 0.4], atol=1e-4)
    index = np.frombuffer(base64.b64decode(packed["index"]), "<u4")
    assert (index.size, index.max()) == (36, 23)
    colours = np.frombuffer(base64.b64decode(packed["colour"]), "u1").reshape(-1, 4)
    assert (colours[:, :3] == [20, 160, 40]).all()
    assert packed["floor"] == pytest.approx(places[:, 2].min(), abs=1e-3)


def test_montages_are_found_by_channel_names() -> None:
    import mne

    biosemi = mne.channels.make_standard_montage("biosemi128").ch_names
    assert find_montage(biosemi)[0] == "biosemi128"
    name, places = find_montage([channel.upper() for channel in CHANNELS])
    assert name == "standard_1005"
    assert len(places) == len(CHANNELS)
    assert find_montage([f"X{index}" for index in range(32)]) is None


def test_flattened_head_has_the_nose_up_and_the_right_ear_right() -> None:
    assert flatten(np.array([0, 0, 0.09])) == pytest.approx((0, 0))
    assert flatten(np.array([0, 0.09, 0])) == pytest.approx((0, 0.8))
    assert flatten(np.array([0.09, 0, 0])) == pytest.approx((0.8, 0))


def test_latencies_are_the_peaks_of_the_field_power() -> None:
    times = np.arange(500) / 1000
    shape = sum(np.exp(-0.5 * ((times - at) / 0.015) ** 2) for at in (0.1, 0.17, 0.3))
    pattern = np.random.default_rng(0).normal(size=(16, 1))
    assert pick_latencies(pattern * shape, 1000.0) == pytest.approx([100, 170, 300], abs=2)
    flat = pick_latencies(np.zeros((4, 100)), 100.0)
    assert len(flat) == 3


def test_figures_are_grouped_labelled_and_written_for_people() -> None:
    groups = read_figures(
        {
            "fscore": 0.873,
            "shape": {"simulated": True, "iou": {"value": 0.5, "chance": 0.05}},
            "_hidden": 1,
            "peak_memory": {"value": 2.31, "unit": "GB", "meaning": "resident"},
        }
    )
    first, memory = groups["This object"]
    assert (first.name, first.value, first.simulated) == ("F-score", "87.3 %", False)
    assert (memory.value, memory.meaning) == ("2.31 GB", "resident")
    (iou,) = groups["Shape"]
    assert (iou.value, iou.beside, iou.simulated) == ("50.0 %", "chance 5.00 %", True)
    assert [write_value(value) for value in (True, -2.5, 12345, None, [1, 2])] == [
        "yes",
        "−2.5",
        "12\u202f345",
        "not measured",
        "1, 2",
    ]


def test_curves_skip_gaps_and_put_losses_first(tmp_path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("step,a,train/loss,once\n2,1,,\n0,5,3,\n4,2,1,7\n4,,nan,\n")
    curves = read_curves(path)
    assert list(curves) == ["train/loss", "a"]
    np.testing.assert_array_equal(curves["a"], [[0, 2, 4], [5, 1, 2]])
    path.write_text("loss\n1\n")
    with pytest.raises(InputError, match="step"):
        read_curves(path)


def test_ticks_are_round() -> None:
    assert charts.tick_values(0, 500, 5) == [0, 100, 200, 300, 400, 500]
    assert charts.tick_values(-4.9, 4.9, 4) == [-4, -2, 0, 2, 4]


def browse(page: Path, folder: Path, *flags: str, phone: bool = False) -> str:
    """Open a page in headless Chromium; return what it wrote to standard output and console."""
    size = "--window-size=500,1000" if phone else "--window-size=1280,1000"
    log, profile = "--enable-logging=stderr", f"--user-data-dir={folder / 'profile'}"
    command = [str(CHROMIUM), *FLAGS, log, size, profile, *flags]
    done = subprocess.run(
        [*command, page.as_uri()], capture_output=True, text=True, timeout=90, check=True
    )
    errors = [
        line for line in done.stderr.splitlines() if "CONSOLE" in line and "GL Driver" not in line
    ]
    assert errors == []
    return done.stdout


def is_green(picture: np.ndarray) -> np.ndarray:
    red, green, blue = np.moveaxis(picture[..., :3].astype(int), -1, 0)
    return (green > red + 40) & (green > blue + 40)


@needs_chromium
def test_browser_shows_the_object(report: Path, tmp_path) -> None:
    picture = tmp_path / "page.png"
    browse(report, tmp_path, f"--screenshot={picture}", "--virtual-time-budget=3000")
    page = np.asarray(Image.open(picture))
    assert page.shape[:2] == (1000, 1280)
    # the stage is right of the stimulus, which is green too
    assert is_green(page[250:700, 450:1190]).mean() > 0.08


# a page whose document is dumped gets no animation frames: all callbacks of a frame run in one task
FRAMES = """
<script>
let queue = [];
window.requestAnimationFrame = (callback) => {
  if (queue.push(callback) === 1) setTimeout(() => {
    const due = queue; queue = [];
    due.forEach((call) => call(performance.now()));
  }, 10);
};
</script></head>"""
SCRIPT = """
<script>
requestAnimationFrame(() => requestAnimationFrame(() => {
  const canvas = document.getElementById("viewer"), seen = {};
  const copy = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const steps = [
    ["start", () => {}],
    ["key", () => canvas.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowLeft" }))],
    ["zoom", () => canvas.dispatchEvent(new KeyboardEvent("keydown", { key: "-" }))],
    ["front", () => document.querySelector('[data-side="0"]').click()],
    ["left", () => document.querySelector('[data-side="90"]').click()],
    ["clay", () => document.querySelector('[data-shade="1"]').click()],
    ["truth", () => document.querySelector('[data-mesh="1"]').click()],
  ];
  function next() {
    const step = steps.shift();
    if (!step) {
      seen.scroll = document.documentElement.scrollWidth - document.documentElement.clientWidth;
      document.body.dataset.seen = JSON.stringify(seen);
      return;
    }
    step[1]();
    requestAnimationFrame(() => {
      copy.canvas.width = canvas.width; copy.canvas.height = canvas.height;
      copy.drawImage(canvas, 0, 0);
      const data = copy.getImageData(0, 0, canvas.width, canvas.height).data;
      let solid = 0, green = 0;
      for (let i = 0; i < data.length; i += 4) {
        if (data[i + 3] === 255) solid++;
        if (data[i + 1] > data[i] + 40 && data[i + 3] === 255) green++;
      }
      seen[step[0]] = [solid, green];
      setTimeout(next, 20);
    });
  }
  next();
}));
</script></body>"""


@needs_chromium
@pytest.mark.parametrize("phone", [False, True])
def test_browser_controls_turn_zoom_and_shade(report: Path, tmp_path, phone: bool) -> None:
    page = tmp_path / "driven.html"
    original = report.read_text(encoding="utf-8")
    page.write_text(original.replace("</head>", FRAMES).replace("</body>", SCRIPT))
    dom = browse(page, tmp_path, "--dump-dom", "--virtual-time-budget=5000", phone=phone)
    found = re.search(r'data-seen="([^"]*)"', dom)
    assert found is not None
    seen = json.loads(found[1].replace("&quot;", '"'))
    assert seen["scroll"] == 0
    # a still canvas may not be drawn again: it then reads as empty
    assert seen["key"][0] > 5000
    assert seen["zoom"][0] < 0.9 * seen["key"][0]
    # the box is 1.0 deep and 0.6 wide: its side is wider than its front
    assert seen["left"][0] > 1.3 * seen["front"][0]
    assert seen["left"][1] > 0.9 * seen["left"][0]
    assert seen["clay"][1] == 0
    assert seen["truth"][0] == pytest.approx(seen["clay"][0], rel=0.01)


@needs_chromium
def test_browser_without_webgl_shows_the_views(report: Path, tmp_path) -> None:
    dom = browse(report, tmp_path, "--dump-dom", "--disable-3d-apis", "--virtual-time-budget=3000")
    fallback = re.search(r'<div id="fallback">.*?</div>', dom, re.DOTALL)
    assert fallback is not None
    assert 'src="data:image/png' in fallback[0]
    assert 'max="3"' in fallback[0]
