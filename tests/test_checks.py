"""The public checks pass what is right, catch what is wrong, name the place, and leave the model as it was."""

from __future__ import annotations

import doctest
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from configurations import SEEDS, VOCABULARY, build, examples, model_arguments, random_ids
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from simple_hierarchical_transformer import checks
from simple_hierarchical_transformer.checks import assert_causal, assert_chunks_equal_whole


class Gru(nn.Module):
    """A model that isn't ours: causal unless `bidirectional`; its state is a dictionary with the hidden tensor."""

    def __init__(self, *, bidirectional: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(VOCABULARY, 4)
        self.gru = nn.GRU(4, 8, batch_first=True, bidirectional=bidirectional)
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(16 if bidirectional else 8, VOCABULARY))
        self.double()

    def init_state(self, batch_size: int) -> dict[str, Tensor]:
        return {"hidden": torch.zeros(1, batch_size, 8, dtype=torch.float64)}

    def forward(self, ids: Tensor, *, state: dict[str, Tensor] | None = None) -> Tensor:
        x, hidden = self.gru(self.embed(ids), None if state is None else state["hidden"])
        if state is not None:
            state["hidden"] = hidden
        return self.head(x)


class Attention(nn.Module):
    """Causal attention with learned positions; its state holds the embeddings so far, but for what `fault` loses."""

    def __init__(self, fault: str = "") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fault = fault
        self.embed, self.place = nn.Embedding(VOCABULARY, 8), nn.Embedding(64, 8)
        self.head = nn.Linear(8, VOCABULARY)
        self.double()

    def init_state(self, batch_size: int) -> dict[str, Any]:
        return {"seen": torch.zeros(batch_size, 0, 8, dtype=torch.float64), "position": 0}

    def forward(self, ids: Tensor, *, state: dict[str, Any] | None = None) -> Tensor:
        state = self.init_state(len(ids)) if state is None else state
        length, position = ids.shape[1], state["position"]
        x = self.embed(ids) + self.place(torch.arange(length) + position)
        seen = torch.cat((state["seen"], x), dim=1)
        state["seen"] = seen[:, -5:] if self.fault == "forgets" else seen
        state["position"] = position + length - (self.fault == "off by one")
        causal = torch.ones(length, seen.shape[1], dtype=torch.bool).tril(seen.shape[1] - length)
        return self.head(nn.functional.scaled_dot_product_attention(x, seen, seen, attn_mask=causal))


class Faulty(nn.Module):
    """A causal model whose logits something is done to."""

    def __init__(self, change: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.model, self.change = Gru(), change

    def init_state(self, batch_size: int) -> dict[str, Tensor]:
        return self.model.init_state(batch_size)

    def forward(self, ids: Tensor, *, state: dict[str, Tensor] | None = None) -> Tensor:
        return self.change(self.model(ids, state=state), ids)


def peek(position: int, at: int, scale: float = 1.0) -> Callable[[Tensor, Tensor], Tensor]:
    """The logits at one position hear of the id at another."""

    def change(logits: Tensor, ids: Tensor) -> Tensor:
        if ids.shape[1] > max(position, at):
            logits[:, position] = logits[:, position] + scale * ids[:, at, None]
        return logits

    return change


IDS = random_ids(2, 23, seed=0)
LONG_IDS = random_ids(1, 300, seed=0)


# what is right passes


@examples(quick=12, slow=100)
@given(arguments=model_arguments(), length=st.integers(2, 40), seed=SEEDS)
def test_our_models_pass_both_checks(arguments: dict[str, Any], length: int, seed: int) -> None:
    model = build(arguments | {"seq_len": 40}, seed=seed)
    ids = random_ids(2, length, seed)
    assert_causal(model, ids, num_tokens=VOCABULARY)
    assert_chunks_equal_whole(model, ids)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_models_that_are_not_ours_pass_both_checks(dtype: torch.dtype) -> None:
    assert_causal(Gru().to(dtype), IDS)
    assert_causal(Gru().to(dtype), LONG_IDS)
    assert_chunks_equal_whole(
        Gru().to(dtype), IDS, init_state=lambda batch_size: {"hidden": torch.zeros(1, batch_size, 8, dtype=dtype)}
    )
    assert_chunks_equal_whole(Attention(), IDS)
    assert_chunks_equal_whole(Attention(), IDS, chunks=[20, 1, 2])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.uint16])
