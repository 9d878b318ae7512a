"""Any network of braindecode as an encoder, when braindecode is installed."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..errors import InputError
from . import register
from .base import Encoder


@register("braindecode")
class Braindecode(Encoder):
    """A classification network of braindecode whose outputs are the image space.

    Needs the extra ``eeg-baselines``.

    Parameters
    ----------
    channels, samples, embedding, subjects, subject_layer, electrodes, virtual
        As in :class:`eeg_encoder.models.base.Encoder`.
    network
        Class name in ``braindecode.models``.
    sfreq
        Sampling rate of the signals, hertz.
    options
        Further arguments of that class.

    References
    ----------
    Schirrmeister et al., "Deep learning with convolutional neural networks for EEG decoding and
    visualization", Human Brain Mapping 2017; https://braindecode.org

    Raises
    ------
    InputError
        When braindecode cannot be imported, or has no such network, or the network does not take
        these sizes.
    """

    def __init__(
        self,
        channels: int,
        samples: int,
        embedding: int,
        subjects: list[int] | None = None,
        network: str = "ShallowFBCSPNet",
        sfreq: float = 250.0,
        options: dict[str, Any] | None = None,
        **front: Any,
    ) -> None:
        super().__init__(channels, samples, embedding, subjects, **front)
        cls = _network(network)
        sizes = {"n_chans": self.channels, "n_times": samples, "n_outputs": embedding}
        try:
            self.network = cls(**sizes, sfreq=sfreq, **(options or {}))
        except Exception as error:
            reason = " ".join(str(error).split())[:160]
            raise InputError("model", network, reason, "sizes that this network takes") from error
        self.head = nn.Identity()

    def features(self, signals: Tensor, subject: Tensor | None) -> Tensor:
        """(B, P)."""
        return self.network(signals)


def _network(name: str) -> Any:
    try:
        import braindecode.models
    except (ImportError, OSError) as error:
        reason = " ".join(str(error).split())[:160]
        expected = "braindecode: pip install 'threestudio-eeg[eeg-baselines]'"
        raise InputError("model", "braindecode", reason, expected) from error
    found = getattr(braindecode.models, name, None)
    if not isinstance(found, type):
        raise InputError("model", "network", name, "a class of braindecode.models")
    return found
