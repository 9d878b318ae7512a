from types import SimpleNamespace

import pytest
import torch

from threestudio_eeg.compat import cuda_absent


@pytest.mark.parametrize(
    "remedy", [cuda_absent.CONTEXT, cuda_absent.DEVICE, cuda_absent.ACCELERATOR]
)
def test_needed_on_a_cpu_only(remedy):
    assert remedy.reason("cpu")
    assert remedy.reason("cuda") is None


def test_the_context_is_a_class_that_selects_nothing():
    before = torch.cuda.device
    cuda_absent.CONTEXT.apply("cpu")
    with torch.cuda.device(0) as nothing:
        assert nothing is None
    assert not isinstance(torch.device("cpu"), torch.cuda.device)
    with pytest.raises(RuntimeError, match="inside"), torch.cuda.device(0):
        raise RuntimeError("inside")
    from threestudio_eeg import compat

    compat.deactivate()
    assert torch.cuda.device is before


def test_an_error_while_loading_is_still_that_error(tmp_path):
    """torch asks ``isinstance(x, torch.cuda.device)`` there."""
    cuda_absent.CONTEXT.apply("cpu")
    (tmp_path / "broken.ckpt").write_bytes(b"no checkpoint")
    with pytest.raises(Exception, match="(?i)pickle|magic|archive|load"):
        torch.load(tmp_path / "broken.ckpt", map_location="cpu", weights_only=True)


def test_every_copy_of_get_device_is_replaced(fake):
    def real():
        return torch.device("cuda:0")

    for name in ("threestudio", "threestudio.utils", "threestudio.models"):
        fake(name)
    misc = fake("threestudio.utils.misc", get_device=real)
    base = fake("threestudio.utils.base", get_device=real)
    networks = fake("threestudio.models.networks", get_rank=lambda: 0)
    cuda_absent.DEVICE.apply("cpu")
    assert misc.get_device() == base.get_device() == torch.device("cpu")
    assert networks.get_rank() == torch.device("cpu")


@pytest.mark.parametrize("asked", ["gpu", "cpu", None])
def test_the_trainer_asks_for_a_cpu(asked, fake):
    class Trainer:
        def __init__(self, *, accelerator=None, devices=None, precision=32):
            self.seen = (accelerator, devices, precision)

    fake("pytorch_lightning", Trainer=Trainer)
    cuda_absent.ACCELERATOR.apply("cpu")
    expected = ("cpu", 1, 16) if asked == "gpu" else (asked, -1, 16)
    assert Trainer(accelerator=asked, devices=-1, precision=16).seen == expected


def test_the_real_trainer_can_be_made_as_launch_makes_it():
    pytorch_lightning = pytest.importorskip("pytorch_lightning")
    cuda_absent.ACCELERATOR.apply("cpu")
    trainer = pytorch_lightning.Trainer(
        accelerator="gpu", devices=-1, logger=False, enable_checkpointing=False
    )
    assert trainer.strategy.root_device == torch.device("cpu")
    assert trainer.num_devices == 1


def test_the_embedded_hosts_trainer_is_another():
    lightning = pytest.importorskip("lightning.pytorch")
    cuda_absent.ACCELERATOR.apply("cpu")
    assert not hasattr(lightning.Trainer.__init__, "seen")
    assert SimpleNamespace(t=lightning.Trainer).t.__module__.startswith("lightning.")
