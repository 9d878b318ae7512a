"""What a decoder makes of drift alone: a naive split against the protocols.

Simulates recordings without any response to a stimulus, only noise and the slow drift of the
electrodes, and decodes the category from each trial's mean over time. Whatever is above chance is
leakage. Prints a table; seconds to a minute on a CPU.

    python benchmarks/leakage.py --drift 0.01 0.03 0.1 0.3 --json leakage.json
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]

from linear_decoders import lda_accuracy, neighbour_accuracy  # noqa: E402

from eeg_encoder.errors import InputError  # noqa: E402
from eeg_encoder.evaluation.tables import provenance  # noqa: E402
from eeg_encoder.files import write_json  # noqa: E402
from eeg_encoder.protocols import Protocol, find_protocol  # noqa: E402
from eeg_encoder.recordings.simulation import SimulationConfig, simulate  # noqa: E402
from eeg_encoder.recordings.trials import TrialSet  # noqa: E402

FRACTIONS = (0.8, 0.0, 0.2)
ROWS: dict[str, tuple[str, Protocol]] = {
    "block design, naive random split": (
        "block",
        find_protocol("naive", leaks_by_design=True, fractions=FRACTIONS),
    ),
    "block design, within-subject": ("block", find_protocol("within-subject", fractions=FRACTIONS)),
    "block design, leave-session-out": (
        "block",
        find_protocol("leave-session-out", fractions=FRACTIONS),
    ),
    "block design, leave-block-out": (
        "block",
        find_protocol("leave-block-out", folds_of=2, fractions=FRACTIONS),
    ),
    "rapid design, naive random split": (
        "rapid",
        find_protocol("naive", leaks_by_design=True, fractions=FRACTIONS),
    ),
    "rapid design, k-fold-by-stimulus": ("rapid", find_protocol("k-fold-by-stimulus")),
}


def pure_drift(
    order: str,
    *,
    drift: float,
    categories: int = 40,
    stimuli: int = 50,
    channels: int = 128,
    seed: int = 0,
) -> TrialSet:
    """Trials of noise and drift, no response to any stimulus; one subject, two sessions."""
    labels = np.repeat(np.arange(categories), stimuli)
    names = [f"n{category:08d}" for category in range(categories)]
    ids = [f"{names[label]}_{number}" for number, label in enumerate(labels)]
    embeddings = np.random.default_rng(seed).normal(size=(len(labels), 16)).astype(np.float32)
    config = SimulationConfig(
        channels=channels,
        sfreq=100.0,
        duration=0.5,
        repetitions=2,
        subjects=1,
        sessions=2,
        order=order,
        drift=drift,
        signal=False,
        seed=seed,
    )
    return simulate(embeddings, labels, names, ids, config=config)


def score(trials: TrialSet, protocol: Protocol) -> dict[str, Any]:
    """Accuracy of two decoders over the splits of a protocol, weighted by their test trials."""
    features = trials.signals.mean(axis=2, dtype=np.float64)
    features = (features - features.mean(axis=0)) / features.std(axis=0)
    found, weights = [], []
    for split in protocol.splits(trials):
        train, test = trials.rows(split.train), trials.rows(split.test)
        given = features[train], trials.labels[train], features[test], trials.labels[test]
        found.append((lda_accuracy(*given), neighbour_accuracy(*given)))
        weights.append(len(test))
    lda, neighbours = np.average(found, axis=0, weights=weights)
    return {"lda": float(lda), "neighbours": float(neighbours), "tested": int(np.sum(weights))}


def table(drifts: Sequence[float], *, seed: int = 0, **size: int) -> list[dict[str, Any]]:
    """A row for each drift, design and protocol."""
    rows = []
    for drift in drifts:
        recordings = {
            order: pure_drift(order, drift=drift, seed=seed, **size) for order in ("block", "rapid")
        }
        for name, (order, protocol) in ROWS.items():
            trials = recordings[order]
            chance = 1 / len(trials.label_names)
            row = {"drift": drift, "row": name, "chance": chance, **score(trials, protocol)}
            rows.append(row)
    return rows


def refusal(trials: TrialSet) -> str:
    """What the guard says to a split by stimulus inside the blocks of a block design."""
    try:
        next(iter(find_protocol("k-fold-by-stimulus").splits(trials)))
    except InputError as error:
        return str(error)
    raise AssertionError("a split inside the blocks was not refused")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--drift",
        type=float,
        nargs="+",
        default=[0.01, 0.03, 0.1, 0.3],
        help="step of an electrode from trial to trial, in standard deviations of the noise",
    )
    parser.add_argument("--categories", type=int, default=40)
    parser.add_argument("--stimuli", type=int, default=50, help="of each category")
    parser.add_argument("--channels", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="also write the rows here")
    options = parser.parse_args(arguments)
    size = {name: getattr(options, name) for name in ("categories", "stimuli", "channels")}
    rows = table(options.drift, seed=options.seed, **size)
    print("| drift | design and protocol | LDA | 5 nearest | chance | tested |")
    print("|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['drift']:g} | {row['row']} | {row['lda']:.1%} | {row['neighbours']:.1%} "
            f"| {row['chance']:.1%} | {row['tested']} |"
        )
    print(f"\nrefused: {refusal(pure_drift('block', drift=options.drift[0], **size))}")
    if options.json:
        made_by = provenance(config=size, seed=options.seed, protocol=list(ROWS))
        write_json(options.json, {"provenance": made_by, "size": size, "rows": rows})


if __name__ == "__main__":
    main()
