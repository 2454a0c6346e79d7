"""Queries, keys and values of normed tokens: one linear map, a norm of queries and keys, and their rotation.

Shapes: `b` batch, `h` heads, `m` tokens, `d` features of a head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .blocks import KEPT, MULTIPLIED, add_product, blocks, empty
from .linear import product_dtype
from .norm import inverse_root_mean_square


def queries_keys_values(
    x: Tensor, weight: Tensor, rotary: tuple[Tensor, Tensor], heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Of x (b, m, dim), by weight (3·h·d, dim): three views (b, h, m, d) of one memory (b, m, 3, h, d).

    Queries and keys are normed and turned in place, so that each is kept once. A norm commutes with a rotation.
    """
    cos, sin = rotary
    q, k, v = _QueriesKeysValues.apply(x, weight, cos, sin, heads, product_dtype(x))  # type: ignore[no-untyped-call]
    return q, k, v


class _QueriesKeysValues(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, heads: int, product: torch.dtype
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.types = x.dtype, weight.dtype
        x, weight = x.to(product), weight.to(product)
        b, m = x.shape[:2]
        qkv = empty((b, m, 3, heads, weight.shape[0] // (3 * heads)), x, KEPT)
        torch.mm(x.reshape(b * m, -1), weight.t(), out=qkv.view(b * m, -1))
        inverse = torch.empty(b, m, 2, heads, 1, dtype=cos.dtype, device=x.device)
        for own in blocks((b, m, 2 * weight.shape[0] // 3), x.device):
            both, at = qkv[own][:, :, :2], own[1]
            precise = both.to(cos.dtype)
            inverse[own] = inverse_root_mean_square(precise)
            both.copy_(turn(precise, cos[at, None, None], sin[at, None, None]).mul_(inverse[own]))
        ctx.save_for_backward(x, weight, qkv, inverse, cos, sin)
        q, k, v = (part.transpose(1, 2) for part in qkv.unbind(2))
        return q, k, v

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, qkv, inverse, cos, sin = ctx.saved_tensors
        (b, m), width = x.shape[:2], weight.shape[0]
        by_input = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        by_weight = torch.empty_like(weight, dtype=cos.dtype) if ctx.needs_input_grad[1] else None
        gradients = tuple(gradient.transpose(1, 2) for gradient in gradients)
        by_qkv = qkv.new_empty(0)
        for index, (sequences, tokens) in enumerate(blocks((b, m, width), x.device, most=MULTIPLIED)):
            shape = sequences.stop - sequences.start, tokens.stop - tokens.start, *qkv.shape[2:]
            if by_qkv.shape != shape:
                by_qkv = qkv.new_empty(shape)
            by_qkv[:, :, 2] = gradients[2][sequences, tokens]
            for some, part in blocks((*shape[:2], width // 3), x.device):
                at = slice(tokens.start + part.start, tokens.start + part.stop)
                own = slice(sequences.start + some.start, sequences.start + some.stop), at
                for i in range(2):
                    # y = x·r, turned, with r = (mean x² + ε)^-½, so dx = r·(dy - y·mean(y·dy)), turned back
                    gradient, y = gradients[i][own].to(cos.dtype), qkv[own][:, :, i].to(cos.dtype)
                    mean = (gradient * y).mean(dim=-1, keepdim=True)
                    by_x = torch.addcmul(gradient, y, mean, value=-1).mul_(inverse[own][:, :, i])
                    by_qkv[some, part, i] = turn(by_x, cos[at, None], -sin[at, None])
            rows = by_qkv.view(-1, width)
            if by_input is not None:
                torch.mm(rows, weight, out=by_input[sequences, tokens].view(len(rows), -1))
            if by_weight is not None:
                add_product(by_weight, rows.t(), x[sequences, tokens].flatten(0, 1), is_first=index == 0)
        by_input, by_weight = (
            None if t is None else t.to(dtype) for t, dtype in zip((by_input, by_weight), ctx.types, strict=True)
        )
        return by_input, by_weight, None, None, None, None


def turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn features `i` and `i + d/2` of x (…, d) together; the sines of the first carry the minus."""
    half = x.shape[-1] // 2
    turned = x * cos
    turned[..., :half].addcmul_(x[..., half:], sin[..., :half])
    turned[..., half:].addcmul_(x[..., :half], sin[..., half:])
    return turned
