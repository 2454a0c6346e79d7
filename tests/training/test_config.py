from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from simple_hierarchical_transformer.training import ModelArguments, TrainConfig


def test_a_run_without_a_budget_takes_three_minutes() -> None:
    assert TrainConfig().seconds == 180


def test_a_budget_of_steps_has_no_limit_of_time_unless_one_is_given() -> None:
    assert TrainConfig(steps=3).seconds is None
    assert TrainConfig(steps=3, minutes=0.5).seconds == 30


def test_every_setting_is_written_as_json() -> None:
    config = TrainConfig(data=["a", Path("b")], model=ModelArguments(window_sizes=(8, None)))
    written = json.loads(json.dumps(config.as_json()))
    assert written["data"] == ["a", "b"]
    assert written["out"] == str(Path("runs/default"))
    assert written["model"]["window_sizes"] == [8, None]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"steps": 0}, ValueError, "steps must be at least 1, got 0"),
        ({"steps": 2.5}, TypeError, "steps must be a whole number, got 2.5"),
        ({"minutes": 0}, ValueError, "minutes must be a finite number above 0"),
        ({"minutes": float("nan")}, ValueError, "minutes must be a finite number above 0"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1"),
        ({"seq_len": True}, TypeError, "seq_len must be a whole number, got True"),
        ({"validate_every": 0}, ValueError, "validate_every must be at least 1"),
        ({"seed": -1}, ValueError, "seed must be at least 0"),
        ({"muon_lr": -0.1}, ValueError, "muon_lr must be a finite number above 0"),
        ({"adamw_lr": "3e-3"}, TypeError, "adamw_lr must be a number, got '3e-3'"),
        ({"warmup": 0.6, "cooldown": 0.6}, ValueError, "warmup and cooldown .* at most 1, got 0.6 and 0.6: lower one"),
        ({"device": "tpu"}, ValueError, "device must be one of auto, cpu, cuda, mps, got 'tpu': choose one"),
        ({"data": "text.txt"}, TypeError, r"data must be a list of paths, got 'text.txt': .*\['text.txt'\]"),
        ({"data": [3]}, TypeError, "data must be a path, got 3"),
        ({"out": ""}, ValueError, "out is an empty path: name a file or folder"),
        ({"model": {"dim": 8}}, TypeError, "model must be ModelArguments"),
    ],
)
def test_a_wrong_setting_is_refused_by_name(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        TrainConfig(**changes)
