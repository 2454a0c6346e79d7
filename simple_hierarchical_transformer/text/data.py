"""Text as bytes: which files, how they are split, and which windows of them a step sees.

Files stay where they are: a corpus is a list of segments (parts of files) that are read through memory maps when a
window falls on them. What is compressed is unpacked once, into a temporary file that is mapped too.
"""

from __future__ import annotations

import gzip
import hashlib
import mmap
import os
import shutil
import sysconfig
import tempfile
import zlib
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import IO, NamedTuple

import torch
from torch import Tensor

NOT_LIBRARY = frozenset({"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"})
VALIDATION_SHARE = 20  # one document, or byte, in twenty
FEW_DOCUMENTS = 20
OPEN_MAPS = 64  # a map holds a file open, and a process may hold open a thousand or so


@dataclass(frozen=True)
class PlainFile:
    path: Path
    size: int


class Document(NamedTuple):
    """A file to train on: where it is, and the name (relative, POSIX) that decides about its split."""

    path: Path
    name: str
    named_by_user: bool


class Segment(NamedTuple):
    """The bytes `start … stop-1` of a file."""

    source: PlainFile | mmap.mmap
    start: int
    stop: int


def open_map(file: PlainFile) -> mmap.mmap:
    with open_to_read(file.path) as handle:
        size = os.fstat(handle.fileno()).st_size
        if size != file.size:
            raise ValueError(
                f"data: {file.path} changed while it was in use, from {file.size:,} to {size:,} bytes: "
                "train on a copy that nothing writes to"
            )
        return mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)


class Corpus:
    """Segments of files, read as if they stood one after the other.

    For example, segments of 5, 2 and 4 bytes:  `read(4, 9)` takes

        position   0 1 2 3 4 | 5 6 | 7 8 9 10
        read               4   5 6   7 8
    """

    def __init__(self, segments: Iterable[Segment]) -> None:
        self.segments = tuple(segment for segment in segments if segment.start < segment.stop)
        self.ends = list(accumulate(segment.stop - segment.start for segment in self.segments))
        self.map = lru_cache(maxsize=OPEN_MAPS)(open_map)

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def cut(self, start: int, stop: int) -> Iterator[Segment]:
        """The segments, or parts of them, that hold the bytes `start … stop-1`."""
        index = bisect_right(self.ends, start)
        while start < stop:
            segment = self.segments[index]
            begin = segment.stop - (self.ends[index] - start)
            end = min(segment.stop, begin + stop - start)
            yield Segment(segment.source, begin, end)
            start += end - begin
            index += 1

    def read(self, start: int, stop: int) -> bytes:
        if not 0 <= start <= stop <= len(self):
            raise IndexError(f"bytes {start} … {stop} lie outside of a corpus of {len(self)} bytes")
        return b"".join(
            (self.map(source) if isinstance(source, PlainFile) else source)[begin:end]
            for source, begin, end in self.cut(start, stop)
        )

    def windows(self, starts: Sequence[int], length: int) -> Tensor:
        """Windows `(len(starts), length)` of uint8, one from each start."""
        text = bytearray(b"".join(self.read(start, start + length) for start in starts))
        return torch.frombuffer(text, dtype=torch.uint8).view(len(starts), length)


class Split(NamedTuple):
    """What is trained on, what is validated on, and words that say where both come from."""

    train: Corpus
    validation: Corpus
    description: str


# which files


def standard_library() -> list[Document]:
    """The interpreter's own library, in sorted order, without its tests and without installed packages."""
    root = Path(sysconfig.get_path("stdlib"))
    documents = [
        Document(path, path.relative_to(root).as_posix(), False)
        for path in walk(root, without=NOT_LIBRARY)
        if path.suffix == ".py"
    ]
    if not documents:
        raise FileNotFoundError(f"this Python has no source of its library in {root}: name your own text with --data")
    return sorted(documents, key=lambda document: document.name)


def list_documents(paths: Sequence[Path]) -> list[Document]:
    """Files as they are given, folders with all that lies in them, in sorted order; each file once.

    Raises:
        FileNotFoundError: a path isn't there
        ValueError: a path is neither a file nor a folder, or a folder holds no file
    """
    documents: dict[Path, Document] = {}
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"data: {path} doesn't exist: check the path, seen from {Path.cwd()}")
        if path.is_dir():
            found = [Document(file, file.relative_to(path).as_posix(), False) for file in walk(path)]
            if not found:
                raise ValueError(f"data: the folder {path} holds no files that aren't hidden: name one that holds text")
            found.sort(key=lambda document: document.name)
        elif path.is_file():
            found = [Document(path, path.name, True)]
        else:
            raise ValueError(f"data: {path} is neither a file nor a folder: copy its text into a file first")
        for document in found:
            # a file that is given twice would be in the train and the validation split
            documents.setdefault(document.path.resolve(), document)
    return list(documents.values())


def walk(folder: Path, without: frozenset[str] = frozenset()) -> Iterator[Path]:
    """All regular files in a folder and its subfolders, but for what is hidden, and for folders of certain names."""

    def refuse(error: OSError) -> None:
        raise PermissionError(f"data: the folder {error.filename} can't be read: make it readable, or leave it out")

    for root, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".") and name not in without]
        for name in names:
            path = Path(root, name)
            if not name.startswith(".") and path.is_file():
                yield path


