"""Simulated 200-way zero-shot retrieval with the real CLIP gallery, 17 posterior electrodes.

    python benchmarks/zero_shot.py --clip PATH/clip_feature_maps_test.npy --subjects 1 2 3 4 5 \
        --seeds 0 1 2 --device cuda --out zero_shot.json

The gallery is the CLIP ViT-L/14 embeddings of THINGS-EEG2's 200 test pictures. Training pictures
(16,540, shown 4 times) are drawn from a normal distribution with their mean and covariance. The
simulated people are those of ``eeg_encoder.recordings.simulation`` with a 64-electrode head, of
which 17 posterior electrodes are kept; latency jitter, alpha, 1/f background and sensor noise are
in, drift and neighbouring pictures are not. The noise of an average of n trials is drawn at
1/sqrt(n) of a single trial's, which is exact but for the tails of alpha.

The signal-to-noise ratio is that of a single trial at the 17 electrodes: power of the response
minus its mean over pictures, over noise power, both from 1 to 30 Hz and 50 to 500 ms, as it is
measured in real recordings. ``network`` (EEGProject with InfoNCE) is the recipe of the figures to
beat, 15 / 33 / 58 / 85.5 % at -33 / -30 / -27 / -24 dB. Figures verify software; they are no
evidence about brains.

Whitening and scales are fitted on single trials of 1,000 training pictures. Recipes, each inductive
(one trial at a time, nothing learnt from test trials or the gallery): ``encoding``
(``eeg_encoder.recipes.EncodingModel`` on the first 0.6 s at 62.5 Hz), ``ridge`` (signal to
embedding, its strength chosen on 200 training pictures held out), ``network`` (fixed last epoch).
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from eeg_encoder import models  # noqa: E402
from eeg_encoder.evaluation.tables import provenance  # noqa: E402
from eeg_encoder.files import write_json  # noqa: E402
from eeg_encoder.objectives import InfoNCE  # noqa: E402
from eeg_encoder.preprocessing import Preprocessing  # noqa: E402
from eeg_encoder.preprocessing.filters import band_pass  # noqa: E402
from eeg_encoder.recipes import EncodingModel  # noqa: E402
from eeg_encoder.recordings.forward_model import head_model  # noqa: E402
from eeg_encoder.recordings.simulation import SimulationConfig, StimulusCode, Subject  # noqa: E402
from eeg_encoder.recordings.trials import TrialSet  # noqa: E402

POSTERIOR = [
    *("P7", "P5", "P3", "P1", "Pz", "P2", "P4", "P6", "P8"),
    *("PO7", "PO3", "POz", "PO4", "PO8", "O1", "Oz", "O2"),
]
CHUNK = 512
BAND, WINDOW = (1.0, 30.0), (0.05, 0.5)
PROTOTYPE = {-33: 15.0, -30: 33.0, -27: 58.0, -24: 85.5}
PROTOTYPE_SINGLE = {-33: 0.0, -30: 2.0, -27: 4.5, -24: 8.5}


class World:
    """One simulated person: training and test trials at any signal-to-noise ratio.

    ``common`` (noise and mean response) and ``specific`` (what depends on the picture) are kept
    apart, so that ratios share trials.
    """

    def __init__(self, gallery: Tensor, number: int, seed: int, args: argparse.Namespace) -> None:
        self.device, self.number = torch.device(args.device), number
        self.generator = torch.Generator(self.device).manual_seed(1000 * seed + number)
        self.gallery = gallery.to(self.device)
        self.pictures = self._pictures(args.train)
        self.config = SimulationConfig(
            channels=64, sfreq=250.0, duration=1.0, overlap=0.0, seed=seed
        )
        code = StimulusCode.fit(self.pictures.cpu(), dims=args.dims)
        self.subject = Subject(self.config, code, number)
        names = head_model(64).channels
        self.rows = torch.tensor([names.index(name) for name in POSTERIOR])
        self.patterns = self.subject.patterns[self.rows].to(self.device)
        codes = [code(x.cpu()).to(self.device) for x in (self.pictures, self.gallery)]
        self.singles = self._trials(codes[0][: args.singles].repeat_interleave(4, 0), 1)
        self.train = self._trials(codes[0][args.singles :], 4)
        self.test = {n: self._trials(codes[1], n) for n in (args.repetitions, 1)}
        self.ratio = self._ratio(codes[0][:2000])

    def at(self, snr_db: float) -> dict[str, Any]:
        """Preprocessed signals (N, 17, 125): ``train``, and ``test`` by number of repetitions."""
        gain = math.sqrt(10 ** (snr_db / 10) / self.ratio)

        def volts(parts: list[Tensor]) -> Tensor:
            return parts[0] + gain * parts[1]

        singles = volts(self.singles)
        means = singles.unflatten(0, (-1, 4)).mean(1)
        pre = Preprocessing(sfreq=125.0, clip=0.0).fit(_trial_set(singles, 4))

        def ready(signals: Tensor) -> Tensor:
            return torch.from_numpy(pre(_trial_set(signals, 1))).to(self.device)

        return {
            "train": torch.cat([ready(means), ready(volts(self.train))]),
            "test": {n: ready(volts(parts)) for n, parts in self.test.items()},
        }

    def _pictures(self, n: int) -> Tensor:
        mean = self.gallery.mean(0)
        _, values, rows = torch.linalg.svd(self.gallery - mean, full_matrices=False)
        draw = torch.randn(n, len(values), device=self.device, generator=self.generator)
        return mean + draw * (values / len(self.gallery) ** 0.5) @ rows

    def _trials(self, codes: Tensor, averaged: int) -> list[Tensor]:
        parts = [self._chunk(part, averaged) for part in codes.split(CHUNK)]
        return [torch.cat(kind) for kind in zip(*parts, strict=True)]

    def _chunk(self, codes: Tensor, averaged: int) -> tuple[Tensor, Tensor]:
        n = len(codes)
        shift = self.config.jitter * torch.randn(
            n * averaged, device=self.device, generator=self.generator
        )
        curves = self.subject.curves(shift).unflatten(0, (n, averaged)).mean(1)
        specific = codes @ self.subject.readout.to(codes).T
        mean = self.subject.mean.to(codes)[:, None] * curves
        noise = self._noise(n) / averaged**0.5
        return noise + self.patterns @ mean, self.patterns @ (specific[..., None] * curves)

    def _noise(self, n: int) -> Tensor:
        return self.subject.noise(n, self.generator)[:, self.rows.to(self.device)]

    def _ratio(self, codes: Tensor) -> float:
        amplitudes = codes @ self.subject.readout.to(codes).T
        curves = self.subject.curves(torch.zeros(1, device=self.device))
        specific = self.patterns @ (amplitudes[..., None] * curves)
        return self._power(specific - specific.mean(0)) / self._power(self._noise(1000))

    def _power(self, signals: Tensor) -> float:
        """Mean square of what :data:`BAND` and :data:`WINDOW` leave."""
        sfreq = self.config.sfreq
        first, last = (round(second * sfreq) for second in WINDOW)
        filtered = band_pass(signals.cpu().numpy(), sfreq, BAND)[:, :, first:last]
        return float(np.square(filtered).mean(dtype=np.float64))


def _trial_set(signals: Tensor, repetitions: int) -> TrialSet:
    zeros = np.zeros(len(signals), np.int64)
    return TrialSet(
        signals=signals.cpu().numpy(),
        sfreq=250.0,
        channels=POSTERIOR,
        labels=zeros,
        label_names=["picture"],
        stimuli=(np.arange(len(signals)) // repetitions).astype(str),
        subjects=zeros,
        sessions=zeros,
        blocks=zeros,
    )


def encoding(signals: Tensor, pictures: Tensor, tests: list[Tensor], gallery: Tensor, seed: int):
    """Scores (N, S) by :class:`EncodingModel`; components chosen on held-out training rows."""
    model = EncodingModel.fit_selected(
        signals, pictures, averaged=4, components=(0, 100, 50), spans=(0.6,), steps=(2,)
    )
    return [model.scores(test, gallery) for test in tests]


def ridge(signals: Tensor, pictures: Tensor, tests: list[Tensor], gallery: Tensor, seed: int):
    """Cosines after ridge regression to the embedding; strength by retrieval on held-out rows."""
    centre, offset = pictures.mean(0), signals.mean(0)
    x, z = (signals - offset).flatten(1), pictures - centre
    fit, held = slice(200, None), slice(0, 200)
    gram, cross = x[fit].T @ x[fit], x[fit].T @ z[fit]
    level = gram.diagonal().mean()

    def maps(strength: float) -> Tensor:
        penalty = strength * level * torch.eye(len(gram), device=gram.device)
        return torch.linalg.solve(gram + penalty, cross)

    def cosines(rows: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        return F.normalize(rows @ weights, dim=1) @ F.normalize(targets, dim=1).T

    def held_out(strength: float) -> float:
        return rates(cosines(x[held], z[held], maps(strength)))[1]

    weights = maps(max((0.1, 1.0, 10.0, 100.0), key=held_out))
    return [cosines((t - offset).flatten(1), gallery - centre, weights) for t in tests]


def network(signals: Tensor, pictures: Tensor, tests: list[Tensor], gallery: Tensor, seed: int):
    """Cosines after EEGProject with InfoNCE: AdamW, one cycle, 12 epochs of batches of 1,024."""
    torch.manual_seed(seed)
    device, epochs, size = signals.device, 12, min(1024, len(signals))
    centre, offset, spread = pictures.mean(0), signals.mean(0), signals.std()
    net = models.build(
        "eeg_project",
        channels=signals.shape[1],
        samples=signals.shape[2],
        embedding=pictures.shape[1],
        dropout=0.5,
    ).to(device)
    loss = InfoNCE().to(device)
    steps = epochs * (len(signals) // size)
    trained = [*net.parameters(), *loss.parameters()]
    adam = torch.optim.AdamW(trained, 1e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(adam, 1e-3, total_steps=steps)
    for _ in range(epochs):
        order = torch.randperm(len(signals), device=device)
        for rows in order[: len(order) // size * size].split(size):
            found = loss(net((signals[rows] - offset) / spread), pictures[rows] - centre)
            adam.zero_grad()
            found.backward()
            adam.step()
            schedule.step()
    net.eval()
    with torch.no_grad():
        found = [F.normalize(net((t - offset) / spread), dim=1) for t in tests]
    return [f @ F.normalize(gallery - centre, dim=1).T for f in found]


RECIPES = {"encoding": encoding, "ridge": ridge, "network": network}


def rates(scores: Tensor) -> tuple[float, float]:
    """Top-1 and top-5 in per cent; row i belongs to column i."""
    rank = (scores > scores.diagonal()[:, None]).sum(1)
    return tuple(round(100 * float((rank < k).float().mean()), 2) for k in (1, 5))  # type: ignore[return-value]


def measure(world: World, snr_db: float, recipe: str, seed: int) -> list[dict[str, Any]]:
    """A row for each number of repetitions, with the shuffled control."""
    data = world.at(snr_db)
    counts = sorted(data["test"], reverse=True)
    started = time.monotonic()
    tests = [data["test"][n] for n in counts]
    found = RECIPES[recipe](data["train"], world.pictures, tests, world.gallery, seed)
    seconds = round(time.monotonic() - started, 1)
    rows = []
    for n, scores in zip(counts, found, strict=True):
        generator = torch.Generator().manual_seed(1000 * seed + world.number)
        order = torch.randperm(len(scores), generator=generator)
        top1, top5 = rates(scores)
        control1, control5 = rates(scores[order.to(scores.device)])
        rows.append(
            {
                "recipe": recipe,
                "snr_db": snr_db,
                "repetitions": n,
                "top1": top1,
                "top5": top5,
                "shuffled_top1": control1,
                "shuffled_top5": control5,
                "seconds": seconds,
            }
        )
    return rows


def summary(rows: list[dict[str, Any]]) -> list[str]:
    """A line for each recipe, ratio and number of repetitions: mean and SD over subject x seed."""
    lines = ["recipe    snr_db  reps  n   top-1 (SD)     top-5 (SD)     shuffled  prototype"]
    keys = sorted({(r["recipe"], -r["repetitions"], r["snr_db"]) for r in rows})
    for recipe, reps, snr in keys:
        mine = [
            r for r in rows if (r["recipe"], -r["repetitions"], r["snr_db"]) == (recipe, reps, snr)
        ]
        means = {k: np.mean([r[k] for r in mine]) for k in ("top1", "top5", "shuffled_top1")}
        spread = {k: np.std([r[k] for r in mine], ddof=len(mine) > 1) for k in ("top1", "top5")}
        goal = (PROTOTYPE_SINGLE if reps == -1 else PROTOTYPE).get(round(snr), float("nan"))
        lines.append(
            f"{recipe:9s} {snr:6.0f} {-reps:5d} {len(mine):2d}   "
            f"{means['top1']:5.1f} ({spread['top1']:4.1f})   "
            f"{means['top5']:5.1f} ({spread['top5']:4.1f})   "
            f"{means['shuffled_top1']:5.1f}     {goal:5.1f}"
        )
    return lines


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--clip", required=True, help="(200, 1, 768) features, .npy")
    parser.add_argument("--subjects", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--snr", type=float, nargs="+", default=[-33, -30, -27, -24])
    parser.add_argument("--recipes", nargs="+", default=["encoding"], choices=sorted(RECIPES))
    parser.add_argument("--repetitions", type=int, default=80)
    parser.add_argument("--train", type=int, default=16540, help="training pictures")
    parser.add_argument("--singles", type=int, default=1000, help="of them kept as single trials")
    parser.add_argument("--dims", type=int, default=48, help="of the simulated stimulus code")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="JSON with all rows")
    return parser.parse_args()


def main() -> None:
    """Measure and print."""
    args = arguments()
    torch.set_num_threads(args.threads)
    gallery = torch.from_numpy(np.load(args.clip, allow_pickle=False)).float().flatten(1)
    rows: list[dict[str, Any]] = []
    for seed in args.seeds:
        for number in args.subjects:
            world = World(gallery, number, seed, args)
            for snr in args.snr:
                for recipe in args.recipes:
                    for row in measure(world, snr, recipe, seed):
                        rows.append({"subject": number, "seed": seed, **row})
                        print(json.dumps(rows[-1]), flush=True)
            if args.out:
                settings = {k: str(v) for k, v in vars(args).items()}
                made_by = provenance(
                    config=settings, seed=args.seeds, protocol="zero-shot-by-concept, simulated"
                )
                content = {"simulated": True, "tier": "inductive", "provenance": made_by}
                write_json(args.out, {**content, "rows": rows})
    print("\n".join(summary(rows)))


if __name__ == "__main__":
    main()
