"""Figures of an encoder: metrics, tiers, tables with provenance, plots."""

from .decoding import category_centres, evaluate, nearest_category
from .reconstruction import encoder_reconstruction, reconstruction
from .retrieval import n_way, retrieval
from .tables import sign_test, subject_table
from .tiers import TIERS

__all__ = [
    "TIERS",
    "category_centres",
    "encoder_reconstruction",
    "evaluate",
    "n_way",
    "nearest_category",
    "reconstruction",
    "retrieval",
    "sign_test",
    "subject_table",
]
