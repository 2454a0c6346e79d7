"""Which files, and which datasets: from what the user names to a list of sources."""

from __future__ import annotations

import glob
import os
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from ..files import RUN_MARK

NOT_LIBRARY = frozenset({"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"})
PACKED = frozenset({".gz", ".zst"})
JSON_LINES = ".jsonl"
DATASET = "hf:"


@dataclass(frozen=True)
class FileSource:
    """A file: where it is, and the name (relative, POSIX) that decides about its split."""

    path: Path
    name: str
    named_by_user: bool

    @property
    def holds_json_lines(self) -> bool:
        suffixes = [suffix.lower() for suffix in self.path.suffixes]
        return (suffixes[:-1] if suffixes and suffixes[-1] in PACKED else suffixes)[-1:] == [JSON_LINES]

    @property
    def is_plain(self) -> bool:
        """Whether its bytes are the text, so that it can be read in place."""
        return self.path.suffix.lower() not in PACKED and not self.holds_json_lines


@dataclass(frozen=True)
class DatasetSource:
    """A split of a Hugging Face dataset: its name on the Hub, or a folder or file on this machine."""

    place: str
    configuration: str | None
    split: str

    is_plain = False
    named_by_user = True

    @property
    def path(self) -> str:
        """What messages call it."""
        return f"{DATASET}{self.place}"

    @property
    def name(self) -> str:
        """The same wherever a local folder stands."""
        place = Path(self.place).resolve().name if os.path.exists(self.place) else self.place
        return ":".join(part for part in (place, self.configuration, self.split) if part)


Source = FileSource | DatasetSource


def standard_library() -> list[FileSource]:
    """The interpreter's own library, in sorted order, without its tests and without installed packages."""
    root = Path(sysconfig.get_path("stdlib"))
    sources = [
        FileSource(path, path.relative_to(root).as_posix(), False)
        for path in walk(root, without=NOT_LIBRARY)
        if path.suffix == ".py"
    ]
    if not sources:
        raise FileNotFoundError(f"this Python has no source of its library in {root}: name your own text with --data")
    return sorted(sources, key=lambda source: source.name)


def list_sources(paths: Sequence[str | Path]) -> list[Source]:
    """Files as they are given, those of folders and globs in sorted order, and datasets; each once.

    Raises:
        FileNotFoundError: a path isn't there, or a glob matches no file
        ValueError: a path is neither a file nor a folder, a folder holds no file, or `hf:` names no dataset
    """
    sources: dict[object, Source] = {}
    for path in map(str, paths):
        if path.startswith(DATASET):
            dataset = dataset_source(path)
            sources.setdefault(dataset, dataset)
            continue
        for source in files_of(Path(path)):
            # a file that is given twice would be in the train and the validation split
            sources.setdefault(source.path.resolve(), source)
    return list(sources.values())


def files_of(path: Path) -> list[FileSource]:
    if path.is_dir():
        found = [FileSource(file, file.relative_to(path).as_posix(), False) for file in walk(path)]
        if not found:
            raise ValueError(f"data: the folder {path} holds no files that aren't hidden: name one that holds text")
        return sorted(found, key=lambda source: source.name)
    if path.is_file():
        return [FileSource(path, path.name, True)]
    if path.exists():
        raise ValueError(f"data: {path} is neither a file nor a folder: copy its text into a file first")
    if glob.has_magic(str(path)):
        return files_of_glob(path)
    raise FileNotFoundError(f"data: {path} doesn't exist: check the path, seen from {Path.cwd()}")


def files_of_glob(pattern: Path) -> list[FileSource]:
    """The files that a glob matches, named from its first part that isn't fixed: wherever it stands, the same names."""
    fixed = 0
    while not glob.has_magic(pattern.parts[fixed]):
        fixed += 1
    root = Path(*pattern.parts[:fixed])
    matched = map(Path, glob.iglob(str(pattern), recursive=True))
    found = [FileSource(path, path.relative_to(root).as_posix(), False) for path in matched if path.is_file()]
    if not found:
        raise FileNotFoundError(
            f"data: the glob {pattern} matches no file that isn't hidden: check it, seen from {Path.cwd()}"
        )
    return sorted(found, key=lambda source: source.name)


def dataset_source(text: str) -> DatasetSource:
    """`hf:NAME`, `hf:NAME:SPLIT` or `hf:NAME:CONFIGURATION:SPLIT`."""
    place, *rest = text.removeprefix(DATASET).split(":")
    if not place or len(rest) > 2 or not all(rest):
        raise ValueError(f"data: {text} names no dataset: write hf:NAME, hf:NAME:SPLIT or hf:NAME:CONFIGURATION:SPLIT")
    return DatasetSource(place, rest[0] if len(rest) == 2 else None, rest[-1] if rest else "train")


def walk(folder: PurePath, without: frozenset[str] = frozenset()) -> Iterator[Path]:
    """All regular files in a folder and its subfolders.

    But for what is hidden, for folders of certain names, and for those of training runs.
    """

    def refuse(error: OSError) -> None:
        raise PermissionError(f"data: the folder {error.filename} can't be read: make it readable, or leave it out")

    for root, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [
            name
            for name in folders
            if not (name.startswith(".") or name in without or Path(root, name, RUN_MARK).exists())
        ]
        for name in names:
            path = Path(root, name)
            if not name.startswith(".") and path.is_file():
                yield path
