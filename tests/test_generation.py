"""Generation continues a prompt as recomputing the whole text for every token would."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from configurations import SEEDS, build, examples, model_arguments, random_ids
from hypothesis import given
from hypothesis import strategies as st

from simple_hierarchical_transformer import HierarchicalTransformer
from simple_hierarchical_transformer.sampling import keep_top, sample

ARGUMENTS: dict[str, Any] = {
    "num_tokens": 11, "dim": (8, 4), "depth": 2, "seq_len": 24, "dim_head": 4, "heads": 2,
    "hierarchies": (1, 4), "hierarchical_stride": (1, 4), "window_sizes": (3, None),
}  # fmt: skip


@examples(quick=20, slow=200)
@given(data=st.data(), arguments=model_arguments(), seed=SEEDS)
def test_greedy_tokens_are_those_of_recomputing_the_whole_text(
    data: st.DataObject, arguments: dict[str, Any], seed: int
) -> None:
    arguments = arguments | {"seq_len": max(arguments["seq_len"], 2)}
    model = build(arguments, seed=seed)
    prompt_length = data.draw(st.integers(1, model.seq_len - 1))
    length = min(model.seq_len - prompt_length, 12)
    text = random_ids(2, prompt_length, seed)
    generated = model.generate(text, length, temperature=0)
    for _ in range(length):
        text = torch.cat((text, model(text)[:, -1:].argmax(dim=-1)), dim=1)
    assert torch.equal(generated, text[:, prompt_length:])


def test_prompt_and_text_may_be_longer_than_seq_len() -> None:
    model = build(ARGUMENTS)
    prompt = random_ids(2, 60, seed=0)
    assert model.generate(prompt, 30).shape == (2, 30)
    state = model.init_state(2)
    expected = model(prompt, state=state)[:, -1].argmax(dim=-1)
    assert torch.equal(model.generate(prompt, 1, temperature=0)[:, 0], expected)


def test_same_generator_same_text_and_the_prompt_may_be_of_any_integer_type() -> None:
    model, prompt = build(ARGUMENTS), random_ids(2, 9, seed=0)
    texts = [
        model.generate(prompt.to(dtype), 20, filter_thres=0.5, generator=torch.Generator().manual_seed(3))
        for dtype in (torch.int64, torch.uint8)
    ]
    assert torch.equal(*texts)
    other = model.generate(prompt, 20, filter_thres=0.5, generator=torch.Generator().manual_seed(4))
    assert not torch.equal(texts[0], other)


def test_generation_leaves_the_mode_of_every_module_as_it_was() -> None:
    model = build(ARGUMENTS).train()
    model.layers[0].eval()
    model.generate(random_ids(1, 3, seed=0), 2)
    assert model.training and not model.layers[0].training


def test_nothing_is_generated_where_nothing_is_asked_for() -> None:
    assert build(ARGUMENTS).generate(random_ids(2, 3, seed=0), 0).shape == (2, 0)


def test_merges_can_be_left_out() -> None:
    model, prompt = build(ARGUMENTS), random_ids(2, 9, seed=0)
    ablated = model.generate(prompt, 1, temperature=0, ablate_hierarchical_merge=True)
    assert torch.equal(ablated[:, 0], model(prompt, ablate_hierarchical_merge=True)[:, -1].argmax(dim=-1))


@pytest.mark.parametrize(("threshold", "kept"), [(0.0, 10), (0.5, 5), (0.85, 1), (0.99, 1), (1.0, 1)])
def test_filter_keeps_its_share_of_the_vocabulary_and_at_least_one(threshold: float, kept: int) -> None:
    logits = torch.randn(3, 10)
    filtered = keep_top(logits, threshold)
    assert (filtered > -torch.inf).sum(dim=-1).tolist() == [kept] * 3
    assert torch.equal(filtered.argmax(dim=-1), logits.argmax(dim=-1))
    assert torch.equal(filtered[filtered > -torch.inf], logits[filtered > -torch.inf])


def test_sampling_draws_from_the_softmax() -> None:
    logits = torch.tensor([[0.0, 1.0, -torch.inf, 2.0]]).expand(100_000, 4)
    for temperature in (0.5, 1.0, 2.0):
        drawn = sample(logits, temperature, torch.Generator().manual_seed(0)).bincount(minlength=4)
        expected = 100_000 * (logits[0].double() / temperature).softmax(dim=-1)
        assert drawn[2] == 0
        kept = expected > 0
        chi_squared = ((drawn - expected)[kept].square() / expected[kept]).sum()
        assert chi_squared < 13.8  # exceeded once in a thousand seeds, and this seed is fixed
    assert sample(logits[:1], 0).tolist() == sample(logits[:1], 1e-310).tolist() == [3]


def test_a_fresh_model_generates() -> None:
    model = HierarchicalTransformer(num_tokens=256, dim=16, depth=1, dim_head=8, heads=2)
    text = model.generate(torch.tensor([[65, 66]]), 5)
    assert text.shape == (1, 5) and text.dtype == torch.int64
