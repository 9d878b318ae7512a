import pytest
import torch

from threestudio_eeg.compat import training_mode

pytorch_lightning = pytest.importorskip("pytorch_lightning")


class System(pytorch_lightning.LightningModule):
    """Like a renderer of threestudio: something is set only when training begins."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def train(self, mode=True):
        self.randomized = mode
        return super().train(mode)

    def training_step(self, batch, batch_idx):
        assert self.randomized
        return self.weight.sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer():
    return pytorch_lightning.Trainer(
        max_steps=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


@pytest.mark.parametrize(("version", "needed"), [("2.0.0", False), ("2.2.1", True), ("3.0", True)])
def test_needed_since_lightning_stopped(monkeypatch, version, needed):
    monkeypatch.setattr(pytorch_lightning, "__version__", version)
    assert (training_mode.reason("cuda") is not None) == needed


def test_a_fit_begins_with_train():
    training_mode.apply("cpu")
    system = System()
    trainer().fit(system, train_dataloaders=[1])
    assert system.weight.item() == pytest.approx(-0.1)


def test_without_it_a_fit_does_not():
    with pytest.raises(AttributeError, match="randomized"):
        trainer().fit(System(), train_dataloaders=[1])
