from __future__ import annotations

import gzip
import os
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from simple_hierarchical_transformer.text.data import (
    NOT_LIBRARY,
    OPEN_MAPS,
    Corpus,
    PlainFile,
    Segment,
    is_for_validation,
    list_documents,
    load_documents,
    load_split,
    standard_library,
    train_batch,
    validation_batches,
)

SEQ_LEN = 16


def corpus_of(folder: Path, *texts: bytes) -> Corpus:
    segments = []
    for number, text in enumerate(texts):
        path = folder / f"{number}.txt"
        path.write_bytes(text)
        segments.append(Segment(PlainFile(path, len(text)), 0, len(text)))
    return Corpus(segments)


def whole(corpus: Corpus) -> bytes:
    return corpus.read(0, len(corpus))


# reading


@given(texts=st.lists(st.binary(max_size=9), max_size=6), data=st.data())
def test_a_corpus_reads_like_its_files_one_after_the_other(
    tmp_path_factory: pytest.TempPathFactory, texts: list[bytes], data: st.DataObject
) -> None:
    joined = b"".join(texts)
    corpus = corpus_of(tmp_path_factory.mktemp("corpus"), *texts)
    start = data.draw(st.integers(0, len(joined)))
    stop = data.draw(st.integers(start, len(joined)))
    assert len(corpus) == len(joined)
    assert corpus.read(start, stop) == joined[start:stop]
    assert whole(Corpus(corpus.cut(start, stop))) == joined[start:stop]


def test_reading_outside_of_a_corpus_is_refused(tmp_path: Path) -> None:
    with pytest.raises(IndexError, match="bytes 1 … 4 lie outside of a corpus of 3 bytes"):
        corpus_of(tmp_path, b"abc").read(1, 4)


def test_a_corpus_of_many_files_holds_few_of_them_open(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path, *[b"text"] * (3 * OPEN_MAPS))
    assert whole(corpus) == b"text" * (3 * OPEN_MAPS)
    assert corpus.map.cache_info().currsize == OPEN_MAPS


def test_a_file_that_nobody_may_write_is_read(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path, b"read only")
    (tmp_path / "0.txt").chmod(0o444)
    assert whole(corpus) == b"read only"


def test_a_file_that_changed_is_refused(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path, b"long text")
    (tmp_path / "0.txt").write_bytes(b"short")
    with pytest.raises(ValueError, match=r"0\.txt changed while it was in use, from 9 to 5 bytes: train on a copy"):
        corpus.read(0, 9)


# finding


def test_the_standard_library_is_sorted_source_without_tests_and_installed_packages() -> None:
    names = [document.name for document in standard_library()]
    assert names == sorted(names)
    assert "argparse.py" in names
    assert "json/decoder.py" in names
    assert all(name.endswith(".py") for name in names)
    assert NOT_LIBRARY.isdisjoint(part for name in names for part in name.split("/")[:-1])


def test_the_default_text_is_split_by_file(tmp_path: Path) -> None:
    split = load_split([], SEQ_LEN)
    validation = {segment.source for segment in split.validation.segments}
    train = {segment.source for segment in split.train.segments}
    assert not validation & train
    for document in standard_library():
        file = PlainFile(document.path, document.path.stat().st_size)
        assert not file.size or file in (validation if is_for_validation(document.name) else train)
    assert len(split.train) > 10 * len(split.validation) > 0
    assert "standard library" in split.description


