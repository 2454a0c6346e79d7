from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from simple_hierarchical_transformer import HierarchicalTransformer
from simple_hierarchical_transformer.training import ModelArguments, TrainConfig


def test_a_run_without_a_budget_takes_three_minutes() -> None:
    assert TrainConfig().seconds == 180


@pytest.mark.parametrize("budget", [{"steps": 3}, {"tokens": 10_000}])
def test_another_budget_has_no_limit_of_time_unless_one_is_given(budget: dict[str, Any]) -> None:
    assert TrainConfig(**budget).seconds is None
    assert TrainConfig(**budget, minutes=0.5).seconds == 30


def test_what_is_not_given_has_a_value_that_is_not_written_into_the_configuration() -> None:
    config = TrainConfig()
    assert (config.muon_lr, config.cooldown) == (None, None)
    assert (config.hidden_lr, config.cooldown_share) == (0.02, 0.5)
    given = TrainConfig(muon_lr=0.01, cooldown=0)
    assert (given.hidden_lr, given.cooldown_share) == (0.01, 0)
    assert TrainConfig(batch_size=3, seq_len=7).tokens_per_step == 21


def test_settings_are_brought_into_one_form() -> None:
    config = TrainConfig(data=["a", Path("b")], out="c", cache="d", split="90e6,5e6,5e6", log=["wandb"], minutes=3)
    assert (config.data, config.out, config.cache) == (("a", "b"), Path("c"), Path("d"))
    assert (config.split, config.log) == ((90_000_000, 5_000_000, 5_000_000), ("wandb",))
    assert isinstance(config.minutes, float)
    assert config == TrainConfig(
        data=("a", "b"), out=Path("c"), cache=Path("d"), split=(90e6, 5e6, 5e6), log=("wandb",), minutes=3.0
    )
    assert hash(config) == hash(TrainConfig(**vars(config)))


def test_the_arguments_of_the_model_build_one() -> None:
    config = TrainConfig(seq_len=64, model=ModelArguments(dim=16, depth=1, heads=2, dim_head=8))
    model = HierarchicalTransformer(**config.model_arguments(300))
    assert (model.num_tokens, model.seq_len) == (300, 64)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"steps": 0}, ValueError, "steps must be at least 1, got 0"),
        ({"steps": 2.5}, TypeError, "steps must be a whole number, got 2.5"),
        ({"tokens": 0}, ValueError, "tokens must be at least 1, got 0"),
        ({"tokens": 2**54}, ValueError, "tokens must be at most 9007199254740992"),
        ({"minutes": 0}, ValueError, "minutes must be a finite number above 0"),
        ({"minutes": float("nan")}, ValueError, "minutes must be a finite number above 0"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1"),
        (
            {"batch_size": 6, "accumulate": 4},
            ValueError,
            "equal parts, got 4 for batch_size 6: choose one that divides",
        ),
        ({"seq_len": True}, TypeError, "seq_len must be a whole number, got True"),
        ({"validate_every": 0}, ValueError, "validate_every must be at least 1"),
        ({"checkpoint_every": 0}, ValueError, "checkpoint_every must be at least 1"),
        ({"keep": 0}, ValueError, "keep must be at least 1"),
        ({"seed": -1}, ValueError, "seed must be at least 0"),
        ({"workers": -1}, ValueError, "workers must be at least 0"),
        ({"separator": -1}, ValueError, "separator must be at least 0"),
        ({"muon_lr": -0.1}, ValueError, "muon_lr must be a finite number above 0"),
        ({"muon_lr": 0.1, "optimizer": "adamw"}, ValueError, "muon_lr=0.1 has no effect without optimizer='muon'"),
        ({"adamw_lr": "3e-3"}, TypeError, "adamw_lr must be a number, got '3e-3'"),
        ({"warmup": 0.6, "cooldown": 0.6}, ValueError, "warmup and cooldown .* at most 1, got 0.6 and 0.6: lower one"),
        ({"warmup": 1.5, "schedule": "cosine"}, ValueError, "warmup is a share of at most 1, got 1.5: lower it"),
        ({"final_lr": 1.5}, ValueError, "final_lr is a share of at most 1, got 1.5: lower it"),
        ({"cooldown": 0.1, "schedule": "cosine"}, ValueError, "cooldown=0.1 has no effect without schedule='constant'"),
        ({"average": 1}, ValueError, "average is the share that is kept and below 1, got 1"),
        ({"resume_fallback": True}, ValueError, "resume_fallback=True has no effect without resume"),
        ({"resume": 1}, TypeError, "resume must be True or False, got 1"),
        ({"optimizer": "sgd"}, ValueError, "optimizer must be one of muon, adamw, got 'sgd': choose one"),
        ({"schedule": "step"}, ValueError, "schedule must be one of constant, cosine, linear, got 'step'"),
        ({"precision": "float16"}, ValueError, "precision must be one of float32, bfloat16, got 'float16'"),
        ({"device": "tpu"}, ValueError, "device must be one of auto, cpu, cuda, mps, got 'tpu': choose one"),
        ({"log": "wandb"}, TypeError, r"log must be a list of names, got 'wandb': .*\['wandb'\]"),
        ({"log": ["paper"]}, ValueError, "log must be one of tensorboard, wandb, trackio, got 'paper'"),
        ({"data": "text.txt"}, TypeError, r"data must be a list of paths, got 'text.txt': .*\['text.txt'\]"),
        ({"data": [3]}, TypeError, "data must be a path, got 3"),
        ({"out": ""}, ValueError, "out is an empty path: name a file or folder"),
        ({"cache": 3}, TypeError, "cache must be a path, got 3"),
        ({"tokenizer": ""}, ValueError, "tokenizer is empty: give one, or leave tokenizer out"),
        ({"text_field": 3}, TypeError, "text_field must be a text, got 3"),
        ({"split": "90e6,5e6"}, ValueError, "split must be three whole numbers, none below 0, got '90e6,5e6'"),
        ({"split": "most,some,few"}, ValueError, "split must be three numbers, got 'most,some,few'"),
        ({"split": (1.5, 1, 1)}, ValueError, "split must be three whole numbers"),
        ({"split": 3}, ValueError, "split must be three numbers, got 3"),
        ({"split": (1, 0, 1)}, ValueError, "split leaves nothing to train or to validate on"),
        ({"model": {"dim": 8}}, TypeError, "model must be ModelArguments"),
    ],
)
def test_a_wrong_setting_is_refused_by_name(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        TrainConfig(**changes)
