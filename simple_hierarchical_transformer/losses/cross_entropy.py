"""Cross-entropy of linear maps, without ever holding the logits of all positions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..blocks import add_product
from ..linear import product_dtype

CHUNK_LOGITS = 1 << 23
LEAST_CHUNK = 64


class Question(NamedTuple):
    """What an output head is asked."""

    x: Tensor  # (…, d)
    target: Tensor  # (…,) class indices; any of them where not valid
    valid: Tensor  # (…,) booleans


def linear_cross_entropy(question: Question, weight: Tensor, count: Tensor) -> Tensor:
    """Cross-entropy, in nats, of the logits `x @ weight.T`, summed over the valid targets and divided by `count`."""
    mean, _ = linear_cross_entropies([question], weight, [1.0], [count])
    return mean


def linear_cross_entropies(
    questions: Sequence[Question], weight: Tensor, shares: Sequence[float], counts: Sequence[Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """Several at once: the sum of their means, each times its share, and the means themselves.

    Products are taken in the type of `x`, or that of autocast; everything else in float32 or above. The sum has its
    gradients at hand when the losses are known, chunk by chunk; a single mean takes them anew, and under
    `torch.compile` has none.

    Args:
        questions: of rows (…, d)
        weight: (v, d)
        shares: a weight for each question
        counts: what the sum over the valid targets of each question is divided by: their number, or that of all
            that are learnt from together; 0 stands for 1
    """
    x = torch.cat([question.x.reshape(-1, weight.shape[1]) for question in questions])
    target = torch.cat([question.target.masked_fill(~question.valid, 0).reshape(-1) for question in questions])
    valids = [question.valid.reshape(-1) for question in questions]
    precise = torch.promote_types(x.dtype, torch.float32)
    scales = [valid.to(precise) / count.clamp(min=1) for valid, count in zip(valids, counts, strict=True)]
    shared = torch.cat([scale * share for scale, share in zip(scales, shares, strict=True)])
    total: Tensor
    total, losses = _LinearCrossEntropy.apply(x, weight, target, shared, product_dtype(x))  # type: ignore[no-untyped-call]
    own = losses.split([len(scale) for scale in scales])
    return total, [(part * scale).sum() for part, scale in zip(own, scales, strict=True)]


class _LinearCrossEntropy(torch.autograd.Function):
    """The sum of the rows' losses, each times its scale (n,), and the losses (n,).

    Gradients of the sum are taken in the pass that takes the losses, and handed on once. Should they be asked for
    again, or those of single losses, they are taken anew.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, target: Tensor, scale: Tensor, product: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        # halves would lose small scales, so that the largest is 1 until the end
        unit = largest(scale)
        ctx.needed, ctx.product = ctx.needs_input_grad[:2], product
        losses, *gradients = losses_and_gradients(x, weight, target, scale / unit, product, *ctx.needed)
        ctx.set_materialize_grads(False)
        if torch.compiler.is_compiling():
            ctx.save_for_backward(unit, *gradients)
            ctx.mark_non_differentiable(losses)
        else:
            ctx.save_for_backward(x, weight, target, scale)
            ctx.unit, ctx.gradients = unit, gradients
        return (losses * scale).sum(), losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_sum: Tensor | None, by_losses: Tensor | None) -> tuple[Tensor | None, ...]:
        if torch.compiler.is_compiling():
            unit, *gradients = ctx.saved_tensors
            gradients = [part * (by_sum * unit) for part in gradients]
        else:
            x, weight, target, scale = ctx.saved_tensors
            unit, gradients, ctx.gradients = ctx.unit * by_sum if by_sum is not None else None, ctx.gradients, None
            if by_losses is not None or gradients is None:
                scale = scale * by_sum if by_sum is not None else torch.zeros_like(scale)
                scale = scale if by_losses is None else scale + by_losses
                unit = largest(scale)
                _, *gradients = losses_and_gradients(x, weight, target, scale / unit, ctx.product, *ctx.needed)
            gradients = [part.mul_(unit) for part in gradients]
        return *(part if is_needed else None for part, is_needed in zip(gradients, ctx.needed, strict=True)), *[
            None
        ] * 3