def test_a_folder_gives_its_files_in_sorted_order_without_hidden_ones(tmp_path: Path) -> None:
    for name in ("b.txt", "a/z.txt", "a.txt", ".hidden", ".git/config", "a/.cache/c.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"text")
    assert [document.name for document in list_documents([tmp_path])] == ["a.txt", "a/z.txt", "b.txt"]


def test_a_file_that_is_named_twice_counts_once(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"text")
    assert len(list_documents([tmp_path, tmp_path / "a.txt", tmp_path / ".." / tmp_path.name])) == 1


def test_compressed_text_is_unpacked_in_its_place(tmp_path: Path) -> None:
    for name, text in (("a.txt", b"one "), ("b.gz", b"two "), ("c.txt", b"three "), ("d.GZ", b"four"), ("e.gz", b"")):
        (tmp_path / name).write_bytes(gzip.compress(text) if name.lower().endswith("gz") else text)
    segments = [segment for _, segment in load_documents(list_documents([tmp_path]))]
    assert whole(Corpus(segments)) == b"one two three four"


# splitting


def test_a_single_file_is_split_by_position(tmp_path: Path) -> None:
    text = bytes(range(250)) * 4
    path = tmp_path / "text.bin"
    path.write_bytes(text)
    split = load_split([path], SEQ_LEN)
    assert (whole(split.train), whole(split.validation)) == (text[:-50], text[-50:])


def test_the_validation_text_is_at_least_one_sequence(tmp_path: Path) -> None:
    path = tmp_path / "text.bin"
    path.write_bytes(bytes(2 * (SEQ_LEN + 1)))
    split = load_split([path], SEQ_LEN)
    assert (len(split.train), len(split.validation)) == (SEQ_LEN + 1, SEQ_LEN + 1)


def test_adding_documents_moves_none_between_the_splits(tmp_path: Path) -> None:
    def sources(corpus: Corpus) -> set[str]:
        return {segment.source.path.name for segment in corpus.segments if isinstance(segment.source, PlainFile)}

    for number in range(200):
        (tmp_path / f"{number}.txt").write_bytes(b"%30d" % number)
    before = load_split([tmp_path], SEQ_LEN)
    for number in range(200, 300):
        (tmp_path / f"{number}.txt").write_bytes(b"%30d" % number)
    after = load_split([tmp_path], SEQ_LEN)
    assert sources(before.train) < sources(after.train)
    assert sources(before.validation) < sources(after.validation)


def test_documents_that_are_too_uneven_are_split_by_position(tmp_path: Path) -> None:
    for number in range(40):
        name = f"{number}.txt"
        (tmp_path / name).write_bytes(b"x" * (10_000 if is_for_validation(name) else 10))
    split = load_split([tmp_path], SEQ_LEN)
    assert len(split.validation) == (len(split.train) + len(split.validation)) // 20


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


def refused(message: str, *paths: Path, error: type[Exception] = ValueError) -> None:
    with pytest.raises(error, match=message):
        load_split(paths, SEQ_LEN)


def test_a_path_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    refused("data: .*none.txt doesn't exist: check the path", tmp_path / "none.txt", error=FileNotFoundError)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").touch()
    refused("data: .*a.txt is empty: leave it out", tmp_path / "a.txt")


def test_a_folder_without_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / ".hidden").write_bytes(b"text")
    refused("the folder .* holds no files that aren't hidden: name one that holds text", tmp_path)


def test_what_is_neither_file_nor_folder_is_refused() -> None:
    refused("/dev/null is neither a file nor a folder: copy its text", Path(os.devnull))


def test_text_shorter_than_a_sequence_in_each_split_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(bytes(2 * (SEQ_LEN + 1) - 1))
    refused(r"holds 33 bytes of text, .* seq_len \+ 1 = 17 bytes each: add text to --data, or lower", tmp_path)


def test_a_folder_of_empty_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").touch()
    refused("holds 0 bytes of text", tmp_path)


def test_compressed_text_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    packed = gzip.compress(os.urandom(1000))
    (tmp_path / "a.gz").write_bytes(packed[:-20])
    refused("a.gz is cut off: it ends within its compressed text; fetch it again", tmp_path / "a.gz")


@pytest.mark.parametrize("damage", ["no gzip", "flipped"])
def test_compressed_text_that_is_damaged_is_refused(tmp_path: Path, damage: str) -> None:
    packed = bytearray(gzip.compress(b"text" * 100))
    packed[-6] ^= 1
    (tmp_path / "a.gz").write_bytes(b"plain text" if damage == "no gzip" else packed)
    refused("a.gz is no sound gzip file .*: fetch it again, or rename it", tmp_path / "a.gz")


def test_a_file_that_may_not_be_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # the rights themselves can't be tested: whoever runs the tests may be allowed everything
    def forbid(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    (tmp_path / "a.txt").write_bytes(b"text")
    monkeypatch.setattr("builtins.open", forbid)
    refused("a.txt can't be read: make it readable, or leave it out", tmp_path / "a.txt", error=PermissionError)
