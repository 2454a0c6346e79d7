"""The kinds of tokenizers: bytes, a file of `tokenizers`, an encoding of tiktoken, an object of the user's.

Text goes in and out as bytes. What is no UTF-8 becomes U+FFFD, but for the byte tokenizer, which keeps it.
"""

from __future__ import annotations

import hashlib
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from ..validation import whole
from .extras import missing_extra

LONGEST_CHARACTER = 4  # bytes, and so ids, of a character of UTF-8
REPLACEMENT = "\ufffd".encode()
PROBE = "The quick brown fox\n\n  jumps över 1,234.5 «dogs»\t日本語 😀 <|endoftext|> def f(x):\r\n    return x"


class TextTokenizer(ABC):
    """Between bytes of text and ids `0 … vocab_size - 1`.

    Attributes:
        kind: how it is noted beside a model
        name: what the user calls it
        vocab_size: one more than its largest id
        fingerprint: another one wherever the ids may be others
    """

    kind: ClassVar[str]
    is_bytes: ClassVar[bool] = False
    name: str
    vocab_size: int
    fingerprint: str

    def encode(self, text: bytes) -> list[int]:
        """The ids of a text, without any that stand for its beginning or end."""
        return self.encode_batch([text])[0]

    @abstractmethod
    def encode_batch(self, texts: Sequence[bytes]) -> list[list[int]]:
        """The ids of several texts, each by itself."""

    def decode(self, ids: Sequence[int]) -> bytes:
        """The text of ids; those beyond the vocabulary, such as separators, give nothing."""
        return self._decode([index for index in ids if 0 <= index < self.vocab_size])

    @abstractmethod
    def _decode(self, ids: list[int]) -> bytes:
        """The text of ids in the vocabulary."""

    def stream(self) -> TokenStream:
        return TokenStream(self)


class TokenStream:
    """Ids that come one after the other, as bytes; here of a tokenizer whose every id has bytes of its own.

    All that `feed` and `finish` return is together what `decode` makes of all the ids.
    """

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self.tokenizer = tokenizer

    def feed(self, ids: Sequence[int]) -> bytes:
        """The bytes that are sure by now."""
        return self.tokenizer.decode(ids)

    def finish(self) -> bytes:
        """What was held back, as nothing follows."""
        return b""


class ContextStream(TokenStream):
    """The same where the text of an id depends on those before it: by decoding some of them once more.

    The text of a character in several ids is U+FFFD until the last one is there, so it is held back until then.
    """

    def __init__(self, tokenizer: TextTokenizer) -> None:
        super().__init__(tokenizer)
        self.shown: list[int] = []  # the last ids whose text was returned
        self.held: list[int] = []

    def feed(self, ids: Sequence[int]) -> bytes:
        new = b""
        for index in ids:
            self.held.append(index)
            text = self._text_of_held()
            if len(self.held) >= LONGEST_CHARACTER or not text.endswith(REPLACEMENT):
                new += self._release(text)
        return new

    def finish(self) -> bytes:
        return self._release(self._text_of_held())

    def _text_of_held(self) -> bytes:
        before = self.tokenizer.decode(self.shown)
        return self.tokenizer.decode(self.shown + self.held)[len(before) :]

    def _release(self, text: bytes) -> bytes:
        self.shown, self.held = self.held or self.shown, []
        return text


class ByteTokenizer(TextTokenizer):
    kind = name = fingerprint = "bytes"
    is_bytes = True
    vocab_size = 256

    def encode_batch(self, texts: Sequence[bytes]) -> list[list[int]]:
        return [list(text) for text in texts]

    def _decode(self, ids: list[int]) -> bytes:
        return bytes(ids)


