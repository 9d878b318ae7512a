"""From volts to what the encoder reads: explicit, fitted on training trials, kept beside it."""

from .augmentation import Augmentation, mix_repetitions
from .montage import electrode_places, spline_matrix
from .pipeline import Preprocessing, PreprocessingSettings

__all__ = [
    "Augmentation",
    "Preprocessing",
    "PreprocessingSettings",
    "electrode_places",
    "mix_repetitions",
    "spline_matrix",
]
