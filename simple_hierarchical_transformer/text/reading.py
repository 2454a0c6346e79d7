"""From a file to the documents in it: unpacked, and taken out of JSON lines, a few megabytes at a time.

A document comes in pieces `(bytes, whether the document ends with them)`, none of them empty. A file of text is one
document, each line of a `.jsonl` file another.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from ..validation import shown
from .corpus import open_to_read
from .extras import missing_extra
from .sources import FileSource

Pieces = Iterator[tuple[bytes, bool]]

CHUNK = 1 << 20
ZST_CHUNK = 1 << 14  # packed; all that it unpacks to comes at once
WINDOW = 1 << 31  # of `zstd --long=31`
LONGEST_LINE = 1 << 28


def read_documents(source: FileSource, text_field: str) -> Pieces:
    """The documents of a file.

    Raises:
        OSError, ValueError: it can't be read, is cut off or damaged, or a line holds no text; each with its name
    """
    chunks = read_chunks(source.path)
    if source.holds_json_lines:
        for text in json_texts(source.path, chunks, text_field):
            if text:
                yield text, True
        return
    held = b""
    for chunk in chunks:
        if held:
            yield held, False
        held = chunk
    if held:
        yield held, True


def read_chunks(path: Path) -> Iterator[bytes]:
    """The bytes of a file, unpacked, in pieces that aren't empty."""
    unpack = {".gz": unpack_gz, ".zst": unpack_zst}.get(path.suffix.lower(), read_plain)
    with open_to_read(path) as file:
        try:
            yield from unpack(path, file)
        except EOFError as error:
            raise ValueError(f"data: {path} is cut off: it ends within its compressed text; fetch it again") from error
        except OSError as error:
            raise OSError(
                f"data: {path} can't be read ({error.strerror}): copy it elsewhere, or leave it out"
            ) from error


def read_plain(path: Path, file: IO[bytes]) -> Iterator[bytes]:
    while chunk := file.read(CHUNK):
        yield chunk


def unpack_gz(path: Path, file: IO[bytes]) -> Iterator[bytes]:
    try:
        with gzip.open(file) as text:
            while chunk := text.read(CHUNK):
                yield chunk
    except (gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"data: {path} is no sound gzip file ({error}): fetch it again, or rename it") from error


def unpack_zst(path: Path, file: IO[bytes]) -> Iterator[bytes]:
    """Frame by frame, since only a single frame says whether it is whole."""
    try:
        import zstandard
    except ModuleNotFoundError as error:
        raise missing_extra("zstandard", f"data: reading {path}") from error
    decompressor = zstandard.ZstdDecompressor(max_window_size=WINDOW)
    frame = None
    try:
        while packed := file.read(ZST_CHUNK):
            while packed:
                frame = frame or decompressor.decompressobj()
                if text := frame.decompress(packed):
                    yield text
                packed = frame.unused_data if frame.eof else b""
                frame = None if frame.eof else frame
    except zstandard.ZstdError as error:
        raise ValueError(f"data: {path} is no sound zstd file ({error}): fetch it again, or rename it") from error
    if frame is not None:
        raise EOFError


def json_texts(path: Path, chunks: Iterator[bytes], text_field: str) -> Iterator[bytes]:
    """The text of each line that isn't blank, as UTF-8."""
    for number, line in enumerate(split_lines(path, chunks), start=1):
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if not line.strip():
            continue
        where = f"data: line {number:,} of {path}"
        try:
            row = json.loads(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise ValueError(f"{where} isn't UTF-8 ({error.reason}): convert the file, or fetch it again") from error
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where} isn't JSON ({error}): correct it, or rename the file if it is text") from error
        yield text_of_row(row, text_field, where)


def text_of_row(row: Any, text_field: str, where: str) -> bytes:
    if not isinstance(row, dict):
        raise ValueError(f"{where} is no JSON object, got {shown(row)}: give one such as {{{text_field!r}: …}}")
    if text_field not in row:
        fields = ", ".join(map(str, row)) or "none"
        raise ValueError(f"{where} has no field {text_field!r}, but {fields}: name the text's with --text-field")
    text = row[text_field]
    if not isinstance(text, str):
        raise ValueError(f"{where} holds no text in {text_field!r}, got {shown(text)}: name another with --text-field")
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"{where} holds half of a surrogate pair, which is no character: correct it") from error


def split_lines(path: Path, chunks: Iterator[bytes]) -> Iterator[bytes]:
    started: list[bytes] = []  # what there is of the line that isn't at its end
    length = 0
    for chunk in chunks:
        first, *rest = chunk.split(b"\n")
        started.append(first)
        length += len(first)
        if rest:
            yield b"".join(started)
            yield from rest[:-1]
            started, length = [rest[-1]], len(rest[-1])
        if length > LONGEST_LINE:
            raise ValueError(
                f"data: {path} has a line of more than {LONGEST_LINE:,} bytes: "
                "put one document on a line, or rename the file if it isn't JSON lines"
            )
    if length:
        yield b"".join(started)
