"""Linear layers, fast on every CPU.

torch multiplies float32 matrices by MKL, which leaves AVX-512 unused on CPUs that Intel did not make. oneDNN, which
torch brings too, does not: 2.2 times as fast on an AMD EPYC (Zen 5). Shapes: I inputs, O outputs, N rows.
"""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

PACKED_FOR = 32  # rows; oneDNN's layout for them was never slower with 1 to 128
LARGEST_COPY = 2 << 30  # bytes; of larger models no second copy is made

_packed: dict[int, Tensor] = {}  # by id of the weight, within `use_packed`


class Linear(nn.Linear):
    """torch's linear layer, by `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        """x (..., I) to (..., O)."""
        return linear(x, self.weight, self.bias)


def linear(x: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """x @ weight.T + bias for x (..., I), as torch's own, with gradients."""
    if torch.compiler.is_compiling():  # first: a look at the weight's id would compile each block anew
        return nn.functional.linear(x, weight_OI, bias_O)
    if (packed := _packed.get(id(weight_OI))) is not None:
        return product(x, packed, bias_O)
    if not is_faster(x):
        return nn.functional.linear(x, weight_OI, bias_O)
    if torch.is_grad_enabled():
        result: Tensor = _OneDNNLinear.apply(x, weight_OI, bias_O)
        return result
    return product(x, weight_OI, bias_O)


def quicken(model: Any) -> Any:
    """Let the layers of a model of transformers multiply by `linear`; for everybody else they stay torch's own."""
    for layer in model.modules():
        if type(layer) is nn.Linear:
            layer.__class__ = Linear
    return model


def is_faster(x: Tensor) -> bool:
    """Whether to use `product`: for float32 on a CPU with AVX-512, outside of autocast and compilers."""
    if torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):
        return False
    return x.dtype == torch.float32 and x.device.type == "cpu" and x.numel() > 0 and _has_onednn()


def product(x: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """x @ weight.T + bias by oneDNN, without gradients; the weight may be a view, such as a transposed matrix."""
    result: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight_OI, bias_O, "none", [], "")
    return result


def packed_copies(model: Any) -> dict[int, Tensor]:
    """A model's matrices as oneDNN multiplies a few rows fastest; none where that is not for it.

    A copy costs as much time as two decoding steps.
    """
    weights = [model.head_weight, *(m.weight for m in model.modules() if isinstance(m, Linear))]
    kinds = {(p.device.type, p.dtype) for p in weights}
    is_known = kinds in ({("cpu", torch.float32)}, {("cpu", torch.bfloat16)})
    size = sum(p.numel() * p.element_size() for p in weights)
    if not is_known or not _has_onednn() or torch.is_autocast_enabled("cpu") or size > LARGEST_COPY:
        return {}
    return {id(p): torch.ops.mkldnn._reorder_linear_weight(p.detach(), PACKED_FOR) for p in weights}


@contextlib.contextmanager
def use_packed(copies: dict[int, Tensor]) -> Iterator[None]:
    """Within, `linear` takes these copies, without gradients; the weights must be as they were copied."""
    global _packed
    before, _packed = _packed, copies
    try:
        yield
    finally:
        _packed = before


@functools.cache
def _has_onednn() -> bool:
    return torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability() == "AVX512"


class _OneDNNLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight_OI)
        return product(x, weight_OI, bias_O)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight_OI = ctx.saved_tensors
        gradient_NO, x_NI = gradients[0].reshape(-1, len(weight_OI)), x.reshape(-1, x.shape[-1])
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        return (
            product(gradients[0], weight_OI.T) if needs_x else None,
            product(gradient_NO.T, x_NI.T) if needs_weight else None,
            gradient_NO.sum(0) if needs_bias else None,
        )
