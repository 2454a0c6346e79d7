"""What `evaluate` tells: the whole text, by phase, and without each stream."""

from __future__ import annotations

import json

import pytest
import torch
from configurations import VOCABULARY, build, random_ids

from simple_hierarchical_transformer.evaluation import Evaluation, Score, evaluate, score

THREE = {
    "num_tokens": VOCABULARY, "dim": (8, 6, 4), "depth": 2, "seq_len": 20, "dim_head": 4, "heads": 2,
    "hierarchies": (1, 4, 8), "hierarchical_stride": (1, 2, 8), "window_sizes": (3, None, None),
}  # fmt: skip


class HalfByteTokens:
    """A text whose tokens stand for half a byte each."""

    bytes_per_token = 0.5

    def __init__(self, ids: torch.Tensor) -> None:
        self.ids = ids

    def __len__(self) -> int:
        return len(self.ids)

    def windows(self, starts: list[int], length: int) -> torch.Tensor:
        return torch.stack([self.ids[start : start + length] for start in starts])


def test_each_coarse_stream_and_all_merges_are_ablated() -> None:
    model, text = build(THREE), random_ids(1, 90, seed=1)[0]
    evaluation = evaluate(model, text, batch_size=3)
    assert evaluation.score == score(model, text, batch_size=3)
    assert list(evaluation.ablated) == ["stream 4", "stream 8", "all merges"]
    for (name, part), ablate in zip(evaluation.ablated.items(), (4, 8, True), strict=True):
        assert part == score(model, text, batch_size=3, ablate=ablate), name
        assert part != evaluation.score


def test_the_streams_that_are_ablated_are_those_that_do_not_predict() -> None:
    model = build(THREE | {"hierarchies": (4, 1, 8), "hierarchical_stride": (1, 1, 8), "predict_hierarchy": 4})
    assert list(evaluate(model, random_ids(1, 30, seed=1)[0]).ablated) == ["stream 1", "stream 8", "all merges"]


@pytest.mark.parametrize("arguments", [{"hierarchies": 1, "hierarchical_stride": 1, "dim": 8, "window_sizes": 3}])
def test_a_model_of_one_stream_has_neither_ablations_nor_phases(arguments: dict) -> None:
    evaluation = evaluate(build(THREE | arguments), random_ids(1, 30, seed=1)[0].to(torch.uint8))
    assert not evaluation.ablated
    assert [line.split()[0] for line in evaluation.table().splitlines()] == ["bits/byte", "whole"]


def test_no_ablation_where_none_is_asked_for() -> None:
    assert not evaluate(build(THREE), random_ids(1, 30, seed=1)[0], ablate=False).ablated


def test_bits_per_byte_follow_from_the_bytes_of_a_token() -> None:
    model, ids = build(THREE), random_ids(1, 60, seed=1)[0]
    of_tokens, of_bytes = evaluate(model, ids), evaluate(model, ids.to(torch.uint8))
    of_halves = evaluate(model, HalfByteTokens(ids))
    assert of_tokens.bits_per_byte is None
    assert of_bytes.bits_per_byte == of_bytes.bits_per_token == of_tokens.bits_per_token
    assert of_halves.bits_per_byte == 2 * of_tokens.bits_per_token
    assert "bits/token" in of_tokens.table()
    assert "bits/byte" in of_halves.table()
    assert f"{of_tokens.bits_per_token:.4f} bits per token, of 0.500 bytes" in of_halves.table()


def test_limit_says_how_many_tokens_are_scored() -> None:
    model, text = build(THREE), random_ids(1, 60, seed=1)[0]
    assert evaluate(model, text, limit=33, ablate=False).score.tokens == 33
    assert evaluate(model, text, limit=1000, ablate=False).score.tokens == 59
    with pytest.raises(ValueError, match="limit must be at least 1"):
        evaluate(model, text, limit=0)


def test_all_figures_go_into_json() -> None:
    figures = json.loads(json.dumps(evaluate(build(THREE), HalfByteTokens(random_ids(1, 6, seed=1)[0])).as_dict()))
    assert figures["tokens"] == 5
    assert figures["bits_per_byte"] == 2 * figures["bits_per_token"]
    assert [part["tokens"] for part in figures["by_phase"]] == [1, 1, 1, 1, 1, 0, 0, 0]
    assert figures["by_phase"][7]["bits_per_byte"] is None  # JSON has no word for nan
    assert set(figures["ablated"]) == {"stream 4", "stream 8", "all merges"}


def test_the_table_shows_each_figure_and_its_difference() -> None:
    part = Score((2 * 0.6931471805599453, 0.6931471805599453), (1, 1))
    evaluation = Evaluation(part, {"stream 2": part + part, "all merges": Score((4.0, 4.0), (1, 1))}, 1.0)
    assert evaluation.table().splitlines() == [
        "                           bits/byte  difference        tokens",
        "whole text                    1.5000     +0.0000             2",
        "position 0                    2.0000     +0.5000             1",
        "position 1                    1.0000     -0.5000             1",
        "without stream 2              1.5000     +0.0000             4",
        "without all merges            5.7708     +4.2708             2",
    ]
