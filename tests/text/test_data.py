from __future__ import annotations

import gzip
import os
import random
import shutil
import tracemalloc
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from simple_hierarchical_transformer.text import blocks, cache, digests, prepare, reading
from simple_hierarchical_transformer.text.corpus import Corpus, PlainFile
from simple_hierarchical_transformer.text.data import Split, load_split, train_batch, validation_batches
from simple_hierarchical_transformer.text.sources import standard_library
from simple_hierarchical_transformer.text.splitting import is_for_validation
from simple_hierarchical_transformer.text.tokenizer import BYTES, load_tokenizer

from .conftest import TEXT, Letters, json_lines
from .test_corpus import corpus_of, whole

SEQ_LEN = 16
WORDS = "the merge of all streams predicts what a window sees\n"


def texts(seed: int, count: int, length: int = 2000) -> list[str]:
    """Documents of lines of words, some of them empty."""
    draw = random.Random(seed)
    words = WORDS.split()
    return [
        "\n".join(" ".join(draw.choices(words, k=draw.randrange(12))) for _ in range(length // 40))
        for _ in range(count)
    ]


def ids_of(split: Split) -> list[int]:
    return [index for corpus in split[:2] for index in corpus.read(0, len(corpus)).tolist()]


# bytes


def test_the_default_text_is_split_by_file() -> None:
    split = load_split([], SEQ_LEN)
    validation = {segment.file for segment in split.validation.segments}
    train = {segment.file for segment in split.train.segments}
    assert not validation & train
    for source in standard_library():
        file = PlainFile(source.path, source.path.stat().st_size)
        assert not file.size or file in (validation if is_for_validation(source.name) else train)
    assert len(split.train) > 10 * len(split.validation) > 0
    assert "standard library" in split.description
    assert (split.num_tokens, split.test) == (256, None)


def test_a_single_file_is_split_by_position_and_stays_where_it_is(tmp_path: Path, own_cache: Path) -> None:
    text = bytes(range(250)) * 4
    path = tmp_path / "text.bin"
    path.write_bytes(text)
    split = load_split([str(path)], SEQ_LEN)
    assert (whole(split.train), whole(split.validation)) == (text[:-50], text[-50:])
    assert {segment.file.path for segment in split.train.segments} == {path}
    assert not own_cache.exists()


def test_the_validation_text_is_at_least_one_sequence(tmp_path: Path) -> None:
    path = tmp_path / "text.bin"
    path.write_bytes(bytes(2 * (SEQ_LEN + 1)))
    split = load_split([path], SEQ_LEN)
    assert (len(split.train), len(split.validation)) == (SEQ_LEN + 1, SEQ_LEN + 1)


def test_adding_documents_moves_none_between_the_splits(tmp_path: Path) -> None:
    def names(corpus: Corpus) -> set[str]:
        return {segment.file.path.name for segment in corpus.segments}

    for number in range(200):
        (tmp_path / f"{number}.txt").write_bytes(b"%30d" % number)
    before = load_split([tmp_path], SEQ_LEN)
    for number in range(200, 300):
        (tmp_path / f"{number}.txt").write_bytes(b"%30d" % number)
    after = load_split([tmp_path], SEQ_LEN)
    assert names(before.train) < names(after.train)
    assert names(before.validation) < names(after.validation)


def test_what_is_packed_stands_in_its_place_between_plain_files(tmp_path: Path) -> None:
    packed: dict[str, Callable[[bytes], bytes]] = {".gz": gzip.compress, ".zst": zstandard.compress}
    contents = {"a.txt": b"one " * 5, "b.gz": b"two " * 5, "c.txt": b"three " * 5, "d.zst": b"four " * 5, "e.gz": b""}
    for name, text in contents.items():
        (tmp_path / name).write_bytes(packed.get(Path(name).suffix, bytes)(text))
    (tmp_path / "f.jsonl").write_bytes(json_lines(["five ", "", "six "]))
    split = load_split([tmp_path], SEQ_LEN)
    assert whole(split.train) + whole(split.validation) == b"".join(contents.values()) + b"five six "
    assert split.description.endswith("(5 files)")


@pytest.mark.parametrize("options", [{}, {"separator": 0}])
def test_empty_files_among_many_are_passed_over(tmp_path: Path, options: dict[str, Any]) -> None:
    for number in range(100):
        (tmp_path / f"{number}.txt").write_bytes(b"%30d" % number)
    before = load_split([tmp_path], SEQ_LEN, **options)
    (tmp_path / "1.jsonl").write_bytes(b"\n")
    (tmp_path / "2.gz").write_bytes(gzip.compress(b""))
    (tmp_path / "3").touch()
    after = load_split([tmp_path], SEQ_LEN, **options)
    assert ids_of(after) == ids_of(before)
    assert after.fingerprint == before.fingerprint


def test_a_split_by_sizes_takes_the_text_as_one(tmp_path: Path) -> None:
    """As of enwik8: `--data enwik8.gz --split 90e6,5e6,5e6`."""
    text = bytes(number % 251 for number in range(1000))
    (tmp_path / "a.gz").write_bytes(gzip.compress(text[:300]))
    (tmp_path / "b.txt").write_bytes(text[300:])
    split = load_split([tmp_path / "a.gz", tmp_path / "b.txt"], SEQ_LEN, split=(500, 200, 100))
    assert split.test is not None
    assert [whole(corpus) for corpus in (split.train, split.validation, split.test)] == [
        text[:500],
        text[500:700],
        text[700:800],
    ]
    assert load_split([tmp_path / "b.txt"], SEQ_LEN, split=(500, 200, 0)).test is None


def test_another_working_directory_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_bytes(TEXT.encode() * 3)
    Path("b.gz").write_bytes(gzip.compress(TEXT.encode()))
    split = load_split(["a.txt", "b.gz"], SEQ_LEN, cache=Path("cache"))
    monkeypatch.chdir("/")
    assert whole(split.train) + whole(split.validation) == TEXT.encode() * 4


# ids


@pytest.mark.parametrize("split", [None, (9000, 3000, 2000)])
def test_each_part_is_tokenised_by_itself_and_counts_its_bytes(
    tmp_path: Path, bpe_file: Path, split: tuple[int, int, int] | None
) -> None:
    text = "\n".join(texts(0, 10)).encode()
    (tmp_path / "a.txt").write_bytes(text)
    sizes = split or (len(text) - len(text) // 20, len(text) // 20, 0)
    tokenizer = load_tokenizer(bpe_file)
    found = load_split([tmp_path / "a.txt"], SEQ_LEN, tokenizer=tokenizer, split=split)
    start = 0
    for corpus, size in zip((found.train, found.validation, found.test), sizes, strict=True):
        if corpus is None:
            continue
        assert corpus.dtype == torch.uint16 and corpus.num_bytes == size
        assert corpus.read(0, len(corpus)).tolist() == tokenizer.encode(text[start : start + size])
        assert 1 < corpus.bytes_per_token == size / len(corpus)
        start += size
    assert found.num_tokens == tokenizer.vocab_size


@given(chunk=st.integers(1, 3000), block=st.integers(100, 3000), batch=st.integers(1, 9000))
def test_ids_do_not_depend_on_how_much_is_read_at_once(
    tmp_path_factory: pytest.TempPathFactory, bpe_file: Path, chunk: int, block: int, batch: int
) -> None:
    folder = tmp_path_factory.mktemp("text")
    text = (TEXT * 30 + "\n".join(texts(0, 3))).encode()
    (folder / "a.txt").write_bytes(text)
    tokenizer = load_tokenizer(bpe_file)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "CHUNK", chunk)
        patch.setattr(prepare, "BATCH", batch)
        patch.setattr(blocks, "BLOCK", block)
        split = load_split([folder / "a.txt"], SEQ_LEN, tokenizer=tokenizer, cache=folder / "cache")
    border = len(text) - len(text) // 20
    assert ids_of(split) == tokenizer.encode(text[:border]) + tokenizer.encode(text[border:])


@pytest.mark.parametrize(("separator", "dtype", "vocabulary"), [(0, torch.uint8, 256), (256, torch.uint16, 257)])
def test_the_separator_stands_after_each_document(
    tmp_path: Path, separator: int, dtype: torch.dtype, vocabulary: int
) -> None:
    documents = [text for text in texts(1, 30, 200) if text]
    (tmp_path / "a.jsonl").write_bytes(json_lines(["", *documents[:20]]))
    (tmp_path / "b.txt").write_bytes("".join(documents[20:]).encode())
    split = load_split([tmp_path / "a.jsonl", tmp_path / "b.txt"], SEQ_LEN, separator=separator)
    expected = [index for text in (*documents[:20], "".join(documents[20:])) for index in (*text.encode(), separator)]
    assert ids_of(split) == expected
    assert split.train.dtype == split.validation.dtype == dtype
    assert split.num_tokens == vocabulary
    assert split.train.num_bytes + split.validation.num_bytes == len(expected) - 21


def test_what_a_split_cuts_off_has_no_separator(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(json_lines(["a" * 50, "b" * 50]))
    split = load_split([tmp_path / "a.jsonl"], SEQ_LEN, separator=0, split=(40, 30, 20))
    assert split.test is not None
    assert split.train.read_bytes(0, len(split.train)) == b"a" * 40
    assert whole(split.validation) == b"a" * 10 + b"\0" + b"b" * 20
    assert whole(split.test) == b"b" * 20


def test_many_files_are_split_by_name_with_a_tokenizer_too(tmp_path: Path, bpe_file: Path) -> None:
    for number in range(200):
        (tmp_path / f"{number}.txt").write_text(f"the document {number} of all\n" * 3)
    tokenizer = load_tokenizer(bpe_file)
    split = load_split([tmp_path], SEQ_LEN, tokenizer=tokenizer, separator=tokenizer.vocab_size)
    seen = split.validation.read(0, len(split.validation)).tolist()
    shown = {number for number in range(200) if f"document {number} of".encode() in tokenizer.decode(seen)}
    assert shown == {number for number in range(200) if is_for_validation(f"{number}.txt")}
    assert seen.count(tokenizer.vocab_size) == len(shown)
    assert split.description.endswith("(200 files)")


def test_an_object_of_ones_own_tokenises(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("abcdefg\n" * 50)
    split = load_split([tmp_path / "a.txt"], SEQ_LEN, tokenizer=load_tokenizer(Letters()))
    assert split.num_tokens == 27
    assert split.train.dtype == torch.uint8
    assert ids_of(split) == [0, 1, 2, 3, 4, 5, 6, 26] * 50


def test_an_object_whose_ids_are_beyond_its_vocabulary_is_refused(tmp_path: Path) -> None:
    class Wrong(Letters):
        vocab_size = 26

    (tmp_path / "a.txt").write_text("abcdefg\n" * 50)
    with pytest.raises(
        ValueError, match=r"tokenizer .*Wrong gives ids from 0 to 26, but its vocab_size is 26: correct"
    ):
        load_split([tmp_path / "a.txt"], SEQ_LEN, tokenizer=load_tokenizer(Wrong()))


def test_a_vocabulary_of_more_than_two_bytes_is_stored_in_four(tmp_path: Path) -> None:
    class Large(Letters):
        vocab_size = 2**16 + 1
        fingerprint = "large"

        def encode(self, text: str) -> list[int]:
            return [2**16 - (letter == "a") for letter in text]

    (tmp_path / "a.txt").write_text("abab\n" * 100)
    split = load_split([tmp_path / "a.txt"], SEQ_LEN, tokenizer=load_tokenizer(Large()))
    assert split.train.dtype == torch.int32
    assert ids_of(split) == [2**16 - (letter == "a") for letter in "abab\n" * 100]


@pytest.mark.parametrize("options", [{}, {"separator": 256}, {"tokenizer": load_tokenizer(Letters())}])
def test_text_is_prepared_without_being_loaded_whole(tmp_path: Path, options: dict[str, Any]) -> None:
    size = 12_000_000 if "tokenizer" not in options else 3_000_000
    line = os.urandom(1000).hex()  # 2,000 letters
    lines = json_lines(f"{number} {line[number % 1000 :]}" for number in range(size // 1500))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines, 1))
    del lines
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare, "BATCH", 1 << 16)
        patch.setattr(cache, "WRITE_AT_ONCE", 1 << 16)
        patch.setattr(reading, "CHUNK", 1 << 16)
        tracemalloc.start()
        split = load_split([tmp_path / "a.jsonl.gz"], SEQ_LEN, **options)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert split.train.num_bytes > size / 2
    assert peak < 3_000_000


# the fingerprint


def write_documents(folder: Path, change: str = "") -> list[Path]:
    folder.mkdir(parents=True)
    first, second = (b"%d " % number * 200 for number in (1, 2))
    if change == "content":
        first = first[:-1] + b"!"
    if change == "size":
        first += b" "
    paths = [folder / ("c.txt" if change == "name" else "a.txt"), folder / "b.gz"]
    paths[0].write_bytes(first)
    paths[1].write_bytes(gzip.compress(b"packed " + second if change == "packed content" else second))
    return paths[::-1] if change == "order" else paths


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("options", [{}, {"separator": 0}])
def test_the_fingerprint_is_that_of_the_text_and_not_of_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, large: bool, options: dict[str, Any]
) -> None:
    if large:
        monkeypatch.setattr(digests, "READ_WHOLE", 300)
    changes = ["", "name", "content", "size", "order", "packed content"]
    prints = [load_split(write_documents(tmp_path / (c or "same"), c), SEQ_LEN, **options).fingerprint for c in changes]
    assert len(set(prints)) == len(changes)
    moved = write_documents(tmp_path / "elsewhere")
    os.utime(moved[0], (0, 0))
    assert load_split(moved, SEQ_LEN, cache=tmp_path / "cache", **options).fingerprint == prints[0]


def test_the_fingerprint_says_what_the_ids_mean(tmp_path: Path, bpe_file: Path) -> None:
    paths = write_documents(tmp_path / "text")
    settings: list[dict[str, Any]] = [
        {},
        {"tokenizer": load_tokenizer(bpe_file)},
        {"tokenizer": load_tokenizer(Letters())},
        {"separator": 1},
        {"separator": 2},
        {"split": (300, 200, 0)},
        {"split": (300, 200, 100)},
        {"split": (200, 300, 100)},
    ]
    prints = [load_split(paths, SEQ_LEN, **options).fingerprint for options in settings]
    assert len(set(prints)) == len(settings)
    assert load_split(paths, SEQ_LEN, tokenizer=BYTES).fingerprint == prints[0]


# windows


@given(seed=st.integers(0, 2**32), step=st.integers(0, 10**9))
def test_a_batch_is_a_pure_function_of_seed_and_step(
    tmp_path_factory: pytest.TempPathFactory, seed: int, step: int
) -> None:
    corpus = corpus_of(tmp_path_factory.mktemp("corpus"), bytes(range(256)), bytes(range(255, -1, -1)))
    batch = train_batch(corpus, seed, step, 3, SEQ_LEN)
    torch.manual_seed(step)
    train_batch(corpus, seed, step + 1, 2, SEQ_LEN)
    assert torch.equal(batch, train_batch(corpus, seed, step, 3, SEQ_LEN))
    assert batch.shape == (3, SEQ_LEN + 1)
    assert batch.dtype == torch.uint8
    text = whole(corpus)
    assert all(bytes(row.tolist()) in text for row in batch)


def test_the_batches_of_a_seed_stay_the_same_from_version_to_version(tmp_path: Path) -> None:
    """A run that is resumed with a newer version goes on with the same text."""
    corpus = corpus_of(tmp_path, bytes(number * number % 251 for number in range(5000)))
    first = [train_batch(corpus, 1, step, 2, SEQ_LEN)[:, 0].tolist() for step in range(3)]
    assert first == [[181, 35], [81, 121], [86, 180]]


def test_seeds_and_steps_give_different_batches(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path, os.urandom(5000))
    batches = [train_batch(corpus, seed, step, 2, SEQ_LEN) for seed in range(5) for step in range(5)]
    assert len({bytes(batch.flatten().tolist()) for batch in batches}) == 25


def test_the_last_window_of_the_text_is_drawn_too(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path, bytes(range(SEQ_LEN + 2)))
    first = {int(train_batch(corpus, 0, step, 1, SEQ_LEN)[0, 0]) for step in range(30)}
    assert first == {0, 1}


@pytest.mark.parametrize(("length", "count"), [(17, 1), (33, 1), (34, 2), (200, 4), (5000, 4)])
def test_validation_windows_are_evenly_spaced_and_do_not_overlap(tmp_path: Path, length: int, count: int) -> None:
    corpus = corpus_of(tmp_path, bytes(number % 256 for number in range(length)))
    batches = list(validation_batches(corpus, 4, 3, SEQ_LEN))
    rows = [bytes(row.tolist()) for batch in batches for row in batch]
    text = whole(corpus)
    starts = [index * (length - 17) // max(count - 1, 1) for index in range(count)]
    assert rows == [text[start : start + 17] for start in starts]
    assert all(b - a >= 17 for a, b in pairwise(starts))


# mistakes


def refused(message: str, *paths: Path, error: type[Exception] = ValueError, **options: Any) -> None:
    with pytest.raises(error, match=message):
        load_split(paths, SEQ_LEN, **options)


@pytest.mark.parametrize("options", [{}, {"separator": 0}])
@pytest.mark.parametrize("name", ["a.txt", "a.gz", "a.zst", "a.jsonl"])
def test_an_empty_file_is_refused(tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    (tmp_path / name).write_bytes({".gz": gzip.compress(b""), ".zst": zstandard.compress(b"")}.get(name[1:], b""))
    refused(f"data: .*{name} is empty: leave it out", tmp_path / name, **options)


@pytest.mark.parametrize("options", [{}, {"separator": 0}])
def test_a_folder_of_empty_files_is_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    (tmp_path / "a.txt").touch()
    (tmp_path / "a.jsonl").write_bytes(b"\n")
    refused("holds 0 bytes of text", tmp_path, **options)


@pytest.mark.parametrize("options", [{}, {"separator": 256}])
def test_text_shorter_than_a_sequence_in_each_split_is_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    (tmp_path / "a.txt").write_bytes(bytes(2 * (SEQ_LEN + 1) - 1))
    message = r"holds 33 bytes of text, .* seq_len \+ 1 = 17 tokens each: add text to --data, or lower"
    refused(message, tmp_path, **options)


@pytest.mark.parametrize("options", [{}, {"separator": 256}])
@pytest.mark.parametrize(
    ("split", "part"), [((16, 50, 0), "training"), ((50, 16, 0), "validation"), ((50, 50, 1), "test")]
)
def test_a_split_that_leaves_less_than_a_sequence_is_refused(
    tmp_path: Path, split: tuple[int, int, int], part: str, options: dict[str, Any]
) -> None:
    (tmp_path / "a.txt").write_bytes(bytes(200))
    tokens = min(size for size in split if size)
    refused(
        f"split leaves {tokens} tokens of {part} text, but a sequence takes .* 17", tmp_path, split=split, **options
    )


@pytest.mark.parametrize("options", [{}, {"separator": 256}])
def test_a_split_of_more_text_than_there_is_is_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    (tmp_path / "a.txt").write_bytes(bytes(199))
    refused("split takes 200 bytes of text, but --data holds 199", tmp_path, split=(100, 50, 50), **options)


def test_a_separator_beyond_the_vocabulary_is_refused() -> None:
    refused("separator must be an id of the tokenizer bytes .*, at most 256, got 257: lower it", separator=257)


def test_text_that_is_no_utf8_is_refused_by_a_tokenizer(tmp_path: Path, bpe_file: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"text\n" * 100 + b"\xff" + b"text\n" * 100)
    refused(r"a\.txt isn't UTF-8 at byte 500 .*: convert it", tmp_path, tokenizer=load_tokenizer(bpe_file))


def test_the_cache_is_no_text_although_it_stands_among_it(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(TEXT.encode() * 5)
    prints = {load_split([tmp_path], SEQ_LEN, separator=0, cache=tmp_path / "cache").fingerprint for _ in range(3)}
    assert len(prints) == 1
    assert (tmp_path / "cache").is_dir()
    shutil.rmtree(tmp_path / "cache")
