"""Two classes from single trials of real recordings, every recipe and network.

    python benchmarks/real_eeg.py --data PATH --task faces --decoders committee riemannian lda
    python benchmarks/real_eeg.py --data PATH --task pictures --decoders all --seeds 0 1 2

``faces``: faces against houses, 4 electrodes, for each person with two runs or more; train on all
runs but one, AUC on the run left out, mean over runs. ``pictures``: first against second picture of
a matching task, 61 electrodes; people in 6 folds, none of them in training and test, mean AUC over
folds. PATH holds the folders ``n170_faces_houses`` and ``uci_picture_erp``.

Preprocessing of networks is fitted on training trials. Networks train for a fixed number of epochs;
``selected`` picks the decoder, and ``nested`` the committee's settings, by cross-validation inside
the training trials (inside the training people, for pictures). ``shuffled`` is the committee fitted
on permuted labels. ``pyriemann`` (optional, for comparison) needs that package.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]

from linear_decoders import area_under_curve  # noqa: E402

from eeg_encoder import models  # noqa: E402
from eeg_encoder.evaluation.tables import provenance  # noqa: E402
from eeg_encoder.files import write_json  # noqa: E402
from eeg_encoder.recipes import (  # noqa: E402
    LinearDecoder,
    RiemannianCommittee,
    RiemannianDecoder,
)
from eeg_encoder.recipes.riemannian import Decoder, out_of_sample  # noqa: E402
from eeg_encoder.recordings.n170 import load_n170  # noqa: E402
from eeg_encoder.recordings.uci import load_uci  # noqa: E402

NETWORKS = {
    "eegnet": {},
    "tsconv": {"hidden": 64},
    "atm": {"hidden": 64},
    "eeg_project": {"hidden": 64, "dropout": 0.5},
    "compact": {"width": 32, "head_width": 32},
    "dual_self_attention": {"width": 16, "token_width": 32, "head_width": 32},
    "temporal_only": {"token_width": 32, "head_width": 32},
    "masked_autoencoder": {"preset": "small", "width": 32, "depth": 2},
}
NESTED = [((1, 2), 0.05, 6), ((1, 2), 0.01, 16), ((2, 4), 0.01, 16), ((2, 4, 8), 0.01, 16)]
PROTOCOLS = {"faces": "leave-run-out", "pictures": "leave-subject-out, 6 folds"}
REFERENCE = {"faces": [0.727, 0.649, 0.590], "pictures": [0.719]}


class Network:
    """A registered encoder with one output, logistic loss, trained for a fixed time.

    Signals are z-scored by the median and quartiles of the training trials, cut to a length that
    patches divide.
    """

    def __init__(self, name: str, seed: int, epochs: int = 40, device: str = "cpu") -> None:
        self.name, self.seed, self.epochs, self.device = name, seed, epochs, device

    def fit(self, signals: np.ndarray, labels: np.ndarray) -> Network:
        """Learn from trials (N, C, T) and labels (N,), 0 or 1."""
        torch.manual_seed(self.seed)
        low, self.middle, high = np.percentile(signals, [25, 50, 75], axis=(0, 2), keepdims=True)
        self.spread = (high - low) / 1.349
        x = self._ready(signals)
        y = torch.from_numpy(labels).float().to(self.device)
        settings = dict(NETWORKS[self.name])
        kind = self.name
        if kind == "temporal_only":
            kind, settings = "dual_self_attention", {"preset": kind, **settings}
        self.net = models.build(
            kind, channels=x.shape[1], samples=x.shape[2], embedding=1, **settings
        ).to(self.device)
        adam = torch.optim.AdamW(self.net.parameters(), 1e-3, weight_decay=0.05)
        generator = torch.Generator().manual_seed(self.seed)
        for _ in range(self.epochs):
            order = torch.randperm(len(x), generator=generator)
            for rows in order.split(64):
                if len(rows) < 2:
                    continue
                out = self.net(x[rows])[:, 0]
                loss = torch.nn.functional.binary_cross_entropy_with_logits(out, y[rows])
                adam.zero_grad()
                loss.backward()
                adam.step()
        self.net.eval()
        return self

    @torch.no_grad()
    def decide(self, signals: np.ndarray) -> np.ndarray:
        """(N,) log odds of class 1."""
        found = [self.net(x)[:, 0] for x in self._ready(signals).split(256)]
        return torch.cat(found).cpu().numpy()

    def _ready(self, signals: np.ndarray) -> torch.Tensor:
        cut = signals.shape[2] // 10 * 10
        z = np.clip((signals - self.middle) / self.spread, -8, 8)[:, :, :cut]
        return torch.from_numpy(z.astype(np.float32)).to(self.device)


class Selected:
    """The candidate with the best AUC by 5 folds of the training trials.

    Parameters
    ----------
    candidates
        What makes each decoder.
    people
        Of the training trials, set before :meth:`fit`: folds are then of people, dealt in turn;
        without, of consecutive trials.
    """

    people: np.ndarray | None = None

    def __init__(self, candidates: dict[str, Callable[[], Decoder]]) -> None:
        self.candidates = candidates

    def fit(self, signals: np.ndarray, labels: np.ndarray) -> Selected:
        """Learn from trials (N, C, T) and labels (N,), 0 or 1."""
        fold = np.arange(len(labels)) * 5 // len(labels)
        if self.people is not None:
            fold = np.unique(self.people, return_inverse=True)[1].reshape(-1) % 5

        def quality(name: str) -> float:
            evidence = out_of_sample(self.candidates[name], signals, labels, fold)
            return area_under_curve(evidence, labels == 1)

        name = max(self.candidates, key=quality)
        print(f"  chosen: {name}", flush=True)
        self.chosen = self.candidates[name]().fit(signals, labels)
        return self

    def decide(self, signals: np.ndarray) -> np.ndarray:
        """(N,) evidence for class 1."""
        return self.chosen.decide(signals)


class Shuffled:
    """The control: a committee fitted on permuted labels."""

    def __init__(self, make: Callable[[], Decoder], seed: int) -> None:
        self.make, self.seed = make, seed

    def fit(self, signals: np.ndarray, labels: np.ndarray) -> Decoder:
        """Learn from trials (N, C, T) and permuted labels."""
        permuted = np.random.default_rng(self.seed).permutation(labels)
        return self.make().fit(signals, permuted)


class Pyriemann:
    """xDAWN covariances, tangent space and logistic regression of pyriemann."""

    def fit(self, signals: np.ndarray, labels: np.ndarray) -> Pyriemann:
        """Learn from trials (N, C, T) and labels (N,), 0 or 1."""
        from pyriemann.estimation import XdawnCovariances
        from pyriemann.tangentspace import TangentSpace
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline

        model = make_pipeline(
            XdawnCovariances(nfilter=2, estimator="lwf"),
            TangentSpace(),
            LogisticRegression(max_iter=1000),
        )
        self.model = model.fit(signals, labels)
        return self

    def decide(self, signals: np.ndarray) -> np.ndarray:
        """(N,) log odds of class 1."""
        return self.model.decision_function(signals)


def decoders(
    task: str, sfreq: float, seed: int, epochs: int, device: str = "cpu"
) -> dict[str, Callable[[], Decoder]]:
    """Every decoder by name; those that do not depend on the seed first."""
    few = task == "faces"

    sizes: dict[str, Any] = {} if few else {"filters": (2, 4, 8), "penalty": 0.01, "step": 16}

    def committee() -> RiemannianCommittee:
        return RiemannianCommittee(sfreq, **sizes)

    plain: dict[str, Callable[[], Any]] = {
        "committee": committee,
        "riemannian": lambda: RiemannianDecoder(2),
        "lda": lambda: LinearDecoder(6 if few else 16),
        "pyriemann": Pyriemann,
    }
    plain["selected"] = lambda: Selected({n: plain[n] for n in ("committee", "riemannian", "lda")})
    plain["nested"] = lambda: Selected(
        {
            f"filters {filters}, penalty {penalty}, step {step}": partial(
                RiemannianCommittee, sfreq, filters=filters, penalty=penalty, step=step
            )
            for filters, penalty, step in NESTED
        }
    )
    plain["shuffled"] = lambda: Shuffled(committee, seed)
    networks = {n: (lambda n=n: Network(n, seed, epochs, device)) for n in NETWORKS}
    return {**plain, **networks}


def load(
    task: str, data: Path
) -> tuple[np.ndarray, np.ndarray, list[tuple[str, np.ndarray]], float, np.ndarray]:
    """Signals in microvolts, labels, for each row of the table the fold of each trial (-1: not
    used), the sampling rate, and people."""
    if task == "faces":
        trials = load_n170(data / "n170_faces_houses")
        after = slice(round(-trials.tmin * trials.sfreq), None)
        signals = 1e6 * np.asarray(trials.signals, np.float64)[:, :, after]
        tables = []
        for number in np.unique(trials.subjects):
            mine = trials.subjects == number
            if len(np.unique(trials.runs[mine])) > 1:
                tables.append((f"person {number}", np.where(mine, trials.runs, -1)))
        return signals, trials.labels, tables, trials.sfreq, trials.subjects
    trials = load_uci(data / "uci_picture_erp", task="s1_s2", scalp_only=True)
    signals = 1e6 * np.asarray(trials.signals, np.float64)
    signals -= signals.mean(axis=1, keepdims=True)
    people = np.unique(trials.subjects)
    order = np.random.default_rng(0).permutation(people)
    fold_of = {number: place % 6 for place, number in enumerate(order)}
    fold = np.array([fold_of[number] for number in trials.subjects])
    tables = [("6 folds of people", fold)]
    return signals, trials.labels, tables, trials.sfreq, trials.subjects


def mean_auc(
    make: Callable[[], Decoder],
    signals: np.ndarray,
    labels: np.ndarray,
    fold: np.ndarray,
    people: np.ndarray,
) -> float:
    """Mean over folds of the AUC on the fold that was left out."""
    aucs = []
    for value in np.unique(fold[fold >= 0]):
        train, test = (fold >= 0) & (fold != value), fold == value
        decoder = make()
        if isinstance(decoder, Selected) and len(np.unique(people[train])) > 1:
            decoder.people = people[train]
        evidence = decoder.fit(signals[train], labels[train]).decide(signals[test])
        aucs.append(area_under_curve(evidence, labels[test] == 1))
    return float(np.mean(aucs))


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--task", choices=sorted(REFERENCE), required=True)
    parser.add_argument("--decoders", nargs="+", default=["committee", "riemannian", "lda"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--epochs", type=int, default=40, help="of the networks")
    parser.add_argument("--device", default="cpu", help="of the networks")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="JSON with all rows")
    return parser.parse_args()


def main() -> None:
    """Measure and print."""
    args = arguments()
    torch.set_num_threads(args.threads)
    warnings.simplefilter("ignore")
    signals, labels, tables, sfreq, people = load(args.task, args.data)
    known = decoders(args.task, sfreq, 0, args.epochs)
    names = [n for n in known if n != "pyriemann"] if args.decoders == ["all"] else args.decoders
    done: dict[str, list[dict[str, Any]]] = {}
    made_by = provenance(
        config={k: str(v) for k, v in vars(args).items()},
        seed=args.seeds,
        protocol=PROTOCOLS[args.task],
    )
    print(f"{'decoder':22s}", *(name for name, _ in tables), "seconds")
    print(f"{'figure to beat':22s}", *REFERENCE[args.task])
    for name in names:
        seeds = args.seeds if name in NETWORKS or name == "shuffled" else args.seeds[:1]
        started = time.monotonic()
        found: list[list[float]] = []
        for seed in seeds:
            make = decoders(args.task, sfreq, seed, args.epochs, args.device)[name]
            found.append([mean_auc(make, signals, labels, fold, people) for _, fold in tables])
            done[name] = [
                {"decoder": name, "table": table, "seeds": seeds[: len(found)], "auc": list(auc)}
                for (table, _), auc in zip(tables, zip(*found, strict=True), strict=True)
            ]
            if args.out:
                rows = [row for of_name in done.values() for row in of_name]
                write_json(args.out, {"task": args.task, "provenance": made_by, "rows": rows})
        seconds = round(time.monotonic() - started, 1)
        middle, spread = np.mean(found, axis=0), np.std(found, axis=0)
        cells = (f"{m:.3f} ({s:.3f})" for m, s in zip(middle, spread, strict=True))
        print(f"{name:22s}", *cells, seconds, flush=True)


if __name__ == "__main__":
    main()
