"""Which tokens of a stream one call computes, and what follows from their place alone: once for all layers."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from .config import StreamConfig
from .rotary import rotary_table


@dataclass(frozen=True)
class StreamChunk:
    """The tokens `start … start + length - 1` of a stream.

    For stride 4, a call on the input tokens 6 … 13 computes the stream tokens 2 and 3, which stand at 8 and 12:
    `start` is 2, `length` 2, and `skip` 2, since the first of them stands two input tokens after the first input.

    Where one captured step runs at many positions, `start` is one of them that stands for all, and the tensor `row`
    says which one it is.
    """

    start: int
    length: int
    skip: int = 0
    groups: int = 1  # phase groups: token `j` is row `j // groups` of phase `j % groups`
    rotary: tuple[Tensor, Tensor] | None = None  # cosines and sines (m, dim_head), where the stream attends
    row: Tensor | None = None  # (1,), of a single token
    sights: dict[tuple[int, ...], tuple[Tensor, Tensor]] = field(default_factory=dict, compare=False, repr=False)

    @staticmethod
    def of(
        stream: StreamConfig,
        position: int,
        length: int,
        dtype: torch.dtype,
        device: torch.device,
        at: Tensor | None = None,
    ) -> StreamChunk:
        """What a call on the input tokens `position … position + length - 1` computes of `stream`.

        With `at` (1,), a single token whose actual position that is, in the same phase of every stream.
        """
        s, groups = stream.stride, stream.phase_groups
        start, stop = -(-position // s), -(-(position + length) // s)
        row, rotary = None, None
        if stream.window_size != 0 and stop > start:
            row = torch.arange(start, stop, device=device) // groups if at is None else at // (s * groups)
            rotary = rotary_table(row, stream.dim_head, dtype)
        return StreamChunk(start, stop - start, start * s - position, groups, rotary, None if at is None else row)

    def sight(self, row: int, count: int, size: int, window: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """How old what a ring of `size` rows holds is to each of `count` queries, and whether they see it.

        The queries are the rows `row … row + count - 1` of a phase, the newest that the ring holds. Both are of shape
        (count, rows held); ages are in rows, negative after a query. For a ring of 4 that has just taken in row 5,
        over the rows 4 5 2 3: 1 0 3 2.
        """
        key = (row, count, size)
        if key not in self.sights:
            newest = row + count - 1 if self.row is None else self.row
            slot = torch.arange(min(size, row + count) if self.row is None else size, device=device)
            age = torch.remainder(newest - slot, size) + torch.arange(1 - count, 1, device=device)[:, None]
            visible = (age >= 0) & (age <= window)
            # until a ring has come round, its last slots hold nothing
            self.sights[key] = (age, visible if self.row is None else visible & (age <= newest))
        return self.sights[key]
