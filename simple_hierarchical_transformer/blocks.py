"""How memory is used: some tokens of (b, m, …) at a time, which caches hold, and places that others can take."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

CACHED = 1 << 17  # elements that stay in a core's cache from one operation to the next
MULTIPLIED = 1 << 21  # elements on which a product of matrices is as fast as on more; and their memory is reused
KEPT, PASSING = 64, 128  # elements of room behind a tensor
SUMMED = 1 << 20  # elements of a product of halves that are added up at once


def blocks(
    shape: Sequence[int], device: torch.device, *, most: int = CACHED, multiple: int = 1
) -> Iterator[tuple[slice, slice]]:
    """Which sequences, and which of their tokens: several whole sequences, or a part of one.

    Args:
        shape: (b, m, elements of a token).
        device: all at once, where it isn't the CPU.
        most: elements of a block.
        multiple: each part of a sequence begins at a multiple of so many tokens.
    """
    batch, length, width = shape
    tokens = max(most // max(width, 1) // multiple, 1) * multiple
    if device.type != "cpu" or batch * length <= tokens:
        yield slice(0, batch), slice(0, length)
    elif length <= tokens:
        sequences = tokens // length
        for first in range(0, batch, sequences):
            yield slice(first, min(first + sequences, batch)), slice(0, length)
    else:
        for sequence in range(batch):
            for start in range(0, length, tokens):
                yield slice(sequence, sequence + 1), slice(start, min(start + tokens, length))


def add_product(sums: Tensor, a: Tensor, b: Tensor, *, is_first: bool) -> None:
    """Add a @ b to `sums` (n, d), of float32 or above, which hold nothing before the first product."""
    if a.dtype == sums.dtype:
        torch.addmm(sums, a, b, beta=0 if is_first else 1, out=sums)
        return
    # a sum of two types takes copies, of which a cache likes few elements at a time
    size = len(sums) if a.device.type != "cpu" else max(SUMMED // sums.shape[1], 1)
    for start in range(0, len(sums), size):
        own, product = sums[start : start + size], a[start : start + size] @ b
        own.copy_(product) if is_first else own.add_(product)


def empty(shape: Sequence[int], like: Tensor, room: int) -> Tensor:
    """An empty tensor of this shape, in memory with room for so many elements more.

    Before version 2.38, glibc gives an aligned tensor no hole of exactly its own size, so that what is freed between
    tensors that stay leaves a hole that others of its size can't take. What passes (PASSING) has more room than what is
    kept for the backward pass (KEPT), which can take its place, and that more than gradients, which have none.
    """
    if like.device.type != "cpu":
        return like.new_empty(shape)
    return like.new_empty(math.prod(shape) + room).resize_(shape)
