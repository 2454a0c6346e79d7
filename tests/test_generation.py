"""Generation continues each prompt as recomputing its whole text for every token would, whatever lies beside it."""

from __future__ import annotations

import itertools
import resource
from typing import Any

import pytest
import torch
from configurations import SEEDS, build, examples, model_arguments, random_ids
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from simple_hierarchical_transformer import HierarchicalTransformer
from simple_hierarchical_transformer.ring import KeyValueRing
from simple_hierarchical_transformer.sampling import Sampling

ARGUMENTS: dict[str, Any] = {
    "num_tokens": 11, "dim": (8, 4), "depth": 2, "seq_len": 24, "dim_head": 4, "heads": 2,
    "hierarchies": (1, 4), "hierarchical_stride": (1, 4), "window_sizes": (3, None),
}  # fmt: skip
THREE: dict[str, Any] = ARGUMENTS | {
    "dim": (8, 4, 6), "hierarchies": (1, 4, 16), "hierarchical_stride": (1, 2, 16), "window_sizes": (3, 2, None),
    "seq_len": 64,
}  # fmt: skip


@torch.no_grad()
def recompute(model: HierarchicalTransformer, prompt: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Greedy tokens (length,) after one prompt (t,), and their log-probabilities, from the whole text each time."""
    text, logprobs = prompt[None], []
    for _ in range(length):
        best = model(text)[:, -1].log_softmax(dim=-1).max(dim=-1)
        logprobs.append(best.values)
        text = torch.cat((text, best.indices[None]), dim=1)
    return text[0, len(prompt) :], torch.cat(logprobs) if logprobs else text.new_zeros(0)


def draw_prompts(data: st.DataObject, most: int, seed: int) -> list[Tensor]:
    lengths = data.draw(st.lists(st.integers(1, most), min_size=1, max_size=6), label="prompt lengths")
    return [random_ids(1, length, seed + row)[0] for row, length in enumerate(lengths)]


@examples(quick=40, slow=400)
@given(data=st.data(), arguments=model_arguments(), seed=SEEDS)
def test_each_of_several_ragged_prompts_is_continued_as_recomputing_its_text_would(
    data: st.DataObject, arguments: dict[str, Any], seed: int
) -> None:
    model = build(arguments | {"seq_len": max(arguments["seq_len"], 2)}, seed=seed)
    prompts = draw_prompts(data, model.seq_len - 1, seed)
    length = min(model.seq_len - max(map(len, prompts)), 12)
    chunk = data.draw(st.sampled_from([None, 1, 3]), label="prefill_chunk")
    generated, logprobs = model.generate(prompts, length, temperature=0, prefill_chunk=chunk, return_logprobs=True)
    for row, prompt in enumerate(prompts):
        tokens, expected = recompute(model, prompt, length)
        assert torch.equal(generated[row], tokens)
        assert length == 0 or (logprobs[row] - expected).abs().max() < 1e-10


def test_a_padded_batch_with_lengths_is_as_good_as_a_list() -> None:
    model, lens = build(THREE), (3, 9, 7)
    padded = random_ids(3, 12, seed=0)
    rows = [row[:length] for row, length in zip(padded, lens, strict=True)]
    padded[0, 3:] = -7  # what is behind the lengths is never looked at
    expected = model.generate(rows, 20, temperature=0)
    for given_lens in (lens, torch.tensor(lens)):
        assert torch.equal(model.generate(padded, 20, temperature=0, prompt_lens=given_lens), expected)


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
    model = build(ARGUMENTS)
    assert model.generate(random_ids(2, 3, seed=0), 0).shape == (2, 0)
    assert model.generate([torch.tensor([1]), torch.tensor([1, 2, 3])], 0).shape == (2, 0)
    assert list(model.stream(random_ids(2, 3, seed=0), 0)) == []


def test_merges_can_be_left_out() -> None:
    model, prompt = build(ARGUMENTS), random_ids(2, 9, seed=0)
    ablated = model.generate(prompt, 1, temperature=0, ablate_hierarchical_merge=True)
    assert torch.equal(ablated[:, 0], model(prompt, ablate_hierarchical_merge=True)[:, -1].argmax(dim=-1))


def test_a_fresh_model_generates() -> None:
    model = HierarchicalTransformer(num_tokens=256, dim=16, depth=1, dim_head=8, heads=2)
    text = model.generate(torch.tensor([[65, 66]]), 5)
    assert text.shape == (1, 5) and text.dtype == torch.int64


# choosing

FILTERS: list[dict[str, Any]] = [
    {}, {"filter_thres": 0.5}, {"top_k": 3}, {"top_p": 0.7}, {"min_p": 0.2}, {"top_k": 5, "top_p": 0.9, "min_p": 0.05},
    {"repetition_penalty": 1.7}, {"repetition_penalty": 1.7, "temperature": 0}, {"temperature": 0.3, "top_k": 4},
]  # fmt: skip


@pytest.mark.parametrize("options", FILTERS, ids=str)
def test_every_token_is_chosen_from_the_logits_after_the_whole_text_so_far(options: dict[str, Any]) -> None:
    model, prompt = build(ARGUMENTS), random_ids(2, 5, seed=0)
    generated = model.generate(prompt, 15, **options, generator=torch.Generator().manual_seed(1))
    sampling, generator, text = Sampling(**options), torch.Generator().manual_seed(1), prompt
    for _ in range(15):
        seen = torch.stack([torch.isin(torch.arange(11), row) for row in text])
        token = sampling.choose(model(text)[:, -1], generator, seen)
        text = torch.cat((text, token[:, None]), dim=1)
    assert torch.equal(generated, text[:, 5:])


def test_a_penalty_counts_what_each_row_has_seen_and_no_padding() -> None:
    model = build(THREE)
    prompts = [random_ids(1, n, seed=n)[0] for n in (2, 11, 5)]
    options = {"temperature": 0, "repetition_penalty": 2.5}
    together = model.generate(prompts, 12, **options)
    assert torch.equal(together, torch.cat([model.generate(prompt[None], 12, **options) for prompt in prompts]))


def test_log_probabilities_are_those_of_the_model_whatever_the_filters() -> None:
    model, prompt = build(ARGUMENTS), random_ids(2, 5, seed=0)
    tokens, logprobs = model.generate(prompt, 15, temperature=0.5, top_k=2, return_logprobs=True)
    expected = model(torch.cat((prompt, tokens), dim=1))[:, 4:-1].log_softmax(dim=-1)
    assert (logprobs - expected.gather(2, tokens[..., None])[..., 0]).abs().max() < 1e-10


# ends


def ending(prompts: Any, length: int, ends: Any, **options: Any) -> tuple[Tensor, Tensor]:
    model = build(THREE)
    everything = model.generate(prompts, length, temperature=0)
    return everything, model.generate(prompts, length, temperature=0, eos_token_id=ends, **options)


def test_a_row_that_has_ended_holds_padding_and_the_others_are_as_without() -> None:
    prompts = [random_ids(1, n, seed=n)[0] for n in (2, 20, 5, 9)]
    for ends in ([], *([end] for end in range(11)), [1, 2, 3]):
        everything, ended = ending(prompts, 30, ends)
        lengths = []
        for row, (full, got) in enumerate(zip(everything.tolist(), ended.tolist(), strict=True)):
            length = next((i + 1 for i, token in enumerate(full) if token in ends), 30)
            assert got == full[:length] + [-100] * (len(got) - length), f"row {row}, ends {ends}"
            lengths.append(length)
        assert ended.shape[1] == max(lengths)


def test_nothing_is_computed_once_all_rows_have_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    model, prompt = build(ARGUMENTS), random_ids(2, 5, seed=0)
    tokens = model.generate(prompt, 20, temperature=0)
    needed = max((row.tolist().index(int(row[6]))) + 1 for row in tokens)
    calls: list[int] = []
    model.register_forward_pre_hook(lambda module, inputs: calls.append(inputs[0].shape[1]))
    ends = tokens[:, 6].tolist()
    ended = model.generate(prompt, 20, temperature=0, eos_token_id=ends)
    assert ended.shape[1] <= needed
    assert calls == [5, *[1] * (ended.shape[1] - 1)]


def test_log_probabilities_behind_the_end_are_zero() -> None:
    model, prompt = build(ARGUMENTS), random_ids(4, 5, seed=0)
    tokens, logprobs = model.generate(prompt, 20, temperature=0, eos_token_id=[1, 2], return_logprobs=True)
    assert torch.equal(logprobs == 0, tokens == -100)


# streaming


@examples(quick=25, slow=200)
@given(data=st.data(), arguments=model_arguments(), seed=SEEDS)
def test_a_stream_gives_the_tokens_of_generate(data: st.DataObject, arguments: dict[str, Any], seed: int) -> None:
    model = build(arguments, seed=seed)
    prompts = draw_prompts(data, 20, seed)
    options: dict[str, Any] = data.draw(st.sampled_from(FILTERS), label="options")
    options = options | {"eos_token_id": data.draw(st.sampled_from([None, 3, (0, 1, 2)]), label="ends")}
    length = data.draw(st.integers(0, 12), label="length")
    generated = model.generate(prompts, length, **options, generator=torch.Generator().manual_seed(seed))
    streamed = list(model.stream(prompts, length, **options, generator=torch.Generator().manual_seed(seed)))
    assert torch.equal(torch.stack([*streamed, torch.zeros(len(prompts))], dim=1)[:, :-1].long(), generated)


def test_a_stream_computes_no_more_than_is_asked_for_and_leaves_gradients_on() -> None:
    model, prompt = build(ARGUMENTS), random_ids(1, 5, seed=0)
    calls: list[int] = []
    model.register_forward_pre_hook(lambda module, inputs: calls.append(inputs[0].shape[1]))
    for _ in itertools.islice(model.stream(prompt, 1000), 3):
        assert torch.is_grad_enabled()
    assert calls == [5, 1, 1]


def test_mistakes_in_a_stream_show_before_its_first_token() -> None:
    with pytest.raises(ValueError, match="temperature"):
        build(ARGUMENTS).stream(random_ids(1, 5, seed=0), 3, temperature=-1)


# states


def test_a_common_prefix_is_computed_once() -> None:
    model = build(THREE)
    prefix, prompts = random_ids(1, 37, seed=0), [random_ids(1, n, seed=n) for n in (1, 4, 19)]
    state = model.init_state(1)
    model(prefix, state=state)
    for prompt in prompts:
        expected = model.generate(torch.cat((prefix, prompt), dim=1), 10, temperature=0)
        assert torch.equal(model.generate(prompt, 10, temperature=0, state=state.clone()), expected)
    assert state.position == 37


def test_a_prefix_serves_ragged_prompts() -> None:
    model = build(THREE)
    prefix, prompts = random_ids(3, 37, seed=0), [random_ids(1, n, seed=n)[0] for n in (1, 4, 19)]
    state = model.init_state(3)
    model(prefix, state=state)
    together = model.generate(prompts, 10, temperature=0, state=state)
    whole = [torch.cat((one, other)) for one, other in zip(prefix, prompts, strict=True)]
    assert torch.equal(together, model.generate(whole, 10, temperature=0))


def test_the_state_that_is_returned_has_seen_all_but_the_last_token() -> None:
    model, prompt = build(THREE), random_ids(2, 5, seed=0)
    whole = model.generate(prompt, 30, temperature=0)
    first, state = model.generate(prompt, 12, temperature=0, return_state=True)
    assert state.position == 5 + 11
    more = model.generate(first[:, -1:], 18, temperature=0, state=state)
    assert torch.equal(torch.cat((first, more), dim=1), whole)
    tokens, logprobs, state = model.generate(prompt, 0, return_logprobs=True, return_state=True)
    assert tokens.shape == logprobs.shape == (2, 0) and state.position == 5


def test_a_state_after_an_early_end_stands_at_the_end() -> None:
    model, prompt = build(ARGUMENTS), random_ids(1, 5, seed=0)
    whole = model.generate(prompt, 20, temperature=0)[0]
    end = int(whole[6])
    tokens, state = model.generate(prompt, 20, temperature=0, eos_token_id=end, return_state=True)
    assert state.position == 5 + tokens.shape[1] - 1


def test_prompts_are_taken_in_by_chunks_and_only_their_last_logits_are_computed() -> None:
    model, prompt = build(ARGUMENTS), random_ids(1, 60, seed=0)
    calls: list[tuple[int, int]] = []
    model.register_forward_hook(lambda module, inputs, output: calls.append((inputs[0].shape[1], output.shape[1])))
    model.generate(prompt, 1)
    assert calls == [(24, 1), (24, 1), (12, 1)]  # of seq_len
    calls.clear()
    model.generate(prompt, 1, prefill_chunk=25)
    assert calls == [(25, 1), (25, 1), (10, 1)]


def test_a_state_is_allocated_once() -> None:
    model = build(THREE)
    state = model.init_state(2)
    places = [(tensor.data_ptr(), tensor.nbytes) for tensor in state.tensors()]
    model.generate(random_ids(2, 3, seed=0), 300, state=state)
    state.rewind(1)
    model(random_ids(2, 100, seed=0), state=state)
    assert [(tensor.data_ptr(), tensor.nbytes) for tensor in state.tensors()] == places
    assert state.nbytes == sum(nbytes for _, nbytes in places)


@examples(quick=25, slow=200)
@given(data=st.data(), arguments=model_arguments(), seed=SEEDS)
def test_memory_that_was_never_written_is_never_looked_at(
    data: st.DataObject, arguments: dict[str, Any], seed: int
) -> None:
    """A state isn't zeroed when it is made; and what is zeroed for steps that look at whole rings is all of that."""
    model = build(arguments, seed=seed)
    ids = random_ids(2, data.draw(st.integers(1, 60)), seed)
    texts = []
    for garbage in (0.0, torch.nan):
        state = model.init_state(2, max_rewind=data.draw(st.sampled_from([1, 16]), label="max_rewind"))
        for leaf in state.leaves:
            if isinstance(leaf, KeyValueRing):
                leaf.keys.fill_(garbage)
                leaf.values.fill_(garbage)
        with torch.no_grad():
            for chunk in ids.split(data.draw(st.integers(1, 20), label="chunk"), dim=1):
                model(chunk, state=state)
        rings = [leaf for leaf in state.leaves if isinstance(leaf, KeyValueRing)]
        before = [torch.cat((ring.keys, ring.values)) for ring in rings]
        texts.append(model.generate(ids[:, -1:], 20, temperature=0, state=state.clone()))
        state.blank_unseen()
        after = [torch.cat((ring.keys, ring.values)) for ring in rings]
        assert all(torch.equal(now, then.nan_to_num(0)) for now, then in zip(after, before, strict=True))
    assert torch.equal(*texts)


def test_a_state_made_in_inference_mode_goes_on_outside_of_it() -> None:
    model, prompt = build(THREE), random_ids(1, 30, seed=0)
    with torch.inference_mode():
        state = model.init_state(1)
        model(prompt, state=state)
        fork = state.clone()
    expected = model.generate(torch.cat((prompt, prompt), dim=1), 5, temperature=0)
    for one in (state, fork):
        assert torch.equal(model.generate(prompt, 5, temperature=0, state=one), expected)


@pytest.mark.slow
def test_two_hundred_thousand_tokens_take_constant_memory() -> None:
    model = build(
        {
            "num_tokens": 11, "dim": 8, "depth": 1, "seq_len": 32, "dim_head": 4, "heads": 1,
            "hierarchies": (1, 4), "hierarchical_stride": (1, 4), "window_sizes": (8, None), "use_xpos": True,
        },
        dtype=torch.float32,
    )  # fmt: skip
    state = model.init_state(1)
    nbytes, resident, text = state.nbytes, 0, torch.tensor([[1]])
    for thousand in range(200):
        text = model.generate(text[:, -1:], 1000, state=state)
        if thousand == 20:
            resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert state.position == 200_000 and state.nbytes == nbytes
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - resident < 20_000  # kilobytes
    # what lies further back than the windows doesn't count, nor does the position
    near = model.init_state(1)
    with torch.no_grad():
        model(text[:, -201:-1], state=near)  # from a position in the same phase
        difference = (model(text[:, -1:], state=near) - model(text[:, -1:], state=state)).abs().max()
    assert difference < 1e-4


# logits that aren't numbers


def test_logits_that_are_no_numbers_are_reported_with_their_position() -> None:
    model, prompt = build(ARGUMENTS), random_ids(2, 5, seed=0)
    model.register_forward_hook(
        lambda module, inputs, output: torch.full_like(output, torch.nan) if inputs[0].shape[1] == 1 else output
    )
    for options in ({}, {"temperature": 0}, {"top_p": 0.5}):
        with pytest.raises(ValueError, match=r"fine position 6 hold NaN.*weights.*model\.float\(\)"):
            model.generate(prompt, 5, **options)
