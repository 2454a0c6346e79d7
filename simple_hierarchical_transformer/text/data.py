"""Text as token ids: what is trained, validated and tested on, and which windows of it a step sees.

Files of plain bytes stay where they are and are read through memory maps. What is compressed, in JSON lines, in a
dataset, or tokenised is prepared once, in the cache, and mapped from there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..validation import whole
from .cache import default_cache
from .corpus import Corpus
from .digests import digest_json
from .loading import Loaded, load_bytes, load_tokens
from .sources import Source, list_sources, standard_library
from .splitting import PARTS, TEST, TRAIN, UNSPLIT, VALIDATION
from .tokenizer import BYTES, TextTokenizer


class Split(NamedTuple):
    """What is trained on, what is validated on and tested on, and what the ids mean.

    Attributes:
        train, validation, test: the text; no test without sizes given for the split
        description: words that say where the text comes from
        fingerprint: the same where the text and its ids are, wherever the files lie. It depends on names, sizes,
            order, tokenizer, separator and split, and on the content: all of it up to 256 MB, samples of each file
            beyond
        num_tokens: size of the vocabulary, with a separator beyond the tokenizer's
    """

    train: Corpus
    validation: Corpus
    test: Corpus | None
    description: str
    fingerprint: str
    num_tokens: int


def say_nothing(_: str) -> None:
    pass


def load_split(
    paths: Sequence[str | Path],
    seq_len: int,
    *,
    tokenizer: TextTokenizer | None = None,
    text_field: str = "text",
    separator: int | None = None,
    split: tuple[int, int, int] | None = None,
    cache: Path | None = None,
    report: Callable[[str], None] = say_nothing,
) -> Split:
    """Find the text, and split it into what is trained on and what is validated on.

    Without `split`, of many files about one in twenty, chosen by a hash of its name, is validated on: the same ones
    whatever else is added. Of few files, or of ones that are too uneven for that, it is the last twentieth of the text.

    Args:
        paths: files (plain, .gz, .zst, .jsonl, .jsonl.gz, .jsonl.zst), folders, globs, and datasets as hf:NAME,
            hf:NAME:SPLIT or hf:NAME:CONFIGURATION:SPLIT, where NAME may be a local path; none: the interpreter's
            standard library
        seq_len: tokens that are predicted per sequence; a window is one longer
        tokenizer: none: bytes
        text_field: the field of JSON lines and datasets that holds the text
        separator: id that is put after each document, at most the tokenizer's vocab_size; none: nothing is
        split: bytes of text to train, validate and test on, in the order of the text; what is beyond them is left
            out. Each part is tokenised by itself
        cache: folder for what has to be prepared; none: that of the user
        report: is told what takes long

    Raises:
        OSError, ValueError: no text, or too little for a window in a part, or it can't be read or prepared
    """
    tokenizer = tokenizer or BYTES
    num_tokens = vocabulary(tokenizer, separator)
    what = described(paths)
    loaded = load(paths, seq_len, tokenizer, text_field, separator, split, cache, report)
    check_lengths(loaded, what, seq_len, split)
    return Split(
        train=loaded.parts[TRAIN],
        validation=loaded.parts[VALIDATION],
        test=loaded.parts[TEST] if len(loaded.parts[TEST]) else None,
        description=counted(what, loaded),
        fingerprint=digest_json([tokenizer.fingerprint, num_tokens, separator, split, loaded.identity]),
        num_tokens=num_tokens,
    )


def load_whole(
    paths: Sequence[str | Path],
    *,
    tokenizer: TextTokenizer | None = None,
    text_field: str = "text",
    separator: int | None = None,
    cache: Path | None = None,
    report: Callable[[str], None] = say_nothing,
) -> tuple[Corpus, str]:
    """All of a text, unsplit, and words that say what it is; the arguments are those of `load_split`.

    Raises:
        OSError, ValueError: no text, or it can't be read or prepared
    """
    tokenizer = tokenizer or BYTES
    vocabulary(tokenizer, separator)
    loaded = load(paths, 1, tokenizer, text_field, separator, UNSPLIT, cache, report)
    what = described(paths)
    if len(loaded.parts[TRAIN]) < 2:
        raise ValueError(f"data: {what} holds fewer than two tokens: name a text that is longer")
    return loaded.parts[TRAIN], counted(what, loaded)


def load(
    paths: Sequence[str | Path],
    seq_len: int,
    tokenizer: TextTokenizer,
    text_field: str,
    separator: int | None,
    split: tuple[int, int, int] | None,
    cache: Path | None,
    report: Callable[[str], None],
) -> Loaded:
    cache = default_cache() if cache is None else cache.absolute()
    sources = without_cache(list_sources(paths), cache) if paths else list(standard_library())
    if tokenizer.is_bytes and separator is None:
        return load_bytes(sources, split, seq_len + 1, text_field, cache, report)
    return load_tokens(sources, split, tokenizer, separator, text_field, cache, report)


def described(paths: Sequence[str | Path]) -> str:
    return ", ".join(map(str, paths)) if paths else "the standard library of this Python"


def counted(what: str, loaded: Loaded) -> str:
    return f"{what} ({loaded.files:,} file{'s' * (loaded.files != 1)})"


def vocabulary(tokenizer: TextTokenizer, separator: int | None) -> int:
    """The number of ids, with the separator's."""
    if separator is None:
        return tokenizer.vocab_size
    if whole("separator", separator, least=0) > tokenizer.vocab_size:
        raise ValueError(
            f"separator must be an id of the tokenizer {tokenizer.name} or the one just past them, at most "
            f"{tokenizer.vocab_size}, got {separator}: lower it"
        )
    return max(tokenizer.vocab_size, separator + 1)


