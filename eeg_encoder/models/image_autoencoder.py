"""A frozen image tower that sees part of a picture, and a decoder that draws the rest."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from .masked_autoencoder import PatchDecoder

TOWERS = ("vit_mae", "clip_vision_model")


class ImageAutoencoder(nn.Module):
    """Pictures (B, 3, H, W) to tokens of the visible patches, and those back to patches.

    Parameters
    ----------
    tower
        A transformers ``ViTMAEModel`` or ``CLIPVisionModel`` (with or without projection); frozen.
        A pipeline folder's ``image_encoder`` is one.
    decoder_width, decoder_depth, decoder_heads, mlp_ratio
        Of the decoder; the published one has 512, 6 blocks, 16 and 4.

    Raises
    ------
    InputError
        When the tower is of another kind.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(
        self,
        tower: nn.Module,
        decoder_width: int = 512,
        decoder_depth: int = 6,
        decoder_heads: int = 16,
        mlp_ratio: float = 4.0,
        mean: tuple[float, float, float] = (0.485, 0.456, 0.406),
        deviation: tuple[float, float, float] = (0.229, 0.224, 0.225),
    ) -> None:
        super().__init__()
        sizes: Any = tower.config
        if sizes.model_type not in TOWERS:
            raise InputError("joint stage", "tower", sizes.model_type, " or ".join(TOWERS))
        self.tower = tower.requires_grad_(False).eval()
        self.kind = sizes.model_type
        self.size, self.patch = sizes.image_size, sizes.patch_size
        self.width, self.n_tokens = sizes.hidden_size, (self.size // self.patch) ** 2
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("deviation", torch.tensor(deviation)[:, None, None], persistent=False)
        self.decoder = PatchDecoder(
            self.n_tokens,
            self.width,
            3 * self.patch**2,
            decoder_width,
            decoder_depth,
            decoder_heads,
            mlp_ratio,
        )

    def train(self, mode: bool = True) -> ImageAutoencoder:
        """Training mode for the decoder only: the tower stays as it is."""
        super().train(mode)
        self.tower.eval()
        return self

    def normalised(self, pictures: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in [0, 1] resized to the tower's size and standardised."""
        if pictures.shape[-2:] != (self.size, self.size):
            pictures = nn.functional.interpolate(
                pictures, (self.size, self.size), mode="bicubic", antialias=True
            ).clamp(0, 1)
        return (pictures - self.mean) / self.deviation

    def encode(self, pictures: Tensor, hidden: Tensor | None = None) -> Tensor:
        """(B, 3, H, W) in [0, 1] to (B, 1 + visible, width), class token first.

        Parameters
        ----------
        hidden
            (B, n_tokens) bool, patches left out; the same number in each row.
        """
        pixels = self.normalised(pictures)
        embed, layers = (
            (self._embed_mae, self._layers_mae)
            if self.kind == "vit_mae"
            else (self._embed_clip, self._layers_clip)
        )
        tokens = embed(pixels)
        if hidden is not None:
            patches = tokens[:, 1:][~hidden].reshape(len(tokens), -1, tokens.shape[2])
            tokens = torch.cat([tokens[:, :1], patches], dim=1)
        return layers(tokens)

    def patches(self, pictures: Tensor) -> Tensor:
        """What the decoder is to draw: standardised pictures as (B, n_tokens, 3 p p)."""
        p, side = self.patch, self.size // self.patch
        pixels = self.normalised(pictures).reshape(-1, 3, side, p, side, p)
        return pixels.permute(0, 2, 4, 3, 5, 1).reshape(len(pictures), self.n_tokens, -1)

    def pictures(self, patches: Tensor) -> Tensor:
        """Inverse of :meth:`patches`: (B, n_tokens, 3 p p) to pictures (B, 3, H, W) in [0, 1]."""
        p, side = self.patch, self.size // self.patch
        pixels = patches.reshape(-1, side, side, p, p, 3).permute(0, 5, 1, 3, 2, 4)
        pixels = pixels.reshape(-1, 3, self.size, self.size)
        return (pixels * self.deviation + self.mean).clamp(0, 1)

    def _embed_mae(self, pixels: Tensor) -> Tensor:
        embeddings: Any = self.tower.embeddings
        positions = embeddings.position_embeddings
        tokens = embeddings.patch_embeddings(pixels) + positions[:, 1:]
        cls = (embeddings.cls_token + positions[:, :1]).expand(len(tokens), -1, -1)
        return torch.cat([cls, tokens], dim=1)

    def _layers_mae(self, tokens: Tensor) -> Tensor:
        tower: Any = self.tower
        # transformers 4 keeps the layers in tower.encoder.layer, 5 in tower.layers
        layers = tower.layers if hasattr(tower, "layers") else tower.encoder.layer
        for layer in layers:
            tokens = _hidden_state(layer(tokens))
        return tower.layernorm(tokens)

    def _embed_clip(self, pixels: Tensor) -> Tensor:
        vision = self._vision()
        return vision.pre_layrnorm(vision.embeddings(pixels))

    def _layers_clip(self, tokens: Tensor) -> Tensor:
        vision = self._vision()
        return vision.post_layernorm(_hidden_state(vision.encoder(inputs_embeds=tokens)))

    def _vision(self) -> Any:
        return getattr(self.tower, "vision_model", self.tower)


def load_tower(folder: str) -> nn.Module:
    """A ViT-MAE or CLIP image tower from a local folder or the hub.

    Raises
    ------
    InputError
        When there is none.
    """
    from transformers import AutoConfig, CLIPVisionModel, ViTMAEModel

    try:
        kind = AutoConfig.from_pretrained(folder).model_type
        if kind == "vit_mae":
            return ViTMAEModel.from_pretrained(folder)
        if kind in ("clip", "clip_vision_model"):
            return CLIPVisionModel.from_pretrained(folder)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:160]
        expected = "a ViT-MAE or CLIP model of transformers"
        raise InputError(folder, "image tower", reason, expected) from error
    raise InputError(folder, "image tower", kind, " or ".join(TOWERS))


def _hidden_state(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]
