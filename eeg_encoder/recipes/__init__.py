"""Decoders with a closed form: no training loop, few settings, hard to beat on little data."""

from .encoding_model import EncodingModel
from .riemannian import ErpCovariances, LinearDecoder, RiemannianCommittee, RiemannianDecoder

__all__ = [
    "EncodingModel",
    "ErpCovariances",
    "LinearDecoder",
    "RiemannianCommittee",
    "RiemannianDecoder",
]
