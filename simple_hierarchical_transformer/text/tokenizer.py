"""Between text and token ids, whatever the tokenizer; and the files that tell a model's folder which one it is.

A model that was trained on bytes has no tokenizer files. Others have either `tokenizer.json`, a copy of the
`tokenizers` file, or `tokenizer_name.json`, the name of a tiktoken encoding.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from ..files import write_atomically
from ..validation import shown
from .extras import missing_extra
from .text_tokenizer import ByteTokenizer, JsonTokenizer, ObjectTokenizer, TextTokenizer, TiktokenTokenizer

__all__ = [
    "BYTES",
    "TextTokenizer",
    "Tokenizer",
    "find_tokenizer",
    "load_fitting",
    "load_tokenizer",
    "save_tokenizer",
    "tokenizer_files",
]

BYTES = ByteTokenizer()
JSON_FILE = "tokenizer.json"
NAME_FILE = "tokenizer_name.json"


@runtime_checkable
class Tokenizer(Protocol):
    """What a tokenizer of one's own has to offer. Its ids are 0 … vocab_size - 1."""

    @property
    def vocab_size(self) -> int: ...

    def encode(self, text: str, /) -> Sequence[int]: ...

    def decode(self, ids: Sequence[int], /) -> str: ...


def load_tokenizer(tokenizer: str | Path | Tokenizer | TextTokenizer) -> TextTokenizer:
    """A tokenizer by its name, or one's own object as the package uses it.

    Args:
        tokenizer: "bytes", a `tokenizers` JSON file, the name of a tiktoken encoding, or an object with `encode`,
            `decode` and `vocab_size`

    Raises:
        TypeError: an object that lacks one of the three
        ValueError: an unknown name, a damaged file, or a package that isn't installed
        OSError: the file can't be read, or the encoding can't be fetched
    """
    if isinstance(tokenizer, TextTokenizer):
        return tokenizer
    if not isinstance(tokenizer, (str, Path)):
        if not isinstance(tokenizer, Tokenizer):
            raise TypeError(
                f"tokenizer must be a name, or an object with encode, decode and vocab_size, got {shown(tokenizer)}: "
                "add what it lacks"
            )
        return ObjectTokenizer(tokenizer)
    if str(tokenizer) == BYTES.name:
        return BYTES
    path = Path(tokenizer)
    if path.is_file() or path.suffix == ".json":
        return JsonTokenizer(path)
    return load_tiktoken(str(tokenizer))


def load_fitting(tokenizer: str | Path | Tokenizer | TextTokenizer, num_tokens: int) -> TextTokenizer:
    """The same for a model that knows so many ids.

    Raises:
        TypeError, ValueError, OSError: as `load_tokenizer`, and for a tokenizer that has more ids
    """
    loaded = load_tokenizer(tokenizer)
    if loaded.vocab_size > num_tokens:
        raise ValueError(
            f"tokenizer {loaded.name} has {loaded.vocab_size} ids, but the model knows {num_tokens}: give the "
            "tokenizer that the model was trained with"
        )
    return loaded


def load_tiktoken(name: str) -> TextTokenizer:
    try:
        import tiktoken
    except ModuleNotFoundError as error:
        raise missing_extra("tiktoken", f"tokenizer {name!r}, which is neither 'bytes' nor a file,") from error
    names = tiktoken.list_encoding_names()
    if name not in names:
        nearest = difflib.get_close_matches(name, [BYTES.name, *names], 1)
        what = "a folder" if Path(name).is_dir() else "no file here either"
        raise ValueError(
            f"tokenizer is 'bytes', a `tokenizers` JSON file, or a tiktoken encoding ({', '.join(names)}), "
            f"got {name!r}, which is {what}: {f'did you mean {nearest[0]!r}?' if nearest else 'name one of these'}"
        )
    return TiktokenTokenizer(name)


def tokenizer_files(tokenizer: TextTokenizer) -> dict[str, bytes]:
    """By their names, the files that tell a model's folder which tokenizer its ids are of."""
    if isinstance(tokenizer, JsonTokenizer):
        return {JSON_FILE: tokenizer.source}
    if tokenizer.is_bytes:
        return {}
    noted = {"kind": tokenizer.kind, "name": tokenizer.name, "fingerprint": tokenizer.fingerprint}
    return {NAME_FILE: (json.dumps(noted, indent=2) + "\n").encode()}


def save_tokenizer(tokenizer: TextTokenizer, folder: Path) -> None:
    """Note in a model's folder which tokenizer its ids are of; what was noted there before goes."""
    files = {folder / name: content for name, content in tokenizer_files(tokenizer).items()}
    if files:
        write_atomically(files)
    for name in (JSON_FILE, NAME_FILE):
        if folder / name not in files:
            (folder / name).unlink(missing_ok=True)


def find_tokenizer(folder: Path) -> TextTokenizer:
    """The tokenizer that `save_tokenizer` noted in a model's folder; bytes where there is no note.

    Raises:
        OSError, ValueError: the note is damaged, or the tokenizer can't be loaded
    """
    by_file, by_name = (folder / JSON_FILE).exists(), (folder / NAME_FILE).exists()
    if by_file and by_name:
        raise ValueError(f"tokenizer: {folder} holds both {JSON_FILE} and {NAME_FILE}: take away the one that is wrong")
    if by_file:
        return JsonTokenizer(folder / JSON_FILE)
    if not by_name:
        return BYTES
    noted = read_note(folder / NAME_FILE)
    if noted["kind"] != TiktokenTokenizer.kind:
        raise ValueError(
            f"tokenizer: the model in {folder} was trained with an object of one's own, {noted['name']}, "
            "which no file holds: load the model in Python, and pass it that object's ids"
        )
    return load_tiktoken(noted["name"])


def read_note(path: Path) -> dict[str, Any]:
    try:
        noted = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        noted = None
    kinds = (TiktokenTokenizer.kind, ObjectTokenizer.kind)
    if not isinstance(noted, dict) or noted.get("kind") not in kinds or not isinstance(noted.get("name"), str):
        raise ValueError(f"tokenizer: {path} is damaged: fetch it again, or write {{'kind': 'tiktoken', 'name': …}}")
    return noted
