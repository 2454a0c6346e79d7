"""Any way of feeding a sequence through a decoding state gives the logits of the whole sequence at once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from configurations import SEEDS, VOCABULARY, build, examples, model_arguments, random_ids
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from simple_hierarchical_transformer import DecodingState, HierarchicalTransformer, merge
from simple_hierarchical_transformer.state import Register, StateSpec, copy_all


def decode(
    model: HierarchicalTransformer, ids: Tensor, data: st.DataObject, *, state: DecodingState | None = None
) -> Tensor:
    """Logits of `ids`, fed in chunks of drawn lengths, with detours that are cloned away from or taken back."""
    batch, length = ids.shape
    # what may be taken back also says which chunks are written in place, and where rings come round
    rewind = data.draw(st.sampled_from([0, 1, 5, 16, 40]), label="max_rewind")
    state = state or model.init_state(batch, max_rewind=rewind)
    outputs: list[Tensor] = []
    position = 0
    while position < length:
        detour = data.draw(st.sampled_from(["none", "none", "clone", "rewind"]), label="detour")
        longest = 9 if detour == "clone" else min(state.max_rewind, 9)
        if detour != "none" and longest:
            noise = random_ids(batch, data.draw(st.integers(1, longest), label="detour length"), position)
            if detour == "clone":
                model(noise, state=state.clone())
            else:
                model(noise, state=state)
                state.rewind(noise.shape[1])
        chunk = data.draw(st.one_of(st.just(1), st.integers(1, 40)), label="chunk")
        with torch.set_grad_enabled(data.draw(st.booleans(), label="gradients")):  # which join, and never overwrite
            outputs.append(model(ids[:, position : position + chunk], state=state).detach())
        position += chunk
    assert state.position == length
    return torch.cat(outputs, dim=1)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
@examples(quick=40, slow=400)
@given(data=st.data(), arguments=model_arguments(), batch=st.integers(1, 3), seed=SEEDS)
def test_any_segmentation_gives_the_logits_of_the_whole(
    dtype: torch.dtype, tolerance: float, data: st.DataObject, arguments: dict[str, Any], batch: int, seed: int
) -> None:
    model = build(arguments, seed=seed, dtype=dtype)
    ids = random_ids(batch, data.draw(st.integers(1, model.seq_len), label="length"), seed)
    with torch.no_grad():
        whole = model(ids)
        difference = (decode(model, ids, data) - whole).abs().amax(dim=(0, 2)) / whole.abs().max().clamp(min=1)
    assert difference.max() < tolerance, f"differs first at {(difference >= tolerance).nonzero()[0].item()}"


@examples(quick=15, slow=150)
@given(data=st.data(), arguments=model_arguments(), seed=SEEDS)
def test_any_two_segmentations_agree_past_seq_len(data: st.DataObject, arguments: dict[str, Any], seed: int) -> None:
    model = build(arguments, seed=seed)
    ids = random_ids(2, model.seq_len + data.draw(st.integers(1, 90), label="longer by"), seed)
    with torch.no_grad():
        one = model(ids, state=model.init_state(2))
        difference = (decode(model, ids, data) - one).abs().amax(dim=(0, 2)) / one.abs().max().clamp(min=1)
    assert difference.max() < 1e-10, f"differs first at {(difference >= 1e-10).nonzero()[0].item()}"


@examples(quick=15, slow=150)
@given(data=st.data(), arguments=model_arguments(), seed=SEEDS)
def test_full_windows_reach_over_the_last_seq_len_input_tokens_of_a_longer_text(
    data: st.DataObject, arguments: dict[str, Any], seed: int
) -> None:
    """The slow reference sees the whole text at once and masks what lies further back."""
    short = build(arguments | {"seq_len": max(arguments["seq_len"], *arguments["hierarchies"]) + 1}, seed=seed)
    reaches = tuple(s.reach(short.seq_len) if s.window_size is None else s.window_size for s in short.config.streams)
    ids = random_ids(2, short.seq_len + data.draw(st.integers(1, 90), label="longer by"), seed)
    long = build(arguments | {"seq_len": ids.shape[1], "window_sizes": reaches}, seed=seed)
    with torch.no_grad():
        whole = long(ids)
        difference = (decode(short, ids, data) - whole).abs().amax(dim=(0, 2)) / whole.abs().max().clamp(min=1)
    assert difference.max() < 1e-10, f"differs first at {(difference >= 1e-10).nonzero()[0].item()}"


def test_positions_past_one_hundred_thousand_keep_their_precision_in_float32() -> None:
    """A state that starts far out gives the same logits as one that starts at 0: only distances count."""
    arguments = {
        "num_tokens": VOCABULARY, "dim": 8, "depth": 2, "seq_len": 64, "dim_head": 8, "heads": 2, "window_sizes": 8,
    }  # fmt: skip
    for use_xpos in (False, True):
        model = build(arguments | {"use_xpos": use_xpos}, dtype=torch.float32)
        ids = random_ids(1, 40, seed=2)
        logits = []
        with torch.no_grad():
            for start in (0, 2**20):
                state = model.init_state(1)
                state.blank_unseen()
                state.position = start
                model(ids, state=state)  # more than two layers of this window see, so what was before doesn't count
                logits.append(torch.cat([model(chunk, state=state) for chunk in ids.split(3, dim=1)], dim=1))
        difference = (logits[0] - logits[1]).abs().max()
        assert difference < 1e-4, f"use_xpos={use_xpos}: {difference}"


def test_a_planted_fault_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """A coarse token that isn't held between chunks shows as a difference."""
    arguments = {
        "num_tokens": VOCABULARY, "dim": (8, 6), "depth": 1, "seq_len": 32, "dim_head": 4, "heads": 2,
        "hierarchies": (1, 4), "hierarchical_stride": (1, 4),
    }  # fmt: skip
    model, ids = build(arguments), random_ids(1, 20, seed=3)

    def forgetful(self: merge.Hold, rows: Tensor | None, *others: Any) -> Tensor:
        held = hold(self, rows, *others)
        return torch.zeros_like(held) if rows is None else held

    def difference() -> float:
        state = model.init_state(1)
        chunks = torch.cat([model(chunk, state=state) for chunk in ids.split(3, dim=1)], dim=1)
        return float((chunks - model(ids)).detach().abs().max())

    assert difference() < 1e-10
    hold = merge.Hold.forward
    monkeypatch.setattr(merge.Hold, "forward", forgetful)
    assert difference() > 1e-3


