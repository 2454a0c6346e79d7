from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simple_hierarchical_transformer.text import blocks
from simple_hierarchical_transformer.text.blocks import Block, Share, blocks_of, shared_out

PATH = Path("a.txt")


def pieces(documents: Sequence[bytes], chunk: int) -> Iterator[tuple[bytes, bool]]:
    for text in documents:
        for start in range(0, len(text), chunk):
            yield text[start : start + chunk], start + chunk >= len(text)


def cut(documents: Sequence[bytes], shares: Sequence[tuple[int, int]], chunk: int, block: int) -> list[Block]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "BLOCK", block)
        return list(blocks_of(shared_out(pieces(documents, chunk), [Share(*share) for share in shares]), 7, PATH))


TEXT = st.lists(st.sampled_from(["a", "word ", "\n", "\n\n  ", "öß", "日本", "😀", "}", "\t"]), max_size=40).map(
    "".join
)
DOCUMENTS = st.lists(TEXT.map(str.encode).filter(len), max_size=4)


@given(documents=DOCUMENTS, chunks=st.tuples(st.integers(1, 50), st.integers(1, 50)), block=st.integers(4, 30))
def test_where_blocks_are_cut_does_not_depend_on_how_the_text_was_read(
    documents: list[bytes], chunks: tuple[int, int], block: int
) -> None:
    total = sum(map(len, documents))
    first, second = (cut(documents, [(0, total // 3), (1, total - total // 3)], chunk, block) for chunk in chunks)
    assert first == second
    assert b"".join(found.text for found in first) == b"".join(documents)
    assert all(0 < len(found.text) <= 2 * block for found in first)
    assert sum(found.ends_document for found in first) == len(documents)


@given(documents=DOCUMENTS, data=st.data())
def test_shares_and_documents_end_where_they_should(documents: list[bytes], data: st.DataObject) -> None:
    joined = b"".join(documents)
    used = data.draw(st.integers(0, len(joined)))
    border = data.draw(st.integers(0, used))
    found = cut(documents, [(0, border), (1, used - border)], data.draw(st.integers(1, 20)), 1000)
    for part, text in ((0, joined[:border]), (1, joined[border:used])):
        assert b"".join(block.text for block in found if block.part == part) == text
    ends = {sum(map(len, documents[: number + 1])) for number in range(len(documents))}
    position = 0
    for block in found:
        position += len(block.text)
        assert block.ends_document == (position in ends)


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("aaaaaaa\n}\nbb\ncc" + "d" * 9, "aaaaaaa\n}\n"),  # before a line that begins with a letter
        ("aaaaaaa\n\n}}\n}}}}}}}}}}}}}", "aaaaaaa\n\n"),  # before a line with something in it
        ("aaaaaaaaaa bbbbbbbbbbbbbbb", "aaaaaaaaaa"),  # before a space
        ("aaaaaaaaaaaaaa😀😀😀", "aaaaaaaaaaaaaa"),  # before a character
    ],
)
def test_a_block_ends_at_the_best_place_there_is(text: str, first: str) -> None:
    found = cut([text.encode()], [(0, 1000)], 1000, 8)
    assert found[0].text.decode() == first


def test_a_character_that_the_split_cuts_is_let_pass() -> None:
    text = "größe 日本語".encode()
    for border in range(len(text) + 1):
        assert b"".join(block.text for block in cut([text], [(0, border), (1, len(text))], 4, 100)) == text


@pytest.mark.parametrize(
    ("text", "position"), [(b"ab\xffcd", 2), (b"\xffab", 0), (b"line\n" * 40 + b"\xc3(", 200), (b"\x80" * 4 + b"a", 3)]
)
def test_what_is_no_utf8_is_refused_with_its_place(text: bytes, position: int) -> None:
    with pytest.raises(
        ValueError, match=rf"data: a\.txt isn't UTF-8 at byte {position} \(.*\): convert it, leave it out"
    ):
        cut([text], [(0, 1000)], 7, 16)
