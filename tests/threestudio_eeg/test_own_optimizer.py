"""The watch that notices a LoRA which nobody trains."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from eeg_encoder.errors import InputError
from threestudio_eeg.own_optimizer import PATIENCE, UntrainedWatch


@pytest.mark.parametrize("fused", [True, False])
def test_any_optimiser_is_seen_to_train(fused: bool) -> None:
    module = nn.Linear(3, 2)
    watch = UntrainedWatch(module, "here")
    optimizer = torch.optim.AdamW(module.parameters(), fused=fused)
    for step in range(3 * PATIENCE):
        module(torch.ones(1, 3)).sum().backward()
        optimizer.step()
        watch.look(step)
    with pytest.raises(InputError, match=f"in {PATIENCE} steps"):
        look_on(watch, 3 * PATIENCE, 5 * PATIENCE)


def test_a_module_that_nobody_trains_is_noticed() -> None:
    watch = UntrainedWatch(nn.Linear(3, 2), "here")
    for step in range(PATIENCE):
        watch.look(step)
        watch.look(step)
    with pytest.raises(InputError, match=f"in {PATIENCE} steps"):
        watch.look(PATIENCE)


def look_on(watch: UntrainedWatch, first: int, end: int) -> None:
    for step in range(first, end):
        watch.look(step)
