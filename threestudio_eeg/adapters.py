"""Low-rank adapters and a camera embedding on a frozen U-Net, which stays usable without them.

VSD needs two noise predictors: the frozen teacher, and one that follows the renders. Here both
are one network: outside :meth:`CameraLoRA.forward` the U-Net is bit for bit what it was. A batch
may hold samples of both, and of several objects with adapters of their own (:class:`Route`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

PROJECTIONS = {"to_q": "to_q", "to_k": "to_k", "to_v": "to_v", "to_out": "to_out.0"}
CAMERA_NUMBERS = 16


class Route:
    """Which samples of a batch go through which adapter; one object for all layers of a network.

    Attributes
    ----------
    first
        Samples before it see the bare network, the others adapters; None where all are bare.
    which
        Adapter of each sample from ``first`` on, (B - first,); None where there is only one.
    weights
        The adapters' weights in the precision of the network, by the weights themselves; those
        that are not there are taken as they are.
    """

    def __init__(self) -> None:
        self.first: int | None = None
        self.which: Tensor | None = None
        self.weights: Mapping[Tensor, Tensor] = {}

    @contextmanager
    def set(
        self, first: int | None, which: Tensor | None, weights: Mapping[Tensor, Tensor]
    ) -> Iterator[None]:
        """Hold this route for a while."""
        before = self.first, self.which, self.weights
        self.first, self.which, self.weights = first, which, weights
        try:
            yield
        finally:
            self.first, self.which, self.weights = before


def converted(weights: Sequence[Tensor], dtype: torch.dtype) -> dict[Tensor, Tensor]:
    """Weights in another precision, by a few kernels for all of them; nothing when they have it."""
    if all(weight.dtype == dtype for weight in weights):
        return {}
    return dict(zip(weights, _Converted.apply(dtype, *weights), strict=True))


class _Converted(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *weights: Tensor) -> tuple[Tensor, ...]:
        ctx.likes = [(weight.shape, weight.numel()) for weight in weights]
        ctx.dtype = weights[0].dtype
        return _pieces(torch.cat([weight.flatten() for weight in weights]).to(dtype), ctx.likes)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        flat = torch.cat([gradient.flatten() for gradient in gradients]).to(ctx.dtype)
        return None, *_pieces(flat, ctx.likes)


def _pieces(flat: Tensor, likes: Sequence[tuple[torch.Size, int]]) -> tuple[Tensor, ...]:
    pieces = flat.split([numel for _, numel in likes])
    return tuple(piece.view(shape) for piece, (shape, _) in zip(pieces, likes, strict=True))


class StackedLinear(nn.Module):
    """n linear maps of the same size, of which every sample goes through its own.

    ``weight`` is (n, out, in) and ``bias`` (n, out); each map starts as an ``nn.Linear``.
    """

    def __init__(self, n: int, inputs: int, outputs: int, bias: bool) -> None:
        super().__init__()
        maps = [nn.Linear(inputs, outputs, bias) for _ in range(n)]
        self.weight = nn.Parameter(torch.stack([m.weight.detach() for m in maps]))
        self.bias = nn.Parameter(torch.stack([m.bias.detach() for m in maps])) if bias else None

    def forward(self, x: Tensor, which: Tensor) -> Tensor:
        """Map x (B, L, in), sample b by map ``which[b]``, to (B, L, out), in the precision of x."""
        out = _product(x, self.weight, which)
        if self.bias is None:
            return out
        return out + self.bias.index_select(0, which).to(x.dtype)[:, None]


def _product(x: Tensor, weight: Tensor, which: Tensor | None) -> Tensor:
    """x (B, L, in) times one matrix (out, in), or each sample's own of (n, out, in), transposed."""
    if weight.dim() == 2:
        return F.linear(x, weight.to(x.dtype))
    assert which is not None
    return x @ weight.index_select(0, which).to(x.dtype).mT


def _linear(n: int, inputs: int, outputs: int, bias: bool = False) -> nn.Module:
    """One map has threestudio's shapes in the state dict: no dimension for the adapter."""
    if n == 1:
        return nn.Linear(inputs, outputs, bias)
    return StackedLinear(n, inputs, outputs, bias)


