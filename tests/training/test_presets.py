from __future__ import annotations

import pytest
import torch

from simple_hierarchical_transformer import HierarchicalTransformer
from simple_hierarchical_transformer.training import TrainConfig
from simple_hierarchical_transformer.training.presets import PRESETS, find_preset

NUM_BYTES = 256


def unbuilt(name: str) -> HierarchicalTransformer:
    with torch.device("meta"):
        return HierarchicalTransformer(**find_preset(name).model_arguments(NUM_BYTES))


def test_the_first_preset_is_the_default() -> None:
    assert find_preset("tiny") == TrainConfig()


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_can_be_built(name: str) -> None:
    assert unbuilt(name).seq_len == find_preset(name).seq_len


@pytest.mark.parametrize(
    ("name", "parameters"), [("tiny", 5.27e6), ("enwik8-12m", 12e6), ("enwik8-40m", 40e6), ("long-context", 27e6)]
)
def test_a_preset_has_the_parameters_that_are_said(name: str, parameters: float) -> None:
    assert unbuilt(name).num_parameters().total == pytest.approx(parameters, rel=0.05)


@pytest.mark.parametrize("name", ["enwik8-12m", "enwik8-40m"])
def test_enwik8_is_split_as_usual(name: str) -> None:
    config = find_preset(name)
    assert config.split == (90_000_000, 5_000_000, 5_000_000)
    assert config.steps is not None
    assert config.steps * config.tokens_per_step == pytest.approx(2e9 if name == "enwik8-12m" else 4e9, rel=0.05)


def test_a_long_context_is_seen_whole_and_costs_a_token_little_more_than_a_short_one() -> None:
    config = find_preset("long-context")
    assert config.seq_len >= 16_384
    assert config.model.checkpoint_activations
    whole = unbuilt("long-context").describe()
    assert whole.receptive_field == config.seq_len
    quarter = unbuilt("long-context").describe(config.seq_len // 4)
    assert whole.multiply_adds.total / config.seq_len < 1.1 * quarter.multiply_adds.total / (config.seq_len // 4)


def test_an_unknown_preset_is_refused_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"preset must be one of tiny, .*, got 'enwik8-12': .* enwik8-12m, enwik8-40m"):
        find_preset("enwik8-12")
