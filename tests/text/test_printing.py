from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from simple_hierarchical_transformer.text.printing import TextStream, check_byte_model, printable, prompt_ids


@given(st.binary())
def test_all_bytes_can_be_printed(text: bytes) -> None:
    shown = printable(text)
    shown.encode("utf-8")
    assert not any(ord(character) < 32 and character not in "\n\t" for character in shown)


def test_text_is_shown_as_it_is_and_everything_else_escaped() -> None:
    assert printable("def größe():\n\treturn 1".encode()) == "def größe():\n\treturn 1"
    assert printable(b"a\xff\x1b[2J\r\x00") == r"a\xff\x1b[2J\x0d\x00"


# bytes at random are hardly ever a character, or nearly one
SPECIAL = st.sampled_from(
    [
        "ö€😀\u0085\x1b\n".encode(),
        b"\xed\xa0\x80",  # a surrogate
        b"\xed\x9f\xbf",  # the last character before the surrogates
        b"\xc0\xaf",  # a slash in two bytes, and in three and four
        b"\xe0\x80\xaf",
        b"\xf0\x80\x80\xaf",
        b"\xf0\x9f\x98",  # the beginning of a character of four bytes
        b"\xf4\x90\x80\x80",  # past the last character
        b"\\xff",
    ]
)
BYTES = st.lists(st.one_of(st.binary(max_size=4), SPECIAL, SPECIAL.map(lambda text: text[:-1]))).map(b"".join)


def fits(text: bytes) -> bool:
    try:
        return len(text.decode("utf-8")) == 1
    except UnicodeDecodeError:
        return False


def may_become_a_character(text: bytes) -> bool:
    """Whether bytes are the beginning of a character; 80, 90 and bf stand for all that may follow."""
    ends = itertools.chain.from_iterable(itertools.product(b"\x80\x90\xbf", repeat=count) for count in (1, 2, 3))
    return len(text) < 4 and any(fits(text + bytes(end)) for end in ends)


@given(BYTES, st.data())
def test_a_stream_shows_the_same_text_however_it_is_cut(text: bytes, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=9), label="cuts"))
    for ends in ([*cuts, len(text)], [*range(len(text) + 1)]):
        stream = TextStream()
        shown = [stream.feed(text[start:end]) for start, end in zip([0, *ends], ends, strict=False)]
        assert "".join(shown) + stream.finish() == printable(text)


@given(BYTES)
def test_a_stream_holds_back_the_beginning_of_a_character_and_nothing_else(text: bytes) -> None:
    stream = TextStream()
    stream.feed(text)
    ends = (text[-count:] for count in (3, 2, 1) if count <= len(text))
    held = next((end for end in ends if may_become_a_character(end)), b"")
    assert stream.finish() == "".join(f"\\x{byte:02x}" for byte in held)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("aö€😀".encode(), ["a", "", "ö", "", "", "€", "", "", "", "😀", ""]),
        (b"\xff\xc0!", [r"\xff", r"\xc0", "!", ""]),
        (b"\xf0\x9f\x98a", ["", "", "", r"\xf0\x9f\x98a", ""]),
        (b"\xf0\x9f\x98", ["", "", "", r"\xf0\x9f\x98"]),
        (b"\xe0\x80\xaf", ["", r"\xe0\x80", r"\xaf", ""]),
        (b"\xc2\x85\x1b\n\t\r", ["", r"\x85", r"\x1b", "\n", "\t", r"\x0d", ""]),
        # Python's decoder alone waits for the third byte
        (b"\xed\xa0\x80", ["", r"\xed\xa0", r"\x80", ""]),
    ],
)
def test_a_stream_shows_each_byte_as_soon_as_it_is_sure(text: bytes, shown: list[str]) -> None:
    stream = TextStream()
    assert [*(stream.feed(text[i : i + 1]) for i in range(len(text))), stream.finish()] == shown


def test_a_finished_stream_is_as_new() -> None:
    stream = TextStream()
    assert stream.feed(b"a\xc3") + stream.finish() == r"a\xc3"
    assert stream.feed(b"\xb6") + stream.feed("ö".encode()) + stream.finish() == r"\xb6ö"


def test_a_prompt_is_one_row_of_ids() -> None:
    for prompt in (b"ab", [97, 98]):
        ids = prompt_ids(prompt, torch.device("cpu"))
        assert ids.dtype == torch.long and ids.tolist() == [[97, 98]]


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(ValueError, match="prompt is empty, but the model continues a text: give at least one"):
        prompt_ids(b"", torch.device("cpu"))


def test_a_model_of_something_else_than_bytes_is_refused() -> None:
    with pytest.raises(ValueError, match=r"model: here has a vocabulary of 20000 tokens, but text .* 256 bytes: name"):
        check_byte_model(20000, "here")
