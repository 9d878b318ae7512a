"""LoRA attention processors, which diffusers dropped, with the ``scale`` it now swallows.

threestudio's VSD puts a ``LoRAAttnProcessor`` into every attention block of a U-Net, and asks the
same U-Net for the frozen teacher's prediction with ``cross_attention_kwargs={"scale": 0.0}``.
Today's diffusers keeps an empty class of that name, and takes ``scale`` out of the arguments before
any processor sees it: with the class alone mended, the teacher would silently have the LoRA in it.
"""

from __future__ import annotations

import functools
import inspect
from contextvars import ContextVar
from typing import Any

from torch import Tensor, nn

from . import patching
from .remedy import Remedy

PROJECTIONS = ("to_q", "to_k", "to_v", "to_out")
_scale: ContextVar[float] = ContextVar("lora_scale", default=1.0)


class LowRank(nn.Module):
    """``up(down(x))`` in its own precision, given back in that of ``x`` (Hu et al. 2021).

    It starts as zero: ``up`` is zero, ``down`` is normal with standard deviation 1 / rank.
    """

    def __init__(self, in_features: int, out_features: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Linear(in_features, rank, bias=False)
        self.up = nn.Linear(rank, out_features, bias=False)
        nn.init.normal_(self.down.weight, std=1 / rank)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.down(x.to(self.down.weight.dtype))).to(x.dtype)


class LoRAAttnProcessor(nn.Module):
    """Attention with a low-rank addition to each of its four projections.

    The attention itself is diffusers' own processor, run on the same block with its projections
    wrapped; at scale 0 it is run on the block as it is.

    Parameters
    ----------
    hidden_size
        Width of the block.
    cross_attention_dim
        Width of the context; ``None`` for self-attention.
    rank
        Of each addition.
    network_alpha
        Multiplies the additions by ``network_alpha / rank``.
    """

    def __init__(
        self,
        hidden_size: int,
        cross_attention_dim: int | None = None,
        rank: int = 4,
        network_alpha: float | None = None,
        **_: Any,
    ) -> None:
        from diffusers.models.attention_processor import AttnProcessor2_0

        super().__init__()
        context = cross_attention_dim or hidden_size
        self.to_q_lora = LowRank(hidden_size, hidden_size, rank)
        self.to_k_lora = LowRank(context, hidden_size, rank)
        self.to_v_lora = LowRank(context, hidden_size, rank)
        self.to_out_lora = LowRank(hidden_size, hidden_size, rank)
        self.strength = 1.0 if network_alpha is None else network_alpha / rank
        self._plain = AttnProcessor2_0()

    def forward(
        self,
        attn: nn.Module,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        scale = _scale.get() * self.strength
        block: Any = attn if scale == 0 else _Adapted(attn, self, scale)
        return self._plain(block, hidden_states, encoder_hidden_states, attention_mask, temb)


class _Adapted:
    """An attention block as its processor sees it, with low-rank additions."""

    def __init__(self, attention: Any, adapters: LoRAAttnProcessor, scale: float) -> None:
        self._attention = attention
        for name in PROJECTIONS[:3]:
            setattr(self, name, self._sum(getattr(attention, name), adapters, name, scale))
        first, *rest = attention.to_out
        self.to_out = [self._sum(first, adapters, "to_out", scale), *rest]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._attention, name)

    @staticmethod
    def _sum(projection: Any, adapters: LoRAAttnProcessor, name: str, scale: float) -> Any:
        adapter = getattr(adapters, f"{name}_lora")
        return lambda x: projection(x) + scale * adapter(x)


def reason(device: str) -> str | None:
    from diffusers.models import attention_processor

    real = getattr(attention_processor, "LoRAAttnProcessor", None)
    if real is None:
        return "this diffusers has no LoRAAttnProcessor"
    if real is LoRAAttnProcessor:
        return "diffusers' own LoRAAttnProcessor was replaced"
    if "hidden_size" not in inspect.signature(real).parameters:
        return "this diffusers' LoRAAttnProcessor is an empty class"
    return None


def apply(device: str) -> None:
    from diffusers import UNet2DConditionModel
    from diffusers.models import attention_processor

    patching.set_attribute(attention_processor, "LoRAAttnProcessor", LoRAAttnProcessor)
    forward = _remembering_scale(UNet2DConditionModel.forward)
    patching.set_attribute(UNet2DConditionModel, "forward", forward)


def _remembering_scale(forward: Any) -> Any:
    @functools.wraps(forward)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
        asked = kwargs.get("cross_attention_kwargs") or {}
        if "scale" not in asked:
            return forward(self, *args, **kwargs)
        token = _scale.set(float(asked["scale"]))
        try:
            return forward(self, *args, **kwargs)
        finally:
            _scale.reset(token)

    return wrapped


REMEDY = Remedy(
    name="lora-processors",
    stands_in_for="diffusers' LoRA attention processors, for the guidances that train one: the "
    "same parameters, and cross_attention_kwargs' scale reaches them.",
    reason=reason,
    apply=apply,
    hint="diffusers<0.20, which needs an old Python and an old torch",
)
