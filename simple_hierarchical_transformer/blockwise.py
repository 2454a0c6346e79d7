"""Windowed and full causal attention of a whole sequence on CPUs, without copies of what queries share.

Shapes: `b` batch, `h` heads, `m` tokens, `r` rows of a phase, `g` phase groups, `w` window, `d` features of a head,
`t` blocks, `i` queries of a block.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import Enum, auto
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .blocks import KEPT, empty

LEAST_BLOCK = 32  # queries of a block, where the window is smaller
MOST_BLOCK = 128  # and where it is larger
LONG_WINDOW = 1024  # from which the keys of a block are split: some are seen by all of its queries, some by a part
LONG_BLOCK = 768  # queries of such a block; of as many, the kernel multiplies larger pieces

flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def attend_blockwise(q: Tensor, k: Tensor, v: Tensor, window: int, groups: int) -> Tensor:
    """Of each token of q, k and v (b, h, m, d) to itself and to `window` tokens before it in steps of `groups`.

    Each phase begins with a block of rows that see all before them. The blocks of `i` rows after it see their own
    keys and the window before the block, as views that overlap. For window 2 and blocks of 3, over 8 rows:

        block 0    queries 0 1      keys 0 1
        block 1    queries 2 3 4    keys 0 … 4, of which the band leaves query 3 the keys 1, 2, 3
        block 2    queries 5 6 7    keys 3 … 7

    Long windows have no band, which costs as much as the scores it is added to: see `Sight`.
    """
    out: Tensor = _Blockwise.apply(q, k, v, window, groups)  # type: ignore[no-untyped-call]
    return out


class Piece(NamedTuple):
    """`blocks` blocks of `queries` rows from row `first` on, each of which also looks at the `halo` rows before it."""

    first: int
    blocks: int
    queries: int
    halo: int
    window: int

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
        return [Piece(0, 1, rows, 0, window)]
    is_long = window >= LONG_WINDOW
    block = min(LONG_BLOCK, window) if is_long else min(max(window, LEAST_BLOCK), MOST_BLOCK)
    blocks, left = divmod(rows - window, block)
    if is_long and not blocks:  # the first rows of this block see all before them
        start = max(rows - block, 1)
        return [Piece(0, 1, start, 0, window), Piece(start, 1, rows - start, start, window)]
    after = [Piece(window, blocks, block, window, window)] if blocks else []
    last = [Piece(rows - left, 1, left, window, window)] if left else []
    return [Piece(0, 1, window, 0, window), *after, *last]


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


class Sight(Enum):
    """How the queries of a block see some of its keys. For window 4 and blocks of 2, where queries 4 and 5 see

        key        0 1 2 3 4 5
        query 4    x x x x x
        query 5      x x x x x

    the keys 4 and 5 are seen as in causal attention, 2 and 3 by all, and 0 and 1 as in causal attention from behind:
    with queries and keys the other way round, query 5, then the first, sees key 1, and query 4 both.
    """

    CAUSAL = auto()
    ALL = auto()
    FROM_BEHIND = auto()
    BAND = auto()  # by what is added to the scores


@lru_cache(maxsize=32)
def band(queries: int, halo: int, window: int, start: int, stop: int, dtype: torch.dtype) -> Tensor:
    """What is added to the scores of a block and some of its keys: 0 where a query sees a key, else minus infinity."""
    # on the CPU, whatever the default device, since it is kept
    distance = torch.arange(halo, halo + queries, device="cpu")[:, None] - torch.arange(start, stop, device="cpu")
    sees = (distance >= 0) & (distance <= window)
    return torch.zeros(sees.shape, dtype=dtype, device="cpu").masked_fill_(~sees, -torch.inf)[None, None]


class Part(NamedTuple):
    """Some of the keys of a block behind its halo, and how they are seen."""

    keys: slice
    sight: Sight

    def attend(self, piece: Piece, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Attention to these keys alone (t, h, i, d), and the logarithms of the sums of its weights (t, h, i)."""
        given = self.turned([q, k[:, :, self.keys], v[:, :, self.keys]])
        out, logsumexp = self.turned(flash(*given, 0.0, self.is_causal, attn_mask=self.mask(piece, q.dtype)))
        return out, logsumexp

    def gradients(self, piece: Piece, by_out: Tensor, q: Tensor, k: Tensor, v: Tensor, *known: Tensor) -> list[Tensor]:
        """By q, and by these keys and values; `known` are the block's output and logarithms over all of its keys."""
        given = self.turned([by_out, q, k[:, :, self.keys], v[:, :, self.keys], *known])
        return self.turned(flash_backward(*given, 0.0, self.is_causal, attn_mask=self.mask(piece, q.dtype)))

    @property
    def is_causal(self) -> bool:
        return self.sight in (Sight.CAUSAL, Sight.FROM_BEHIND)

    def turned(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        return [t.flip(2) for t in tensors] if self.sight is Sight.FROM_BEHIND else list(tensors)

    def mask(self, piece: Piece, dtype: torch.dtype) -> Tensor | None:
        if self.sight is not Sight.BAND:
            return None
        return band(piece.queries, piece.halo, piece.window, self.keys.start, self.keys.stop, dtype)


def parts(piece: Piece) -> list[Part]:
    queries, halo, window = piece.queries, piece.halo, piece.window
    if halo and window < LONG_WINDOW:
        return [Part(slice(0, halo + queries), Sight.BAND)]
    if halo == window >= queries:
        far = Part(slice(0, queries), Sight.FROM_BEHIND)
    else:  # those that the last query doesn't see, and one that it does: of no key there is no sum of weights
        unseen = max(halo + queries - 1 - window, 0)
        far = Part(slice(0, unseen + 1 if unseen else 0), Sight.BAND)
    found = [far, Part(slice(far.keys.stop, halo), Sight.ALL), Part(slice(halo, halo + queries), Sight.CAUSAL)]
    return [part for part in found if part.keys.start < part.keys.stop]


def attend_parts(piece: Piece, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Of queries (t, h, i, d) to all keys of their blocks, and the logarithms of the sums of the weights (t, h, i)."""
    outs, logarithms = zip(*(part.attend(piece, q, k, v) for part in parts(piece)), strict=True)
    if len(outs) == 1:
        return outs[0], logarithms[0]
    logsumexp = torch.stack(logarithms).logsumexp(dim=0)
    out = torch.zeros_like(outs[0])
    for attended, logarithm in zip(outs, logarithms, strict=True):
        out.addcmul_(attended, (logarithm - logsumexp).exp_()[..., None].to(out.dtype))
    return out, logsumexp


class _Blockwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, window: int, groups: int) -> Tensor:
        b, h, m, d = q.shape
        # all that is kept comes first, so that what the kernel allocates leaves no holes
        out = empty((b, m, h, d), q, KEPT).transpose(1, 2)
        logarithms = q.new_empty(b, h, m, 1, dtype=torch.promote_types(q.dtype, torch.float32))
        ctx.window, ctx.groups = window, groups
        for piece, (queries, result, sums, keys, values) in calls(window, groups, (q, out, logarithms), (k, v)):
            attended, logsumexp = attend_parts(piece, queries, keys, values)
            result.copy_(attended)
            sums.copy_(logsumexp[..., None])
        ctx.save_for_backward(q, k, v, out, logarithms)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, logarithms = ctx.saved_tensors
        if gradient.stride(-1) != 1:
            gradient = gradient.contiguous()
        by_q, by_k, by_v = (torch.empty_like(out) for _ in range(3))
        of_queries, of_keys = (q, out, logarithms, gradient, by_q), (k, v, by_k, by_v)
        for piece, own in calls(ctx.window, ctx.groups, of_queries, of_keys):
            queries, attended, sums, by_attended, by_queries, keys, values, *by_pairs = own
            for whole in by_pairs:  # the block's own keys are new here
                whole[:, :, piece.halo :] = 0
            for index, part in enumerate(parts(piece)):
                known = by_attended, queries, keys, values, attended, sums[..., 0].contiguous()
                found, *found_of_pairs = part.gradients(piece, *known)
                by_queries.copy_(found) if index == 0 else by_queries.add_(found)
                for whole, summand in zip(by_pairs, found_of_pairs, strict=True):
                    # as many keys at a time as a block has rows, since those of different blocks are then different
                    for low in range(0, summand.shape[2], piece.queries):
                        some = summand[:, :, low : low + piece.queries]
                        whole[:, :, part.keys.start + low :][:, :, : some.shape[2]] += some
        return by_q, by_k, by_v, None, None
