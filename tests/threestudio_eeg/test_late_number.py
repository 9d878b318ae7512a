"""Numbers of a device, read when they have arrived."""

from __future__ import annotations

import pytest
import torch

from eeg_encoder.errors import InputError
from threestudio_eeg.late_number import LateNumber
from threestudio_eeg.nonfinite_watch import NonFiniteWatch


def test_a_number_of_the_host_is_there_at_once():
    late = LateNumber(torch.tensor(2.5))
    assert late.has_arrived()
    assert float(late) == 2.5
    assert float(LateNumber(torch.tensor(True))) == 1.0


@pytest.mark.gpu
@pytest.mark.parametrize("value", [2.5, True])
def test_a_number_of_a_gpu_is_not_waited_for(value):
    number = torch.tensor(value, device="cuda")
    torch.cuda.synchronize()
    torch.cuda._sleep(200_000_000)
    torch.cuda.set_sync_debug_mode("error")
    try:
        late = LateNumber(number)
        early = late.has_arrived()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert not early
    torch.cuda.synchronize()
    assert late.has_arrived()
    assert float(late) == value


def test_a_gradient_that_is_not_finite_is_named_with_its_step():
    watch = NonFiniteWatch("guidance")
    watch.add(3, torch.tensor(1.0))
    watch.check()
    with pytest.raises(InputError, match="gradient norm at step 4"):
        watch.add(4, torch.tensor(float("nan")))
