"""Linear maps with a squared ReLU between them (So et al., Primer, arXiv 2109.08668)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .blocks import CACHED, MULTIPLIED, PASSING, add_product, blocks, empty
from .linear import product_dtype

TINY = 1e-30


def squared_relu(x: Tensor) -> Tensor:
    """max(x, 0)², element by element."""
    return x.relu().square() if torch.is_grad_enabled() else x.relu().square_()


def linear_squared_relu_linear(
    inputs: Sequence[Tensor],
    weights: Sequence[Tensor],
    to_out: Tensor,
    bias: Tensor | None = None,
    ratios: Sequence[int] | None = None,
    recompute: bool = False,
) -> Tensor:
    """squared_relu(Σ xᵢ·Wᵢᵀ + bias) · to_outᵀ, where each row of xᵢ·Wᵢᵀ is repeated `ratios[i]` times: (b, m, d_out).

    What is between the maps is computed in place, and kept once or not at all.

    Args:
        inputs: the first of shape (b, m, d₀), and others (b, ceil(m / ratio), dᵢ).
        weights: (k, dᵢ) each.
        to_out: (d_out, k).
        bias: (k,).
        ratios: of the inputs, that of the first 1; all 1 by default.
        recompute: where what is between the maps is larger than what a CPU works on at a time, keep nothing of it, and
            compute it again, block by block, for the backward pass.
    """
    ratios = [1] * len(inputs) if ratios is None else ratios
    out: Tensor = _LinearSquaredReLULinear.apply(  # type: ignore[no-untyped-call]
        product_dtype(inputs[0]), ratios, recompute, bias, to_out, *inputs, *weights
    )
    return out


def is_recomputed(elements: int, device: torch.device) -> bool:
    """Whether `recompute` makes so many elements between the maps be computed again."""
    return device.type == "cpu" and elements > MULTIPLIED


class _LinearSquaredReLULinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        product: torch.dtype,
        ratios: Sequence[int],
        recompute: bool,
        bias: Tensor | None,
        to_out: Tensor,
        *others: Tensor,
    ) -> Tensor:
        ctx.types = tuple(None if t is None else t.dtype for t in (bias, to_out, *others))
        ctx.ratios = ratios
        bias = None if bias is None else bias.to(product)
        to_out, *others_cast = (t.to(product) for t in (to_out, *others))
        inputs, weights = others_cast[: len(ratios)], others_cast[len(ratios) :]
        (b, m), k, device = inputs[0].shape[:2], to_out.shape[1], to_out.device
        ctx.keeps = not (recompute and is_recomputed(b * m * k, device))
        everything = [(slice(0, b), slice(0, m))]
        parts = blocks((b, m, k), device, most=MULTIPLIED, multiple=max(ratios))
        out = empty((b, m, len(to_out)), to_out, PASSING)
        hidden = to_out.new_empty(0)
        for own in everything if ctx.keeps else parts:
            hidden = activated(hidden, own, inputs, weights, bias, ratios)
            torch.mm(hidden, to_out.t(), out=out[own].view(len(hidden), -1))
        ctx.save_for_backward(hidden if ctx.keeps else None, bias, to_out, *inputs, *weights)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        hidden, bias, to_out, *others = ctx.saved_tensors
        ratios, (needs_bias, needs_to_out, *needed) = ctx.ratios, ctx.needs_input_grad[3:]
        inputs, weights = others[: len(ratios)], others[len(ratios) :]
        (b, m), k = inputs[0].shape[:2], to_out.shape[1]
        gradient = gradient.to(to_out.dtype)
        precise = torch.promote_types(to_out.dtype, torch.float32)
        by_to_out = to_out.new_empty(to_out.shape, dtype=precise) if needs_to_out else None
        by_bias = to_out.new_zeros(k, dtype=precise) if needs_bias else None
        by_inputs = [torch.empty_like(x) if is_needed else None for x, is_needed in zip(inputs, needed, strict=False)]
        by_weights = [
            weight.new_empty(weight.shape, dtype=precise) if is_needed else None
            for weight, is_needed in zip(weights, needed[len(ratios) :], strict=True)
        ]
        squared, by_hidden = to_out.new_empty(0), to_out.new_empty(0)
        for index, own in enumerate(blocks((b, m, k), to_out.device, most=MULTIPLIED, multiple=max(ratios))):
            is_first = index == 0
            rows = gradient[own].flatten(0, 1)
            if ctx.keeps:
                squared = hidden.view(b, m, k)[own].flatten(0, 1)
            else:
                squared = activated(squared, own, inputs, weights, bias, ratios)
            if len(by_hidden) != len(rows):
                by_hidden = rows.new_empty(len(rows), k)
            torch.mm(rows, to_out, out=by_hidden)
            if by_to_out is not None:
                add_product(by_to_out, rows.t(), squared, is_first=is_first)
            for by_part, part in zip(cached(by_hidden), cached(squared), strict=True):
                by_part *= slope(part)
            if by_bias is not None:
                by_bias += by_hidden.sum(dim=0)
            for x, weight, by_input, by_weight, ratio in zip(
                inputs, weights, by_inputs, by_weights, ratios, strict=True
            ):
                sequences, tokens = own
                if ratio > 1:
                    summed = sum_repeated(by_hidden.view(sequences.stop - sequences.start, -1, k), ratio).flatten(0, 1)
                    tokens = slice(tokens.start // ratio, -(-tokens.stop // ratio))
                else:
                    summed = by_hidden
                if by_input is not None:
                    torch.mm(summed, weight, out=by_input[sequences, tokens].view(len(summed), -1))
                if by_weight is not None:
                    own_rows = x[sequences, tokens].flatten(0, 1)
                    add_product(by_weight, summed.t(), own_rows, is_first=is_first)
        results = (by_bias, by_to_out, *by_inputs, *by_weights)
        typed = [None if t is None else t.to(dtype) for t, dtype in zip(results, ctx.types, strict=True)]
        return None, None, None, *typed


def activated(
    memory: Tensor,
    own: tuple[slice, slice],
    inputs: Sequence[Tensor],
    weights: Sequence[Tensor],
    bias: Tensor | None,
    ratios: Sequence[int],
) -> Tensor:
    """What is between the maps, of some tokens (n, k): in `memory`, if that is of this shape."""
    sequences, tokens = own
    first, weight = inputs[0][own], weights[0]
    (b, m), k = first.shape[:2], len(weight)
    hidden = memory if memory.shape == (b * m, k) else first.new_empty(b * m, k)
    rows = first.flatten(0, 1)
    if bias is None:
        torch.mm(rows, weight.t(), out=hidden)
    else:
        torch.addmm(bias, rows, weight.t(), out=hidden)
    for x, weight, ratio in zip(inputs[1:], weights[1:], ratios[1:], strict=True):
        part = x[sequences, tokens.start // ratio : -(-tokens.stop // ratio)]
        rows = part.flatten(0, 1)
        if ratio == 1:
            torch.addmm(hidden, rows, weight.t(), out=hidden)
        else:
            add_repeated(hidden.view(b, m, k), (rows @ weight.t()).view(b, part.shape[1], k), ratio)
    for some in cached(hidden):
        some.relu_().square_()
    return hidden


def slope(squared: Tensor) -> Tensor:
    """Of the squared ReLU, 2·max(x, 0), given its result."""
    # the square root itself is ten times slower than its inverse on CPUs, and 1e-30 is 0 in float16
    precise = squared.to(torch.promote_types(squared.dtype, torch.float32))
    return precise.clamp_min(TINY).rsqrt_().mul_(precise).mul_(2).to(squared.dtype)


def cached(x: Tensor) -> Iterator[Tensor]:
    """Some rows of x (n, k) at a time, as many as a CPU's cache holds; all elsewhere."""
    size = max(CACHED // x.shape[1], 1) if x.device.type == "cpu" else max(len(x), 1)
    return (x[start : start + size] for start in range(0, len(x), size))


def add_repeated(sums: Tensor, rows: Tensor, ratio: int) -> None:
    """Add row `j // ratio` of rows (b, ceil(m / ratio), k) to row `j` of sums (b, m, k)."""
    b, m, k = sums.shape
    whole = m // ratio
    sums[:, : whole * ratio].view(b, whole, ratio, k).add_(rows[:, :whole, None])
    sums[:, whole * ratio :] += rows[:, whole:]


def sum_repeated(x: Tensor, ratio: int) -> Tensor:
    """The sums of each `ratio` rows of x (b, m, k), and of those that are left: (b, ceil(m / ratio), k)."""
    b, m, k = x.shape
    whole = m // ratio
    sums = x.new_empty(b, -(-m // ratio), k)
    torch.sum(x[:, : whole * ratio].view(b, whole, ratio, k), dim=2, out=sums[:, :whole])
    if whole < sums.shape[1]:
        torch.sum(x[:, whole * ratio :], dim=1, keepdim=True, out=sums[:, whole:])
    return sums
