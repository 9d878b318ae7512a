from __future__ import annotations

import csv
import itertools
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eeg_encoder import models
from eeg_encoder.errors import InputError
from eeg_encoder.evaluation import (
    TIERS,
    category_centres,
    encoder_reconstruction,
    evaluate,
    n_way,
    nearest_category,
    reconstruction,
    retrieval,
    sign_test,
    subject_table,
)
from eeg_encoder.evaluation.retrieval import hits, similarities, targets
from eeg_encoder.evaluation.saliency import over_time, saliency
from eeg_encoder.evaluation.tables import provenance, save_table


def test_retrieval_ranks():
    scores = torch.tensor([[3.0, 2, 1, 0, 0, 0], [2.0, 3, 1, 0, 0, 0]])
    result = retrieval(scores, torch.tensor([0, 0]), kind="templates")
    assert result["top1"] == 0.5
    assert result["top5"] == 1.0
    assert result["chance_top1"] == pytest.approx(1 / 6)
    assert (result["gallery"], result["gallery_kind"]) == (6, "templates")


def test_an_encoder_that_says_nothing_is_at_chance():
    """All scores are level: ties must neither win nor lose."""
    scores, target = torch.zeros(7, 10), torch.arange(7)
    assert retrieval(scores, target)["top1"] == pytest.approx(0.1)
    assert retrieval(scores, target)["top5"] == pytest.approx(0.5)


def test_chance_is_what_random_scores_give():
    scores = torch.rand(4000, 20, generator=torch.Generator().manual_seed(0))
    target = torch.arange(4000) % 20
    found = retrieval(scores, target)
    for top in (1, 5):
        assert found[f"top{top}"] == pytest.approx(found[f"chance_top{top}"], abs=0.025)
    for value in n_way(scores, target, ways=(2, 5, 20), top=1).values():
        assert value["accuracy"] == pytest.approx(value["chance"], abs=0.025)


@settings(max_examples=40, deadline=None)
@given(st.integers(3, 7), st.integers(0, 1000), st.data())
def test_n_way_is_the_mean_over_all_draws(size, seed, data):
    ways = data.draw(st.integers(2, size))
    top = data.draw(st.integers(1, ways - 1))
    scores = torch.rand(1, size, generator=torch.Generator().manual_seed(seed))
    target = torch.tensor([seed % size])
    others = [i for i in range(size) if i != int(target)]
    draws = list(itertools.combinations(others, ways - 1))
    right = [(scores[0, list(d)] > scores[0, target]).sum() < top for d in draws]
    found = n_way(scores, target, ways=(ways,), top=top)[f"{ways}-way top-{top}"]
    assert found["accuracy"] == pytest.approx(float(np.mean(right)), abs=1e-6)
    assert found["chance"] == top / ways


def test_all_pictures_are_the_gallery_of_n_way():
    scores = torch.rand(9, 12, generator=torch.Generator().manual_seed(3))
    target = torch.arange(9)
    assert n_way(scores, target, ways=(12, 13)).keys() == {"12-way top-1"}
    found = n_way(scores, target, ways=(12,))["12-way top-1"]["accuracy"]
    assert found == pytest.approx(float(hits(scores, target, 1).mean()), abs=1e-6)


def test_ties_win_no_n_way_for_encoder_or_objects():
    from threestudio_eeg.evaluation.n_way import n_way_accuracy

    scores = torch.tensor([[1.0, 1, 1, 0, 0, 2], [0.5, 0.5, 0.1, 0.1, 0.1, 0.1]])
    target = torch.zeros(2, dtype=torch.int64)
    found = n_way(scores, target, ways=(2, 3))
    assert found["2-way top-1"]["accuracy"] == pytest.approx((2 / 5 + 4 / 5) / 2)
    assert found["3-way top-1"]["accuracy"] == pytest.approx((1 / 10 + 6 / 10) / 2)
    assert n_way(torch.ones(4, 9), torch.arange(4), ways=(2,))["2-way top-1"]["accuracy"] == 0
    unknown = torch.full((4, 9), torch.nan)
    assert n_way(unknown, torch.arange(4), ways=(2,))["2-way top-1"]["accuracy"] == 0
    for ways in (2, 3):
        accuracy = n_way_accuracy(scores, 0, ways=ways)
        assert accuracy == found[f"{ways}-way top-1"]["accuracy"]


