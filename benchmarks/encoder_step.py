"""A step of the first stage at the published size: vectorised losses beside per-sample loops.

    python benchmarks/encoder_step.py --device cuda --out figures/encoder_step.json
    python benchmarks/encoder_step.py --preset small --batch 8 --large 32 --repeats 3

The references are the loss written down as its formulas are (3D-Telepathy, first stage): for every
channel and sample a loop over the other samples, every vector normalised where it is used; and the
same with the loops that the public code has, over pairs and over channels. All steps have the same
network, masks, optimiser and precision; they differ in the loss only. Printed: the losses and their
difference, medians and their ratio to ours of (a) loss forward and backward alone and (b) the whole
step, then the whole step at the large batch with its peak memory.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]

from timing import machine, median_ms  # noqa: E402

from eeg_encoder import models  # noqa: E402
from eeg_encoder.files import write_json  # noqa: E402
from eeg_encoder.objectives import merl_loss  # noqa: E402

TEMPERATURE, SELF_WEIGHT, CROSS_WEIGHT = 0.1, 1.0, 0.5


def looped_contrast(view: Tensor, positive: Tensor) -> Tensor:
    """(1/C) sum over c, (1/B) sum over i of -log(e^p / (e^p + sum over j != i of e^n_j)).

    p = s(view_ic, positive_ic) / t, n_j = s(view_ic, view_jc) / t, s the cosine along time.
    """
    b, channels, _ = view.shape
    total = view.new_zeros(())
    for c in range(channels):
        of_channel = view.new_zeros(())
        for i in range(b):
            own = view[i, c] / view[i, c].norm()
            other = positive[i, c] / positive[i, c].norm()
            p = (own * other).sum() / TEMPERATURE
            below = p.exp()
            for j in range(b):
                if j != i:
                    negative = view[j, c] / view[j, c].norm()
                    below = below + ((own * negative).sum() / TEMPERATURE).exp()
            of_channel = of_channel - (p.exp() / below).log()
        total = total + of_channel / b
    return total / channels


def per_pair_contrast(view: Tensor, positive: Tensor) -> Tensor:
    """The same with the loops that the public code is described to have: over all pairs of samples
    to normalise negatives into (B, B - 1, C, T), then over channels for a cross-entropy each."""
    b, channels, _ = view.shape
    own = torch.stack([sample / sample.norm(dim=1, keepdim=True) for sample in view])
    other = torch.stack([sample / sample.norm(dim=1, keepdim=True) for sample in positive])
    negatives = torch.stack(
        [
            torch.stack([view[j] / view[j].norm(dim=1, keepdim=True) for j in range(b) if j != i])
            for i in range(b)
        ]
    )
    right = torch.zeros(b, dtype=torch.long, device=view.device)
    total = view.new_zeros(())
    for c in range(channels):
        p = (own[:, c] * other[:, c]).sum(1, keepdim=True)
        n = (own[:, None, c] * negatives[:, :, c]).sum(2)
        logits = torch.cat([p, n], dim=1) / TEMPERATURE
        total = total + torch.nn.functional.cross_entropy(logits, right)
    return total / channels


def looped_loss(contrast: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    """``w_s L_self + w_x L_cross`` of a contrast."""

    def loss(first: Tensor, second: Tensor, signals: Tensor) -> Tensor:
        return SELF_WEIGHT * contrast(first, signals) + CROSS_WEIGHT * contrast(first, second)

    return loss


LOSSES: dict[str, Callable[..., Tensor]] = {
    "vectorised": merl_loss,
    "loops over pairs, over channels": looped_loss(per_pair_contrast),
    "loops over channels and samples": looped_loss(looped_contrast),
}


class Step:
    """One training step of the masked autoencoder, with any of the losses."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        torch.manual_seed(0)
        self.device, self.amp = arguments.device, arguments.bf16
        sizes = {"channels": arguments.channels, "samples": arguments.samples, "embedding": 768}
        self.network: Any = models.build("masked_autoencoder", preset=arguments.preset, **sizes).to(
            self.device
        )
        self.adam = torch.optim.AdamW(
            self.network.parameters(), lr=1e-5, betas=(0.9, 0.95), weight_decay=0.05,
            fused=self.device.startswith("cuda"),
        )  # fmt: skip

    def draw(self, signals: Tensor) -> tuple[Tensor, Tensor]:
        """Reconstructions under two masks, the same at every call."""
        masks = torch.Generator(self.device).manual_seed(1)
        with torch.autocast(self.device.split(":")[0], torch.bfloat16, enabled=self.amp):
            first, second = (
                self.network.reconstruct(signals, None, 0.75, masks)[0] for _ in range(2)
            )
        return first.float(), second.float()

    def whole(self, signals: Tensor, loss: Callable[..., Tensor]) -> Tensor:
        """Forward, backward, optimiser."""
        self.adam.zero_grad(set_to_none=True)
        value = loss(*self.draw(signals), signals)
        value.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 0.8)
        self.adam.step()
        return value.detach()