def _map(linear: Any, x: Tensor, which: Tensor | None) -> Tensor:
    """Apply one map, or each sample's own, in the precision of x (B, L, in)."""
    if isinstance(linear, StackedLinear):
        assert which is not None
        return linear(x, which)
    bias = None if linear.bias is None else linear.bias.to(x.dtype)
    return F.linear(x, linear.weight.to(x.dtype), bias)


class AdaptedLinear(nn.Module):
    """A frozen linear layer with low-rank adapters beside it (Hu et al. 2021).

    ``base(x)`` for the samples that the route leaves bare, ``base(x) + up(down(x))`` for the
    others. The adapters' weights are float32; their product is computed in the precision of x.
    They start as peft's with ``init_lora_weights="gaussian"``: ``up`` is zero.

    Parameters
    ----------
    base
        The layer, from (B, L, in) to (B, L, out).
    rank
        r, the width between ``down`` and ``up``.
    n
        Number of adapters.
    route
        Which sample goes through which.
    """

    def __init__(self, base: nn.Linear, rank: int, n: int, route: Route) -> None:
        super().__init__()
        self.base = base
        self.down = _linear(n, base.in_features, rank)
        self.up = _linear(n, rank, base.out_features)
        for parameter in self.down.parameters():
            nn.init.normal_(parameter, std=1 / rank)
        for parameter in self.up.parameters():
            nn.init.zeros_(parameter)
        self.to(base.weight.device)
        self._route = route

    def forward(self, x: Tensor) -> Tensor:
        """Map x (B, L, in) to (B, L, out)."""
        first = self._route.first
        if first is None:
            return self.base(x)  # type: ignore[no-any-return]
        down, up = self._weights(self.down), self._weights(self.up)
        if down.dim() == 2 and (first == 0 or not torch.is_grad_enabled()):
            return self._added_in_place(x, first, down, up)
        out = self.base(x)
        which = self._route.which
        delta = _product(_product(x[first:], down, which), up, which)
        return out + delta if first == 0 else torch.cat([out[:first], out[first:] + delta])

    def _weights(self, linear: Any) -> Tensor:
        """In the precision of the network, where the route has them."""
        weight: Tensor = linear.weight
        return self._route.weights.get(weight, weight)

    def _added_in_place(self, x: Tensor, first: int, down: Tensor, up: Tensor) -> Tensor:
        """One adapter's product added to the layer's by the product itself."""
        rows, down, up = x.reshape(-1, x.shape[-1]), down.to(x.dtype), up.to(x.dtype)
        base, begin = self.base, first * x.shape[1]
        if torch.is_grad_enabled() and type(base) is nn.Linear and not base.weight.requires_grad:
            out: Tensor = _Adapted.apply(rows, base.weight, base.bias, down, up)
        else:
            out = base(rows)
            own = out if begin == 0 else out[begin:]
            own.addmm_(F.linear(rows[begin:], down), up.t())
        return out.view(*x.shape[:-1], -1)


class _Adapted(torch.autograd.Function):
    """``x weight^T + bias + x down^T up^T`` with a frozen weight; sums are part of the products."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor
    ) -> Tensor:
        low = F.linear(x, down)
        ctx.save_for_backward(x, weight, down, up, low)
        return F.linear(x, weight, bias).addmm_(low, up.t())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, down, up, low = ctx.saved_tensors
        of_low = gradients[0] @ up
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = (gradients[0] @ weight).addmm_(of_low, down)
        return of_x, None, None, of_low.t() @ x, gradients[0].t() @ low


class CameraEmbedding(nn.Module):
    """MLP from a camera matrix's 16 numbers to the width of the U-Net's time embedding.

    Parameters
    ----------
    width
        Width of the time embedding, to which the output is added. 1,661,440 parameters at 1280.
    n
        Number of embeddings, one an adapter.
    """

    def __init__(self, width: int, n: int = 1) -> None:
        super().__init__()
        self.module = nn.ModuleDict(
            {
                "linear_1": _linear(n, CAMERA_NUMBERS, width, bias=True),
                "linear_2": _linear(n, width, width, bias=True),
            }
        )

    def forward(self, camera: Tensor, which: Tensor | None = None) -> Tensor:
        """Embed cameras (B, 16); the result (B, width) is float32."""
        hidden = _map(self.module["linear_1"], camera.float()[:, None], which)
        return _map(self.module["linear_2"], F.silu(hidden), which)[:, 0]


class RoutedCameras(nn.Module):
    """The camera embedding as a U-Net's class embedding: zero for the samples left bare."""

    def __init__(self, embedding: CameraEmbedding, route: Route) -> None:
        super().__init__()
        self.embedding = embedding
        self._route = route

    def forward(self, camera: Tensor) -> Tensor:
        """Embed cameras (B - first, 16) of the samples with adapters; the result is (B, width)."""
        embedded = self.embedding(camera, self._route.which)
        return F.pad(embedded, (0, 0, self._route.first or 0, 0))