def test_a_model_gets_ids_of_the_type_that_was_given(dtype: torch.dtype) -> None:
    seen = set()

    def model(ids: Tensor, state: Any = None) -> Tensor:
        seen.add(ids.dtype)
        return nn.functional.one_hot(ids.long(), VOCABULARY).double()

    assert_causal(model, IDS.to(dtype))
    assert_chunks_equal_whole(model, IDS.to(dtype), init_state=lambda batch_size: None)
    assert seen == {dtype}


def test_the_examples_of_the_docstrings_run() -> None:
    results = doctest.testmod(checks, optionflags=doctest.ELLIPSIS)
    assert results.attempted > 8
    assert not results.failed


# looking into the future


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda logits, ids: logits.roll(-1, dims=1), "logits at 0 change by .* when ids[:, 1:] change"),
        (lambda logits, ids: logits + logits.mean(dim=1, keepdim=True), "logits at 0 change by .* when ids[:, 1:]"),
        (lambda logits, ids: logits + logits[:1, -1:], "logits at 0 change by .* when ids[:, 1:] change"),
        (peek(5, at=6), "logits at 5 change by .* when ids[:, 6:] change: the model sees the future"),
        (peek(21, at=22), "logits at 21 change by .* when ids[:, 22:] change: the model sees the future"),
        (peek(7, at=20), "logits at 7 change by .* when ids[:, 8:] change"),
        (peek(5, at=6, scale=1e-8), "logits at 5 change by .*e-0[78] when ids[:, 6:] change"),
    ],
    ids=["one ahead", "mean", "across rows", "one place", "last place", "far ahead", "faint"],
)
def test_a_look_into_the_future_is_named(change: Callable[[Tensor, Tensor], Tensor], message: str) -> None:
    with pytest.raises(AssertionError, match=pattern(message)):
        assert_causal(Faulty(change), IDS)


def test_a_bidirectional_model_is_caught() -> None:
    with pytest.raises(AssertionError, match=pattern("logits at 0 change by .* when ids[:, 1:] change")):
        assert_causal(Gru(bidirectional=True), IDS)
    with pytest.raises(AssertionError, match=pattern("logits at 0 differ by .* in chunks of (11, 12)")):
        assert_chunks_equal_whole(lambda ids, state=None: Gru(bidirectional=True)(ids), IDS, init_state=lambda b: None)


def test_by_how_much_logits_change_is_told() -> None:
    ids = torch.tensor([[0, 1, 0, 1, 0]])
    with pytest.raises(AssertionError, match=r"logits at 2 change by 0\.25 when"):
        assert_causal(Faulty(peek(2, at=3, scale=0.25)), ids)


def test_a_leak_of_what_two_kinds_of_ids_have_in_common_is_caught() -> None:
    """A sum over the sequence stays the same where 0 and 1, each equally often, change places; not for every cut."""
    ids = torch.tensor([[0, 1, 0, 1, 0, 1]])
    with pytest.raises(AssertionError, match="logits at 0 change"):
        assert_causal(Faulty(lambda logits, ids: logits + ids.sum()), ids)


@pytest.mark.parametrize("cut", [1, 2, 3, 7, 8, 9, 127, 128, 129, 255, 256, 257, 299])
def test_long_sequences_are_cut_at_their_ends_and_around_powers_of_two(cut: int) -> None:
    with pytest.raises(AssertionError, match=pattern(f"logits at {cut - 1} change by .* when ids[:, {cut}:] change")):
        assert_causal(Faulty(peek(cut - 1, at=cut)), LONG_IDS)