def test_a_strided_stream_emits_one_token_per_stride() -> None:
    """Over 40 single steps a stream of stride 8 takes in 5 tokens, and its compressor looks at every input."""
    arguments = {
        "num_tokens": VOCABULARY, "dim": (8, 6), "depth": 1, "seq_len": 64, "dim_head": 4, "heads": 2,
        "hierarchies": (1, 8), "hierarchical_stride": (1, 8),
    }  # fmt: skip
    model = build(arguments)
    state, worked = model.init_state(1), []
    model.layers[0].blocks[1].feedforward.register_forward_hook(lambda *_: worked.append(state.position))
    for token in random_ids(1, 40, seed=4).split(1, dim=1):
        model(token, state=state)
    assert worked == [0, 8, 16, 24, 32]


def test_state_holds_what_the_design_says_and_no_more() -> None:
    arguments = {
        "num_tokens": VOCABULARY, "dim": (8, 6), "depth": 2, "seq_len": 64, "dim_head": 4, "heads": 3,
        "hierarchies": (1, 8), "hierarchical_stride": (1, 4), "window_sizes": (5, None),
    }  # fmt: skip
    model = build(arguments)
    for length in (100, 101, 164):
        state = model.init_state(2, max_rewind=0)
        for chunk in random_ids(2, length, seed=5).split(7, dim=1):
            model(chunk, state=state)
        compressor = (8 - 1) * 8
        fine = 2 * (8 // 2) + 2 * 5 * 3 * 4  # two shifts of half a token, keys and values of the window
        coarse = 2 * 2 * (6 // 2) + 2 * 2 * (63 // 8) * 3 * 4  # two phases
        held = 2 * 8  # one coarse token, projected to the merge's hidden width
        assert state.nbytes == 8 * 2 * (compressor + 2 * (fine + coarse + held))


def test_rewinding_trims_each_stream_to_the_tokens_that_were_due() -> None:
    spec = StateSpec(batch_size=1, max_rewind=8, dtype=torch.float32, device=torch.device("cpu"))
    register = Register(spec, stride=4, keep=2, dim=1)
    register.extend(torch.arange(1.0, 4.0)[None, :, None])  # at fine positions 0, 4 and 8
    copy_all(register.noted())
    copy_all(register.rewound(9, 8))  # only the positions 0 … 7 have been seen
    assert register.extend(torch.tensor([[[9.0]]])).flatten().tolist() == [1, 2, 9]
