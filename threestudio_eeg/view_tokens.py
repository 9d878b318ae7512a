"""Camera tokens behind the text or EEG tokens, where a pipeline was trained with them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def append_view_tokens(
    embeddings: Tensor,
    view_encoder: Any | None,
    elevation: Tensor,
    azimuth: Tensor,
    camera_distances: Tensor,
    view_dependent_prompting: bool = True,
) -> Tensor:
    """Append view tokens on the sequence axis.

    The conditional half gets the tokens of its cameras, the unconditional half the null tokens;
    without view-dependent prompting both halves get the null tokens.

    Parameters
    ----------
    embeddings
        (2B, L, D), the conditional half first.
    view_encoder
        Module from (elevation, azimuth, camera_distances) to (B, K, D), with ``null_tokens``
        (K, D); or None, and ``embeddings`` come back as they are.
    elevation, azimuth
        (B,), degrees.
    camera_distances
        (B,), world units.

    Returns
    -------
    Tensor
        (2B, L + K, D), of the dtype and on the device of ``embeddings``.
    """
    if view_encoder is None:
        return embeddings
    null = view_encoder.null_tokens.expand(embeddings.shape[0] // 2, -1, -1)
    seen = null
    if view_dependent_prompting:
        with torch.no_grad():
            seen = view_encoder(elevation, azimuth, camera_distances)
    return torch.cat([embeddings, torch.cat([seen, null]).to(embeddings)], dim=1)
