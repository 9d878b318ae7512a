"""Loading networks without the libraries' remarks and bars.

What the warnings would have said and matters, weights that are missing from a file, is checked by
:func:`threestudio_eeg.pipeline.load_pipeline` itself.
"""

from __future__ import annotations

from eeg_encoder.quiet import quiet_libraries

__all__ = ["quiet_libraries"]
