"""Root-mean-square norm (Zhang & Sennrich, arXiv 1910.07467) without a gain.

A gain before a linear map is the same function as one inside that map, so none is learned.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

EPS = 1e-6


class _RMSNorm(torch.autograd.Function):
    """Keeps its output for the backward pass, which the linear map after it keeps as well, and not its input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        mean_square = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square() / x.shape[-1]
        inverse = (mean_square + EPS).rsqrt()
        y: Tensor = x * inverse
        ctx.save_for_backward(y, inverse)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        # y = x·r with r = (mean x² + ε)^-½, so dx = r·(dy - y·mean(y·dy))
        y, inverse = ctx.saved_tensors
        result: Tensor = (gradient - y * (gradient * y).mean(dim=-1, keepdim=True)) * inverse
        return result


def rms_norm(x: Tensor) -> Tensor:
    """Divide each last-dimension vector of `x` by its root mean square; computed in float32 or above."""
    precise = x.to(torch.promote_types(x.dtype, torch.float32))
    if not torch.is_grad_enabled():  # one kernel less to call than autograd's wrapping takes
        return torch.nn.functional.rms_norm(precise, x.shape[-1:], eps=EPS).to(x.dtype)
    normed: Tensor = _RMSNorm.apply(precise)  # type: ignore[no-untyped-call]
    return normed.to(x.dtype)
