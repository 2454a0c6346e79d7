"""From sources to the parts of a split: bytes where they lie, or what was prepared in the cache."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .cache import Report
from .corpus import Corpus, PlainFile, Segment, open_to_read
from .digests import content_digests
from .prepare import smallest_type, tokenise, unpack
from .sources import FileSource, Source
from .splitting import PARTS, share_out
from .tokenizer import TextTokenizer


@dataclass(frozen=True)
class Loaded:
    """Text as it is read, and what is the same wherever it lies.

    Attributes:
        parts: to train, to validate and, perhaps of nothing, to test on
        files: how many have text in it
        identity: names, sizes and digests
    """

    parts: tuple[Corpus, ...]
    files: int
    identity: list[Any]


def load_bytes(
    sources: Sequence[Source],
    split: tuple[int, int, int] | None,
    window: int,
    text_field: str,
    cache: Path,
    report: Report,
) -> Loaded:
    """The text as bytes: plain files in place, the others unpacked into the cache."""
    packed = [index for index, source in enumerate(sources) if not source.is_plain]
    entry = unpack([sources[index] for index in packed], text_field, cache, report) if packed else None
    texts: dict[int, Segment] = {}
    if entry is not None:
        texts = {packed[section.source]: segment for section, segment in entry.segments()}
    for index, source in enumerate(sources):
        if isinstance(source, FileSource) and source.is_plain:
            with open_to_read(source.path) as file:
                size = os.fstat(file.fileno()).st_size
            texts[index] = Segment(PlainFile(source.path.absolute(), size), 0, size)
    sizes = [texts[index].stop - texts[index].start if index in texts else 0 for index in range(len(sources))]
    segments: list[list[Segment]] = [[] for _ in PARTS]
    for index, some in enumerate(share_out(sources, sizes, split, window)):
        start = texts[index].start if some else 0
        for part, num_bytes in some:
            segments[part].append(Segment(texts[index].file, start, start + num_bytes))
            start += num_bytes
    plain = [index for index, source in enumerate(sources) if source.is_plain and sizes[index]]
    digests = dict(zip(plain, content_digests([texts[index].file for index in plain]), strict=True))
    identity = [[source.name, sizes[index], digests.get(index)] for index, source in enumerate(sources) if sizes[index]]
    return Loaded(
        tuple(map(Corpus, segments)),
        sum(size > 0 for size in sizes),
        [identity, entry.contents.digest if entry is not None and entry.contents.tokens else None],
    )


def load_tokens(
    sources: Sequence[Source],
    split: tuple[int, int, int] | None,
    tokenizer: TextTokenizer,
    separator: int | None,
    text_field: str,
    cache: Path,
    report: Report,
) -> Loaded:
    """The text as ids, each part tokenised by itself, from the cache."""
    entry = tokenise(
        sources,
        lambda sizes: share_out(sources, sizes, split),
        tokenizer,
        separator,
        {"split": split},
        text_field,
        cache,
        report,
    )
    segments: list[list[Segment]] = [[] for _ in PARTS]
    num_bytes = [0 for _ in PARTS]
    for section, segment in entry.segments():
        segments[section.part].append(segment)
        num_bytes[section.part] += section.num_bytes
    dtype = smallest_type(max(tokenizer.vocab_size, 0 if separator is None else separator + 1))
    parts = tuple(Corpus(some, dtype, count) for some, count in zip(segments, num_bytes, strict=True))
    sections = entry.contents.sections
    identity = [[sources[section.source].name, *section[1:]] for section in sections]
    return Loaded(parts, len({section.source for section in sections}), [identity, entry.contents.digest])
