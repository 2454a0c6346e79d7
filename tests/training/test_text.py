from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simple_hierarchical_transformer import HierarchicalTransformer
from simple_hierarchical_transformer.training.text import check_byte_model, continue_text, printable


@given(st.binary())
def test_all_bytes_can_be_printed(text: bytes) -> None:
    shown = printable(text)
    shown.encode("utf-8")
    assert not any(ord(character) < 32 and character not in "\n\t" for character in shown)


def test_text_is_shown_as_it_is_and_everything_else_escaped() -> None:
    assert printable("def größe():\n\treturn 1".encode()) == "def größe():\n\treturn 1"
    assert printable(b"a\xff\x1b[2J\r\x00") == r"a\xff\x1b[2J\x0d\x00"


def test_the_same_seed_writes_the_same_bytes() -> None:
    model = HierarchicalTransformer(num_tokens=256, dim=8, depth=1, heads=1, dim_head=4, seq_len=8)
    written = [continue_text(model, b"a prompt longer than the model", 12, seed=seed) for seed in (1, 1, 2)]
    assert written[0] == written[1] != written[2]
    assert len(written[0]) == 12


def test_an_empty_prompt_is_refused() -> None:
    model = HierarchicalTransformer(num_tokens=256, dim=8, depth=1, heads=1, dim_head=4, seq_len=8)
    with pytest.raises(ValueError, match="prompt is empty, but the model continues a text: give at least one"):
        continue_text(model, b"", 1)


def test_a_model_of_something_else_than_bytes_is_refused() -> None:
    with pytest.raises(ValueError, match=r"model: here has a vocabulary of 20000 tokens, but text .* 256 bytes: name"):
        check_byte_model(20000, "here")
