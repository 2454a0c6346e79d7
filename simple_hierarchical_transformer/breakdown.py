"""One cost of a model, by part and stream: as data, and as a table."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

K = TypeVar("K")

EMBED, COMPRESS, ATTENTION, FEEDFORWARD, MERGE, HEAD = "embed", "compress", "attention", "feedforward", "merge", "head"
LAYERS = "layers"  # what the streams hold from one layer to the next
RECONSTRUCTION, HIERARCHICAL_AR = "reconstruction", "hierarchical_ar"
PROPHET, NEXT_LATENT = "prophet", "next_latent"
PARTS = (
    EMBED, COMPRESS, ATTENTION, FEEDFORWARD, MERGE, LAYERS, HEAD, RECONSTRUCTION, HIERARCHICAL_AR, PROPHET, NEXT_LATENT,
)  # fmt: skip


class Share(NamedTuple):
    """What one part of one stream has of a cost."""

    part: str  # one of PARTS
    stream: int | None  # compress factor; None for what all streams share, the embedding and the output head
    amount: int


@dataclass(frozen=True)
class Breakdown:
    """One cost of a model, by part and stream; iterates over its shares, none of which is 0.

    Attributes:
        unit: what is counted, such as "parameters".
        shares: in the order of `PARTS`, and of streams within a part.
    """

    unit: str
    shares: tuple[Share, ...]

    @staticmethod
    def of(unit: str, amounts: Iterable[tuple[str, int | None, int]]) -> Breakdown:
        """Of amounts (part, stream, amount) in any order, any of which may come several times."""
        sums: dict[tuple[str, int | None], int] = {}
        for part, stream, amount in amounts:
            sums[part, stream] = sums.get((part, stream), 0) + amount
        keys = sorted(sums, key=lambda key: PARTS.index(key[0]))  # stable, so that streams keep their order
        return Breakdown(unit, tuple(Share(*key, sums[key]) for key in keys if sums[key]))

    @property
    def total(self) -> int:
        return sum(share.amount for share in self.shares)

    def by_part(self) -> dict[str, int]:
        """Part to amount, over all streams."""
        return summed((share.part, share.amount) for share in self.shares)

    def by_stream(self) -> dict[int | None, int]:
        """Compress factor to amount, over all parts; None for what the streams share."""
        return summed((share.stream, share.amount) for share in self.shares)

    def times(self, factor: int, unit: str) -> Breakdown:
        """So many times as much of everything, in another unit."""
        return Breakdown(unit, tuple(share._replace(amount=share.amount * factor) for share in self.shares))

    def __iter__(self) -> Iterator[Share]:
        return iter(self.shares)

    def __len__(self) -> int:
        return len(self.shares)

    def __int__(self) -> int:
        return self.total

    def table(self) -> str:
        """In lines, with the total last."""
        rows = [[share.part, stream_name(share.stream), f"{share.amount:,}"] for share in self.shares]
        return aligned([["part", "stream", self.unit], *rows, ["total", "", f"{self.total:,}"]], words=2)

    __str__ = table


def summed(amounts: Iterable[tuple[K, int]]) -> dict[K, int]:
    sums: dict[K, int] = {}
    for key, amount in amounts:
        sums[key] = sums.get(key, 0) + amount
    return sums


def stream_name(stream: int | None) -> str:
    return "all" if stream is None else str(stream)


def aligned(rows: Sequence[Sequence[str]], words: int) -> str:
    """Rows of one table: the first `words` columns begin, all others end below each other."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join(
            cell.ljust(width) if i < words else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)
