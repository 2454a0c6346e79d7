"""Compiled and captured steps compute what single calls compute, and nothing of theirs depends on where they began."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from configurations import SEEDS, build, examples, model_arguments, random_ids
from hypothesis import given
from hypothesis import strategies as st
from torch.fx.experimental.proxy_tensor import make_fx

from simple_hierarchical_transformer import HierarchicalTransformer, generation
from simple_hierarchical_transformer.stepping import (
    CompiledSteps,
    EagerSteps,
    GraphedSteps,
    positions_standing_for,
)

THREE: dict[str, Any] = {
    "num_tokens": 11, "dim": (8, 4, 6), "depth": 2, "dim_head": 4, "heads": 2, "seq_len": 64,
    "hierarchies": (1, 4, 16), "hierarchical_stride": (1, 2, 16), "window_sizes": (3, 2, None),
}  # fmt: skip
NEEDS_CUDA = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


class RepeatedSteps(GraphedSteps):
    """Without a CUDA device: the block is run again, in place of a graph."""

    def capture(self) -> Callable[[], Any]:
        return self.block


class RecordedSteps(GraphedSteps):
    """Without a CUDA device: the kernels of one block, recorded with their numbers as a CUDA graph records them."""

    def capture(self) -> Callable[[], Any]:
        tensors = [self.position, *self.writer.tensors(), *self.state.tensors()]
        before = [tensor.clone() for tensor in tensors]
        self.position.fill_(self.state.position)
        recorded = make_fx(lambda: self.block(), record_module_stack=False)()
        torch._foreach_copy_(tensors, before)
        assert not [node for node in recorded.graph.nodes if "_local_scalar_dense" in str(node.target)]
        return recorded


@examples(quick=10, slow=60)
@given(data=st.data(), arguments=model_arguments(), seed=SEEDS)
def test_replaying_one_block_gives_the_text_of_single_steps(
    data: st.DataObject, arguments: dict[str, Any], seed: int
) -> None:
    model = build(arguments, seed=seed)
    prompts = [
        random_ids(1, data.draw(st.integers(1, 40)), seed + row)[0] for row in range(data.draw(st.integers(1, 3)))
    ]
    options: dict[str, Any] = {
        "temperature": 0,
        "eos_token_id": data.draw(st.sampled_from([None, None, 3])),
        "repetition_penalty": data.draw(st.sampled_from([None, 1.5])),
        "return_logprobs": True,
    }
    expected = model.generate(prompts, 100, **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(generation.BACKENDS, "compile", RepeatedSteps)
        got = model.generate(prompts, 100, backend="compile", state=model.init_state(len(prompts)), **options)
    assert torch.equal(got[0], expected[0])
    assert (got[1] - expected[1]).abs().max() < 1e-10


def test_nothing_but_tensors_changes_from_one_block_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a CUDA graph would replay is right wherever it is replayed, and asks for no number."""
    monkeypatch.setitem(generation.BACKENDS, "compile", RecordedSteps)
    model, prompt = build(THREE | {"depth": 1}), random_ids(2, 14, seed=0)
    options: dict[str, Any] = {"temperature": 0, "repetition_penalty": 1.5, "return_logprobs": True}
    calls: list[int] = []
    model.register_forward_pre_hook(lambda module, inputs: calls.append(inputs[0].shape[1]))
    tokens, logprobs = model.generate(prompt, 110, backend="compile", **options)
    assert calls == [14, *[1] * (2 + 11)]  # the prompt, to position 16, and after the six blocks of 16 that fit
    expected, expected_logprobs = model.generate(prompt, 110, **options)
    assert torch.equal(tokens, expected)
    assert (logprobs - expected_logprobs).abs().max() < 1e-10


def test_a_state_after_an_end_in_the_middle_of_a_block_stands_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(generation.BACKENDS, "compile", RepeatedSteps)
    model, prompt = build(THREE), random_ids(1, 5, seed=0)
    whole = model.generate(prompt, 150, temperature=0)
    ends = {int(whole[0, at]) for at in range(150)}
    positions = set()
    for end in ends:
        options: dict[str, Any] = {"temperature": 0, "eos_token_id": end, "return_state": True}
        state = model.init_state(1, max_rewind=16)
        tokens, state = model.generate(prompt, 150, backend="compile", state=state, **options)
        assert state.position == 5 + tokens.shape[1] - 1
        rest = model.generate(tokens[:, -1:], 150 - tokens.shape[1], temperature=0, state=state)
        assert torch.equal(torch.cat((tokens, rest), dim=1), whole)
        positions.add(tokens.shape[1])
    assert max(positions) > 11 + 16  # in some block, not before the first


