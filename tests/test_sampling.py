"""Every filter is what plain loops over a row say it is, and tokens are drawn with the probabilities that are left."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from fractions import Fraction
from typing import Any

import pytest
import torch
from configurations import SEEDS, examples
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from simple_hierarchical_transformer import sampling
from simple_hierarchical_transformer.sampling import Sampling

ROWS = 50  # of each of the 25 examples of a property, so that every filter is tried on 1,250 rows
Row = list[float]


# The slow and obvious reference: one row at a time. Of equal logits it keeps the first.


def by_hand_penalise(row: Row, seen: list[bool], penalty: float) -> Row:
    return [
        (logit / penalty if logit > 0 else logit * penalty) if was_seen else logit
        for logit, was_seen in zip(row, seen, strict=True)
    ]


def by_hand_softmax(row: Row) -> Row:
    weights = [math.exp(logit - max(row)) for logit in row]
    return [weight / math.fsum(weights) for weight in weights]


def by_hand_keep(row: Row, kept: list[int]) -> Row:
    return [logit if i in kept else -math.inf for i, logit in enumerate(row)]


def from_the_likeliest(row: Row) -> list[int]:
    return sorted(range(len(row)), key=lambda i: -row[i])


def by_hand_top_k(row: Row, k: int) -> Row:
    return by_hand_keep(row, from_the_likeliest(row)[:k])


def by_hand_top(row: Row, filter_thres: float) -> Row:
    return by_hand_top_k(row, max(int((1 - filter_thres) * len(row)), 1))


def by_hand_top_p(row: Row, p: float) -> Row:
    order, probabilities = from_the_likeliest(row), by_hand_softmax(row)
    before = [math.fsum(probabilities[i] for i in order[:rank]) for rank in range(len(order))]
    return by_hand_keep(row, [i for i, mass in zip(order, before, strict=True) if mass < p or p == 1])


def by_hand_min_p(row: Row, min_p: float) -> Row:
    probabilities = by_hand_softmax(row)
    return by_hand_keep(row, [i for i, share in enumerate(probabilities) if share >= min_p * max(probabilities)])


def by_hand_logits(row: Row, seen: list[bool], choice: Sampling) -> tuple[Row, Row]:
    """The whole order of steps: the logits before the filters, and after them."""
    if choice.repetition_penalty is not None:
        row = by_hand_penalise(row, seen, choice.repetition_penalty)
    before = row = [(logit - max(row)) / choice.temperature for logit in row]
    if choice.top_k is choice.top_p is choice.min_p is None:
        row = by_hand_top(row, 0.9 if choice.filter_thres is None else choice.filter_thres)
    if choice.top_k is not None:
        row = by_hand_top_k(row, choice.top_k)
    if choice.top_p is not None:
        row = by_hand_top_p(row, choice.top_p)
    if choice.min_p is not None:
        row = by_hand_min_p(row, choice.min_p)
    return before, row


def random_row(rng: random.Random, width: int) -> Row:
    """Smooth, full of ties, or extreme; some with logits of -inf."""
    kind = rng.choice(["smooth", "ties", "extreme"])
    scale = rng.choice([0.1, 1.0, 3.0, 30.0])
    row = [rng.gauss(0, scale) for _ in range(width)]
    if kind == "ties":
        row = [float(round(logit)) for logit in row]
    if kind == "extreme":
        row = [rng.choice([logit, 0.0, -0.0, 1e4, -1e4, 3e38, -3e38, 1e300, -1e300]) for logit in row]
    if rng.random() < 0.3:
        finite = rng.randrange(width)
        row = [logit if i == finite or rng.random() < 0.6 else -math.inf for i, logit in enumerate(row)]
    return row


def random_rows(rng: random.Random) -> Tensor:
    """Logits (ROWS, v) of a vocabulary of 1–40 tokens."""
    width = rng.randint(1, 40)
    return torch.tensor([random_row(rng, width) for _ in range(ROWS)], dtype=torch.float64)


def random_seen(rng: random.Random, logits: Tensor) -> Tensor:
    return torch.tensor([[rng.random() < 0.4 for _ in row] for row in logits.tolist()])


def assert_same_choice(actual: Tensor, before: Row, expected: Row) -> None:
    """The same logits are left, each where it was; which ones of equal logits is left open."""
    left = actual.tolist()
    assert sorted(left) == sorted(expected)
    assert all(logit in (-math.inf, was) for logit, was in zip(left, before, strict=True))


def compare_filter(name: str, by_hand: Callable[[Row, Any], Row], argument: Any, logits: Tensor) -> None:
    original = logits.clone()
    filtered = getattr(sampling, name)(logits, argument)
    assert torch.equal(logits, original)
    for row, actual in zip(logits.tolist(), filtered, strict=True):
        assert_same_choice(actual, row, by_hand(row, argument))


def compare_penalty(rng: random.Random, penalty: float) -> None:
    logits = random_rows(rng).clamp(min=-1e300)
    seen = random_seen(rng, logits)
    penalised = sampling.penalise_repetition(logits, seen, penalty)
    expected = [by_hand_penalise(*rows, penalty) for rows in zip(logits.tolist(), seen.tolist(), strict=True)]
    assert penalised.tolist() == expected


def compare_top_k(rng: random.Random) -> None:
    compare_filter("keep_top_k", by_hand_top_k, rng.randint(1, 50), random_rows(rng))


def compare_top(rng: random.Random) -> None:
    compare_filter("keep_top", by_hand_top, rng.choice([0.0, 0.5, 0.9, 1.0, rng.random()]), random_rows(rng))


def compare_top_p(rng: random.Random) -> None:
    compare_filter("keep_top_p", by_hand_top_p, rng.choice([rng.random(), rng.random(), 1.0]), random_rows(rng))


def compare_min_p(rng: random.Random) -> None:
    # powers of ten, since random logits lie far apart
    min_p = rng.choice([0.0, 1.0, rng.random(), 10 ** rng.uniform(-6, 0)])
    compare_filter("keep_min_p", by_hand_min_p, min_p, random_rows(rng))


def random_sampling(rng: random.Random) -> Sampling:
    arguments: dict[str, Any] = {"temperature": rng.choice([1, rng.uniform(0.05, 5), 0.3])}
    if rng.random() < 0.5:
        arguments["repetition_penalty"] = rng.choice([1, rng.uniform(0.3, 3), 1.2])
    if rng.random() < 0.2:
        return Sampling(filter_thres=rng.random(), **arguments)
    filters = {"top_k": rng.randint(1, 40), "top_p": rng.random(), "min_p": 10 ** rng.uniform(-4, 0)}
    return Sampling(**arguments, **{name: value for name, value in filters.items() if rng.random() < 0.6})


def compare_pipeline(rng: random.Random) -> None:
    logits, choice = random_rows(rng), random_sampling(rng)
    seen = random_seen(rng, logits)
    filtered = choice.logits(logits, seen)
    probabilities = choice.probabilities(logits, seen)
    for i, (row, was_seen) in enumerate(zip(logits.tolist(), seen.tolist(), strict=True)):
        before, expected = by_hand_logits(row, was_seen, choice)
        assert_same_choice(filtered[i], before, expected)
        assert probabilities[i].tolist() == pytest.approx(by_hand_softmax(filtered[i].tolist()), rel=1e-12, abs=0)


@examples(quick=25, slow=500)
@given(seed=SEEDS)
def test_repetition_penalty_is_that_of_plain_loops(seed: int) -> None:
    rng = random.Random(seed)
    compare_penalty(rng, rng.choice([1.0, 1.2, rng.uniform(0.1, 5)]))


@pytest.mark.parametrize("compare", [compare_top_k, compare_top, compare_top_p, compare_min_p])
@examples(quick=25, slow=500)
@given(seed=SEEDS)
def test_every_filter_keeps_what_plain_loops_keep(compare: Callable[[random.Random], None], seed: int) -> None:
    compare(random.Random(seed))


@examples(quick=60, slow=1000)
@given(seed=SEEDS)
def test_the_steps_come_in_their_documented_order(seed: int) -> None:
    compare_pipeline(random.Random(seed))


# What the comparison above is worth: each of these faults must not pass it.


def top_p_without_the_token_that_reaches_it(logits: Tensor, p: float) -> Tensor:
    ordered, indices = logits.sort(dim=-1, descending=True)
    reached = ordered.softmax(dim=-1).cumsum(dim=-1) > p
    reached[:, 0] = False
    return torch.empty_like(logits).scatter(-1, indices, ordered.masked_fill(reached, -torch.inf))


def top_k_with_all_that_equal_the_last(logits: Tensor, k: int) -> Tensor:
    last = logits.topk(min(k, logits.shape[-1]), dim=-1).values[:, -1:]
    return logits.masked_fill(logits < last, -torch.inf)


def min_p_of_all_probability(logits: Tensor, min_p: float) -> Tensor:
    return logits.masked_fill(logits.softmax(dim=-1) < min_p, -torch.inf)


def penalty_that_always_divides(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    return torch.where(seen, logits / penalty, logits)


@pytest.mark.parametrize(
    ("name", "fault", "compare"),
    [
        ("keep_top_p", top_p_without_the_token_that_reaches_it, compare_top_p),
        ("keep_top_k", top_k_with_all_that_equal_the_last, compare_top_k),
        ("keep_min_p", min_p_of_all_probability, compare_min_p),
        ("penalise_repetition", penalty_that_always_divides, lambda rng: compare_penalty(rng, 1.2)),
    ],
)
def test_a_planted_fault_is_caught(
    name: str, fault: Callable[..., Tensor], compare: Callable[[random.Random], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    for check in (compare, compare_pipeline):
        monkeypatch.undo()
        for seed in range(10):
            check(random.Random(seed))
        monkeypatch.setattr(sampling, name, fault)
        with pytest.raises(AssertionError):
            for seed in range(10):
                check(random.Random(seed))


# (top_k and min_p may change places: neither depends on what the other drops)
@pytest.mark.parametrize(("first", "second"), [("keep_top_k", "keep_top_p"), ("keep_top_p", "keep_min_p")])
def test_filters_in_another_order_are_caught(first: str, second: str, monkeypatch: pytest.MonkeyPatch) -> None:
    filters = {name: getattr(sampling, name) for name in (first, second)}
    waiting: list[Any] = []

    def wait(logits: Tensor, argument: Any) -> Tensor:
        waiting.append(argument)
        return logits

    def swapped(logits: Tensor, argument: Any) -> Tensor:
        return filters[first](filters[second](logits, argument), waiting.pop())

    monkeypatch.setattr(sampling, first, wait)
    monkeypatch.setattr(sampling, second, swapped)
    arguments = {"keep_top_k": {"top_k": 3}, "keep_top_p": {"top_p": 0.75}, "keep_min_p": {"min_p": 0.3}}
    choice = Sampling(**arguments[first], **arguments[second])  # type: ignore[arg-type]
    logits = torch.randn(1000, 10, generator=torch.Generator().manual_seed(0)).double()
    in_order = [sum(math.isfinite(x) for x in by_hand_logits(row, [], choice)[1]) for row in logits.tolist()]
    assert choice.logits(logits).isfinite().sum(dim=-1).tolist() != in_order


# Single filters, at their bounds


@pytest.mark.parametrize(("threshold", "kept"), [(0.0, 10), (0.5, 5), (0.85, 1), (0.99, 1), (1.0, 1)])
def test_filter_keeps_its_share_of_the_vocabulary_and_at_least_one(threshold: float, kept: int) -> None:
    logits = torch.randn(3, 10)
    filtered = sampling.keep_top(logits, threshold)
    assert (filtered > -torch.inf).sum(dim=-1).tolist() == [kept] * 3
    assert torch.equal(filtered.argmax(dim=-1), logits.argmax(dim=-1))
    assert torch.equal(filtered[filtered > -torch.inf], logits[filtered > -torch.inf])


def test_exactly_k_are_kept_where_all_are_equal() -> None:
    for k in range(1, 12):
        assert sampling.keep_top_k(torch.zeros(2, 8), k).isfinite().sum(dim=-1).tolist() == [min(k, 8)] * 2


@pytest.mark.parametrize(
    ("p", "kept"),
    [(1e-300, 1), (0.4999, 1), (0.5, 1), (0.5001, 2), (0.75, 2), (0.7501, 3), (0.875, 3), (0.8751, 4), (1.0, 4)],
)
def test_the_token_that_reaches_p_is_the_last_one_kept(p: float, kept: int) -> None:
    logits = torch.tensor([[0.125, 0.5, 0.125, 0.25]], dtype=torch.float64).log()
    filtered = sampling.keep_top_p(logits, p)
    assert filtered.isfinite().sum() == kept
    assert filtered[0, 1].isfinite() and (kept < 2 or filtered[0, 3].isfinite())


def test_p_of_one_and_min_p_of_zero_keep_also_what_is_too_unlikely_to_count() -> None:
    logits = torch.tensor([[0.0, -50.0, -1000.0, 1.0]])
    assert torch.equal(sampling.keep_top_p(logits, 1.0), logits)
    assert torch.equal(sampling.keep_min_p(logits, 0.0), logits)


def test_min_p_of_one_keeps_the_likeliest_and_its_equals() -> None:
    filtered = sampling.keep_min_p(torch.tensor([[3.0, 2.999, 3.0, -torch.inf]]), 1.0)
    assert filtered.tolist() == [[3.0, -math.inf, 3.0, -math.inf]]


@pytest.mark.parametrize("penalty", [1e-310, 1e-300, 1e300])
def test_an_extreme_penalty_bans_nothing_and_leaves_numbers(penalty: float) -> None:
    logits = torch.tensor([[-9.0, -50.0, -1e9], [2.0, 5e9, 7.0], [-torch.inf, 0.0, -1e300]], dtype=torch.float64)
    seen = torch.ones_like(logits, dtype=torch.bool)
    penalised = sampling.penalise_repetition(logits, seen, penalty)
    assert torch.equal(penalised.isfinite(), logits.isfinite())
    choice = Sampling(repetition_penalty=penalty, filter_thres=0)
    assert not choice.probabilities(logits, seen).isnan().any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize(
    ("name", "argument"), [("keep_top", 0.7), ("keep_top_k", 7), ("keep_top_p", 0.9), ("keep_min_p", 0.07)]
)
def test_a_filter_keeps_of_narrow_logits_what_it_keeps_of_the_same_numbers_in_float64(
    dtype: torch.dtype, name: str, argument: Any
) -> None:
    logits = torch.randn(1000, 37, generator=torch.Generator().manual_seed(0)).to(dtype)
    filtered = getattr(sampling, name)(logits, argument)
    assert filtered.dtype == dtype
    expected = getattr(sampling, name)(logits.double(), argument)
    assert torch.equal(filtered.double().sort(dim=-1).values, expected.sort(dim=-1).values)


# The temperature


def distinct_logits(seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """(64, 29), no two of a row equal."""
    rng = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randperm(29, generator=rng) for _ in range(64)]).to(dtype) - 14


@pytest.mark.parametrize("temperature", [0, 1e-310, 5e-324])
@pytest.mark.parametrize("penalty", [None, 1.5])
@pytest.mark.parametrize("filters", [{}, {"filter_thres": 0}, {"top_k": 5, "top_p": 0.4, "min_p": 0.9}, {"top_p": 1}])
def test_temperature_zero_and_the_lowest_choose_the_likeliest_token_after_the_penalty(
    temperature: float, penalty: float | None, filters: dict[str, Any]
) -> None:
    logits = distinct_logits(seed=0) + 0.1
    seen = torch.rand(logits.shape, generator=torch.Generator().manual_seed(1)) < 0.5
    choice = Sampling(temperature=temperature, repetition_penalty=penalty, **filters)
    penalised = logits if penalty is None else sampling.penalise_repetition(logits, seen, penalty)
    expected = penalised.argmax(dim=-1)
    assert penalty is None or not torch.equal(expected, logits.argmax(dim=-1))
    assert torch.equal(choice.choose(logits, seen=seen), expected)
    one_hot = torch.nn.functional.one_hot(expected, 29).double()
    assert temperature or torch.equal(choice.logits(logits, seen), one_hot.log())
    assert torch.equal(choice.probabilities(logits, seen), one_hot)


def test_greedy_keeps_one_token_also_where_several_are_likeliest() -> None:
    logits = torch.tensor([[1.0, 4.0, 4.0], [0.0, 0.0, 0.0]])
    greedy = Sampling(temperature=0)
    assert greedy.is_greedy and not Sampling(temperature=1e-310).is_greedy
    assert greedy.logits(logits).isfinite().sum(dim=-1).tolist() == [1, 1]
    assert torch.equal(greedy.logits(logits).argmax(dim=-1), greedy.choose(logits))


def test_the_highest_temperature_makes_all_that_are_possible_equally_likely() -> None:
    logits = torch.tensor([[0.0, 30.0, -torch.inf, -1e4]])
    expected = [[pytest.approx(1 / 3), pytest.approx(1 / 3), 0, pytest.approx(1 / 3)]]
    assert Sampling(temperature=1.7e308, filter_thres=0).probabilities(logits).tolist() == expected


# Drawing


def chi_squared(drawn: Tensor, probabilities: Tensor) -> float:
    """Of the indices drawn (n,); those of probability 0 must not be among them."""
    counts = drawn.bincount(minlength=len(probabilities))
    assert not counts[probabilities == 0].any()
    expected = len(drawn) * probabilities[probabilities > 0]
    return float(((counts[probabilities > 0] - expected).square() / expected).sum())


# exceeded once in a thousand seeds, by degrees of freedom; the seeds are fixed
CHI_SQUARED_BOUND = {1: 10.83, 2: 13.82, 3: 16.27, 4: 18.47, 5: 20.52, 7: 24.32}


def test_draws_come_with_their_probabilities() -> None:
    probabilities = torch.tensor([0.4, 0.0, 0.25, 0.2, 0.1, 0.0, 0.04, 0.01], dtype=torch.float64)
    drawn = sampling.draw(probabilities.expand(100_000, -1), torch.Generator().manual_seed(0))
    assert chi_squared(drawn, probabilities) < CHI_SQUARED_BOUND[5]


def test_sampling_draws_from_the_softmax() -> None:
    logits = torch.tensor([[0.0, 1.0, -torch.inf, 2.0]]).expand(100_000, 4)
    for temperature in (0.5, 1.0, 2.0):
        choice = Sampling(temperature=temperature, filter_thres=0)
        expected = (logits[0].double() / temperature).softmax(dim=-1)
        assert chi_squared(choice.choose(logits, torch.Generator().manual_seed(0)), expected) < CHI_SQUARED_BOUND[2]


@pytest.mark.parametrize(
    ("arguments", "left"),
    [
        ({"filter_thres": 0.5}, 4),
        ({"top_k": 3}, 3),
        ({"top_p": 0.9}, 5),
        ({"min_p": 0.1, "temperature": 0.7}, 4),
        ({"repetition_penalty": 1.5, "temperature": 1.3, "top_k": 6, "top_p": 0.95, "min_p": 0.02}, 6),
        ({"repetition_penalty": 2.0, "top_p": 1.0}, 8),
    ],
)
def test_sampling_draws_from_what_its_filters_leave(arguments: dict[str, Any], left: int) -> None:
    row = [1.1, -0.4, 0.3, 2.0, -1.5, 0.9, 0.0, 1.6]
    seen = [i % 3 == 0 for i in range(8)]
    choice = Sampling(**arguments)
    expected = torch.tensor(by_hand_softmax(by_hand_logits(row, seen, choice)[1]))
    assert (expected > 0).sum() == left
    rows = [torch.tensor(values).expand(100_000, -1) for values in (row, seen)]
    drawn = choice.choose(rows[0].double(), torch.Generator().manual_seed(0), rows[1])
    assert chi_squared(drawn, expected) < CHI_SQUARED_BOUND[left - 1]


def test_without_any_filter_nine_tenths_of_the_vocabulary_are_dropped() -> None:
    logits = distinct_logits(seed=0)
    default = Sampling().logits(logits)
    assert torch.equal(default, Sampling(filter_thres=0.9).logits(logits))
    assert default.isfinite().sum(dim=-1).tolist() == [2] * 64  # of 29 tokens
    assert Sampling().filter_thres is None and Sampling().effective_filter_thres == 0.9
    assert Sampling(repetition_penalty=1.2).effective_filter_thres == 0.9
    assert Sampling(filter_thres=0).effective_filter_thres == 0
    for filters in ({"top_k": 29}, {"top_p": 1.0}, {"min_p": 0.0}):
        assert Sampling(**filters).logits(logits).isfinite().all()  # type: ignore[arg-type]


@examples(quick=25, slow=500)
@given(seed=SEEDS, dtype=st.sampled_from([torch.float64, torch.float32, torch.float16]))
def test_a_probability_of_zero_is_never_drawn(seed: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(seed)
    possible = torch.rand(400, 30, generator=generator) < 0.1
    possible[:, 17] = True
    weights = possible * torch.rand(400, 30, generator=generator).clamp(min=0.01)
    probabilities = (weights / weights.sum(dim=-1, keepdim=True)).to(dtype)
    drawn = sampling.draw(probabilities, generator)
    assert (probabilities.gather(-1, drawn[:, None]) > 0).all()


def test_a_race_that_takes_no_time_is_not_won_by_the_impossible(monkeypatch: pytest.MonkeyPatch) -> None:
    """0 / 0 is nan, and argmax takes nan for the highest."""
    monkeypatch.setattr(torch.Tensor, "exponential_", lambda times, *, generator: times.zero_())
    assert sampling.draw(torch.tensor([[0.0, 0.3, 0.7, 0.0]])).tolist() == [2]


def test_same_generator_same_tokens() -> None:
    logits = torch.randn(500, 40, generator=torch.Generator().manual_seed(0))
    choice = Sampling(top_p=0.9, temperature=1.5)
    first, again, other = (choice.choose(logits, torch.Generator().manual_seed(seed)) for seed in (3, 3, 4))
    assert torch.equal(first, again) and not torch.equal(first, other)
    torch.manual_seed(3)
    assert torch.equal(choice.choose(logits), first)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("temperature", [0, 0.8])
def test_logits_of_any_float_type_are_taken(dtype: torch.dtype, temperature: float) -> None:
    logits = torch.randn(64, 29, generator=torch.Generator().manual_seed(0)).to(dtype)
    seen = torch.zeros(64, 29, dtype=torch.bool)
    for filters in ({}, {"top_k": 9, "top_p": 0.9, "min_p": 0.05, "repetition_penalty": 1.3}):
        choice = Sampling(temperature=temperature, **filters)  # type: ignore[arg-type]
        filtered = choice.logits(logits, seen)
        assert filtered.dtype == choice.probabilities(logits, seen).dtype == torch.float64
        assert torch.equal(filtered, choice.logits(logits.double(), seen))
        tokens, expected = (choice.choose(x, torch.Generator().manual_seed(0), seen) for x in (logits, logits.double()))
        assert tokens.dtype == torch.int64 and tokens.shape == (64,)
        assert torch.equal(tokens, expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_choosing_can_be_captured_in_a_cuda_graph_and_each_replay_draws_anew() -> None:
    logits = torch.tensor([1.1, -0.4, 0.3, 2.0], device="cuda").expand(100_000, -1).contiguous()
    seen = torch.zeros_like(logits, dtype=torch.bool)
    choice = Sampling(temperature=0.9, top_k=3, top_p=0.99, min_p=0.01, repetition_penalty=1.2)
    generator = torch.Generator("cuda").manual_seed(0)
    expected = choice.probabilities(logits, seen)[0].cpu()
    choice.choose(logits, generator, seen)
    graph = torch.cuda.CUDAGraph()
    graph.register_generator_state(generator)
    with torch.cuda.graph(graph):
        tokens = choice.choose(logits, generator, seen)
    drawn = []
    for _ in range(2):
        graph.replay()
        drawn.append(tokens.cpu())
        assert chi_squared(drawn[-1], expected) < CHI_SQUARED_BOUND[2]
    assert not torch.equal(*drawn)


# What is not allowed


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"temperature": -1}, ValueError, "temperature (1: the model's own distribution, 0: always the most likely "
         "token) must be a finite number of at least 0, got -1: raise or lower it"),
        ({"temperature": math.inf}, ValueError, "must be a finite number of at least 0, got inf: raise or lower it"),
        ({"temperature": math.nan}, ValueError, "must be a finite number of at least 0, got nan: raise or lower it"),
        ({"temperature": "hot"}, TypeError, "must be a number, got 'hot' of type str: give one such as 0.5"),
        ({"temperature": None}, TypeError, "must be a number, got None of type NoneType: give one such as 0.5"),
        ({"temperature": True}, TypeError, "must be a number, got True of type bool: give one such as 0.5"),
        ({"filter_thres": 1.5}, ValueError, "filter_thres must be from 0 to 1, got 1.5: 0.9 keeps the most likely "
         "tenth of the vocabulary, 0 all of it"),
        ({"filter_thres": -0.1}, ValueError, "filter_thres must be a finite number of at least 0, got -0.1: raise"),
        ({"filter_thres": "all"}, TypeError, "filter_thres must be a number, got 'all' of type str: give one such as"),
        ({"top_k": 0}, ValueError, "top_k must be at least 1, got 0: raise it"),
        ({"top_k": -3}, ValueError, "top_k must be at least 1, got -3: raise it"),
        ({"top_k": 2.5}, TypeError, "top_k must be a whole number, got 2.5 of type float: give one such as 1"),
        ({"top_k": True}, TypeError, "top_k must be a whole number, got True of type bool: give one such as 1"),
        ({"top_p": 0}, ValueError, "top_p must be a finite number above 0, got 0: raise or lower it"),
        ({"top_p": 90}, ValueError, "top_p must be above 0 and at most 1, got 90: 0.9 keeps the likeliest tokens that "
         "together reach 0.9, 1 keeps all"),
        ({"top_p": [0.9]}, TypeError, "top_p must be a number, got [0.9] of type list: give one such as 0.5"),
        ({"min_p": 1.01}, ValueError, "min_p must be from 0 to 1, got 1.01: 0.1 keeps the tokens at least a tenth as "
         "likely as the likeliest, 0 all"),
        ({"min_p": -1e-9}, ValueError, "min_p must be a finite number of at least 0, got -1e-09: raise or lower it"),
        ({"min_p": False}, TypeError, "min_p must be a number, got False of type bool: give one such as 0.5"),
        ({"repetition_penalty": 0}, ValueError, "repetition_penalty (1: none, 1.2: tokens of the text become less "
         "likely) must be a finite number above 0, got 0: raise or lower it"),
        ({"repetition_penalty": math.inf}, ValueError, "must be a finite number above 0, got inf: raise or lower it"),
        ({"repetition_penalty": "1"}, TypeError, "must be a number, got '1' of type str: give one such as 0.5"),
        ({"filter_thres": 0.9, "top_k": 5}, ValueError, "filter_thres must stand alone, and filter_thres=0.9 "
         "contradicts top_k=5: choose one, and leave filter_thres or the others out"),
        ({"filter_thres": 0, "top_p": 0.9}, ValueError, "filter_thres=0.0 contradicts top_p=0.9: choose one"),
        ({"filter_thres": 0.5, "min_p": 0}, ValueError, "filter_thres=0.5 contradicts min_p=0.0: choose one"),
        ({"filter_thres": 0.5, "top_k": 1, "top_p": 1, "min_p": 0.1}, ValueError, "filter_thres=0.5 contradicts "
         "top_k=1, top_p=1.0, min_p=0.1: choose one"),
    ],
)  # fmt: skip
def test_a_value_that_is_not_allowed_is_refused_in_words(
    arguments: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error) as raised:
        Sampling(**arguments)
    assert words in str(raised.value)
    assert str(raised.value).startswith(next(iter(arguments)))


def test_seen_is_asked_for_where_repetition_is_penalised_and_only_there() -> None:
    logits = torch.randn(2, 5)
    for temperature in (0, 1):
        choice = Sampling(temperature=temperature, repetition_penalty=1.2)
        assert choice.needs_seen
        for method in (choice.logits, choice.probabilities, choice.choose):
            with pytest.raises(ValueError, match=r"seen must be booleans \(b, v\) with .*=1.2, got None: give True"):
                method(logits)
        for penalty in (None, 1, 1.0):
            without = Sampling(temperature=temperature, repetition_penalty=penalty)
            assert not without.needs_seen
            assert without.choose(logits).shape == (2,)


def test_equal_settings_are_equal_whatever_types_they_came_in() -> None:
    choice = Sampling(temperature=1, top_k=torch.iinfo(torch.int8).max, top_p=Fraction(1, 2))  # type: ignore[arg-type]
    assert choice == Sampling(temperature=1.0, top_k=127, top_p=0.5)
    assert hash(choice) == hash(Sampling(top_k=127, top_p=0.5))
    assert [type(value) for value in (choice.temperature, choice.top_k, choice.top_p)] == [float, int, float]
    with pytest.raises(FrozenInstanceError):
        choice.top_k = 3  # type: ignore[misc]
    with pytest.raises(TypeError):
        Sampling(0.5)  # type: ignore[misc]
