"""The benchmarks of the first stage run and write figures."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))


def test_all_losses_of_a_step_agree(tmp_path, monkeypatch, capsys):
    import encoder_step

    out = tmp_path / "step.json"
    words = "encoder_step --preset small --channels 4 --samples 40 --batch 3 --large 4 --repeats 1"
    monkeypatch.setattr(sys, "argv", [*words.split(), "--out", str(out)])
    encoder_step.main()
    found = json.loads(out.read_text())
    assert [row["loss"] for row in found["rows"]] == list(encoder_step.LOSSES)
    assert all(row["difference"] < 1e-5 for row in found["rows"])
    assert found["large"]["batch"] == 4
    assert "vectorised" in capsys.readouterr().out


def test_a_checkout_without_the_code_is_named(tmp_path):
    from published_stage import Published

    with pytest.raises(SystemExit, match=r"mae_for_eeg\.py"):
        Published(tmp_path, "cpu")


def test_stand_in_blocks_are_ours_under_other_names():
    import torch
    from published_stage import IN_BLOCK, Block

    from eeg_encoder.models.layers import Block as Ours

    theirs, ours = Block(8, 2, 1.0), Ours(8, 2, 1.0, 0.0)
    state = ours.state_dict()
    names = [name.rsplit(".", 1) for name in theirs.state_dict()]
    theirs.load_state_dict({f"{p}.{k}": state[f"{IN_BLOCK[p]}.{k}"] for p, k in names})
    x = torch.randn(2, 5, 8)
    torch.testing.assert_close(theirs(x), ours(x))


def test_throughput_of_a_process(tmp_path, monkeypatch):
    import encoder_ddp

    out = tmp_path / "rows.json"
    words = "encoder_ddp --preset small --batch 2 --steps 4 --inside 1"
    monkeypatch.setattr(sys, "argv", [*words.split(), "--out", str(out)])
    encoder_ddp.main()
    (row,) = json.loads(out.read_text())
    assert row["steps"] == 4
    assert row["signals_per_second"] == pytest.approx(2e3 / row["step_ms"])


@pytest.mark.slow
def test_every_row_of_the_ablation(tmp_path, monkeypatch):
    import encoder_ablation

    out = tmp_path / "rows.json"
    parts = ["--parts", "axes", "masked", "refined"]
    monkeypatch.setattr(sys, "argv", ["encoder_ablation", "--quick", *parts, "--out", str(out)])
    encoder_ablation.main()
    found = json.loads(out.read_text())
    assert not found["errors"]
    assert len(found["rows"]) == 12
