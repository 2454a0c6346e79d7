from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simple_hierarchical_transformer.text.sources import FileSource
from simple_hierarchical_transformer.text.splitting import (
    VALIDATION,
    is_for_validation,
    share_by_position,
    share_out,
)


def sources(count: int, named_by_user: bool = False) -> list[FileSource]:
    return [FileSource(Path(f"{number}.txt"), f"{number}.txt", named_by_user) for number in range(count)]


def test_shares_are_cut_where_the_parts_end() -> None:
    assert share_by_position([5, 4], [3, 4, 1]) == [[(0, 3), (1, 2)], [(1, 2), (2, 1)]]


@given(sizes=st.lists(st.integers(0, 9), max_size=8), data=st.data())
def test_shares_are_those_of_the_text_as_one(sizes: list[int], data: st.DataObject) -> None:
    total = sum(sizes)
    ends = sorted(data.draw(st.lists(st.integers(0, total), min_size=3, max_size=3)))
    parts = [end - start for start, end in zip([0, *ends], ends, strict=False)]
    expected = [part for part, size in enumerate(parts) for _ in range(size)] + [None] * (total - ends[-1])
    shares = share_by_position(sizes, parts)
    found: list[int | None] = []
    for size, some in zip(sizes, shares, strict=True):
        assert all(share.num_bytes for share in some)
        of_source = [share.part for share in some for _ in range(share.num_bytes)]
        found += [*of_source, *[None] * (size - len(of_source))]
    assert found == expected


def test_many_files_are_split_by_their_names() -> None:
    names = sources(200)
    shares = share_out(names, [30] * 200)
    assert all(some == [(int(is_for_validation(source.name)), 30)] for source, some in zip(names, shares, strict=True))
    assert 3 <= sum(some[0].part == VALIDATION for some in shares) <= 40


def test_files_that_are_too_uneven_are_split_by_position() -> None:
    names = sources(40)
    sizes = [10_000 if is_for_validation(source.name) else 10 for source in names]
    shares = share_out(names, sizes)
    assert sum(share.num_bytes for some in shares for share in some if share.part == VALIDATION) == sum(sizes) // 20


def test_the_validation_text_is_at_least_a_window_where_there_is_one() -> None:
    assert share_out(sources(1), [100], window=20) == [[(0, 80), (1, 20)]]
    assert share_out(sources(1), [5], window=20) == [[(1, 5)]]
    assert share_out(sources(2), [0, 0]) == [[], []]


def test_an_empty_file_is_refused_where_the_user_named_it() -> None:
    assert share_out(sources(2), [0, 40]) == [[], [(0, 38), (1, 2)]]
    with pytest.raises(ValueError, match=r"data: 0\.txt is empty: leave it out, or name a file that holds text"):
        share_out(sources(2, named_by_user=True), [0, 40])


def test_a_split_of_more_text_than_there_is_says_both_numbers() -> None:
    assert share_out(sources(1), [1111], (900, 100, 111)) == [[(0, 900), (1, 100), (2, 111)]]
    message = r"split takes 1,111 bytes of text, but --data holds 1,110: lower split, or add text"
    with pytest.raises(ValueError, match=message):
        share_out(sources(1), [1110], (900, 100, 111))