def without_cache(sources: Sequence[Source], cache: Path) -> list[Source]:
    """All but what lies in the cache, which may stand in a folder of text, unless the user named it."""
    kept = cache.resolve()
    return [
        source for source in sources if source.named_by_user or not Path(source.path).resolve().is_relative_to(kept)
    ]


def check_lengths(loaded: Loaded, what: str, seq_len: int, split: tuple[int, int, int] | None) -> None:
    window = seq_len + 1
    if split is None and min(map(len, loaded.parts[:TEST])) < window:
        total = sum(corpus.num_bytes for corpus in loaded.parts)
        raise ValueError(
            f"data: {what} holds {total:,} bytes of text, but training and validation take at least one sequence "
            f"of seq_len + 1 = {window:,} tokens each: add text to --data, or lower --seq-len"
        )
    for name, corpus, size in zip(PARTS, loaded.parts, split or (0, 0, 0), strict=True):
        if size and len(corpus) < window:
            raise ValueError(
                f"split leaves {len(corpus):,} tokens of {name} text, but a sequence takes seq_len + 1 = {window:,}: "
                "give it more bytes, or lower --seq-len"
            )


# windows


def train_batch(corpus: Corpus, seed: int, step: int, batch_size: int, seq_len: int) -> Tensor:
    """The batch of a step, `(batch_size, seq_len + 1)` of the type in which the ids are stored: a function of seed
    and step, and of nothing before."""
    digest = hashlib.sha256(f"{seed} {step}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    starts = torch.randint(len(corpus) - seq_len, (batch_size,), generator=generator)
    return corpus.windows(starts.tolist(), seq_len + 1)


def validation_batches(corpus: Corpus, sequences: int, batch_size: int, seq_len: int) -> Iterator[Tensor]:
    """Evenly spaced windows, always the same, as batches `(≤ batch_size, seq_len + 1)`.

    No window overlaps another, so a short text gives fewer of them than asked for.
    """
    window = seq_len + 1
    count = min(sequences, len(corpus) // window)
    starts = [index * (len(corpus) - window) // max(count - 1, 1) for index in range(count)]
    for first in range(0, count, batch_size):
        yield corpus.windows(starts[first : first + batch_size], window)
