"""The benchmark of two versions' demos: turns, ratios, and a real run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "benchmarks"))


class Pupil:
    """Answers blocks with the seconds given, and notes when it was asked."""

    def __init__(self, name, seconds, diary):
        self.name, self.seconds, self.diary = name, list(seconds), diary

    def block(self):
        self.diary.append(self.name)
        if not self.seconds:
            return None
        return {"cpu": (spent := self.seconds.pop(0)), "wall": 3 * spent}


def test_both_take_turns_and_who_goes_first_alternates():
    from demo_speed import take_turns

    diary: list[str] = []
    teams = [Pupil("old", [4.0, 6.0], diary), Pupil("new", [2.0, 2.0, 9.0], diary)]
    rounds = take_turns(teams, SimpleNamespace(until=None, steps=40, block=10))
    assert diary == ["old", "new", "new", "old", "old", "new"]
    assert [[pair[0]["cpu"], pair[1]["cpu"]] for pair in rounds] == [[4.0, 2.0], [6.0, 2.0]]


def test_ratios_of_sums_and_of_blocks():
    from demo_speed import summarise

    seconds = [(4.0, 2.0), (6.0, 2.0), (5.0, 5.0)]
    rounds = [[{"cpu": a, "wall": a}, {"cpu": b, "wall": b}] for a, b in seconds]
    report = summarise(rounds, 10)
    assert report["steps"] == 30
    assert report["cpu"]["old ms"] == pytest.approx(500)
    assert report["cpu"]["ratio"] == pytest.approx(15 / 9)
    assert report["cpu"]["median ratio"] == pytest.approx(2)


@pytest.mark.slow
def test_a_checkout_against_itself(tmp_path):
    out = tmp_path / "figures.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "demo_speed.py"), str(ROOT), str(ROOT)]
    sizes = ["--steps", "400", "--until", "2", "--block", "1", "--out", str(out)]
    cheap = [
        "--override",
        "data.height=16",
        "data.width=16",
        "system.renderer.num_samples_per_ray=8",
    ]
    subprocess.run([*command, *sizes, *cheap], check=True, timeout=300)
    figures = json.loads(out.read_text())
    assert figures["steps"] == 2
    assert 0.2 < figures["cpu"]["ratio"] < 5
