from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from simple_hierarchical_transformer.training import ModelArguments, TrainConfig

TEXT = b"".join(b"line %d of a text that says nothing new\n" % number for number in range(200))
TINY_MODEL: dict[str, Any] = {
    "dim": 16, "depth": 1, "heads": 2, "dim_head": 8, "hierarchies": (1, 4), "hierarchical_stride": (1, 4),
    "window_sizes": (8, None), "ngram_table_size": 64,
}  # fmt: skip
TINY_RUN: dict[str, Any] = {
    "steps": 3, "batch_size": 2, "seq_len": 32, "device": "cpu", "validate_every": 2, "validation_sequences": 2,
    "final_validation_sequences": 4, "sample_length": 5, "log_every": 1,
}  # fmt: skip
BY_THE_CLOCK = ("seconds", "tokens_per_second", "memory_bytes")


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_bytes(TEXT)
    return path


@pytest.fixture
def tiny_run(tmp_path: Path, text_file: Path) -> Callable[..., TrainConfig]:
    """The configuration of a run of a few steps that takes no time."""

    def make(**changes: Any) -> TrainConfig:
        settings = {"data": (str(text_file),), "out": tmp_path / "run", "model": ModelArguments(**TINY_MODEL)}
        return TrainConfig(**{**TINY_RUN, **settings, **changes})

    return make


def read_figures(run: Path) -> list[dict[str, Any]]:
    """What a run has noted, but for what depends on the clock."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    return [{name: value for name, value in record.items() if name not in BY_THE_CLOCK} for record in records]
