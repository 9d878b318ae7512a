"""Small multilayer perceptrons without bias: ReLU between matrices, one or two hidden layers.

:func:`reference` says what is computed; :mod:`.small_mlp_triton` is the same on a GPU with the
hidden layers in registers: what reaches memory is the input, the output and their gradients.

References
----------
T. Müller, F. Rousselle, J. Novák, A. Keller, Real-time Neural Radiance Caching for Path Tracing,
ACM TOG 2021, section 4: the fully fused perceptron.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from eeg_encoder.errors import InputError

PRECISIONS = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
WIDTHS = (16, 32, 64, 128)
MAX_INPUT, MAX_OUTPUT = 128, 64


def reference(x: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """Map (N, D) by matrices (H, D), (H, H) where there is a second layer, (O, H): to (N, O)."""
    *hidden, last = weights
    for weight in hidden:
        x = F.relu(F.linear(x, weight))
    return F.linear(x, last)


def small_mlp(x: Tensor, weights: Sequence[Tensor], precision: str = "float32") -> Tensor:
    """:func:`reference` in one Triton kernel; differentiable once, in x and in the weights.

    Parameters
    ----------
    x
        Shape (N, D), any strides: a grid's output is stored feature by feature.
    weights
        As for :func:`reference`; H is 16, 32, 64 or 128.
    precision
        What x, the weights and the hidden layers are rounded to before a product: ``float16``,
        ``bfloat16``, or ``float32``, where it is TensorFloat-32 as torch's switch says. Sums are
        single precision. Gradients are scaled block by block, so that small ones survive.

    Returns
    -------
    Tensor
        Shape (N, O), single precision.

    Raises
    ------
    InputError
        When the kernel cannot take these sizes, or the precision is unknown.
    """
    if precision not in PRECISIONS:
        raise InputError("small mlp", "precision", precision, f"one of {', '.join(PRECISIONS)}")
    check_sizes([tuple(weight.shape) for weight in weights])
    from .small_mlp_triton import apply

    return apply(x, list(weights), precision)


def check_sizes(shapes: Sequence[tuple[int, ...]]) -> None:
    """Raise InputError unless the kernel takes matrices of these shapes (outputs, inputs)."""
    (width, n_inputs), n_outputs = shapes[0], shapes[-1][0]
    where, expected = "small mlp", "with torch as backend any size goes"
    if len(shapes) not in (2, 3):
        found = f"{len(shapes) - 1} hidden layers"
        raise InputError(where, "n_hidden_layers", found, f"1 or 2; {expected}")
    if width not in WIDTHS:
        widths = ", ".join(map(str, WIDTHS))
        raise InputError(where, "n_neurons", width, f"one of {widths}; {expected}")
    if n_inputs > MAX_INPUT or n_outputs > MAX_OUTPUT:
        at_most = f"at most {MAX_INPUT} and {MAX_OUTPUT}; {expected}"
        raise InputError(where, "inputs and outputs", (n_inputs, n_outputs), at_most)
