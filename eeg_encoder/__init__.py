"""EEG to image-embedding space and diffusion conditioning tokens. Knows nothing of 3D."""

__version__ = "0.1.0"
