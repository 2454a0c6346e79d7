"""Texts go on until a stop comes, and end before it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from configurations import build

from simple_hierarchical_transformer import HierarchicalTransformer
from simple_hierarchical_transformer.evaluation.until import Text, Until, write_until
from simple_hierarchical_transformer.text.tokenizer import BYTES, load_tokenizer

SMALL = {
    "num_tokens": 260, "dim": (8, 6), "depth": 2, "seq_len": 20, "dim_head": 4, "heads": 2,
    "hierarchies": (1, 8), "hierarchical_stride": (1, 4), "window_sizes": (3, None),
}  # fmt: skip


@pytest.fixture(scope="module")
def model() -> HierarchicalTransformer:
    return build(SMALL)


def said(model: HierarchicalTransformer, prompt: Sequence[int], length: int) -> list[int]:
    """The greedy continuation, by one plain call for each token, through a state."""
    ids, state = list(prompt), model.init_state(1)
    with torch.no_grad():
        logits = model(torch.tensor([ids]), state=state)
        for _ in range(length):
            ids.append(int(logits[0, -1].argmax()))
            logits = model(torch.tensor([ids[-1:]]), state=state)
    return ids[len(prompt) :]


def until(*stops: str, length: int = 30, **sampling: Any) -> Until:
    return Until(tuple(stop.encode("latin-1") for stop in stops), length, {"temperature": 0.0} | sampling)


PROMPTS = [[1, 2, 3], [65] * 70, [7], [200, 100, 50, 25], [9, 9]]


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_each_prompt_is_continued_as_alone_up_to_the_first_stop(
    model: HierarchicalTransformer, batch_size: int
) -> None:
    plain = [BYTES.decode(said(model, prompt, 30)) for prompt in PROMPTS]
    stops = [plain[0][5:7], plain[1][11:12], plain[3][3:6], plain[3][4:6]]
    asked = Until(tuple(stops), 30, {"temperature": 0.0})
    written = write_until(model, BYTES, PROMPTS, asked, batch_size=batch_size)
    for text, whole in zip(written, plain, strict=True):
        ends = [whole.find(stop) for stop in stops if stop in whole]
        assert text == whole[: min(ends, default=len(whole))]
    assert len(written[0]) <= 5


def test_a_text_without_a_stop_has_all_its_tokens(model: HierarchicalTransformer) -> None:
    tokens = said(model, [1, 2, 3], 12)
    assert write_until(model, BYTES, [[1, 2, 3]], until(length=12)) == [BYTES.decode(tokens)]


def test_a_text_ends_at_the_separator(model: HierarchicalTransformer) -> None:
    tokens = said(model, [1, 2, 3], 30)
    end = tokens[4]
    written = write_until(model, BYTES, [[1, 2, 3]], until(length=30), end=end)
    assert written == [BYTES.decode(tokens[: tokens.index(end)])]


def test_writing_ends_when_all_texts_have(model: HierarchicalTransformer) -> None:
    calls = []
    hook = model.token_emb.register_forward_hook(lambda *_: calls.append(1))
    stop = BYTES.decode(said(model, [1, 2, 3], 30))[2:3]
    calls.clear()
    write_until(model, BYTES, [[1, 2, 3]], Until((stop,), 10_000, {"temperature": 0.0}))
    hook.remove()
    assert len(calls) <= 6


def test_no_prompts_give_no_texts(model: HierarchicalTransformer) -> None:
    assert write_until(model, BYTES, [], until()) == []


class Halves:
    """Ids that stand for a character, and, from 256 on, for the one before twice: the text isn't the ids' own."""

    vocab_size = 260

    def encode(self, text: str) -> list[int]:
        return [ord(character) for character in text]

    def decode(self, ids: Sequence[int]) -> str:
        text = ""
        for index in ids:
            text += chr(index) if index < 256 else text[-1:]
        return text


def test_stops_are_found_in_the_text_not_in_the_ids() -> None:
    text = Text(load_tokenizer(Halves()), [b"aab"])
    for token in (97, 256, 98, 99):
        assert not text.has_ended
        text.add(token, None)
        if token == 98:
            break
    assert text.has_ended
    assert text.finish() == b""


@pytest.mark.parametrize("stops", [[b"ell"], [b"lo wor", b"ell"], [b"o", b"e"], [b"hello world"], [b"d", b"nothing"]])
def test_the_earliest_stop_counts_however_long_it_is(stops: list[bytes]) -> None:
    text = Text(BYTES, stops)
    for token in b"hello world":
        if not text.has_ended:
            text.add(token, None)
    assert text.has_ended
    assert text.finish() == b"hello world"[: min(b"hello world".find(stop) for stop in stops if stop in b"hello world")]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, Until((), 99, {"temperature": 0.0})),
        ({"until": "\n"}, Until((b"\n",), 99, {"temperature": 0.0})),
        ({"until": ["é", ""], "max_gen_toks": 5}, Until(("é".encode(),), 5, {"temperature": 0.0})),
        ({"max_new_tokens": 7, "max_tokens": 8, "until": None}, Until((), 7, {"temperature": 0.0})),
        ({"do_sample": False, "temperature": 0.7, "top_p": 0.9}, Until((), 99, {"temperature": 0.0})),
        ({"do_sample": True}, Until((), 99, {"temperature": 1.0, "filter_thres": 0.0})),
        ({"temperature": 0.5}, Until((), 99, {"temperature": 0.5, "filter_thres": 0.0})),
        ({"temperature": 0.5, "top_k": 3, "top_p": 0.5}, Until((), 99, {"temperature": 0.5, "top_k": 3, "top_p": 0.5})),
        ({"repetition_penalty": 1.2}, Until((), 99, {"temperature": 0.0, "repetition_penalty": 1.2})),
    ],
)
def test_the_arguments_of_tasks_are_understood(arguments: dict[str, Any], expected: Until) -> None:
    assert Until.of(arguments, 99) == expected


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"num_beams": 2}, ValueError, r"generation_kwargs holds num_beams, which isn't offered: leave it out; there"),
        ({"until": [3]}, TypeError, r"until must be a text or a list of texts, got \[3\]"),
        ({"until": 3}, TypeError, r"until must be a text or a list of texts, got 3"),
        ({"max_gen_toks": 0}, ValueError, r"max_gen_toks must be at least 1"),
    ],
)
def test_arguments_that_are_not_offered_are_refused(
    arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        Until.of(arguments, 99)


def test_sampling_draws_from_the_whole_distribution(model: HierarchicalTransformer) -> None:
    torch.manual_seed(0)
    texts = write_until(model, BYTES, [[1, 2, 3]] * 200, Until.of({"do_sample": True, "max_gen_toks": 1}, 1))
    torch.manual_seed(0)
    again = write_until(model, BYTES, [[1, 2, 3]] * 200, Until.of({"do_sample": True, "max_gen_toks": 1}, 1))
    assert texts == again
    assert len(set(texts)) > 26  # more than the likeliest tenth, which `generate` keeps by default
