from __future__ import annotations

import copy
import multiprocessing
from array import array
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from simple_hierarchical_transformer.text.corpus import OPEN_MAPS, Corpus, PlainFile, Segment

CODES = {torch.uint8: "B", torch.uint16: "H", torch.int32: "i"}


def corpus_of(folder: Path, *texts: bytes) -> Corpus:
    segments = []
    for number, text in enumerate(texts):
        path = folder / f"{number}.txt"
        path.write_bytes(text)
        segments.append(Segment(PlainFile(path, len(text)), 0, len(text)))
    return Corpus(segments)


def whole(corpus: Corpus) -> bytes:
    return corpus.read_bytes(0, len(corpus))


@given(texts=st.lists(st.binary(max_size=9), max_size=6), data=st.data())
def test_a_corpus_reads_like_its_files_one_after_the_other(
    tmp_path_factory: pytest.TempPathFactory, texts: list[bytes], data: st.DataObject
) -> None:
    joined = b"".join(texts)
    corpus = corpus_of(tmp_path_factory.mktemp("corpus"), *texts)
    start = data.draw(st.integers(0, len(joined)))
    stop = data.draw(st.integers(start, len(joined)))
    assert len(corpus) == corpus.num_bytes == len(joined)
    assert corpus.read_bytes(start, stop) == joined[start:stop]
    assert corpus.read(start, stop).tolist() == list(joined[start:stop])
    assert whole(Corpus(corpus.cut(start, stop))) == joined[start:stop]


@given(data=st.data(), dtype=st.sampled_from(list(CODES)))
def test_ids_of_every_width_are_read_as_they_were_stored(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, dtype: torch.dtype
) -> None:
    largest = torch.iinfo(dtype).max
    ids = data.draw(st.lists(st.integers(0, largest), min_size=3, max_size=20))
    path = tmp_path_factory.mktemp("corpus") / "ids.bin"
    path.write_bytes(array(CODES[dtype], ids).tobytes())
    file = PlainFile(path, path.stat().st_size)
    corpus = Corpus([Segment(file, 2, len(ids)), Segment(file, 0, 2)], dtype, num_bytes=5)
    assert corpus.read(0, len(ids)).tolist() == ids[2:] + ids[:2]
    assert corpus.windows([1, 0], 2).dtype == dtype
    assert corpus.windows([1, 0], 2).tolist() == [(ids[2:] + ids[:2])[start : start + 2] for start in (1, 0)]
    assert corpus.bytes_per_token == 5 / len(ids)


def test_nothing_is_read_from_no_windows(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path, b"text")
    assert corpus.windows([], 3).shape == (0, 3)
    assert corpus.read(2, 2).shape == (0,)


def test_wide_ids_are_not_bytes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds ids of torch.uint16, not bytes: read them, and decode them"):
        Corpus([], torch.uint16).read_bytes(0, 0)


@pytest.mark.parametrize(("start", "stop"), [(1, 4), (-1, 2), (2, 1)])
def test_reading_outside_of_a_corpus_is_refused(tmp_path: Path, start: int, stop: int) -> None:
    with pytest.raises(IndexError, match=f"tokens {start} … {stop} lie outside of a corpus of 3 tokens"):
        corpus_of(tmp_path, b"abc").read(start, stop)


def test_a_corpus_of_many_files_holds_few_of_them_open(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path, *[b"text"] * (3 * OPEN_MAPS))
    assert whole(corpus) == b"text" * (3 * OPEN_MAPS)
    assert corpus.map.cache_info().currsize == OPEN_MAPS


def read_all(corpus: Corpus) -> list[int]:
    return corpus.read(0, len(corpus)).tolist()


def test_a_corpus_goes_to_another_process_without_its_maps(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path, b"some ", b"text")
    assert whole(corpus) == b"some text"  # its files are open
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert bytes(pool.apply(read_all, (corpus,))) == b"some text"
    assert copy.deepcopy(corpus).map.cache_info().currsize == 0


def test_a_file_that_nobody_may_write_is_read(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path, b"read only")
    (tmp_path / "0.txt").chmod(0o444)
    assert whole(corpus) == b"read only"


def test_a_file_that_changed_is_refused(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path, b"long text")
    (tmp_path / "0.txt").write_bytes(b"short")
    with pytest.raises(ValueError, match=r"0\.txt changed while it was in use, from 9 to 5 bytes: train on a copy"):
        corpus.read(0, 9)


def test_a_file_that_went_is_refused(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path, b"text")
    (tmp_path / "0.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"0\.txt is gone while it is in use: bring it back"):
        corpus.read(0, 4)
