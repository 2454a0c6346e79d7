"""Write files so that a folder holds the old one or the new one, whole, whatever happens."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

try:
    import fcntl
except ModuleNotFoundError:  # on Windows
    fcntl = None  # type: ignore[assignment]

RUN_MARK = ".hierarchical-transformer-run"  # in the folder of a training run: its lock, by which it is known

Content = bytes | Sequence[bytes | memoryview]  # of a file: whole, or in pieces that follow each other


def write_atomically(contents: Mapping[Path, Content]) -> None:
    """Replace the files of one folder, each whole or not at all; none before all are safely on the disk."""
    beside = {path: name_beside(path) for path in contents}
    try:
        for path, content in contents.items():
            write_flushed(beside[path], content)
        for path in contents:
            os.replace(beside[path], path)
    except BaseException:
        for path in beside.values():
            path.unlink(missing_ok=True)
        raise
    flush_folder(next(iter(contents)).parent)


def name_beside(path: Path) -> Path:
    """A hidden name in the same folder, for what isn't whole yet; `is_beside` knows it."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}")


def is_beside(path: Path) -> bool:
    """Whether this is the name of something that a process was ended in the middle of writing."""
    name, _, key = path.name.rpartition(".")
    return name.startswith(".") and len(key) == 32 and all(letter in "0123456789abcdef" for letter in key)


def pieces_of(content: Content) -> Sequence[bytes | memoryview]:
    return (content,) if isinstance(content, bytes) else content


def write_flushed(path: Path, content: Content) -> None:
    """Write a new file, down to the disk."""
    with open(path, "xb") as file:
        for piece in pieces_of(content):
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())


def flush_folder(folder: Path) -> None:
    """Make sure that the names in a folder are on the disk."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class InUseError(OSError):
    """Another process holds the lock."""


class FolderLock:
    """A file in a folder that one process at a time holds, until it lets go of it or ends, in whatever way.

    Where the system has no such locks (Windows), it keeps nobody out.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: IO[bytes] | None = None

    def take(self, *, wait: bool = False) -> None:
        """Make the file, unless it is there, and hold it.

        Raises:
            InUseError: another process does, and `wait` isn't set
        """
        file = open(self.path, "ab")  # noqa: SIM115 - open for as long as the lock is held
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                file.close()
                raise InUseError(f"{self.path} is held by another process") from None
        self._file = file

    def release(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
