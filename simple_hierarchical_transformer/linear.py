"""Linear maps that are fast for few rows, too."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.module import _has_any_global_hook

from .blocks import PASSING, empty

PARTS = 8  # into which a weight is cut; how many hardly matters (benchmarks/few_rows.py)
VERY_FEW_ROWS = 4
FEW_ROWS = 8  # where the weight has many more rows than columns
LEAST_WEIGHT = 1 << 18  # elements; a smaller weight stays in the cache, and isn't worth it


class Linear(nn.Linear):
    """`nn.Linear`, with another kernel for decoding on CPUs: the same function, up to rounding.

    A product with one row, or with few, is bound by reading the weight. On CPUs torch hands it to a kernel that reads
    with one thread; as a batch of products with parts of the weight it is read by all, two to four times as fast.
    """

    def forward(self, input: Tensor) -> Tensor:
        if is_faster_in_parts(input, self.weight):
            return linear_in_parts(input, self.weight, self.bias)
        return F.linear(input, self.weight, self.bias)


def product_dtype(x: Tensor) -> torch.dtype:
    """The type in which a linear map of `x` multiplies: that of autocast, where it is on."""
    device = x.device.type
    if x.dtype == torch.float64 or not torch.amp.is_autocast_available(device):
        return x.dtype
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def is_untouched(*maps: nn.Module, kind: type[nn.Module] | None = None) -> bool:
    """Whether these are our own, linear maps unless said otherwise, and nobody listens to them.

    Then their weights can be used without a call.
    """
    return all(
        type(each) is (kind or Linear)
        and not (each._forward_hooks or each._forward_pre_hooks or each._backward_hooks or each._backward_pre_hooks)
        for each in maps
    )


def has_own_backward(*maps: nn.Module) -> bool:
    """Whether maps are taken together with what surrounds them, with a backward pass written by hand.

    It is where gradients are kept, and no compiler fuses.
    """
    return torch.is_grad_enabled() and not torch.compiler.is_compiling() and is_untouched(*maps)


def linear_for_residual(x: Tensor, weight: Tensor) -> Tensor:
    """x @ weight.T, for x (…, d) and weight (o, d), in memory of which the streams soon let go."""
    out: Tensor = _LinearForResidual.apply(x, weight, product_dtype(x))  # type: ignore[no-untyped-call]
    return out


class _LinearForResidual(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, product: torch.dtype) -> Tensor:
        ctx.types = x.dtype, weight.dtype
        x, weight = x.to(product), weight.to(product)
        ctx.save_for_backward(x, weight)
        out = empty((*x.shape[:-1], len(weight)), x, PASSING)
        torch.mm(x.flatten(0, -2), weight.t(), out=out.view(-1, len(weight)))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        rows = gradient.to(weight.dtype).flatten(0, -2)
        x_type, weight_type = ctx.types
        by_x = (rows @ weight).view(x.shape).to(x_type) if ctx.needs_input_grad[0] else None
        by_weight = (rows.t() @ x.flatten(0, -2)).to(weight_type) if ctx.needs_input_grad[1] else None
        return by_x, by_weight, None


def returns_its_own(part: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether nobody else has what `part`, of a kind whose last map is `to_out`, returns: it may be written to."""
    if _has_any_global_hook() or not is_untouched(part, kind=kind):  # type: ignore[no-untyped-call]
        return False
    return is_untouched(part.get_submodule("to_out"))


def add_residual(out: Tensor, x: Tensor, *, in_place: bool) -> Tensor:
    """x + out; in the memory of `out`, where that is nobody else's and will do."""
    if not in_place or out.dtype != x.dtype or torch.compiler.is_compiling():
        return x + out
    return out.add_(x)


def is_faster_in_parts(x: Tensor, weight: Tensor) -> bool:
    """Whether `linear_in_parts` is made for this product; it is for float32 on CPUs, without gradients."""
    if x.device.type != "cpu" or torch.is_grad_enabled() or weight.shape[0] % PARTS:
        return False
    if x.dtype != torch.float32 or weight.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
        return False
    rows = x.numel() // weight.shape[1]
    is_tall = weight.shape[0] >= 2 * weight.shape[1]
    return 0 < rows <= (FEW_ROWS if is_tall else VERY_FEW_ROWS) and weight.numel() >= LEAST_WEIGHT


def linear_in_parts(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x @ weight.T + bias, for x (…, d) and weight (o, d), as one batch of products with parts of the weight."""
    rows, (o, d) = x.reshape(-1, x.shape[-1]), weight.shape
    products = torch.bmm(weight.view(PARTS, o // PARTS, d), rows.t().expand(PARTS, -1, -1))  # (parts, o/parts, rows)
    out = products.view(o, -1).t().reshape(*x.shape[:-1], o)
    return out if bias is None else out + bias
