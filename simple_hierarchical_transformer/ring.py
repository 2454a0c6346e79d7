"""The keys and values that a decoding state holds.

Shapes: `b` batch, `h` heads, `m` tokens, `r` rows of a phase, `g` phase groups, `w` window, `d` features of a head.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from einops import rearrange
from torch import Tensor

from .chunk import StreamChunk
from .state import Leaf, StateSpec


class KeyValueRing(Leaf):
    """Keys, rotated by their positions, and values of the last `w` tokens of each phase.

    Token `j` is row `j // g` of phase `j % g`, and row `r` of a phase lies at slot `r % size`. For two phases of three
    slots, after the tokens 0 … 8:

        slot       0 1 2
        phase 0    6 8 4      its rows 3 4 2: row 3 took the place of row 0, token 0, and row 4 that of row 1
        phase 1    7 3 5      its rows 3 1 2

    `max_rewind` takes some rows more. A chunk of no more tokens than that is written before attention, where only
    `rewind` would have needed what it overwrites: nothing is moved or joined for a single token.
    """

    def __init__(
        self, spec: StateSpec, *, stride: int, phase_groups: int, heads: int, dim_head: int, reach: int
    ) -> None:
        self.groups = phase_groups
        self.reach = reach
        self.size = reach + -(-spec.spare(stride) // phase_groups)
        self.stride = stride
        self.keys = spec.empty(heads, phase_groups * self.size, dim_head)
        self.values = spec.empty(heads, phase_groups * self.size, dim_head)
        self.pending: list[tuple[Tensor, Tensor]] = []

    def takes_in_place(self, chunk: StreamChunk) -> bool:
        return -(-chunk.length // self.groups) <= self.size - self.reach and not torch.is_grad_enabled()

    def put(
        self, phase: int, row: int, k: Tensor, v: Tensor, chunk: StreamChunk, *, ages: bool
    ) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor] | None]:
        """Write the rows `row …` of a phase, k and v (b, h, r, d), in place.

        Returns the keys and values to attend to, and their `StreamChunk.sight`: None where one query sees them all,
        unless `ages` are asked for.
        """
        first, count = phase * self.size, k.shape[2]
        keys, values = (t[:, :, first : first + self.size] for t in (self.keys, self.values))
        if chunk.row is not None:
            slot = torch.remainder(chunk.row, self.size)
            keys.index_copy_(2, slot, k.to(keys.dtype))
            values.index_copy_(2, slot, v.to(values.dtype))
            return keys, values, chunk.sight(row, count, self.size, self.reach, k.device)
        for to, new in (*self._places(self.keys, phase, row, k), *self._places(self.values, phase, row, v)):
            to.copy_(new)
        held = min(row + count, self.size)
        low = max(row - self.reach, 0) if held == row + count else 0  # before a ring has come round, it is in order
        sight = None
        if ages or count > 1 or held - low > self.reach + 1:
            age, visible = chunk.sight(row, count, self.size, self.reach, k.device)
            sight = (age[:, low:], visible[:, low:])
        return keys[:, :, low:held], values[:, :, low:held], sight

    def _places(self, ring: Tensor, phase: int, row: int, new: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Where the rows `row …` of a phase belong, and they themselves, new (b, h, at most size, d)."""
        start, slot = phase * self.size, row % self.size
        fit = min(self.size - slot, new.shape[2])
        yield ring[:, :, start + slot : start + slot + fit], new[:, :, :fit]
        if fit < new.shape[2]:
            yield ring[:, :, start : start + new.shape[2] - fit], new[:, :, fit:]

    def rows_before(self, start: int) -> tuple[Tensor, Tensor]:
        """Keys and values of the rows that all phases have before token `start`, at most `reach`; (b, h·g, r, d)."""
        row = start // self.groups
        count = min(row, self.reach)
        slots = torch.arange(row - count, row, device=self.keys.device) % self.size
        folded = (rearrange(t, "b h (g r) d -> b h g r d", g=self.groups) for t in (self.keys, self.values))
        keys, values = (rearrange(t.index_select(3, slots), "b h g r d -> b (h g) r d") for t in folded)
        return keys, values

    def round_before(self, start: int) -> tuple[Tensor, Tensor]:
        """Keys and values of the tokens that token `start` shares its row with, before it; (b, h, start % g, d)."""
        row, count = start // self.groups, start % self.groups
        slots = torch.arange(count, device=self.keys.device) * self.size + row % self.size
        return self.keys.index_select(2, slots), self.values.index_select(2, slots)

    def note(self, k: Tensor, v: Tensor, start: int) -> None:
        """Remember the tokens `start …`, k and v (b, h, m, d), once the call has succeeded."""
        skip = max(k.shape[2] - self.groups * self.size, 0)
        # a view would keep the whole chunk alive
        k, v = (t[:, :, skip:].detach().clone() for t in (k, v))
        for i in range(min(self.groups, k.shape[2])):
            row, phase = divmod(start + skip + i, self.groups)
            for ring, new in ((self.keys, k), (self.values, v)):
                self.pending += self._places(ring, phase, row, new[:, :, i :: self.groups])

    def tensors(self) -> dict[str, Tensor]:
        return {"keys": self.keys, "values": self.values}

    def noted(self) -> list[tuple[Tensor, Tensor]]:
        return self.pending

    def forget_noted(self) -> None:
        self.pending = []

    def blank_unseen(self, position: int) -> None:
        row, phase = divmod(-(-position // self.stride), self.groups)  # where the next token will be
        for phases, first in ((slice(phase), row + 1), (slice(phase, None), row)):
            for ring in (self.keys, self.values):
                rearrange(ring, "b h (g r) d -> b h g r d", g=self.groups)[:, :, phases, first:].zero_()

    def rewound(self, before: int, after: int) -> list[tuple[Tensor, Tensor]]:
        return []  # the rows that are taken back are overwritten by those that come instead
