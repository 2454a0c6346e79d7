"""The folder where prepared text is kept: flat arrays of token ids, each with a JSON file that says what it holds.

An entry is found again by what it was made of. It is whole or not there: the array is written under a temporary name,
flushed and renamed, and then the JSON file, without which it doesn't count. One whose size, digest or checksum is
wrong is made again.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..files import FolderLock, flush_folder, is_beside, name_beside, write_atomically
from .corpus import PlainFile, Segment
from .digests import content_digests, digest_json

FORMAT = 1
WRITE_AT_ONCE = 1 << 22  # bytes
APPLICATION = "simple-hierarchical-transformer"
ABANDONED = 3600.0  # seconds since something was last written to a temporary file

Report = Callable[[str], None]


class Section(NamedTuple):
    """Tokens that stand together in an entry: those of one source in one part of the split."""

    source: int
    part: int
    tokens: int
    num_bytes: int


@dataclass(frozen=True)
class Contents:
    """What the JSON file says of an array."""

    tokens: int
    num_bytes: int
    documents: int
    digest: str
    sections: tuple[Section, ...]


@dataclass(frozen=True)
class Entry:
    file: PlainFile
    contents: Contents

    def segments(self) -> Iterator[tuple[Section, Segment]]:
        start = 0
        for section in self.contents.sections:
            yield section, Segment(self.file, start, start + section.tokens)
            start += section.tokens


class EntryWriter:
    """What fills an array: ids as bytes, and the documents and sections that they belong to."""

    def __init__(self, path: Path, width: int) -> None:
        self.path, self.width = path, width
        self.tokens = self.num_bytes = self.documents = 0
        self.counts: dict[tuple[int, int], tuple[int, int]] = {}
        self.held = bytearray()
        with named_errors(path.parent):
            path.touch(exist_ok=False)

    def append(self, ids: bytes, source: int, part: int, num_bytes: int, ends_document: bool) -> None:
        """Add ids that stand for so many bytes of text; those of a source and part come one after the other."""
        self.held += ids
        if len(self.held) >= WRITE_AT_ONCE:
            self.write()
        tokens = len(ids) // self.width
        before = self.counts.get((source, part), (0, 0))
        self.counts[source, part] = before[0] + tokens, before[1] + num_bytes
        self.tokens += tokens
        self.num_bytes += num_bytes
        self.documents += ends_document

    def write(self, *, flush: bool = False) -> None:
        with named_errors(self.path.parent), open(self.path, "ab") as file:
            file.write(self.held)
            if flush:
                file.flush()
                os.fsync(file.fileno())
        self.held.clear()

    @property
    def sections(self) -> tuple[Section, ...]:
        return tuple(Section(*key, *counts) for key, counts in self.counts.items())


def default_cache() -> Path:
    given = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(given) if os.path.isabs(given) else Path.home() / ".cache") / APPLICATION


def cached(
    folder: Path, settings: dict[str, Any], dtype: torch.dtype, fill: Callable[[EntryWriter], None], report: Report
) -> Entry:
    """The entry that is made of these settings: the one that is there, if it is whole, or a new one.

    Raises:
        OSError: the folder can't be written to, or is full
        Exception: whatever `fill` raises; then there is no entry
    """
    settings = {"format": FORMAT, "byte_order": sys.byteorder, "dtype": str(dtype), **settings}
    settings = json.loads(json.dumps(settings))  # as they are read again, with lists for tuples
    path = folder / f"{digest_json(settings)[:32]}.bin"
    entry = find_entry(path, settings, dtype.itemsize, report)
    if entry is not None:
        return entry
    with named_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        clear_abandoned(folder)
    # of several processes that need it one makes it, and the others find it
    lock = FolderLock(path.with_name(f".{path.stem}.lock"))
    with named_errors(folder):
        lock.take(wait=True)
    try:
        entry = find_entry(path, settings, dtype.itemsize, report)
        return entry or make_entry(path, settings, dtype, fill, report)
    finally:
        lock.release()


def make_entry(
    path: Path, settings: dict[str, Any], dtype: torch.dtype, fill: Callable[[EntryWriter], None], report: Report
) -> Entry:
    folder = path.parent
    report(f"preparing text, once: it is kept in {path} …")
    beside = name_beside(path)
    try:
        writer = EntryWriter(beside, dtype.itemsize)
        fill(writer)
        writer.write(flush=True)
        size = writer.tokens * writer.width
        digest = content_digests([PlainFile(beside, size)])[0]
        contents = Contents(writer.tokens, writer.num_bytes, writer.documents, digest, writer.sections)
        with named_errors(folder):
            os.replace(beside, path)
            flush_folder(folder)
            body = {"settings": settings, **asdict(contents)}
            described = json.dumps({"sha256": digest_json(body), **body}, indent=1)
            write_atomically({path.with_suffix(".json"): described.encode()})
    finally:
        beside.unlink(missing_ok=True)
    report(
        f"prepared: {contents.num_bytes / 1e6:,.2f} MB of text in {contents.documents:,} "
        f"document{'s' * (contents.documents != 1)}, {contents.tokens:,} tokens"
    )
    return Entry(PlainFile(path, size), contents)


def find_entry(path: Path, settings: dict[str, Any], width: int, report: Report) -> Entry | None:
    about = path.with_suffix(".json")
    try:
        described = json.loads(about.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError):
        described = None
    if not isinstance(described, dict) or described.pop("sha256", None) != digest_json(described):
        report(f"{about} is damaged: preparing its text again")
        return None
    if described.pop("settings") != settings:
        report(f"{about} is of other text: preparing this one")
        return None
    sections = tuple(Section(*section) for section in described.pop("sections"))
    entry = Entry(PlainFile(path, described["tokens"] * width), Contents(sections=sections, **described))
    try:
        whole = content_digests([entry.file])[0] == entry.contents.digest
    except (OSError, ValueError):
        whole = False
    if not whole:
        report(f"{path} is damaged or gone: preparing its text again")
    return entry if whole else None


def clear_abandoned(folder: Path) -> None:
    """Take away what processes left that were ended in the middle of preparing."""
    for path in folder.iterdir():
        if is_beside(path) and time.time() - newest_change(path) > ABANDONED:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def newest_change(path: Path) -> float:
    try:
        changes: list[float] = [file.stat().st_mtime for file in (path, *(path.iterdir() if path.is_dir() else ()))]
        return max(changes)
    except FileNotFoundError:  # whoever wrote it is done
        return time.time()


@contextmanager
def named_errors(folder: Path) -> Iterator[None]:
    """Errors of the operating system say that it is the cache they are about, and what to do."""
    try:
        yield
    except OSError as error:
        raise OSError(
            f"cache: {folder} can't take the prepared text ({error.strerror}): free some space, "
            "or name another folder with --cache"
        ) from error