@torch.library.custom_op("simple_hierarchical_transformer::linear_cross_entropy", mutates_args=())
def losses_and_gradients(
    x: Tensor, weight: Tensor, target: Tensor, scale: Tensor, product: torch.dtype, needs_x: bool, needs_weight: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The cross-entropy of each row of x (n, d), and gradients of their sum, each times its scale (n,) of at most 1.

    Gradients by x and by weight (v, d) are empty where they aren't needed.
    """
    n, (v, d) = len(x), weight.shape
    x_type, weight_type, precise = x.dtype, weight.dtype, torch.promote_types(x.dtype, torch.float32)
    x, weight = x.to(product), weight.to(product)
    size = min(max(CHUNK_LOGITS // v, LEAST_CHUNK), max(n, 1))
    # one memory for all chunks: fresh pages may cost as much as a product
    scores = x.new_empty(size, v, dtype=precise)
    multiplied = scores if product == precise else x.new_empty(size, v)
    losses = x.new_empty(n, dtype=precise)
    grad_x = x.new_empty(n if needs_x else 0, d, dtype=precise)
    grad_weight = x.new_empty(v, d, dtype=precise) if needs_weight and n else x.new_zeros(v * needs_weight, d)
    for start in range(0, n, size):
        own = slice(start, start + size)
        rows, index, share = x[own], target[own, None], scale[own, None]
        logits, half = scores[: len(rows)], multiplied[: len(rows)]
        multiply(rows, weight.t(), logits, half)
        log_p = torch.log_softmax(logits, dim=-1, out=logits)
        losses[own] = -log_p.gather(1, index)[:, 0]
        if not (needs_x or needs_weight):
            continue
        # by the logits: p, and 1 less at the target
        by_logits = log_p.exp_().scatter_add_(1, index, log_p.new_full(index.shape, -1))
        by_logits = by_logits if half is logits else half.copy_(by_logits)
        if needs_x:
            multiply(by_logits, weight, grad_x[own]).mul_(share)
        if needs_weight:
            add_product(grad_weight, by_logits.t(), (rows * share).to(product), is_first=start == 0)
    return losses, grad_x.to(x_type), grad_weight.to(weight_type)


@losses_and_gradients.register_fake
def _(
    x: Tensor, weight: Tensor, target: Tensor, scale: Tensor, product: torch.dtype, needs_x: bool, needs_weight: bool
) -> tuple[Tensor, Tensor, Tensor]:
    losses = x.new_empty(len(x), dtype=torch.promote_types(x.dtype, torch.float32))
    return losses, torch.empty_like(x if needs_x else x[:0]), torch.empty_like(weight if needs_weight else weight[:0])


def largest(scale: Tensor) -> Tensor:
    """The largest absolute value of `scale` (n,), and not 0 where all are, or where there is none."""
    return F.pad(scale.abs(), (0, 1), value=torch.finfo(scale.dtype).tiny).amax()


def multiply(a: Tensor, b: Tensor, out: Tensor, half: Tensor | None = None) -> Tensor:
    """a @ b in the type of `out`; of halves as the device multiplies them best, by way of `half` where it needs one."""
    if a.dtype == out.dtype:
        return torch.mm(a, b, out=out)
    if a.device.type == "cuda":
        return torch.mm(a, b, out_dtype=out.dtype, out=out)
    return out.copy_(a @ b if half is None else torch.mm(a, b, out=half))


def masked_mean(values: Tensor, valid: Tensor, count: Tensor) -> Tensor:
    """Sum of `values` where `valid`, divided by `count`; 0, and still part of the graph, where nothing is."""
    return (values * valid).sum() / count.clamp(min=1)
