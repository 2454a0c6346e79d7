"""From documents to arrays of token ids in the cache: read a few megabytes at a time, whatever their size."""

from __future__ import annotations

import json
import shutil
import sys
import time
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ..files import name_beside
from .blocks import Block, Share, blocks_of, shared_out
from .cache import Entry, EntryWriter, Report, cached, named_errors
from .hugging_face import dataset_identity, dataset_texts
from .reading import Pieces, read_documents
from .sources import DatasetSource, FileSource, Source
from .tokenizer import TextTokenizer

BATCH = 1 << 21  # bytes that are tokenised at once, on all cores where the tokenizer can
TYPE_CODES = {torch.uint8: "B", torch.uint16: "H", torch.int32: "i"}
SECONDS_BETWEEN_REPORTS = 10.0


def smallest_type(num_tokens: int) -> torch.dtype:
    """The narrowest type that holds all ids of a vocabulary, and that torch reads from a file."""
    return torch.uint8 if num_tokens <= 1 << 8 else torch.uint16 if num_tokens <= 1 << 16 else torch.int32


def identity(sources: Iterable[Source], text_field: str) -> list[Any]:
    """What changes where the text of the sources may have changed."""
    return [[source.name, *one_identity(source, text_field)] for source in sources]


def one_identity(source: Source, text_field: str) -> list[Any]:
    if isinstance(source, DatasetSource):
        return [*dataset_identity(source), text_field]
    state = source.path.stat()
    field = [text_field] if source.holds_json_lines else []
    return [str(source.path.resolve()), state.st_size, state.st_mtime_ns, *field]


def documents_of(source: Source, text_field: str) -> Pieces:
    if isinstance(source, FileSource):
        return read_documents(source, text_field)
    return ((text, True) for text in dataset_texts(source, text_field))


def unpack(sources: Sequence[Source], text_field: str, folder: Path, report: Report) -> Entry:
    """The bytes of all sources, one after the other, a section each.

    Raises:
        OSError, ValueError: a source can't be read or has no text, or the cache can't be written
    """
    before = identity(sources, text_field)

    def fill(writer: EntryWriter) -> None:
        progress = Progress(report)
        for index, source in enumerate(sources):
            for text, ends in documents_of(source, text_field):
                writer.append(text, index, 0, len(text), ends)
                progress.add(len(text))
        require_unchanged(sources, before, text_field)

    return cached(folder, {"sources": before}, torch.uint8, fill, report)


def tokenise(
    sources: Sequence[Source],
    share_out: Callable[[Sequence[int]], list[list[Share]]],
    tokenizer: TextTokenizer,
    separator: int | None,
    settings: dict[str, Any],
    text_field: str,
    folder: Path,
    report: Report,
) -> Entry:
    """The ids of all sources, each part of the split tokenised by itself, with the separator after each document.

    Args:
        share_out: from the bytes of text in each source to its shares, in order; what is beyond them is left out
        settings: what the shares depend on beside the sources

    Raises:
        OSError, ValueError: a source can't be read or is no UTF-8, or the cache can't be written
    """
    before = identity(sources, text_field)
    dtype = smallest_type(max(tokenizer.vocab_size, 0 if separator is None else separator + 1))

    def fill(writer: EntryWriter) -> None:
        with local_copies(sources, text_field, folder) as copies:
            sizes = [count_bytes(source, text_field) for source in copies]
            shares = share_out(sizes)
            progress = Progress(report, sum(share.num_bytes for some in shares for share in some))
            blocks = (
                block for index, source in enumerate(copies) for block in cut(index, source, shares[index], text_field)
            )
            end = b"" if separator is None else array(TYPE_CODES[dtype], [separator]).tobytes()
            for block, ids in encode(blocks, tokenizer, dtype):
                ids = ids + end if block.ends_document else ids
                writer.append(ids, block.source, block.part, len(block.text), block.ends_document)
                progress.add(len(block.text))
        require_unchanged(sources, before, text_field)

    def cut(index: int, source: FileSource, shares: Sequence[Share], text_field: str) -> Iterator[Block]:
        pieces = shared_out(read_documents(source, text_field), shares)
        if tokenizer.is_bytes:
            yield from (Block(text, index, part, ends) for part, text, ends, _ in pieces)
        else:
            yield from blocks_of(pieces, index, source.path)

    kept = {"sources": before, "tokenizer": tokenizer.fingerprint, "separator": separator, **settings}
    return cached(folder, kept, dtype, fill, report)


