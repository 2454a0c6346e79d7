"""Each token of a text is scored once, after at least as much of the text as a plain call would show."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from configurations import SEEDS, SLOW, VOCABULARY, build, examples, random_ids, stream_arguments
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from simple_hierarchical_transformer import HierarchicalTransformer
from simple_hierarchical_transformer.evaluation import Score, bits_per_byte, score
from simple_hierarchical_transformer.evaluation.bits_per_byte import cut

from .plain import log_probabilities, small

SMALL = {
    "num_tokens": VOCABULARY, "dim": (8, 6), "depth": 2, "seq_len": 20, "dim_head": 4, "heads": 2,
    "hierarchies": (1, 8), "hierarchical_stride": (1, 4), "window_sizes": (3, None),
}  # fmt: skip


class ShortRows:
    """Rows and chunks of a few tokens, so that short texts are cut into several."""

    def __init__(self, chunk: int) -> None:
        self.chunk = chunk

    def __enter__(self) -> None:
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(bits_per_byte, "CHUNK", self.chunk)
        self.patch.setattr(bits_per_byte, "WORTH_A_ROW", 0)

    def __exit__(self, *error: object) -> None:
        self.patch.undo()


def reference(model: HierarchicalTransformer, text: Tensor, start: int, stop: int, rows: int) -> Score:
    """Token by token, from what each segment may see."""
    stride = max(stream.stride for stream in model.config.streams)
    nats, tokens = [0.0] * stride, [0] * stride
    for segments in cut(max(start - 1, 0), stop - 1, model.seq_len, stride, rows):
        for segment in segments:
            log_p = log_probabilities(model, text[segment.begin :])
            for position in range(segment.first, segment.stop):
                if text[position + 1] != model.config.ignore_index:
                    nats[position % stride] -= float(log_p[position - segment.begin, int(text[position + 1])])
                    tokens[position % stride] += 1
    return Score(tuple(nats), tuple(tokens))


def assert_same(one: Score, other: Score) -> None:
    assert one.tokens_by_phase == other.tokens_by_phase
    for a, b in zip(one.nats_by_phase, other.nats_by_phase, strict=True):
        assert abs(a - b) <= 1e-10 * max(abs(b), 1)


@examples(quick=12, slow=300)
@given(data=st.data(), arguments=stream_arguments(), seed=SEEDS)
def test_scores_are_those_of_plain_calls_token_by_token(
    data: st.DataObject, arguments: dict[str, Any], seed: int
) -> None:
    # a reach of 0 would be another architecture, without attention
    model = small(arguments | {"seq_len": min(arguments["seq_len"], 30) + max(arguments["hierarchies"])}, seed)
    text = random_ids(1, data.draw(st.integers(2, 250 if SLOW else 120), label="length"), seed)[0].to(torch.uint8)
    stop = data.draw(st.integers(2, len(text)), label="stop")
    start = data.draw(st.integers(0, stop - 1), label="start")
    rows = data.draw(st.integers(1, 5), label="rows")
    with ShortRows(data.draw(st.integers(4, 40), label="chunk")):
        scored = score(model, text, start=start, stop=stop, batch_size=rows)
        assert_same(scored, reference(model, text, start, stop, rows))


@examples(quick=100, slow=2000)
@given(
    first=st.integers(0, 300),
    length=st.integers(1, 2000),
    seq_len=st.integers(1, 100),
    stride=st.sampled_from([1, 2, 4, 8, 16]),
    rows=st.integers(1, 20),
)
def test_segments_score_each_position_once_in_phase_and_after_all_that_a_plain_call_would_see(
    first: int, length: int, seq_len: int, stride: int, rows: int
) -> None:
    groups = list(cut(first, first + length, seq_len, stride, rows))
    positions = [p for group in groups for segment in group for p in range(segment.first, segment.stop)]
    assert positions == list(range(first, first + length))
    for group in groups:
        assert len(group) <= rows
        assert len({segment.stop - segment.begin for segment in group[:-1]}) <= 1  # only the last ends early
        for segment in group:
            assert segment.begin % stride == 0
            assert 0 <= segment.begin <= max(segment.first - seq_len + 1, 0)
            assert segment.begin > segment.first - seq_len + 1 - 2 * stride or segment.begin == 0  # no more than that
    read = sum(segment.stop - segment.begin for group in groups for segment in group)
    assert read <= 1.25 * length + 2 * (seq_len + 2 * stride)  # what is read without being scored


def forget_to_roll(text: Any, starts: Sequence[int], length: int) -> Tensor:
    return text.windows([min(start, len(text) - length) for start in starts], length).long()


def one_late(text: Any, starts: Sequence[int], length: int) -> Tensor:
    return WINDOWS(text, [min(start + 1, len(text) - 1) for start in starts], length)


def no_warm_up(first: int, stop: int, seq_len: int, stride: int, rows: int) -> Any:
    yield from ([segment._replace(begin=segment.first // stride * stride) for segment in group] for group in CUT(
        first, stop, seq_len, stride, rows
    ))  # fmt: skip


WINDOWS, CUT = bits_per_byte.windows, bits_per_byte.cut
FAULTS: dict[str, tuple[str, Callable[..., Any]]] = {
    "a last row that reads what stands before its end": ("windows", forget_to_roll),
    "tokens that are taken one late": ("windows", one_late),
    "no warm-up": ("cut", no_warm_up),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, text = small(SMALL), random_ids(1, 96, seed=1)[0]
    with ShortRows(chunk=15):
        expected = reference(model, text, 0, 96, 3)
        assert_same(score(model, text, batch_size=3), expected)
        monkeypatch.setattr(bits_per_byte, *FAULTS[fault])
        assert abs(score(model, text, batch_size=3).nats - expected.nats) > 1e-3


def test_scores_of_parts_add_up_where_no_window_reaches_further_than_the_warm_up() -> None:
    model = build(SMALL | {"hierarchies": 1, "hierarchical_stride": 1, "dim": 8, "window_sizes": 3, "seq_len": 20})
    text = random_ids(1, 150, seed=1)[0]
    whole = score(model, text)
    parts = [score(model, text, start=a, stop=b) for a, b in ((0, 31), (31, 32), (32, 150))]
    assert_same(parts[0] + parts[1] + parts[2], whole)
    assert whole.tokens == 149
    assert whole.bits_per_token == pytest.approx(whole.nats / 149 / math.log(2))
    assert whole.bits_per_byte(4.0) == pytest.approx(whole.bits_per_token / 4)


def test_a_text_of_seq_len_is_scored_as_one_plain_call_does() -> None:
    model, text = build(SMALL), random_ids(1, 21, seed=1)[0]
    log_p = model(text[None, :-1]).log_softmax(dim=-1)[0]
    nats = -log_p[torch.arange(20), text[1:]].detach()
    scored = score(model, text)
    assert scored.nats_by_phase == pytest.approx([float(nats[phase::4].sum()) for phase in range(4)], rel=1e-12)
    assert scored.tokens_by_phase == (5, 5, 5, 5)


def test_padding_is_never_scored() -> None:
    model = build(SMALL | {"ignore_index": 3})
    text = random_ids(1, 100, seed=1)[0]
    assert score(model, text).tokens == int((text[1:] != 3).sum())


def test_a_score_of_nothing_is_not_a_number() -> None:
    model = build(SMALL | {"ignore_index": 3})
    assert math.isnan(score(model, torch.tensor([1, 3, 3])).bits_per_token)


def test_ablated_streams_are_left_out() -> None:
    model, text = build(SMALL), random_ids(1, 21, seed=1)[0]
    for ablate in (True, 8):
        log_p = model(text[None, :-1], ablate_hierarchical_merge=ablate).log_softmax(dim=-1)[0]
        nats = float(-log_p[torch.arange(20), text[1:]].detach().sum())
        assert score(model, text, ablate=ablate).nats == pytest.approx(nats, rel=1e-12)
        assert abs(score(model, text).nats - nats) > 1e-3


def test_scoring_leaves_the_random_numbers_the_modes_and_the_gradients_alone() -> None:
    model, text = build(SMALL), random_ids(1, 60, seed=1)[0]
    model.train()
    model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    random = torch.get_rng_state()
    score(model, text)
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.is_grad_enabled()
    with pytest.raises(ValueError, match=r"corpus holds the id 11, but the model knows ids from 0 to 10: tokenise"):
        score(model, torch.tensor([0, 1, 11]))
    assert [module.training for module in model.modules()] == modes


def test_the_callers_autocast_counts() -> None:
    model, text = build(SMALL, dtype=torch.float32), random_ids(1, 60, seed=1)[0]
    with torch.autocast("cpu", torch.bfloat16):
        half = score(model, text)
    full = score(model, text)
    assert half.nats != full.nats
    assert half.nats == pytest.approx(full.nats, rel=0.05)


def test_large_vocabularies_are_read_in_shorter_chunks() -> None:
    for rows, vocabulary in ((1, 256), (16, 256), (16, 100_000), (64, 1_000_000)):
        length = bits_per_byte.chunk_length(rows, vocabulary)
        assert 1 <= length <= bits_per_byte.CHUNK
        assert length == 1 or length * rows * vocabulary <= bits_per_byte.MOST_LOGITS
    model, text = build(SMALL), random_ids(1, 120, seed=1)[0]
    whole = score(model, text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bits_per_byte, "MOST_LOGITS", 60)
        assert_same(score(model, text), whole)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"stop": 31}, ValueError, r"start=0 and stop=31 must span tokens of the text, which has 30"),
        ({"start": 5, "stop": 5}, ValueError, r"start=5 and stop=5 must span"),
        ({"start": 30}, ValueError, r"start=30 and stop=30 must span"),
        ({"stop": 1}, ValueError, r"whose first isn't scored"),
        ({"start": -1}, ValueError, r"start must be at least 0"),
        ({"batch_size": 0}, ValueError, r"batch_size must be at least 1"),
        ({"ablate": 2}, ValueError, r"compress factor 2, but"),
    ],
)
def test_what_can_not_be_scored_is_refused(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        score(build(SMALL), random_ids(1, 30, seed=0)[0], **arguments)


@pytest.mark.parametrize("corpus", ["text", b"text", [1, 2, 3]])
def test_what_is_no_text_is_refused(corpus: Any) -> None:
    with pytest.raises(TypeError, match=r"corpus must be a text of training, or a tensor of ids, got .*frombuffer"):
        score(build(SMALL), corpus)


@pytest.mark.parametrize("corpus", [torch.zeros(3), torch.zeros(2, 3, dtype=torch.long)])
def test_tensors_of_other_shapes_and_types_are_refused(corpus: Tensor) -> None:
    with pytest.raises(ValueError, match=r"corpus, as a tensor, must be ids of shape \(length,\)"):
        score(build(SMALL), corpus)


def test_scores_of_different_models_are_not_added() -> None:
    with pytest.raises(ValueError, match="scores of 1 and 2 phases can't be added"):
        Score((1.0,), (1,)) + Score((1.0, 2.0), (1, 1))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.int32])
def test_ids_may_be_of_any_integer_type(dtype: torch.dtype) -> None:
    model, text = build(SMALL), random_ids(1, 120, seed=1)[0]
    with ShortRows(chunk=20):
        assert score(model, text.to(dtype), batch_size=3) == score(model, text, batch_size=3)