def test_unknown_pictures_are_named():
    assert targets(["b", "a"], ["a", "b"]).tolist() == [1, 0]
    with pytest.raises(InputError, match="no c"):
        targets(["a", "c"], ["a", "b"])


def test_centres_and_nearest_category():
    embeddings = torch.tensor([[1.0, 0], [3.0, 0], [0, 1.0]])
    centres = category_centres(embeddings, torch.tensor([0, 0, 1]), 2)
    torch.testing.assert_close(centres, torch.tensor([[2.0, 0], [0, 1.0]]))
    assert nearest_category(embeddings, centres, torch.tensor([0, 1, 1])) == pytest.approx(2 / 3)


def test_signal_is_above_the_shuffled_control():
    generator = torch.Generator().manual_seed(0)
    labels = np.repeat(np.arange(10), 20)
    centres = torch.randn(10, 32, generator=generator)
    pictures = centres[labels] + 0.5 * torch.randn(200, 32, generator=generator)
    found = pictures + 0.5 * torch.randn(200, 32, generator=generator)
    ids = np.asarray([f"x_{i}" for i in range(200)])
    train = centres[labels] + 0.5 * torch.randn(200, 32, generator=generator)
    gallery = dict(zip(ids.tolist(), pictures, strict=True))
    result = evaluate(found, ids, labels, gallery, train, labels, n_categories=10)
    assert result["eeg"]["category_top1"] > 0.9
    assert result["eeg"]["retrieval"]["top1"] > 0.8
    assert result["eeg"]["n_way"]["50-way top-1"]["accuracy"] > 0.9
    assert result["shuffled"]["category_top1"] < 0.2
    assert result["shuffled"]["retrieval"]["top1"] < 0.05
    assert result["shuffled"]["n_way"]["2-way top-1"]["accuracy"] == pytest.approx(0.5, abs=0.1)
    assert abs(result["shuffled"]["cosine"]) < 0.1
    assert result["tier"] == "inductive"
    assert set(result["transductive"]) == {"whitened", "csls", "assigned"}
    assert all(tier["uses"] for tier in result["transductive"].values())


def shifted_world(n: int = 40, p: int = 16):
    """Embeddings of a person whose whole test set is shifted towards a few pictures."""
    generator = torch.Generator().manual_seed(1)
    gallery = torch.randn(n, p, generator=generator)
    found = gallery + 0.8 * torch.randn(n, p, generator=generator)
    return found + 3.0 * gallery[0], gallery, torch.arange(n)


def test_categories_without_training_pictures_are_no_answers():
    """Their mean would be nothing, which after centring is near whatever is unlike the rest."""
    pictures = torch.eye(8)[:4] + 0.5
    labels = np.array([0, 1, 6, 7])
    gallery = {str(n): picture for n, picture in enumerate(pictures)}
    weak = 0.2 * pictures
    result = evaluate(weak, list(gallery), labels, gallery, pictures, labels, n_categories=40)
    assert result["eeg"]["category_top1"] == 1.0
    assert (result["categories"], result["chance_category_top1"]) == (4, 0.25)


@pytest.mark.parametrize("name", ["whitened", "csls", "assigned"])
def test_transductive_tiers_use_the_test_set(name):
    found, gallery, target = shifted_world()
    plain = retrieval(TIERS["inductive"].scores(found, gallery), target)["top1"]
    assert retrieval(TIERS[name].scores(found, gallery), target)["top1"] > plain
    alone = TIERS["inductive"].scores(found[:1], gallery)
    torch.testing.assert_close(alone, TIERS["inductive"].scores(found, gallery)[:1])
    part, whole = TIERS[name].scores(found[:20], gallery), TIERS[name].scores(found, gallery)
    assert not torch.allclose(part, whole[:20])


