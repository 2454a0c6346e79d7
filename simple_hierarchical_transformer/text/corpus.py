"""Token ids that lie in files, read through memory maps when a window falls on them."""

from __future__ import annotations

import mmap
import os
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import IO, NamedTuple

import torch
from torch import Tensor

OPEN_MAPS = 64  # a map holds a file open, and a process may hold open a thousand or so


@dataclass(frozen=True)
class PlainFile:
    path: Path
    size: int  # in bytes


class Segment(NamedTuple):
    """The tokens `start … stop-1` of a file."""

    file: PlainFile
    start: int
    stop: int


def open_to_read(path: Path) -> IO[bytes]:
    try:
        return open(path, "rb")
    except PermissionError as error:
        raise PermissionError(f"data: {path} can't be read: make it readable, or leave it out") from error
    except FileNotFoundError as error:
        raise FileNotFoundError(f"data: {path} is gone while it is in use: bring it back, or start anew") from error


def changed(path: Path, before: int, after: int) -> ValueError:
    return ValueError(
        f"data: {path} changed while it was in use, from {before:,} to {after:,} bytes: "
        "train on a copy that nothing writes to"
    )


def open_map(file: PlainFile) -> mmap.mmap:
    with open_to_read(file.path) as handle:
        size = os.fstat(handle.fileno()).st_size
        if size != file.size:
            raise changed(file.path, file.size, size)
        return mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)


class Corpus:
    """Segments of files, read as if they stood one after the other.

    For example, segments of 5, 2 and 4 tokens:  `read(4, 9)` takes

        position   0 1 2 3 4 | 5 6 | 7 8 9 10
        read               4   5 6   7 8

    It may be sent to other processes, where it opens the files anew.

    Args:
        segments: parts of files, in their order
        dtype: of the ids in these files: torch.uint8, torch.uint16 or torch.int32
        num_bytes: bytes of text that the tokens stand for; none: as many as there are tokens
    """

    def __init__(
        self, segments: Iterable[Segment], dtype: torch.dtype = torch.uint8, num_bytes: int | None = None
    ) -> None:
        self.segments = tuple(segment for segment in segments if segment.start < segment.stop)
        self.dtype = dtype
        self.ends = list(accumulate(segment.stop - segment.start for segment in self.segments))
        self.num_bytes = len(self) if num_bytes is None else num_bytes
        self.map = lru_cache(maxsize=OPEN_MAPS)(open_map)

    def __reduce__(self) -> tuple[type[Corpus], tuple[tuple[Segment, ...], torch.dtype, int]]:
        return Corpus, (self.segments, self.dtype, self.num_bytes)

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    @property
    def bytes_per_token(self) -> float:
        return self.num_bytes / max(len(self), 1)

    def cut(self, start: int, stop: int) -> Iterator[Segment]:
        """The segments, or parts of them, that hold the tokens `start … stop-1`."""
        index = bisect_right(self.ends, start)
        while start < stop:
            segment = self.segments[index]
            begin = segment.stop - (self.ends[index] - start)
            end = min(segment.stop, begin + stop - start)
            yield Segment(segment.file, begin, end)
            start += end - begin
            index += 1

    def read(self, start: int, stop: int) -> Tensor:
        """The tokens `start … stop-1`, `(stop - start,)`, in the type in which they are stored.

        Raises:
            IndexError: they lie outside of the corpus
            ValueError, OSError: a file had changed, or was gone, when it was opened. (One that is cut off while it is
                mapped ends the process, by a signal of the system: train on files that nothing writes to.)
        """
        return self.windows([start], stop - start)[0]

    def read_bytes(self, start: int, stop: int) -> bytes:
        """The same of a corpus of bytes, as bytes.

        Raises:
            ValueError: its ids are wider than a byte
        """
        if self.dtype != torch.uint8:
            raise ValueError(f"this corpus holds ids of {self.dtype}, not bytes: read them, and decode them")
        return self._stored(start, stop)

    def windows(self, starts: Sequence[int], length: int) -> Tensor:
        """Windows `(len(starts), length)`, one from each start, in the type in which the ids are stored."""
        stored = bytearray(b"".join(self._stored(start, start + length) for start in starts))
        if not stored:
            return torch.empty(len(starts), length, dtype=self.dtype)
        return torch.frombuffer(stored, dtype=self.dtype).view(len(starts), length)

    def _stored(self, start: int, stop: int) -> bytes:
        if not 0 <= start <= stop <= len(self):
            raise IndexError(f"tokens {start} … {stop} lie outside of a corpus of {len(self)} tokens")
        width = self.dtype.itemsize
        return b"".join(self.map(file)[begin * width : end * width] for file, begin, end in self.cut(start, stop))
