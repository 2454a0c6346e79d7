from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from simple_hierarchical_transformer.training.metrics import MetricsLog, ProgressBar, validate


class Uniform(nn.Module):
    """Knows nothing: all of 256 bytes are equally likely."""

    def forward(self, ids: Tensor) -> Tensor:
        assert not self.training
        return torch.zeros(*ids.shape, 256)


class Certain(nn.Module):
    """Is certain, rightly, that the next byte is the same as this one, except for byte 9 where it knows nothing."""

    def forward(self, ids: Tensor) -> Tensor:
        return nn.functional.one_hot(ids, 256) * 1000.0 * (ids != 9)[..., None]


def test_a_model_that_knows_nothing_needs_eight_bits_per_byte() -> None:
    batch = torch.randint(256, (2, 5), dtype=torch.uint8)
    assert validate(Uniform(), [batch], torch.device("cpu")) == pytest.approx(8)


def test_validation_is_a_mean_over_bytes_not_over_batches() -> None:
    easy, hard = torch.full((3, 4), 7, dtype=torch.uint8), torch.full((1, 4), 9, dtype=torch.uint8)
    assert validate(Certain(), [easy, hard], torch.device("cpu")) == pytest.approx(8 / 4)


@pytest.mark.parametrize("training", [True, False])
def test_validation_leaves_the_mode_of_the_model_as_it_was(training: bool) -> None:
    model = Uniform().train(training)
    validate(model, [torch.zeros(1, 2, dtype=torch.uint8)], torch.device("cpu"))
    assert model.training is training


def test_metrics_are_lines_of_json(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path)
    log.append(step=1, train_bits_per_byte=None)
    log.append(step=2, train_bits_per_byte=2.5)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"step": 1, "train_bits_per_byte": None},
        {"step": 2, "train_bits_per_byte": 2.5},
    ]


def test_a_metric_that_is_not_finite_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Out of range float"):
        MetricsLog(tmp_path).append(step=1, train_bits_per_byte=math.nan)


def test_the_bar_shows_figures_and_the_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    lines: list[str] = []
    with ProgressBar(lines.append) as bar:
        bar.validation = 2.25
        bar.update(0.5, 2.5, 12345)
        bar.report("a line")
        bar.update(1.5, 2.0, 12345)
    shown = capsys.readouterr().err
    assert lines == ["a line"]
    assert "50% |" in shown
    assert "2.500 bits/byte, validation 2.250, 12,345 tokens/s" in shown
    assert "100% |" in shown