def test_up_to_64_positions_are_all_tried_and_more_if_asked_for() -> None:
    for position in range(64):
        with pytest.raises(AssertionError, match=pattern(f"logits at {position} change by .* ids[:, {position + 1}:]")):
            assert_causal(Faulty(peek(position, at=position + 1)), LONG_IDS[:, :65])
    between = Faulty(peek(49, at=50))
    assert_causal(between, LONG_IDS)  # the docstring says so
    with pytest.raises(AssertionError, match="logits at 49 change"):
        assert_causal(between, LONG_IDS, positions=[3, 50, 4])
    assert_causal(between, LONG_IDS, positions=[51, 3])


@pytest.mark.parametrize("length", [2, 3, 65, 66, 67, 68, 127, 128, 129, 1000, 4096, 100_003])
def test_default_cuts_are_legal_sorted_and_few(length: int) -> None:
    cuts = checks._cuts(None, length)
    assert cuts == sorted(set(cuts))
    assert {1, length - 1} <= set(cuts) <= set(range(1, length))
    assert len(cuts) <= 70


@given(ids=st.lists(st.integers(-3, 5), min_size=2, max_size=9), num_tokens=st.sampled_from([None, 2, 4, 9]))
def test_every_id_is_changed_to_one_that_is_allowed(ids: list[int], num_tokens: int | None) -> None:
    allowed = set(ids) if num_tokens is None else set(range(num_tokens))
    if len(allowed) > 1:
        others = checks._other_ids(torch.tensor([ids]), num_tokens)[0].tolist()
        assert all(other != known for other, known in zip(others, ids, strict=True))
        assert set(others) <= allowed


def test_ids_that_do_not_occur_are_only_used_if_the_vocabulary_is_given() -> None:
    ids, seen = torch.tensor([[5, 7, 5, 5, 7, 7, 5, 7, 7]]), set()

    def model(ids: Tensor) -> Tensor:
        seen.update(ids.flatten().tolist())
        return nn.functional.one_hot(ids, VOCABULARY).double()

    assert_causal(model, ids)
    assert seen == {5, 7}
    assert_causal(model, ids, num_tokens=VOCABULARY)
    assert len(seen) > 3


def test_a_masked_entry_of_the_vocabulary_does_not_hide_a_leak() -> None:
    """Relative to a mask's -1e9, every leak is rounding."""
    for mask in (-1e9, -torch.inf, torch.finfo(torch.float64).min):

        def masked(ids: Tensor, mask: float = mask) -> Tensor:
            logits = Faulty(peek(5, at=6))(ids)
            logits[..., 0] = mask
            return logits

        with pytest.raises(AssertionError, match="logits at 5 change by"):
            assert_causal(masked, IDS)


def test_infinite_logits_that_move_are_a_difference() -> None:
    def mask_what_follows(ids: Tensor) -> Tensor:
        logits = Gru()(ids)
        return logits.scatter(2, ids.roll(-1, dims=1)[..., None], -torch.inf)

    with pytest.raises(AssertionError, match="logits at 0 change by inf"):
        assert_causal(mask_what_follows, IDS)


def test_logits_that_never_change_are_warned_of() -> None:
    model = Gru()
    nn.init.zeros_(model.head[1].weight)
    with pytest.warns(UserWarning, match=r"no logits changed, .* random weights"):
        assert_causal(model, IDS)


# states that lose something


@pytest.mark.parametrize(
    ("fault", "chunks", "message"),
    [
        ("forgets", (6, 1, 1, 15), "logits at 6 differ by .* chunks of (6, 1, 1, 15): position 0 of .* ids[:, 6:7]"),
        ("forgets", (1,) * 23, "logits at 6 differ by .* in chunks of (1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, …): pos"),
        ("forgets", (5, 18), None),
        ("off by one", (4, 19), "logits at 4 differ by .* chunks of (4, 19): position 0 of the chunk ids[:, 4:23] is"),
        ("off by one", (23,), None),
        ("forgets", None, "logits at 11 differ by .* in chunks of (11, 12): position 0 of the chunk ids[:, 11:23] is"),
        ("off by one", None, "logits at 11 differ by .* in chunks of (11, 12)"),
    ],
)
def test_a_state_that_loses_something_is_named(fault: str, chunks: Any, message: str | None) -> None:
    if message is None:
        assert_chunks_equal_whole(Attention(fault), IDS, chunks=chunks)
    else:
        with pytest.raises(AssertionError, match=pattern(message)):
            assert_chunks_equal_whole(Attention(fault), IDS, chunks=chunks)


