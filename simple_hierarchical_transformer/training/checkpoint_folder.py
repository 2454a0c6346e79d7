"""A folder of files that is there as a whole or not at all, and that says of every file what it must hold.

Files are written under another name, down to the disk, `manifest.json` last; then the folder gets its name. So
whatever ends the process, or the machine, a folder with its name is whole, and one with damage is known by its sums.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ..checkpoint import CheckpointError
from ..files import Content, flush_folder, name_beside, pieces_of, write_flushed

MANIFEST_FILE = "manifest.json"
MANIFEST_FORMAT = "simple-hierarchical-transformer checkpoint"
FORMAT_VERSION = 1
MOST_BYTES_OF_JSON = 1 << 24
REMEDY = "use another checkpoint of the run, or copy this one again from where it is whole"


def write_folder(folder: Path, files: Mapping[str, Content]) -> None:
    """Make `folder`, which isn't there yet, with these files and their manifest.

    Raises:
        OSError: the disk is full or can't be written to; then nothing of it is there.
    """
    beside = name_beside(folder)
    try:
        beside.mkdir(parents=True)
        with ThreadPoolExecutor() as pool:  # what is written is summed up meanwhile, in memory
            entries = {name: pool.submit(entry_of, content) for name, content in files.items()}
            for name, content in files.items():
                write_flushed(beside / name, content)
        manifest = manifest_bytes({name: entry.result() for name, entry in entries.items()})
        write_flushed(beside / MANIFEST_FILE, manifest)
        flush_folder(beside)
        os.rename(beside, folder)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    flush_folder(folder.parent)


def entry_of(content: Content) -> dict[str, int | str]:
    """Size and SHA-256 of a file."""
    digest, size = hashlib.sha256(), 0
    for piece in pieces_of(content):
        digest.update(piece)
        size += len(piece)
    return {"bytes": size, "sha256": digest.hexdigest()}


def remove_folder(folder: Path) -> None:
    """Take a folder away so that, whatever happens, it never stands there with half of its files."""
    beside = name_beside(folder)
    os.rename(folder, beside)
    shutil.rmtree(beside, ignore_errors=True)


def manifest_bytes(entries: Mapping[str, Any]) -> bytes:
    content = {"format": MANIFEST_FORMAT, "format_version": FORMAT_VERSION, "files": entries}
    return f"{json.dumps(content, indent=1, sort_keys=True)}\n".encode()


def verify_folder(folder: Path, required: frozenset[str], optional: frozenset[str]) -> None:
    """Check every file of `folder` against its manifest: first the names, then the sizes, then the sums.

    Raises:
        CheckpointError: naming the first file that is missing, damaged, or not what it should be.
    """
    entries = read_manifest(folder / MANIFEST_FILE)
    if entries.keys() - required - optional or required - entries.keys():
        listed = ", ".join(sorted(entries)) or "nothing"
        reason = f"it lists {listed[:200]}, not {', '.join(sorted(required))}"
        raise CheckpointError(folder / MANIFEST_FILE, reason, REMEDY)
    for name, entry in entries.items():
        path = folder / name
        if path.is_symlink() or not path.is_file():
            raise CheckpointError(path, "the file is missing", REMEDY)
        size = path.stat().st_size
        if size != entry["bytes"]:
            raise CheckpointError(path, f"it has {size:,} bytes in place of {entry['bytes']:,}", REMEDY)
    with ThreadPoolExecutor() as pool:
        digests = pool.map(digest_of, (folder / name for name in entries))
        for (name, entry), digest in zip(entries.items(), digests, strict=True):
            if digest != entry["sha256"]:
                raise CheckpointError(folder / name, "the SHA-256 is wrong, so the file was changed or damaged", REMEDY)


def digest_of(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(path, f"the file can't be read ({error})", REMEDY) from None


def read_manifest(path: Path) -> dict[str, dict[str, Any]]:
    """For each file of a folder its size and SHA-256, as its manifest gives them."""
    raw = read_small(path)
    try:
        content = json.loads(raw)
    except (ValueError, RecursionError):
        raise CheckpointError(path, "the file is no JSON, so it was damaged", REMEDY) from None
    if not isinstance(content, dict) or content.get("format") != MANIFEST_FORMAT:
        raise CheckpointError(path, "the file is no manifest of a checkpoint", REMEDY)
    version = content.get("format_version")
    if version != FORMAT_VERSION or isinstance(version, bool):
        newer = "continue with the version of simple-hierarchical-transformer that wrote it"
        raise CheckpointError(path, f"format version {version!r} is not {FORMAT_VERSION}", newer)
    entries = content.get("files")
    is_listed = isinstance(entries, dict) and all(
        isinstance(entry, dict)
        and entry.keys() == {"bytes", "sha256"}
        and type(entry["bytes"]) is int
        and isinstance(entry["sha256"], str)
        for entry in entries.values()
    )
    if not isinstance(entries, dict) or not is_listed or raw != manifest_bytes(entries):
        raise CheckpointError(path, "the file isn't as it was written", REMEDY)
    return entries


def read_small(path: Path) -> bytes:
    """The bytes of a JSON file, if it's no larger than such a file can be."""
    try:
        if path.stat().st_size > MOST_BYTES_OF_JSON:
            raise CheckpointError(path, f"the file is larger than {MOST_BYTES_OF_JSON:,} bytes", REMEDY)
        return path.read_bytes()
    except FileNotFoundError:
        raise CheckpointError(path, "the file is missing", REMEDY) from None
    except OSError as error:
        raise CheckpointError(path, f"the file can't be read ({error})", REMEDY) from None
