"""Continuations are as likely as a plain call on each of them alone says, however they are read together."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from configurations import SEEDS, VOCABULARY, build, examples, stream_arguments
from hypothesis import given
from hypothesis import strategies as st

from simple_hierarchical_transformer import HierarchicalTransformer
from simple_hierarchical_transformer.evaluation import bits_per_byte, loglikelihood
from simple_hierarchical_transformer.evaluation.loglikelihood import Answer, Question, loglikelihoods

from .plain import log_probabilities, small

SMALL = {
    "num_tokens": VOCABULARY, "dim": (8, 6), "depth": 2, "seq_len": 20, "dim_head": 4, "heads": 2,
    "hierarchies": (1, 8), "hierarchical_stride": (1, 4), "window_sizes": (3, None),
}  # fmt: skip
IDS = st.integers(0, VOCABULARY - 1)


def alone(model: HierarchicalTransformer, question: Question) -> Answer:
    text = torch.tensor(question.context + question.continuation)
    log_p = log_probabilities(model, text)
    asked = range(len(question.context), len(text))
    greedy = all(int(log_p[position - 1].argmax()) == int(text[position]) for position in asked)
    return Answer(sum(float(log_p[position - 1, text[position]]) for position in asked), greedy)


def assert_same(one: Answer, other: Answer) -> None:
    assert abs(one.logprob - other.logprob) <= 1e-10 * max(abs(other.logprob), 1)
    assert one.is_greedy is other.is_greedy


@st.composite
def questions(draw: st.DrawFn) -> list[Question]:
    """Of few contexts, short and long, so that many share one."""
    contexts = draw(st.lists(st.lists(IDS, min_size=1, max_size=60).map(tuple), min_size=1, max_size=4))
    continuation = st.lists(IDS, max_size=8) | st.lists(IDS, max_size=60)
    return draw(st.lists(st.builds(Question, st.sampled_from(contexts), continuation.map(tuple)), max_size=8))


@examples(quick=15, slow=300)
@given(data=st.data(), arguments=stream_arguments(), asked=questions(), seed=SEEDS)
def test_answers_are_those_of_each_question_alone(
    data: st.DataObject, arguments: dict[str, Any], asked: list[Question], seed: int
) -> None:
    # a reach of 0 would be another architecture, without attention
    model = small(arguments | {"seq_len": min(arguments["seq_len"], 30) + max(arguments["hierarchies"])}, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bits_per_byte, "CHUNK", data.draw(st.integers(4, 40), label="chunk"))
        patch.setattr(loglikelihood, "SLACK", data.draw(st.sampled_from([0, 8, 100]), label="slack"))
        answers = loglikelihoods(model, asked, batch_size=data.draw(st.integers(1, 4), label="batch size"))
    for answer, question in zip(answers, asked, strict=True):
        assert_same(answer, alone(model, question))


def test_what_the_model_would_say_itself_is_greedy_and_nothing_else_is() -> None:
    model, context = small(SMALL), (1, 2, 3, 4)
    said = tuple(model.generate(torch.tensor([context]), 5, temperature=0)[0].tolist())
    other = (*said[:4], (said[4] + 1) % VOCABULARY)
    answers = loglikelihoods(model, [Question(context, said), Question(context, other), Question(context, ())])
    assert [answer.is_greedy for answer in answers] == [True, False, True]
    assert answers[2].logprob == 0


def test_nothing_asked_gives_no_answers() -> None:
    assert loglikelihoods(small(SMALL), []) == []


def read_tokens(model: HierarchicalTransformer, asked: list[Question], batch_size: int = 16) -> int:
    counted = []
    hook = model.token_emb.register_forward_hook(lambda module, inputs, output: counted.append(output[..., 0].numel()))
    loglikelihoods(model, asked, batch_size=batch_size)
    hook.remove()
    return sum(counted)


def test_a_context_that_several_continuations_share_is_read_once() -> None:
    model = build(SMALL)
    context = tuple(i % VOCABULARY for i in range(100))
    asked = [Question(context, (choice, choice)) for choice in range(5)]
    assert read_tokens(model, asked) == 99 + 5 * 2
    others = [Question((choice, *context), (1, 2)) for choice in range(5)]
    assert read_tokens(model, others) == 5 * (100 + 2)  # side by side, and nothing twice


def test_documents_after_one_token_are_read_side_by_side() -> None:
    """What is shared is so little that one row after the other would be slower."""
    model, calls = build(SMALL), []
    model.token_emb.register_forward_hook(lambda module, inputs, output: calls.append(output.shape[0]))
    loglikelihoods(model, [Question((0,), (1, 2, 3, document)) for document in range(8)])
    assert calls == [8]


def test_rows_of_very_different_lengths_are_not_padded_to_the_longest() -> None:
    model = build(SMALL)
    asked = [Question((0,), (1,) * length) for length in (4, 400, 5, 401)]
    assert read_tokens(model, asked) == 2 * 5 + 2 * 401


def test_a_planted_fault_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """A state that one continuation leaves to the next, instead of a clone."""
    model, context = small(SMALL), tuple(i % VOCABULARY for i in range(40))
    asked = [Question(context, (1, 2)), Question(context, (3, 4))]
    expected = [alone(model, question) for question in asked]
    for answer, other in zip(loglikelihoods(model, asked), expected, strict=True):
        assert_same(answer, other)
    monkeypatch.setattr("simple_hierarchical_transformer.state.DecodingState.clone", lambda state: state)
    assert abs(loglikelihoods(model, asked)[1].logprob - expected[1].logprob) > 1e-3


def test_modes_and_random_numbers_are_left_alone() -> None:
    model = build(SMALL).train()
    random = torch.get_rng_state()
    loglikelihoods(model, [Question((1,), (2,))])
    assert model.training
    assert torch.equal(torch.get_rng_state(), random)
