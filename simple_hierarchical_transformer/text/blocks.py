"""Documents cut where a part of the split ends, and into blocks that are tokenised one by one.

Where a long document is cut into blocks depends on the text alone, not on how it was read: after BLOCK bytes at the
next line that begins with a letter or digit, or, where none does, at the next best place. Almost all tokenizers cut
there themselves, so that the ids are those of the whole document at once.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from .reading import Pieces

BLOCK = 1 << 14
BORDERS = (re.compile(rb"\n(?=[0-9A-Za-z])"), re.compile(rb"\n(?=[^\s])"), re.compile(rb"[^\s](?=\s)"))


class Share(NamedTuple):
    """So many bytes of a source, which go to a part of the split."""

    part: int
    num_bytes: int


class Block(NamedTuple):
    """Text that is tokenised by itself."""

    text: bytes
    source: int
    part: int
    ends_document: bool


def shared_out(pieces: Pieces, shares: Sequence[Share]) -> Iterator[tuple[int, bytes, bool, bool]]:
    """Pieces as `(part, text, whether the document ends, whether the share ends)`, cut where the shares end."""
    remaining = iter(shares)
    part, left = next(remaining, (0, 0))
    for text, ends in pieces:
        while text:
            while not left:
                following = next(remaining, None)
                if following is None:
                    return
                part, left = following
            taken, text = text[:left], text[left:]
            left -= len(taken)
            yield part, taken, ends and not text, not left


def blocks_of(pieces: Iterable[tuple[int, bytes, bool, bool]], source: int, path: Path) -> Iterator[Block]:
    """Blocks of valid UTF-8, of at most 2 · BLOCK bytes; only a character that was cut with its document may be torn.

    Raises:
        ValueError: the text isn't UTF-8
    """
    held, position, begins = b"", 0, True  # text in hand, where it stands in its file, whether a share begins with it
    for part, text, ends_document, ends_share in pieces:
        held += text
        while len(held) > 2 * BLOCK or (held and (ends_document or ends_share)):
            border = find_border(held) if len(held) > 2 * BLOCK else len(held)
            block, held = held[:border], held[border:]
            last = not held and (ends_document or ends_share)
            require_utf8(block, path, position, begins, last)
            yield Block(block, source, part, not held and ends_document)
            position, begins = position + border, last


def find_border(text: bytes) -> int:
    """Where the first block of a text of more than 2 · BLOCK bytes ends: beyond BLOCK."""
    for pattern in BORDERS:
        if match := pattern.search(text, BLOCK - 1, 2 * BLOCK):
            return match.end()
    border = 2 * BLOCK
    while border > 2 * BLOCK - 3 and 0x80 <= text[border] < 0xC0:  # within a character
        border -= 1
    return border


def require_utf8(text: bytes, path: Path, position: int, first: bool, last: bool) -> None:
    torn = 0
    while first and torn < min(3, len(text)) and 0x80 <= text[torn] < 0xC0:
        torn += 1
    try:
        codecs.getincrementaldecoder("utf-8")().decode(text[torn:], final=not last)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"data: {path} isn't UTF-8 at byte {position + torn + error.start:,} ({error.reason}): convert it, "
            "leave it out, or train on bytes, without --tokenizer"
        ) from error
