"""Root-mean-square norm (Zhang & Sennrich, arXiv 1910.07467) without a gain, by itself and behind a token shift.

A gain before a linear map is the same function as one inside that map, so none is learned.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .blocks import KEPT, blocks, empty

EPS = 1e-6


class _RMSNorm(torch.autograd.Function):
    """Keeps its output for the backward pass, which the linear map after it keeps as well, and not its input.

    Before the norm, the second half of the features comes from `back` tokens before, where that isn't 0.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, back: int, dtype: torch.dtype) -> Tensor:
        ctx.back, ctx.dtype = back, x.dtype
        y = empty(x.shape, x.new_empty(0, dtype=dtype), KEPT)
        x, normed = in_sequences(x, back), in_sequences(y, back)
        inverse = x.new_empty(*x.shape[:-1], 1, dtype=torch.promote_types(x.dtype, torch.float32))
        for own in blocks(x.shape, x.device):
            part = (taken_from(x, own, back) if back else x[own]).to(inverse.dtype)
            inverse[own] = inverse_root_mean_square(part)
            torch.mul(part, inverse[own], out=normed[own])
        ctx.save_for_backward(y, inverse)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        # y = x·r with r = (mean x² + ε)^-½, so dx = r·(dy - y·mean(y·dy))
        saved, inverse = ctx.saved_tensors
        by_input = torch.empty(saved.shape, dtype=ctx.dtype, device=saved.device)
        y, gradient, by_x = (in_sequences(t, ctx.back) for t in (saved, gradient, by_input))
        for own in blocks(y.shape, y.device):
            by_part, part = gradient[own].to(inverse.dtype), y[own].to(inverse.dtype)
            mean = (by_part * part).mean(dim=-1, keepdim=True)
            by_part = torch.addcmul(by_part, part, mean, value=-1).mul_(inverse[own])
            if ctx.back:
                give_back(by_part, by_x, own, ctx.back)
            else:
                by_x[own] = by_part
        return by_input, None, None


def in_sequences(x: Tensor, back: int) -> Tensor:
    """(b, m, d), where the tokens before a token count; else all vectors as those of one sequence."""
    return x if back else x.reshape(1, -1, x.shape[-1])


def taken_from(x: Tensor, own: tuple[slice, slice], back: int) -> Tensor:
    """Some tokens of x (b, m, d), with the second half of each from `back` tokens before it, or zeros."""
    sequences, tokens = own
    half, before = x.shape[-1] // 2, min(max(back - tokens.start, 0), tokens.stop - tokens.start)
    part = x[own].clone(memory_format=torch.contiguous_format)
    part[:, :before, half:] = 0
    part[:, before:, half:] = x[sequences, tokens.start + before - back : tokens.stop - back, half:]
    return part


def give_back(by_part: Tensor, by_x: Tensor, own: tuple[slice, slice], back: int) -> None:
    """The backward pass of `taken_from`: write what these tokens mean for by_x (b, m, d)."""
    sequences, tokens = own
    m, half = by_x.shape[1], by_x.shape[-1] // 2
    before = min(max(back - tokens.start, 0), tokens.stop - tokens.start)
    by_x[own][..., :half] = by_part[..., :half]
    by_x[sequences, tokens.start + before - back : tokens.stop - back, half:] = by_part[:, before:, half:]
    if tokens.stop == m:
        by_x[sequences, max(m - back, 0) :, half:] = 0


def inverse_root_mean_square(x: Tensor) -> Tensor:
    """Of each last-dimension vector: (…, d) → (…, 1)."""
    mean_square = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1])
    inverse: Tensor = mean_square.add_(EPS).rsqrt_()
    return inverse


def rms_norm(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Divide each last-dimension vector of `x` by its root mean square; computed in float32 or above.

    The result is of the given type, or else of that of `x`.
    """
    dtype = x.dtype if dtype is None else dtype
    if not torch.is_grad_enabled() or torch.compiler.is_compiling():
        precise = x.to(torch.promote_types(x.dtype, torch.float32))
        return torch.nn.functional.rms_norm(precise, x.shape[-1:], eps=EPS).to(dtype)
    normed: Tensor = _RMSNorm.apply(x, 0, dtype)  # type: ignore[no-untyped-call]
    return normed


def shifted_rms_norm(x: Tensor, back: int, dtype: torch.dtype) -> Tensor:
    """The norm of x (b, m, d) once the second half of each token's features comes from `back` tokens before.

    That is the token shift of a whole sequence, without a copy of it. Before the start are zeros.
    """
    if torch.compiler.is_compiling():
        stay, shift = x.chunk(2, dim=-1)
        shifted = torch.nn.functional.pad(shift, (0, 0, back, 0))[:, : x.shape[1]]
        return rms_norm(torch.cat((stay, shifted), dim=-1), dtype)
    normed: Tensor = _RMSNorm.apply(x, back, dtype)  # type: ignore[no-untyped-call]
    return normed
