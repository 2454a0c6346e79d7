"""Hugging Face datasets, streamed: neither loaded whole nor copied by that library."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .extras import missing_extra
from .reading import text_of_row
from .sources import DatasetSource, walk

FORMATS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv", ".txt": "text", ".arrow": "arrow"}
PACKED = (".gz", ".zst")


def dataset_identity(source: DatasetSource) -> list[Any]:
    """What changes where the dataset does: the files of a local one, the commit of one on the Hub."""
    local = Path(source.place)
    if not local.exists():
        return [source.path, make_builder(source).hash]
    files = sorted(walk(local)) if local.is_dir() else [local]
    states = [(file, file.stat()) for file in files]
    return [str(local.resolve()), *([str(file), state.st_size, state.st_mtime_ns] for file, state in states)]


def dataset_texts(source: DatasetSource, text_field: str) -> Iterator[bytes]:
    """The text of each row that has some, as UTF-8.

    Raises:
        ValueError: there is no such dataset, configuration, split or field; it can't be fetched; or it is damaged
    """
    with named_errors(source):
        rows = iter(make_builder(source).as_streaming_dataset(split=source.split))
    number = 0
    while True:
        with named_errors(source):
            row = next(rows, None)
        if row is None:
            return
        number += 1
        if text := text_of_row(row, text_field, f"data: row {number:,} of {source.path}"):
            yield text


def make_builder(source: DatasetSource) -> Any:
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise missing_extra("datasets", f"data: reading {source.path}") from error
    with named_errors(source):
        if os.path.isfile(source.place):
            path = Path(source.place)
            suffix = Path(path.stem).suffix if path.suffix in PACKED else path.suffix
            if suffix not in FORMATS:
                raise ValueError(f"a file must end in one of {', '.join(FORMATS)}")
            return datasets.load_dataset_builder(FORMATS[suffix], data_files=[source.place])
        return datasets.load_dataset_builder(source.place, source.configuration)


@contextmanager
def named_errors(source: DatasetSource) -> Iterator[None]:
    """All that goes wrong in the library is an OSError or a ValueError; its first line says enough."""
    try:
        yield
    except (OSError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"data: {source.path} can't be read, split {source.split!r} ({reason}): "
            "check name, split and network, or name a local folder"
        ) from error
