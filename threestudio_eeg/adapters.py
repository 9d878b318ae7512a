"""Low-rank adapters and a camera embedding on a frozen U-Net, which stays usable without them.

VSD needs two noise predictors: the frozen teacher, and one that follows the renders. Here both
are one network: outside :meth:`CameraLoRA.forward` the U-Net is bit for bit what it was.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

PROJECTIONS = {"to_q": "to_q", "to_k": "to_k", "to_v": "to_v", "to_out": "to_out.0"}
CAMERA_NUMBERS = 16
ADAPTER = "default"


class CameraEmbedding(nn.Module):
    """MLP from a camera matrix's 16 numbers to the width of the U-Net's time embedding.

    Parameters
    ----------
    width
        Width of the time embedding, to which the output is added. 1,661,440 parameters at 1280.
    """

    def __init__(self, width: int) -> None:
        from diffusers.models.embeddings import TimestepEmbedding

        super().__init__()
        self.module = TimestepEmbedding(CAMERA_NUMBERS, width)

    def forward(self, camera: Tensor) -> Tensor:
        """Embed cameras (B, 16); the result (B, width) is float32."""
        return self.module(camera.float())


class CameraLoRA(nn.Module):
    """A U-Net's second noise predictor: rank-r LoRA (Hu et al. 2021) and camera conditioning.

    The adapters sit on the query, key, value and output projections of every attention block
    (797,184 parameters at rank 4 on Stable Diffusion 1.5's U-Net), in float32 whatever the
    network's precision. They start as the identity: ``up`` is zero. The camera embedding is added
    to the time embedding as diffusers' class embedding; all-zero camera numbers mean "no camera".

    Only the adapters and the camera embedding are parameters of this module. Their names in the
    state dict are those of threestudio's VSD checkpoints:
    ``lora_layers.layers.{i}.to_{q,k,v,out}_lora.{down,up}.weight`` and
    ``camera_embedding.module.linear_{1,2}.{weight,bias}``.

    Parameters
    ----------
    unet
        diffusers' ``UNet2DConditionModel``, frozen. It is changed in place.
    rank
        r; the adapters are ``x + up(down(x))`` without further scaling.
    """

    def __init__(self, unet: Any, rank: int = 4) -> None:
        super().__init__()
        self._frozen = (unet,)
        self._tuners = _inject(unet, rank)
        self.lora_layers = _lora_layers(unet)
        self.camera_embedding = CameraEmbedding(unet.time_embedding.linear_1.out_features)
        self.camera_embedding.to(next(unet.parameters()).device)
        self.requires_grad_(True)
        self._switch(False)

    @property
    def unet(self) -> Any:
        """The U-Net, with the adapters off."""
        return self._frozen[0]

    def forward(
        self, latents: Tensor, timesteps: Tensor, context: Tensor, camera: Tensor
    ) -> Tensor:
        """Predict the noise with adapters and camera.

        Parameters
        ----------
        latents
            (B, 4, h, w), noisy.
        timesteps
            (B,), integers.
        context
            (B, L, D).
        camera
            (B, 16); zeros mean no camera.

        Returns
        -------
        Tensor
            (B, 4, h, w).
        """
        with self._active():
            return self.unet(
                latents, timesteps, encoder_hidden_states=context, class_labels=camera
            ).sample

    @contextmanager
    def _active(self) -> Iterator[None]:
        self._switch(True)
        try:
            yield
        finally:
            self._switch(False)

    def _switch(self, on: bool) -> None:
        # peft's own enable_adapters(False) clears requires_grad, and a leaf without it drops the
        # gradient of a graph that is still to be walked. The flag alone is what forward reads.
        for tuner in self._tuners:
            tuner._disable_adapters = not on
        self.unet.class_embedding = self.camera_embedding if on else None


def _inject(unet: Any, rank: int) -> list[Any]:
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.tuners_utils import BaseTunerLayer

    config = LoraConfig(
        r=rank,
        lora_alpha=rank,
        target_modules=list(PROJECTIONS.values()),
        init_lora_weights="gaussian",
    )
    inject_adapter_in_model(config, unet, adapter_name=ADAPTER)
    return [module for module in unet.modules() if isinstance(module, BaseTunerLayer)]


def _lora_layers(unet: Any) -> nn.ModuleDict:
    blocks = [
        _attention_adapters(unet.get_submodule(name.removesuffix(".processor")))
        for name in unet.attn_processors
    ]
    return nn.ModuleDict({"layers": nn.ModuleList(blocks)})


def _attention_adapters(attention: nn.Module) -> nn.ModuleDict:
    adapters = nn.ModuleDict()
    for name, path in PROJECTIONS.items():
        tuner: Any = attention.get_submodule(path)
        pair = {"down": tuner.lora_A[ADAPTER], "up": tuner.lora_B[ADAPTER]}
        adapters[f"{name}_lora"] = nn.ModuleDict(pair).to(torch.float32)
    return adapters
