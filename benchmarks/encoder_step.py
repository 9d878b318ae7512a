"""A step of the first stage at the published size: vectorised losses beside per-sample loops.

    python benchmarks/encoder_step.py --device cuda --bf16 --published CHECKOUT --out step.json
    python benchmarks/encoder_step.py --preset small --batch 8 --large 32 --repeats 3

``--published`` is a checkout of the authors' code (see :mod:`published_stage`): its loss of our
reconstructions and gradients, its whole loss with our weights and masks, and its own training loop
in half precision, all in this process. The other references are the loss written down as its
formulas are (3D-Telepathy, first stage): for every channel and sample a loop over the other
samples, every vector normalised where it is used; and the same with the loops that the public code
has, over pairs and over channels. These steps have the same network, masks, optimiser and precision
as ours; they differ in the loss only. Printed: the losses and their difference, medians and their
ratio to ours of (a) loss forward and backward alone and (b) the whole step; on a GPU our step with
its passes recorded as CUDA graphs; then the step at the large batch with its peak memory.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]

from published_stage import Published  # noqa: E402
from timing import machine, median_ms  # noqa: E402

from eeg_encoder import models  # noqa: E402
from eeg_encoder.files import write_json  # noqa: E402
from eeg_encoder.models.layers import random_mask  # noqa: E402
from eeg_encoder.objectives import merl_loss, merl_stage_1  # noqa: E402
from eeg_encoder.stages.recorded import Passes, record  # noqa: E402

TEMPERATURE, SELF_WEIGHT, CROSS_WEIGHT = 0.1, 1.0, 0.5
PUBLISHED_SIZES = (
    "patch", "width", "depth", "heads", "decoder_width", "decoder_depth", "decoder_heads",
)  # fmt: skip


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


def stage_losses(views: Tensor, signals: Tensor, hidden: Tensor) -> dict[str, Tensor]:
    """The stage's losses with the published weights."""
    return merl_stage_1(views, signals, hidden)


class Step:
    """One training step of the masked autoencoder, with any of the losses."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        torch.manual_seed(0)
        self.device, self.amp = arguments.device, arguments.bf16
        sizes = {"channels": arguments.channels, "samples": arguments.samples, "embedding": 768}
        self.network: Any = models.build("masked_autoencoder", preset=arguments.preset, **sizes).to(
            self.device
        )
        self.network.head.requires_grad_(False)
        trained = [p for p in self.network.parameters() if p.requires_grad]
        self.adam = torch.optim.AdamW(
            trained, lr=1e-5, betas=(0.9, 0.95), weight_decay=0.05,
            fused=self.device.startswith("cuda"),
        )  # fmt: skip
        self.visible = int(self.network.n_tokens * 0.25)

    def masks(self, batch: int) -> Tensor:
        """(2 B, n) bool, the same at every call."""
        generator = torch.Generator(self.device).manual_seed(1)
        tokens = self.network.n_tokens
        return random_mask(2 * batch, tokens, 0.75, device=self.device, generator=generator)

    def precision(self) -> contextlib.AbstractContextManager[Any]:
        """Of the network."""
        kind = self.device.split(":")[0]
        return torch.autocast(kind, torch.bfloat16, enabled=self.amp)

    def draw(self, signals: Tensor) -> tuple[Tensor, Tensor]:
        """Reconstructions under two masks, the same at every call."""
        hidden = self.masks(len(signals))
        both = torch.cat([signals, signals])
        with self.precision():
            drawn = self.network.redraw(both, None, hidden, self.visible)
        first, second = drawn.float().chunk(2)
        return first, second

    def whole(self, signals: Tensor, loss: Callable[..., Tensor]) -> Tensor:
        """Forward, backward, optimiser."""
        self.adam.zero_grad(set_to_none=True)
        value = loss(*self.draw(signals), signals)
        self.update(value)
        return value.detach()

    def update(self, value: Tensor) -> None:
        """Backward, clipping, optimiser."""
        value.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 0.8)
        self.adam.step()

    def recorded(self, signals: Tensor) -> Callable[[], Tensor]:
        """The same step as :meth:`whole` with both passes recorded as CUDA graphs."""
        passes = Passes(self.network, self.visible, stage_losses)
        self.adam.zero_grad(set_to_none=True)
        with self.precision():
            run = record(passes, signals, self.masks(len(signals)))

        def step() -> Tensor:
            self.adam.zero_grad(set_to_none=True)
            value = run(signals, self.masks(len(signals)))[0]
            self.update(value)
            return value.detach()

        return step


def signals_of(arguments: argparse.Namespace, batch: int) -> Tensor:
    """Random signals (B, C, T)."""
    generator = torch.Generator(arguments.device).manual_seed(0)
    shape = (batch, arguments.channels, arguments.samples)
    return torch.randn(shape, device=arguments.device, generator=generator)


def compare(
    step: Step, arguments: argparse.Namespace, losses: dict[str, Callable[..., Tensor]]
) -> list[dict[str, Any]]:
    """Every loss on the same reconstructions: value, gradient, time alone and in a step."""
    signals = signals_of(arguments, arguments.batch)
    with torch.no_grad():
        drawn = step.draw(signals)
    rows: list[dict[str, Any]] = []
    answer: Tensor | None = None
    for name, loss in losses.items():
        first, second = (view.clone().requires_grad_() for view in drawn)
        value = loss(first, second, signals)
        value.backward()
        assert first.grad is not None
        answer = first.grad if answer is None else answer

        def alone(loss: Callable[..., Tensor] = loss) -> None:
            views = [view.clone().requires_grad_() for view in drawn]
            loss(*views, signals).backward()

        repeats = max(1, arguments.repeats // 5) if "loops" in name else arguments.repeats
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


def recorded_row(step: Step, arguments: argparse.Namespace) -> dict[str, Any]:
    """Our step with its passes recorded as CUDA graphs; its loss beside the eager one's."""
    signals = signals_of(arguments, arguments.batch)
    with torch.no_grad():
        eager = float(merl_loss(*step.draw(signals), signals))
    run = step.recorded(signals)
    value = float(run())
    return {
        "loss": value,
        "eager_loss": eager,
        "step_ms": median_ms(run, arguments.device, arguments.repeats, 3),
    }


