"""Windowed and full causal attention of a whole sequence on CPUs, without copies of what queries share.

Shapes: `b` batch, `h` heads, `m` tokens, `r` rows of a phase, `g` phase groups, `w` window, `d` features of a head,
`t` blocks, `i` queries of a block.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

LEAST_BLOCK = 32  # queries of a block, where the window is smaller
MOST_BLOCK = 128  # and where it is larger

flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def attend_blockwise(q: Tensor, k: Tensor, v: Tensor, window: int, groups: int) -> Tensor:
    """Of each token of q, k and v (b, h, m, d) to itself and to `window` tokens before it in steps of `groups`.

    Each phase begins with a block of rows that see all before them. The blocks of `i` rows after it see their own
    keys and the window before the block, as views that overlap. For window 2 and blocks of 3, over 8 rows:

        block 0    queries 0 1      keys 0 1
        block 1    queries 2 3 4    keys 0 … 4, of which the band leaves query 3 the keys 1, 2, 3
        block 2    queries 5 6 7    keys 3 … 7
    """
    out: Tensor = _Blockwise.apply(q, k, v, window, groups)  # type: ignore[no-untyped-call]
    return out


class Piece(NamedTuple):
    """`blocks` blocks of `queries` rows from row `first` on, each of which also sees the `halo` rows before it."""

    first: int
    blocks: int
    queries: int
    halo: int

    def views(self, x: Tensor, halo: int) -> Iterator[Tensor]:
        """The rows of each block of x (b, h, r, d) behind `halo` rows before it: (b or t, h, halo + i, d).

        All blocks of each sequence, or each block of all sequences, whichever takes fewer views.
        """
        start, size = self.first - halo, self.queries + halo
        if self.blocks <= len(x):
            for block in range(self.blocks):
                yield x[:, :, start + block * self.queries :][:, :, :size]
            return
        for sequence in x:
            heads, row, feature = sequence.stride()
            shape = (self.blocks, x.shape[1], size, x.shape[3])
            stride = (self.queries * row, heads, row, feature)
            yield sequence.as_strided(shape, stride, sequence.storage_offset() + start * row)


def pieces(rows: int, window: int) -> list[Piece]:
    if rows - 1 <= window:
        return [Piece(0, 1, rows, 0)]
    block = min(max(window, LEAST_BLOCK), MOST_BLOCK)
    blocks, left = divmod(rows - window, block)
    after = [Piece(window, blocks, block, window)] if blocks else []
    return [Piece(0, 1, window, 0), *after, *([Piece(rows - left, 1, left, window)] if left else [])]


@lru_cache(maxsize=32)
def band(queries: int, halo: int, dtype: torch.dtype) -> Tensor:
    """What is added to the scores (i, halo + i) of a block: 0 where a query sees a key, else minus infinity."""
    distance = torch.arange(halo, halo + queries)[:, None] - torch.arange(halo + queries)
    sees = (distance >= 0) & (distance <= halo)
    return torch.zeros(sees.shape, dtype=dtype).masked_fill_(~sees, -torch.inf)[None, None]


def calls(
    window: int, groups: int, queries: Sequence[Tensor], keys: Sequence[Tensor]
) -> Iterator[tuple[Piece, list[Tensor]]]:
    """Views of queries and keys (b, h, m, d), piece by piece of each phase; a piece of keys has its halo."""
    for phase in range(min(groups, queries[0].shape[2])):
        of_queries, of_keys = ([x[:, :, phase::groups] for x in each] for each in (queries, keys))
        for piece in pieces(of_queries[0].shape[2], window):
            views = [piece.views(x, 0) for x in of_queries] + [piece.views(x, piece.halo) for x in of_keys]
            for own in zip(*views, strict=True):
                yield piece, list(own)


class _Blockwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, window: int, groups: int) -> Tensor:
        b, h, m, d = q.shape
        out = q.new_empty(b, m, h, d).transpose(1, 2)
        ctx.window, ctx.groups, sums = window, groups, []
        for piece, (queries, result, keys, values) in calls(window, groups, (q, out), (k, v)):
            attended, logsumexp = flash(queries, keys, values, 0.0, not piece.halo, attn_mask=mask_of(piece, q.dtype))
            result.copy_(attended)
            sums.append(logsumexp)
        ctx.save_for_backward(q, k, v, out, *sums)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, *sums = ctx.saved_tensors
        if gradient.stride(-1) != 1:
            gradient = gradient.contiguous()
        by_q, by_k, by_v = (torch.empty_like(out) for _ in range(3))
        of_queries, of_keys = (q, out, gradient, by_q), (k, v, by_k, by_v)
        for (piece, own), logsumexp in zip(calls(ctx.window, ctx.groups, of_queries, of_keys), sums, strict=True):
            queries, attended, by_attended, by_queries, keys, values, *by_pairs = own
            known = by_attended, queries, keys, values, attended, logsumexp, 0.0, not piece.halo
            found, *found_of_pairs = flash_backward(*known, attn_mask=mask_of(piece, q.dtype))
            by_queries.copy_(found)
            for whole, part in zip(by_pairs, found_of_pairs, strict=True):
                # the block's own keys are new here; of those before it, as many at a time as a block has rows, since
                # those of different blocks are then different
                whole[:, :, piece.halo :] = part[:, :, piece.halo :]
                for low in range(0, piece.halo, piece.queries):
                    rows = slice(low, min(low + piece.queries, piece.halo))
                    whole[:, :, rows] += part[:, :, rows]
        return by_q, by_k, by_v, None, None


def mask_of(piece: Piece, dtype: torch.dtype) -> Tensor | None:
    return band(piece.queries, piece.halo, dtype) if piece.halo else None