def test_assignment_gives_each_picture_to_one_trial():
    found, gallery, _ = shifted_world()
    chosen = TIERS["assigned"].scores(found, gallery).argmax(1)
    assert len(chosen.unique()) == len(gallery)
    twice = TIERS["assigned"].scores(torch.cat([found, found]), gallery).argmax(1)
    assert torch.bincount(twice).max() == 2


def test_reconstruction_counts_hidden_samples_only():
    generator = torch.Generator().manual_seed(0)
    signals = torch.randn(6, 3, 50, generator=generator)
    hidden = torch.zeros(6, 50, dtype=torch.bool)
    hidden[:, :20] = True
    drawn = torch.where(hidden[:, None], 2 * signals + 1, 100 * torch.ones_like(signals))
    found = reconstruction(drawn, signals, hidden)
    assert found["correlation"] == pytest.approx(1.0, abs=1e-5)
    assert found["amplitude"] == pytest.approx(2.0, rel=1e-4)
    mean = (signals * hidden[:, None]).sum(2, keepdim=True) / 20
    flat = reconstruction(mean.expand_as(signals), signals, hidden)
    assert flat["relative_error"] == pytest.approx(1.0, rel=1e-4)
    assert flat["correlation"] == pytest.approx(0.0, abs=1e-5)
    assert reconstruction(signals, signals)["relative_error"] == 0.0


def test_a_trained_decoder_is_better_than_another_trials_signals():
    torch.manual_seed(0)
    model = models.build("compact", channels=8, samples=50, embedding=4, width=32, head_width=16)
    wave = torch.sin(torch.arange(50) / 6)[None, None] * torch.linspace(1, 2, 8)[:, None]
    sign = torch.tensor([1.0, -1.0]).repeat(16)[:, None, None]
    signals, subjects = wave * sign, torch.ones(32, dtype=torch.int64)
    adam = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(60):
        drawn, hidden = model.reconstruct(signals, subjects, 0.5)
        loss = ((drawn - signals) ** 2 * hidden[:, None]).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
    found = encoder_reconstruction(model, signals, subjects, ratio=0.5)
    assert found["eeg"]["correlation"] > 0.8
    assert found["shuffled"]["correlation"] < -0.5
    plain = models.build("eegnet", channels=8, samples=100, embedding=4)
    assert encoder_reconstruction(plain, torch.zeros(2, 8, 100), subjects[:2]) is None


ROWS = [
    {"subject": s, "seed": n, "top1": 0.1 * s + 0.02 * n} for s in (1, 2, 10) for n in (0, 1, 2)
]


def test_subject_table_is_over_seeds():
    table = subject_table(ROWS, ["top1"])
    assert [row["subject"] for row in table] == [1, 2, 10, "all"]
    assert table[1]["top1"] == pytest.approx(0.22)
    assert table[1]["top1_sd"] == pytest.approx(0.02)
    whole = table[-1]
    assert whole["top1"] == pytest.approx(1.3 / 3 + 0.02)
    assert whole["top1_sd"] == pytest.approx(0.02)
    assert whole["top1_sd_subjects"] == pytest.approx(np.std([0.1, 0.2, 1.0], ddof=1))
    one = subject_table([row for row in ROWS if row["seed"] == 0], ["top1"])
    assert one[0]["top1_sd"] is None


@pytest.mark.parametrize("rows", [ROWS[1:], [*ROWS, ROWS[0]], []])
def test_a_table_with_holes_is_refused(rows):
    with pytest.raises(InputError, match="table"):
        subject_table(rows, ["top1"])


def test_sign_test_is_exact_and_over_subjects():
    def rows(values, seeds=(0, 1)):
        return [{"subject": s, "seed": n, "x": v + n} for s, v in enumerate(values) for n in seeds]

    found = sign_test(rows([2, 2, 2, 2, 2, 0, 1]), rows([1, 1, 1, 1, 1, 1, 1]), "x")
    assert (found["above"], found["below"], found["ties"]) == (5, 1, 1)
    assert found["p"] == pytest.approx(2 * (1 + 6) / 64)
    assert found["difference"] == pytest.approx(4 / 7)
    assert sign_test(rows([1]), rows([1]), "x")["p"] == 1.0
    with pytest.raises(InputError, match="subjects"):
        sign_test(rows([1, 2]), rows([1]), "x")