class CameraLoRA(nn.Module):
    """A U-Net's second noise predictor: rank-r LoRA and camera conditioning.

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
    n_adapters
        Adapters, camera embeddings included, for as many objects side by side. With more than one
        every tensor in the state dict has a first dimension for the adapter.
    """

    def __init__(self, unet: Any, rank: int = 4, n_adapters: int = 1) -> None:
        super().__init__()
        self._frozen = (unet,)
        self._route = Route()
        self.lora_layers = _inject(unet, rank, n_adapters, self._route)
        self.camera_embedding = CameraEmbedding(
            unet.time_embedding.linear_1.out_features, n_adapters
        )
        self.camera_embedding.to(next(unet.parameters()).device)
        self.requires_grad_(True)
        self._class_embedding = (RoutedCameras(self.camera_embedding, self._route),)

    @property
    def unet(self) -> Any:
        """The U-Net, with the adapters off."""
        return self._frozen[0]

    def forward(
        self,
        latents: Tensor,
        timesteps: Tensor,
        context: Tensor,
        camera: Tensor,
        which: Tensor | None = None,
        bare: int = 0,
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
            (B - bare, 16); zeros mean no camera.
        which
            (B - bare,): the adapter of each sample; needed with several adapters only.
        bare
            Samples at the front of the batch that see neither adapters nor camera: the teacher's.

        Returns
        -------
        Tensor
            (B, 4, h, w).
        """
        weights = converted(list(self.lora_layers.parameters()), latents.dtype)
        with self._active(bare, which, weights):
            return self.unet(
                latents, timesteps, encoder_hidden_states=context, class_labels=camera
            ).sample

    def checkpointing(self) -> Callable[..., Any]:
        """Return what diffusers takes as its checkpointing function, for this network.

        The activations of a block are computed again in the backward pass, when the adapters are
        off already: the route of the forward pass is held for that time.
        """
        from torch.utils.checkpoint import checkpoint

        def run(block: Any, *arguments: Any) -> Any:
            held = self._route.first, self._route.which, self._route.weights
            return checkpoint(
                block.__call__,
                *arguments,
                use_reentrant=False,
                preserve_rng_state=False,
                context_fn=lambda: (nullcontext(), self._route.set(*held)),
            )

        return run

    @contextmanager
    def _active(
        self, bare: int, which: Tensor | None, weights: Mapping[Tensor, Tensor]
    ) -> Iterator[None]:
        with self._route.set(bare, which, weights):
            self.unet.class_embedding = self._class_embedding[0]
            try:
                yield
            finally:
                self.unet.class_embedding = None


def adapter_state(state: dict[str, Tensor], adapter: int) -> dict[str, Tensor]:
    """State dict of one adapter, as a network with only one has it, out of one with several."""
    return {name: tensor[adapter] for name, tensor in state.items()}


def _inject(unet: Any, rank: int, n: int, route: Route) -> nn.ModuleDict:
    """Put the adapters into every attention block; return them by block and projection."""
    paths = tuple(PROJECTIONS.values())
    found = [name for name, _ in unet.named_modules() if name.endswith(paths)]
    for name in found:
        parent, _, child = name.rpartition(".")
        adapted = AdaptedLinear(unet.get_submodule(name), rank, n, route)
        setattr(unet.get_submodule(parent), child, adapted)
    blocks = [unet.get_submodule(name.removesuffix(".processor")) for name in unet.attn_processors]
    return nn.ModuleDict({"layers": nn.ModuleList(_adapters_of(block) for block in blocks)})


def _adapters_of(attention: nn.Module) -> nn.ModuleDict:
    adapters = nn.ModuleDict()
    for name, path in PROJECTIONS.items():
        adapted: Any = attention.get_submodule(path)
        adapters[f"{name}_lora"] = nn.ModuleDict({"down": adapted.down, "up": adapted.up})
    return adapters