def signals_of(arguments: argparse.Namespace, batch: int) -> Tensor:
    """Random signals (B, C, T)."""
    generator = torch.Generator(arguments.device).manual_seed(0)
    shape = (batch, arguments.channels, arguments.samples)
    return torch.randn(shape, device=arguments.device, generator=generator)


def compare(step: Step, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Every loss on the same reconstructions: value, gradient, time alone and in a step."""
    signals = signals_of(arguments, arguments.batch)
    with torch.no_grad():
        drawn = step.draw(signals)
    rows: list[dict[str, Any]] = []
    answer: Tensor | None = None
    for name, loss in LOSSES.items():
        first, second = (view.clone().requires_grad_() for view in drawn)
        value = loss(first, second, signals)
        value.backward()
        assert first.grad is not None
        answer = first.grad if answer is None else answer

        def alone(loss: Callable[..., Tensor] = loss) -> None:
            views = [view.clone().requires_grad_() for view in drawn]
            loss(*views, signals).backward()

        slow = name == "loops over channels and samples"
        repeats = max(1, arguments.repeats // 5) if slow else arguments.repeats
        rows.append(
            {
                "loss": name,
                "value": float(value.detach()),
                "gradient_error": float((first.grad - answer).norm() / answer.norm()),
                "loss_ms": median_ms(alone, arguments.device, repeats, 1),
                "step_ms": median_ms(
                    lambda loss=loss: step.whole(signals, loss), arguments.device, repeats, 1
                ),
            }
        )
    ours = rows[0]
    for row in rows:
        row["difference"] = abs(row["value"] - ours["value"])
        row["loss_ratio"] = row["loss_ms"] / ours["loss_ms"]
        row["step_ratio"] = row["step_ms"] / ours["step_ms"]
    return rows


def large(step: Step, arguments: argparse.Namespace) -> dict[str, Any]:
    """A whole step at the large batch."""
    signals = signals_of(arguments, arguments.large)
    on_gpu = arguments.device.startswith("cuda")
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    milliseconds = median_ms(
        lambda: step.whole(signals, merl_loss), arguments.device, max(1, arguments.repeats // 4), 1
    )
    peak = torch.cuda.max_memory_allocated() / 2**30 if on_gpu else None
    return {
        "batch": arguments.large,
        "step_ms": milliseconds,
        "signals_per_second": arguments.large / milliseconds * 1e3,
        "peak_gib": peak,
    }


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--preset", default="faithful")
    parser.add_argument("--channels", type=int, default=128)
    parser.add_argument("--samples", type=int, default=None)
    parser.add_argument("--batch", type=int, default=10)
    parser.add_argument("--large", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--bf16", action="store_true", help="autocast the network to bfloat16")
    parser.add_argument("--out", type=Path, default=None)
    arguments = parser.parse_args()
    if arguments.samples is None:
        arguments.samples = 512 if arguments.preset == "faithful" else 510
    step = Step(arguments)
    rows = compare(step, arguments)
    print(f"{'loss':32s} {'value':>10s} {'|diff|':>8s} {'loss ms':>9s} {'ratio':>7s} "
          f"{'step ms':>9s} {'ratio':>7s}")  # fmt: skip
    for row in rows:
        print(
            f"{row['loss']:32s} {row['value']:10.6f} {row['difference']:8.1e} "
            f"{row['loss_ms']:9.2f} {row['loss_ratio']:7.1f} "
            f"{row['step_ms']:9.2f} {row['step_ratio']:7.1f}"
        )
    assert all(row["difference"] < 1e-5 for row in rows), "losses disagree"
    assert all(row["gradient_error"] < 1e-3 for row in rows), "gradients disagree"
    many = large(step, arguments)
    print(json.dumps(many))
    if arguments.out is not None:
        settings = {k: v for k, v in vars(arguments).items() if k != "out"}
        write_json(
            arguments.out,
            {"settings": settings, "rows": rows, "large": many, **machine(arguments.device)},
        )


if __name__ == "__main__":
    main()