def test_tables_are_saved_with_provenance(tmp_path):
    table = subject_table(ROWS, ["top1"])
    made_by = provenance(seed=0, config={"a": 1}, protocol="within-subject")
    as_json, as_csv = save_table(tmp_path / "table", table, made_by, sign_test=None)
    content = json.loads(as_json.read_text())
    assert content["rows"] == table
    assert set(content["provenance"]) >= {"command", "commit", "config", "seed", "protocol"}
    with open(as_csv, newline="") as file:
        read = list(csv.DictReader(file))
    assert [row["subject"] for row in read] == ["1", "2", "10", "all"]
    assert float(read[1]["top1"]) == table[1]["top1"]
    with pytest.raises(InputError, match="rows"):
        save_table(tmp_path / "none", [], made_by)
    assert len(list(tmp_path.iterdir())) == 2


class ReadsOne(torch.nn.Module):
    """Channel 3 at samples 20 to 29, times a fixed direction, plus a constant."""

    def forward(self, signals, subject=None):
        amount = signals[:, 3, 20:30].sum(1, keepdim=True)
        return amount * torch.tensor([1.0, 0.0]) + torch.tensor([0.0, 1.0])


def test_saliency_finds_when_and_where():
    signals = torch.randn(12, 5, 60, generator=torch.Generator().manual_seed(0))
    target = torch.tensor([[1.0, 0.0]]).repeat(12, 1)
    shares = saliency(ReadsOne(), signals, torch.zeros(12), target, batch=5)
    assert float(shares.sum()) == pytest.approx(1.0)
    assert float(shares[3, 20:30].sum()) == pytest.approx(1.0)


def test_windows_find_when():
    signals = torch.ones(4, 5, 60)
    encoder = ReadsOne()

    def figure(x):
        return float(encoder(x)[:, 0].mean()) / 10

    found = over_time(figure, signals, 100.0, tmin=-0.1, width=0.1, step=0.1)
    assert found.whole == 1.0
    assert found.values.tolist() == pytest.approx([0, 0, 1, 0, 0, 0])
    assert found.seconds.tolist() == pytest.approx([-0.05, 0.05, 0.15, 0.25, 0.35, 0.45])


@pytest.mark.parametrize("channels", [["Fz", "Cz"], [f"A{i}" for i in range(1, 17)]])
def test_plots_are_pictures(tmp_path, channels):
    from PIL import Image

    from eeg_encoder.evaluation import plots

    signals = torch.randn(6, len(channels), 40, generator=torch.Generator().manual_seed(0))
    plots.draw_saliency(tmp_path / "where.png", signals[0].abs(), channels, sfreq=100.0)
    found = over_time(lambda x: float(x.std()), signals, 100.0)
    plots.draw_over_time(tmp_path / "when.png", found)
    scores = similarities(signals.flatten(1), signals.flatten(1))
    plots.draw_similarity(tmp_path / "pairs.png", scores, np.array([1, 0, 1, 0, 0, 1]), ["a", "b"])
    (tmp_path / "logs" / "align").mkdir(parents=True)
    log = "epoch,step,loss,val\n0,9,1.5,\n0,9,,2.5\n1,19,1.0,\n"
    (tmp_path / "logs" / "align" / "metrics.csv").write_text(log)
    assert plots.read_curves(tmp_path / "logs" / "align" / "metrics.csv") == {
        "loss": ([9.0, 19.0], [1.5, 1.0]),
        "val": ([9.0], [2.5]),
    }
    assert plots.draw_training(tmp_path / "training.png", tmp_path / "logs") == ["align"]
    for name in ("where", "when", "pairs", "training"):
        with Image.open(tmp_path / f"{name}.png") as image:
            assert np.asarray(image.convert("L")).std() > 5
    with pytest.raises(InputError, match="metrics.csv"):
        plots.draw_training(tmp_path / "none.png", tmp_path / "logs" / "nothing")
