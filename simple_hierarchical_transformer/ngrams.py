"""A vector for each short run of ids, looked up by its hash (Pagnoni et al., arXiv 2412.09871, section 3.2.1).

What usually follows three or four bytes is most of what a small model learns about text. A table knows it after having
seen it a few times, at the cost of a look-up, and leaves the layers free for the rest.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .state import Register, StateSpec, extend_padded

MULTIPLIER = 0x5851F42D4C957F2D  # of Knuth's MMIX generator: odd, with its ones spread over all 64 bits
NOTHING = 0  # stands for padding, and for what comes before the start; ids are counted from 1


class NgramEmbedding(nn.Module):
    """The sum of the vectors of the n-grams that end at each token: ids (b, n) → (b, n, dim).

    For sizes 2 and 3, the last token of `t h e` gets the vectors of `he` and `the`. Each size has a table of its own;
    n-grams whose hashes agree share a row. They begin as zeros.

    Args:
        dim: width of a vector.
        sizes: how many tokens the n-grams have, each at least 2.
        table_size: rows of each table.
    """

    def __init__(self, dim: int, sizes: Sequence[int], table_size: int) -> None:
        super().__init__()
        self.sizes = tuple(sizes)
        self.table_size = table_size
        self.vectors = nn.Embedding(len(self.sizes) * table_size, dim)
        nn.init.zeros_(self.vectors.weight)

    def init_state(self, spec: StateSpec) -> Register:
        return Register(spec, stride=1, keep=max(self.sizes) - 1, dim=1, dtype=torch.long)

    def forward(self, ids: Tensor, padding: Tensor, state: Register | None = None) -> Tensor:
        """Of ids (b, n), of which those are nothing that `padding` (b, n) marks; these get zeros."""
        counted = (ids.long() + 1).masked_fill(padding, NOTHING)
        rows = self.rows(extend_padded(state, counted[..., None], back=max(self.sizes) - 1)[..., 0])
        summed = F.embedding(rows, self.vectors.weight).sum(dim=-2)
        return summed.masked_fill(padding[..., None], 0)

    def rows(self, counted: Tensor) -> Tensor:
        """Where the n-grams stand in the tables: (b, back + n) → (b, n, sizes)."""
        longest = max(self.sizes)
        count = counted.shape[1] - longest + 1
        hashed = torch.zeros_like(counted[:, :count])
        found: dict[int, Tensor] = {}
        for size in range(1, longest + 1):  # from the last token of the n-gram to its first; products wrap around
            token = counted[:, longest - size :][:, :count]
            hashed = (hashed + token) * MULTIPLIER
            if size in self.sizes:
                mixed = hashed ^ (hashed >> 32)  # the low bits of a product know nothing of the high ones
                table = self.sizes.index(size)
                found[size] = torch.remainder(mixed * MULTIPLIER >> 24, self.table_size) + table * self.table_size
        return torch.stack([found[size] for size in self.sizes], dim=-1)