def require_unchanged(sources: Sequence[Source], before: list[Any], text_field: str) -> None:
    for source, old, new in zip(sources, before, identity(sources, text_field), strict=True):
        if old != new:
            raise ValueError(f"data: {source.path} changed while it was read: use a copy that nothing writes to")


@contextmanager
def local_copies(sources: Sequence[Source], text_field: str, folder: Path) -> Iterator[list[FileSource]]:
    """The same sources, datasets as JSON lines in the cache for as long as they are read, which is twice."""
    copies = name_beside(folder / "datasets")
    with named_errors(folder):
        copies.mkdir(parents=True)
    try:
        files = []
        for index, source in enumerate(sources):
            if isinstance(source, DatasetSource):
                path = copies / f"{index}.jsonl"
                with named_errors(folder), open(path, "x", encoding="utf-8") as lines:
                    for text in dataset_texts(source, text_field):
                        lines.write(json.dumps({text_field: text.decode()}) + "\n")
                source = FileSource(path, source.name, True)
            files.append(source)
        yield files
    finally:
        shutil.rmtree(copies, ignore_errors=True)


def count_bytes(source: FileSource, text_field: str) -> int:
    if source.is_plain:
        return source.path.stat().st_size
    return sum(len(text) for text, _ in read_documents(source, text_field))


def encode(blocks: Iterable[Block], tokenizer: TextTokenizer, dtype: torch.dtype) -> Iterator[tuple[Block, bytes]]:
    """Blocks with their ids, tokenised many at a time."""
    if tokenizer.is_bytes:
        yield from ((block, widen(block.text, dtype)) for block in blocks)
        return
    for batch in batches(blocks):
        encoded = tokenizer.encode_batch([block.text for block in batch])
        for block, ids in zip(batch, encoded, strict=True):
            yield block, pack(ids, tokenizer, dtype)


def batches(blocks: Iterable[Block]) -> Iterator[list[Block]]:
    batch: list[Block] = []
    size = 0
    for block in blocks:
        batch.append(block)
        size += len(block.text)
        if size >= BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def pack(ids: Sequence[int], tokenizer: TextTokenizer, dtype: torch.dtype) -> bytes:
    if ids and not 0 <= min(ids) <= max(ids) < tokenizer.vocab_size:
        raise ValueError(
            f"tokenizer {tokenizer.name} gives ids from {min(ids)} to {max(ids)}, but its vocab_size is "
            f"{tokenizer.vocab_size}: correct the one or the other"
        )
    return array(TYPE_CODES[dtype], ids).tobytes()


def widen(text: bytes, dtype: torch.dtype) -> bytes:
    """Bytes as ids of a wider type."""
    width = dtype.itemsize
    if width == 1:
        return text
    ids = bytearray(width * len(text))
    ids[0 if sys.byteorder == "little" else width - 1 :: width] = text
    return bytes(ids)


class Progress:
    """Says now and then how far it is."""

    def __init__(self, report: Report, total: int | None = None) -> None:
        self.report, self.total, self.done = report, total, 0
        self.said = time.monotonic()

    def add(self, num_bytes: int) -> None:
        self.done += num_bytes
        if time.monotonic() - self.said > SECONDS_BETWEEN_REPORTS:
            self.said = time.monotonic()
            of = f" of {self.total / 1e6:,.0f}" if self.total else ""
            self.report(f"prepared {self.done / 1e6:,.0f}{of} MB of text …")