# from files to segments


def open_to_read(path: Path) -> IO[bytes]:
    try:
        return open(path, "rb")
    except PermissionError as error:
        raise PermissionError(f"data: {path} can't be read: make it readable, or leave it out") from error


def load_documents(documents: Iterable[Document]) -> list[tuple[str, Segment]]:
    """The name and the bytes of every document that isn't empty.

    Raises:
        ValueError: a file that the user named is empty, or one is no sound gzip file
        PermissionError: a file can't be read
    """
    parts: list[tuple[str, PlainFile | None, int, int]] = []  # name, file (None: unpacked), start, stop
    with tempfile.TemporaryFile() as unpacked:
        for document in documents:
            start = 0
            file = None
            if document.path.suffix.lower() == ".gz":
                start = unpacked.tell()
                unpack(document.path, unpacked)
                stop = unpacked.tell()
            else:
                with open_to_read(document.path) as handle:
                    stop = os.fstat(handle.fileno()).st_size
                file = PlainFile(document.path, stop)
            if start < stop:
                parts.append((document.name, file, start, stop))
            elif document.named_by_user:
                raise ValueError(f"data: {document.path} is empty: leave it out, or name a file that holds text")
        unpacked.flush()
        # the map outlives the file's name and its handle
        memory = mmap.mmap(unpacked.fileno(), 0, access=mmap.ACCESS_READ) if unpacked.tell() else None
    segments = []
    for name, file, start, stop in parts:
        source = file or memory
        assert source is not None
        segments.append((name, Segment(source, start, stop)))
    return segments


def unpack(path: Path, target: IO[bytes]) -> None:
    try:
        with open_to_read(path) as packed, gzip.open(packed) as text:
            shutil.copyfileobj(text, target, 1 << 20)
    except EOFError as error:
        raise ValueError(f"data: {path} is cut off: it ends within its compressed text; fetch it again") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"data: {path} is no sound gzip file ({error}): fetch it again, or rename it") from error


# train and validation


def load_split(paths: Sequence[Path], seq_len: int) -> Split:
    """Find the text, and split it into what is trained on and what is validated on.

    Of many documents about one in twenty, chosen by a hash of its name, is validated on: the same ones whatever
    else is added. Of few documents, or of ones that are too uneven for that, it is the last twentieth of the text.

    Args:
        paths: files and folders; none: the interpreter's standard library
        seq_len: bytes that are predicted per sequence; a window is one longer

    Raises:
        FileNotFoundError, PermissionError, ValueError: no text, or too little for a window in either split
    """
    documents = list_documents(paths) if paths else standard_library()
    segments = load_documents(documents)
    what = ", ".join(map(str, paths)) if paths else "the standard library of this Python"
    whole = Corpus(segment for _, segment in segments)
    window = seq_len + 1
    if len(whole) < 2 * window:
        raise ValueError(
            f"data: {what} holds {len(whole):,} bytes of text, but training and validation take at least one sequence "
            f"of seq_len + 1 = {window:,} bytes each: add text to --data, or lower --seq-len"
        )
    described = f"{what} ({len(segments):,} file{'s' * (len(segments) != 1)})"
    if len(segments) >= FEW_DOCUMENTS:
        train = Corpus(segment for name, segment in segments if not is_for_validation(name))
        validation = Corpus(segment for name, segment in segments if is_for_validation(name))
        even = len(whole) / (4 * VALIDATION_SHARE) <= len(validation) <= len(whole) * 4 / VALIDATION_SHARE
        if even and min(len(train), len(validation)) >= window:
            return Split(train, validation, described)
    border = len(whole) - max(len(whole) // VALIDATION_SHARE, window)
    return Split(Corpus(whole.cut(0, border)), Corpus(whole.cut(border, len(whole))), described)


def is_for_validation(name: str) -> bool:
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") % VALIDATION_SHARE == 0


# windows


def train_batch(corpus: Corpus, seed: int, step: int, batch_size: int, seq_len: int) -> Tensor:
    """The batch of a step, `(batch_size, seq_len + 1)` of uint8: a function of seed and step, and of nothing before."""
    digest = hashlib.sha256(f"{seed} {step}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    starts = torch.randint(len(corpus) - seq_len, (batch_size,), generator=generator)
    return corpus.windows(starts.tolist(), seq_len + 1)


def validation_batches(corpus: Corpus, sequences: int, batch_size: int, seq_len: int) -> Iterator[Tensor]:
    """Evenly spaced windows, always the same, as batches `(≤ batch_size, seq_len + 1)` of uint8.

    No window overlaps another, so a short text gives fewer of them than asked for.
    """
    window = seq_len + 1
    count = min(sequences, len(corpus) // window)
    starts = [index * (len(corpus) - window) // max(count - 1, 1) for index in range(count)]
    for first in range(0, count, batch_size):
        yield corpus.windows(starts[first : first + batch_size], window)
