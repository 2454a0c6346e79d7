"""What files hold, as digests: of all of it where that is quick, else of samples."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from typing import Any

from .corpus import PlainFile, changed, open_to_read

READ_WHOLE = 256 * 10**6  # bytes of all files together
SAMPLES = 64  # of a file, at most
LONGEST_SAMPLE, SHORTEST_SAMPLE = 1 << 16, 1 << 10
CHUNK = 1 << 20


def digest_json(value: Any) -> str:
    """SHA-256 of what JSON can say."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def content_digests(files: Sequence[PlainFile]) -> list[str]:
    """SHA-256 of each file where they hold at most READ_WHOLE bytes together.

    Of more, each file gets an equal share of that: what is longer is sampled at its start, its end and evenly spaced
    places between, at most SAMPLES. So a change of the size is always seen, one of single bytes only by chance.

    Raises:
        OSError, ValueError: a file can't be read, or its size isn't what it was
    """
    whole = sum(file.size for file in files) <= READ_WHOLE
    share = READ_WHOLE // max(len(files), 1)
    return [digest_file(file, file.size if whole else share) for file in files]


def digest_file(file: PlainFile, share: int) -> str:
    digest = hashlib.sha256(f"{file.size} ".encode())
    with open_to_read(file.path) as handle:
        size = os.fstat(handle.fileno()).st_size
        if size != file.size:
            raise changed(file.path, file.size, size)
        for start, stop in extents(file.size, share):
            handle.seek(start)
            while start < stop:
                chunk = handle.read(min(CHUNK, stop - start))
                if not chunk:
                    raise changed(file.path, file.size, start)
                digest.update(chunk)
                start += len(chunk)
    return digest.hexdigest()


def extents(size: int, share: int) -> Iterator[tuple[int, int]]:
    """The parts of a file that are read, `(start, stop)`: all of it where it's no longer than its share."""
    if size <= share:
        yield 0, size
        return
    length = min(max(share // SAMPLES, SHORTEST_SAMPLE), LONGEST_SAMPLE, size)
    count = min(max(share // length, 2), SAMPLES)
    for index in range(count):
        start = index * (size - length) // (count - 1)
        yield start, start + length
