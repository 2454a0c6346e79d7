from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simple_hierarchical_transformer.text import digests
from simple_hierarchical_transformer.text.corpus import PlainFile
from simple_hierarchical_transformer.text.digests import content_digests, extents


def digest(path: Path) -> str:
    return content_digests([PlainFile(path, path.stat().st_size)])[0]


@given(size=st.integers(0, 10**7), share=st.integers(0, 10**7))
def test_samples_lie_in_the_file_from_start_to_end_and_are_about_its_share(size: int, share: int) -> None:
    found = list(extents(size, share))
    if size <= share:
        assert found == [(0, size)]
        return
    assert found[0][0] == 0 and found[-1][1] == size
    assert found == sorted(found)
    assert all(stop - start <= digests.LONGEST_SAMPLE for start, stop in found)
    assert sum(stop - start for start, stop in found) <= max(share, 2 * digests.SHORTEST_SAMPLE)


def test_a_digest_is_of_every_byte_where_there_are_few(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    text = bytearray(300_000)
    path.write_bytes(text)
    before = digest(path)
    for index in (0, 123_456, 299_999):
        text[index] ^= 1
        path.write_bytes(text)
        assert digest(path) != before
        text[index] ^= 1


def test_a_digest_is_of_samples_and_size_where_there_are_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digests, "READ_WHOLE", 200_000)
    path = tmp_path / "a.txt"
    text = bytearray(300_000)
    path.write_bytes(text)
    found = {digest(path)}
    for index in (0, 299_999):
        text[index] ^= 1
        path.write_bytes(text)
        found.add(digest(path))
    path.write_bytes(text + b"\0")
    found.add(digest(path))
    assert len(found) == 4
    unread = next(stop for (_, stop), (start, _) in pairwise(extents(300_000, 200_000)) if stop < start)
    path.write_bytes(text)
    before = digest(path)
    text[unread] ^= 1
    path.write_bytes(text)
    assert digest(path) == before


def test_a_file_that_changed_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"text")
    with pytest.raises(ValueError, match=r"a\.txt changed while it was in use, from 5 to 4 bytes"):
        content_digests([PlainFile(tmp_path / "a.txt", 5)])