def test_one_position_stands_for_all_of_its_phase() -> None:
    # the third stream is due at 16, the second at every other position, in two phases
    expected = [16, 17, 18, 17, 20, 17, 18, 17, 20, 17, 18, 17, 20, 17, 18, 17]
    assert positions_standing_for(HierarchicalTransformer(**THREE)) == expected
    assert positions_standing_for(HierarchicalTransformer(num_tokens=11, dim=8, depth=1)) == [1]


def test_a_stream_of_blocks_ends_where_its_text_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a block had written behind the end was streamed, and the state stood there."""
    monkeypatch.setitem(generation.BACKENDS, "compile", RepeatedSteps)
    model, prompt = build(THREE), random_ids(1, 5, seed=0)
    whole = model.generate(prompt, 150, temperature=0)
    for end in {int(token) for token in whole[0]}:
        expected = model.generate(prompt, 150, temperature=0, eos_token_id=end)
        state = model.init_state(1)
        streamed = []
        for token in model.stream(prompt, 150, temperature=0, eos_token_id=end, state=state, backend="compile"):
            streamed.append(int(token))
            if streamed[-1] == end:
                break
        assert [streamed] == expected.tolist()
        assert state.position == 5 + len(streamed) - 1


@pytest.mark.slow
def test_a_compiled_step_gives_the_same_text_and_compiles_nothing_after_its_warm_up() -> None:
    model, prompt = build(THREE), random_ids(2, 5, seed=0)
    expected = model.generate(prompt, 100, temperature=0)
    model.generate(prompt, 40, temperature=0, backend="compile")  # every phase has come
    with torch._dynamo.config.patch(error_on_recompile=True):
        assert torch.equal(model.generate(prompt, 100, temperature=0, backend="compile"), expected)
        model.generate(prompt, 30, top_k=3, repetition_penalty=1.2, backend="compile")


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=NEEDS_CUDA)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0},
        {"temperature": 0, "eos_token_id": [3], "repetition_penalty": 1.5},
        {"temperature": 0, "eos_token_id": [*range(9), 10]},  # so many that `isin` would sort
        {"top_k": 5},
        {"top_p": 0.9, "min_p": 0.01},
    ],
    ids=str,
)
def test_cuda_graphs_give_the_text_of_single_steps(device: str, dtype: torch.dtype, options: dict[str, Any]) -> None:
    model = build(THREE, dtype=torch.float32).to(device, dtype)
    prompts = [random_ids(1, length, seed=length)[0].to(device) for length in (5, 9, 30)]
    for rows in (prompts, prompts[:1]):
        texts = []
        for backend in ("eager", "cuda_graphs"):
            generator = torch.Generator(device).manual_seed(3)
            texts.append(model.generate(rows, 150, **options, backend=backend, generator=generator))
        assert torch.equal(*texts)


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=NEEDS_CUDA)])
@pytest.mark.parametrize("given", [False, True])
def test_what_can_not_be_captured_runs_without_and_says_so(
    device: str, given: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, prompt = build(THREE).to(device), random_ids(2, 5, seed=0).to(device)
    block = GraphedSteps.block

    def waiting(self: GraphedSteps) -> None:
        block(self)
        self.position.item()

    monkeypatch.setattr(GraphedSteps, "block", waiting)
    texts = []
    for backend in ("eager", "cuda_graphs", "eager"):  # and random numbers can be drawn afterwards
        torch.manual_seed(3)
        generator = torch.Generator(device).manual_seed(3) if given else None
        options: dict[str, Any] = {"top_k": 5, "backend": backend, "generator": generator}
        if backend == "eager":
            texts.append(model.generate(prompt, 150, **options))
        else:
            with pytest.warns(UserWarning, match="can't capture"):
                texts.append(model.generate(prompt, 150, **options))
    assert torch.equal(texts[0], texts[1]) and torch.equal(texts[0], texts[2])


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=NEEDS_CUDA)])
def test_a_state_that_graphs_can_not_use_is_decoded_without(device: str) -> None:
    model, prompt = build(THREE).to(device), random_ids(2, 5, seed=0).to(device)
    expected = model.generate(prompt, 150, temperature=0)
    assert torch.equal(model.generate(prompt, 150, temperature=0, state=model.init_state(2, max_rewind=1)), expected)


def test_every_backend_is_one_of_these() -> None:
    assert {"eager": EagerSteps, "compile": CompiledSteps, "cuda_graphs": GraphedSteps} == generation.BACKENDS