class JsonTokenizer(TextTokenizer):
    """A `tokenizers` JSON file. Its padding and truncation don't apply, and special tokens in the text are text.

    Raises:
        OSError: the file can't be read
        ValueError: it holds no tokenizer, or the package isn't installed
    """

    kind = "tokenizers"

    def __init__(self, path: Path) -> None:
        try:
            import tokenizers
        except ModuleNotFoundError as error:
            raise missing_extra("tokenizers", f"tokenizer {path}") from error
        self.name = str(path)
        try:
            self.source = path.read_bytes()
        except FileNotFoundError:
            raise FileNotFoundError(
                f"tokenizer: {path} doesn't exist: check the path, seen from {Path.cwd()}"
            ) from None
        except OSError as error:
            raise OSError(f"tokenizer: {path} can't be read ({error.strerror}): name a readable file") from error
        try:
            self.tokenizer = tokenizers.Tokenizer.from_str(self.source.decode("utf-8"))
            decoder = json.loads(self.source).get("decoder")
        except Exception as error:  # that package raises nothing more exact
            raise ValueError(f"tokenizer: {path} is no JSON file of `tokenizers` ({error}): name another") from error
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()
        self.tokenizer.encode_special_tokens = True
        vocabulary = self.tokenizer.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocabulary.values(), default=-1) + 1
        self.fingerprint = f"{self.kind} {hashlib.sha256(self.source).hexdigest()}"
        by_bytes = isinstance(decoder, dict) and decoder.get("type") == "ByteLevel"
        self.table = byte_level_table(vocabulary, self.tokenizer.get_added_tokens_decoder()) if by_bytes else None

    def encode_batch(self, texts: Sequence[bytes]) -> list[list[int]]:
        decoded = [text.decode("utf-8", "replace") for text in texts]
        return [found.ids for found in self.tokenizer.encode_batch_fast(decoded, add_special_tokens=False)]

    def _decode(self, ids: list[int]) -> bytes:
        if self.table is not None:
            return b"".join(self.table.get(index, b"") for index in ids)
        text: str = self.tokenizer.decode(ids, skip_special_tokens=False)
        return text.encode("utf-8", "replace")

    def stream(self) -> TokenStream:
        return ContextStream(self) if self.table is None else TokenStream(self)


def byte_level_table(vocabulary: dict[str, int], added: dict[int, Any]) -> dict[int, bytes]:
    """The bytes of each id of a vocabulary that spells bytes as characters: printable ones as themselves, and the
    others, in order, as the characters from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    byte_of = {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}

    def spelled(token: str) -> bytes:
        return (
            bytes(byte_of[letter] for letter in token) if all(letter in byte_of for letter in token) else token.encode()
        )

    table = {index: spelled(token) for token, index in vocabulary.items()}
    return table | {index: token.content.encode() for index, token in added.items()}


class TiktokenTokenizer(TextTokenizer):
    """An encoding of tiktoken. Special tokens in the text are text.

    Raises:
        OSError: it can't be fetched
        ValueError: the package isn't installed
    """

    kind = "tiktoken"

    def __init__(self, name: str) -> None:
        try:
            import tiktoken
        except ModuleNotFoundError as error:
            raise missing_extra("tiktoken", f"tokenizer {name!r}") from error
        try:
            self.encoding = tiktoken.get_encoding(name)
        except OSError as error:
            raise OSError(
                f"tokenizer: the tiktoken encoding {name!r} can't be fetched ({type(error).__name__}): connect once, "
                "or set TIKTOKEN_CACHE_DIR to a folder that holds it"
            ) from error
        self.name = name
        self.vocab_size = self.encoding.n_vocab
        self.fingerprint = f"{self.kind} {name}"
        self.threads = os.cpu_count() or 1

    def encode_batch(self, texts: Sequence[bytes]) -> list[list[int]]:
        decoded = [text.decode("utf-8", "replace") for text in texts]
        return self.encoding.encode_ordinary_batch(decoded, num_threads=self.threads)

    def _decode(self, ids: list[int]) -> bytes:
        try:
            return self.encoding.decode_bytes(ids)
        except KeyError:  # these vocabularies have gaps
            return b"".join(map(self._decode_one, ids))

    def _decode_one(self, index: int) -> bytes:
        try:
            return self.encoding.decode_single_token_bytes(index)
        except KeyError:
            return b""


class ObjectTokenizer(TextTokenizer):
    """A user's own object with `encode`, `decode` and `vocab_size`.

    Its fingerprint is taken from its attribute `fingerprint`, where it has one that is a text, else from the text of
    every id and the ids of a probe: an object that differs only beyond these must say so itself.
    """

    kind = "object"

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.vocab_size = whole("tokenizer.vocab_size", tokenizer.vocab_size, least=1, most=2**31 - 2)
        self.name = f"{type(tokenizer).__module__}.{type(tokenizer).__qualname__}"
        own = getattr(tokenizer, "fingerprint", None)
        self.fingerprint = f"{self.kind} {own if isinstance(own, str) else self._probed()}"

    def _probed(self) -> str:
        digest = hashlib.sha256(f"{self.vocab_size} {self.encode(PROBE.encode())}".encode())
        for index in range(self.vocab_size):
            try:
                text = self.decode([index])
            except Exception:  # an id that stands for nothing
                text = b""
            digest.update(b"%d " % len(text) + text)
        return digest.hexdigest()

    def encode_batch(self, texts: Sequence[bytes]) -> list[list[int]]:
        return [[int(index) for index in self.tokenizer.encode(text.decode("utf-8", "replace"))] for text in texts]

    def _decode(self, ids: list[int]) -> bytes:
        text: str = self.tokenizer.decode(ids)
        return text.encode("utf-8", "replace")

    def stream(self) -> TokenStream:
        return ContextStream(self)