def published_row(
    step: Step, published: Published, arguments: argparse.Namespace
) -> dict[str, Any]:
    """The authors' model: its loss with our weights and masks, its training loop's time."""
    signals = signals_of(arguments, arguments.batch)
    published.take_weights(step.network)
    hidden = step.masks(arguments.batch)
    with torch.no_grad():
        theirs = float(published.whole_loss(signals, torch.stack(hidden.chunk(2))))
        both = torch.cat([signals, signals])
        views = step.network.redraw(both, None, hidden, step.visible).chunk(2)
        ours = float(merl_loss(*views, signals))
    row: dict[str, Any] = {
        "parameters": published.parameters(),
        "blocks": published.timm,
        "loss_ours": ours,
        "loss_theirs": theirs,
        "difference": abs(ours - theirs),
    }
    on_gpu = arguments.device.startswith("cuda")
    if on_gpu:
        train = published.training()
        row["correlation"] = train(signals)
        row["step_ms"] = median_ms(
            lambda: train(signals), arguments.device, max(2, arguments.repeats // 2), 2
        )
    return row


def guarded(what: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The part's result, printed; a failure costs the part only."""
    try:
        found = make()
    except Exception as error:
        traceback.print_exc()
        found = {"error": f"{type(error).__name__}: {error}"[:400]}
    print(what, json.dumps(found), flush=True)
    return found


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
    parser.add_argument("--bf16", action="store_true", help="autocast our network to bfloat16")
    parser.add_argument("--published", type=Path, default=None, help="checkout of their code")
    parser.add_argument("--no-slow", action="store_true", help="leave the slowest loop out")
    parser.add_argument("--out", type=Path, default=None)
    arguments = parser.parse_args()
    if arguments.samples is None:
        arguments.samples = 512 if arguments.preset == "faithful" else 510
    on_gpu = arguments.device.startswith("cuda")
    step = Step(arguments)
    result: dict[str, Any] = {
        "settings": {k: str(v) for k, v in vars(arguments).items() if k != "out"},
        **machine(arguments.device),
    }

    def save() -> None:
        if arguments.out is not None:
            write_json(arguments.out, result)

    losses = dict(LOSSES)
    if arguments.no_slow:
        del losses["loops over channels and samples"]
    published = None
    if arguments.published is not None:
        presets = dict(step.network.presets[arguments.preset])
        sizes = {name: presets[name] for name in PUBLISHED_SIZES if name in presets}
        sizes |= {"channels": arguments.channels, "samples": arguments.samples}
        published = Published(arguments.published, arguments.device, **sizes)
        losses = {"vectorised": merl_loss, "published": published.loss_of, **losses}
    rows = compare(step, arguments, losses)
    print(f"{'loss':32s} {'value':>10s} {'|diff|':>8s} {'loss ms':>9s} {'ratio':>7s} "
          f"{'step ms':>9s} {'ratio':>7s}")  # fmt: skip
    for row in rows:
        print(
            f"{row['loss']:32s} {row['value']:10.6f} {row['difference']:8.1e} "
            f"{row['loss_ms']:9.2f} {row['loss_ratio']:7.1f} "
            f"{row['step_ms']:9.2f} {row['step_ratio']:7.1f}",
            flush=True,
        )
    result["rows"] = rows
    save()
    if published is not None:
        whole = published
        result["published"] = guarded(
            "published, whole:", lambda: published_row(step, whole, arguments)
        )
        save()
        del whole, published, losses
    if on_gpu:
        result["recorded"] = guarded("recorded:", lambda: recorded_row(step, arguments))
        save()
        torch.cuda.empty_cache()
    result["large"] = guarded("large batch:", lambda: large(step, arguments))
    theirs = result.get("published", {}).get("step_ms")
    for name, own in (
        ("eager", rows[0]["step_ms"]), ("recorded", result.get("recorded", {}).get("step_ms")),
    ):  # fmt: skip
        if theirs and own:
            result[f"ratio_{name}"] = theirs / own
            print(f"published step / ours, {name}: {theirs / own:.1f}")
    save()
    assert all(row["difference"] < 1e-5 for row in rows), "losses disagree"
    assert all(row["gradient_error"] < 1e-3 for row in rows), "gradients disagree"


if __name__ == "__main__":
    main()