def test_a_fault_within_a_chunk_is_told_by_its_place_there() -> None:
    def change(logits: Tensor, ids: Tensor) -> Tensor:
        return torch.cat((logits[:, :2], logits[:, 2:] + 0.5), dim=1) if ids.shape[1] == 4 else logits

    with pytest.raises(
        AssertionError, match=pattern("logits at 7 differ by 0.5 .* position 2 of the chunk ids[:, 5:9]")
    ):
        assert_chunks_equal_whole(Faulty(change), IDS, chunks=(5, 4, 14))


def test_a_state_that_is_not_new_is_caught() -> None:
    model = Gru()
    state = model.init_state(2)
    with pytest.raises(AssertionError, match="logits at 0 differ by"):
        assert_chunks_equal_whole(model, IDS, init_state=lambda batch_size: state)


@given(length=st.integers(2, 200))
def test_default_chunks_are_of_several_kinds_and_add_up(length: int) -> None:
    ways = checks._chunkings(length)
    assert all(sum(way) == length and min(way) > 0 for way in ways)
    assert {(length,), (1,) * length, (length // 2, length - length // 2)} <= set(ways)
    assert length < 6 or len(ways) > 3
    assert ways == checks._chunkings(length)


# NaN, noise, mode, random numbers


def test_nan_fails_and_is_not_compared() -> None:
    def spoilt(position: int) -> Callable[[Tensor, Tensor], Tensor]:
        def change(logits: Tensor, ids: Tensor) -> Tensor:
            logits[-1, position:, 3] = torch.nan
            return logits

        return change

    with pytest.raises(AssertionError, match=r"logits at 4 are NaN: "):
        assert_causal(Faulty(spoilt(4)), IDS)
    with pytest.raises(AssertionError, match=r"logits at 4 are NaN: "):
        assert_chunks_equal_whole(Faulty(spoilt(4)), IDS)
    only_zeros = Faulty(lambda logits, ids: logits.masked_fill((ids == 0)[..., None], torch.nan))
    with pytest.raises(AssertionError, match=r"logits at \d+ are NaN when ids\[:, \d+:\] change"):
        assert_causal(only_zeros, IDS.clamp(min=1), num_tokens=VOCABULARY)
    short = Faulty(lambda logits, ids: logits * (torch.nan if ids.shape[1] < 4 else 1))
    with pytest.raises(AssertionError, match=r"logits at 20 are NaN when ids are fed in chunks of \(20, 3\)"):
        assert_chunks_equal_whole(short, IDS, chunks=(20, 3))


def test_dropout_plays_no_part_and_every_submodule_keeps_its_mode() -> None:
    model = Gru(dropout=0.5).train()
    model.gru.eval()
    before = [module.training for module in model.modules()]
    assert_causal(model, IDS)
    assert_chunks_equal_whole(model, IDS)
    assert [module.training for module in model.modules()] == before == [True, True, False, True, True, True]

    failing = Faulty(peek(5, at=6)).train()
    failing.model.eval()
    before = [module.training for module in failing.modules()]
    for check in (assert_causal, assert_chunks_equal_whole):
        with pytest.raises(AssertionError):
            check(failing, IDS)
        assert [module.training for module in failing.modules()] == before


def test_a_model_that_raises_keeps_its_mode() -> None:
    model = Gru(dropout=0.5).train()
    with pytest.raises(IndexError):
        assert_causal(model, IDS + VOCABULARY)
    assert all(module.training for module in model.modules())


def test_noise_is_not_taken_for_a_look_into_the_future() -> None:
    model = Gru(dropout=0.5).train()
    with pytest.raises(AssertionError, match=r"change by .* called with the same ids again: it draws random .* eval"):
        assert_causal(lambda ids: model(ids), IDS)
    with pytest.raises(AssertionError, match=r"change by .* called with the same ids again: it draws random .* eval"):
        assert_chunks_equal_whole(lambda ids, state=None: model(ids, state=state), IDS, init_state=model.init_state)


def test_no_random_number_is_drawn_and_nothing_of_the_caller_changes() -> None:
    def overwriting(ids: Tensor, state: Any = None) -> Tensor:
        assert not torch.is_grad_enabled()
        logits = nn.functional.one_hot(ids, VOCABULARY).double()
        ids.zero_()
        return logits

    ids, random_state = IDS.clone(), torch.get_rng_state()
    assert_causal(overwriting, ids)
    assert_chunks_equal_whole(overwriting, ids, init_state=lambda batch_size: None)
    assert torch.equal(ids, IDS)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert torch.is_grad_enabled()


def test_a_model_that_writes_into_the_same_memory_again_is_compared_with_what_it_returned() -> None:
    buffer = torch.empty(2, 23, VOCABULARY, dtype=torch.float64)
    with pytest.raises(AssertionError, match="logits at 5 change by"):
        assert_causal(lambda ids: buffer.copy_(Faulty(peek(5, at=6))(ids)), IDS)


def test_tolerance_is_relative_to_the_largest_logit_and_of_the_type() -> None:
    for scale in (1e-6, 1.0, 1e6):
        leaky = Faulty(lambda logits, ids, scale=scale: scale * peek(5, at=6, scale=1e-3)(logits, ids))
        with pytest.raises(AssertionError, match="logits at 5"):
            assert_causal(leaky, IDS)
        assert_causal(leaky, IDS, tolerance=0.1)
        assert_chunks_equal_whole(leaky, IDS, chunks=(3, 20), tolerance=0.1)
        with pytest.raises(AssertionError, match="logits at 5"):
            assert_chunks_equal_whole(leaky, IDS, chunks=(3, 20))
    for dtype, hidden, shown in (
        (torch.float32, 1e-6, 1e-2),
        (torch.float16, 1e-4, 1e-1),
        (torch.bfloat16, 1e-3, 1.0),
    ):
        assert_causal(Faulty(peek(5, at=6, scale=hidden)).to(dtype), IDS)
        with pytest.raises(AssertionError, match="logits at 5"):
            assert_causal(Faulty(peek(5, at=6, scale=shown)).to(dtype), IDS)


# mistakes of those who call

MISTAKES: list[tuple[dict[str, Any], type[Exception], list[str]]] = [
    ({"model": None}, TypeError, ["model", "module or function", "None of type NoneType", "called"]),
    ({"ids": "text"}, TypeError, ["ids", "tensor", "str"]),
    ({"ids": [[1, 2]]}, TypeError, ["ids", "tensor", "list", "torch.tensor(ids)"]),
    ({"ids": torch.zeros(2, 3)}, TypeError, ["ids", "integer type", "torch.float32", "ids.long()"]),
    ({"ids": IDS[0]}, ValueError, ["ids", "(batch, length)", "(23,)", "ids[None]"]),
    ({"ids": IDS[:, :1]}, ValueError, ["ids", "at least 2", "(2, 1)"]),
    ({"tolerance": "1e-3"}, TypeError, ["tolerance", "number", "'1e-3'"]),
    ({"tolerance": -1.0}, ValueError, ["tolerance", "at least 0", "-1.0"]),
    ({"model": lambda ids, state=None: (ids, state)}, TypeError, ["model", "tensor", "(b, n, v)", "tuple", "wrap it"]),
    ({"model": lambda ids, state=None: ids}, TypeError, ["model", "floating-point", "torch.int64"]),
    ({"model": lambda ids, state=None: ids.double()}, ValueError, ["(2, 23, v)", "(2, 23)", "got (2, 23)", "one row"]),
    ({"model": lambda ids, state=None: torch.zeros(23, 2, 5)}, ValueError, ["(2, 23, v)", "(23, 2, 5)", "batch first"]),
    ({"model": lambda ids, state=None: torch.zeros(2, 23, 0)}, ValueError, ["(2, 23, v)", "(2, 23, 0)"]),
    ({"model": lambda ids, state=None: Gru()(ids)[:, -1:]}, ValueError, ["(2, 23, v)", "(2, 1, 11)", "one row"]),
]
CAUSAL_MISTAKES: list[tuple[dict[str, Any], type[Exception], list[str]]] = [
    ({"positions": 5}, TypeError, ["positions", "whole numbers", "5 of type int", "(1, 2)"]),
    ({"positions": ()}, ValueError, ["positions", "empty", "None"]),
    ({"positions": (1, 0)}, ValueError, ["positions", "at least 1", "got 0"]),
    ({"positions": (1, 2.0)}, TypeError, ["positions", "whole number", "2.0"]),
    ({"positions": range(24)}, ValueError, ["positions", "at least 1", "got 0"]),
    ({"positions": range(1, 24)}, ValueError, ["positions", "from 1 to 22", "length 23", "got 23", "longer ids"]),
    ({"num_tokens": 1}, ValueError, ["num_tokens", "at least 2", "got 1"]),
    ({"num_tokens": "all"}, TypeError, ["num_tokens", "whole number", "'all'"]),
    ({"ids": torch.full((2, 5), 4)}, ValueError, ["ids", "all 4", "at least two kinds", "num_tokens"]),
]
CHUNK_MISTAKES: list[tuple[dict[str, Any], type[Exception], list[str]]] = [
    ({"chunks": 5}, TypeError, ["chunks", "lengths", "5 of type int", "(1, 2)"]),
    ({"chunks": "12"}, TypeError, ["chunks", "lengths", "'12' of type str"]),
    ({"chunks": ()}, ValueError, ["chunks", "sum of 23", "()", "sum of 0", "None"]),
    ({"chunks": (20, 4)}, ValueError, ["chunks", "sum of 23", "(20, 4)", "sum of 24"]),
    ({"chunks": (23, 0)}, ValueError, ["chunks", "at least 1", "got 0"]),
    ({"chunks": (24, -1)}, ValueError, ["chunks", "at least 1", "got -1"]),
    ({"chunks": (11.5, 11.5)}, TypeError, ["chunks", "whole number", "11.5"]),
    ({"init_state": {}}, TypeError, ["init_state", "batch size", "{} of type dict", "give a function"]),
    (
        {"model": nn.Embedding(VOCABULARY, VOCABULARY), "init_state": None},
        TypeError,
        ["init_state", "None where the model has such a method", "None of type NoneType", "model of type Embedding"],
    ),
    (
        {"model": lambda ids, state=None: torch.zeros(*ids.shape, 4 + (state is None))},
        ValueError,
        ["(2, 23, 5)", "ids of shape (2, 23)", "(2, 23, 4)"],
    ),
]


@pytest.mark.parametrize(("mistake", "error", "parts"), MISTAKES + CAUSAL_MISTAKES)
def test_mistakes_in_calling_assert_causal_are_explained(
    mistake: dict[str, Any], error: type[Exception], parts: list[str]
) -> None:
    with pytest.raises(error, match=".*".join(map(re.escape, parts))):
        assert_causal(**({"model": Gru(), "ids": IDS} | mistake))


@pytest.mark.parametrize(("mistake", "error", "parts"), MISTAKES + CHUNK_MISTAKES)
def test_mistakes_in_calling_assert_chunks_equal_whole_are_explained(
    mistake: dict[str, Any], error: type[Exception], parts: list[str]
) -> None:
    with pytest.raises(error, match=".*".join(map(re.escape, parts))):
        assert_chunks_equal_whole(**({"model": Gru(), "ids": IDS, "init_state": Gru().init_state} | mistake))


def pattern(message: str) -> str:
    """A regular expression in which only `.*` and `e-0[78]` are special."""
    return re.escape(message).replace(r"\.\*", ".*").replace(r"e\-0\[78\]", "e-0[78]")
