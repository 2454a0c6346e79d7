from __future__ import annotations

import errno
import json
import math
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from simple_hierarchical_transformer import files
from simple_hierarchical_transformer.training.metrics import (
    MetricsLog,
    bits,
    cross_entropy_of,
    peak_memory,
    read_metrics,
)


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
    nats, tokens = cross_entropy_of(Uniform(), [batch], torch.device("cpu"))
    assert (bits(nats / tokens), tokens) == (pytest.approx(8), 2 * 4)


def test_validation_is_a_mean_over_bytes_not_over_batches() -> None:
    easy, hard = torch.full((3, 4), 7, dtype=torch.uint8), torch.full((1, 4), 9, dtype=torch.uint8)
    nats, tokens = cross_entropy_of(Certain(), [easy, hard], torch.device("cpu"))
    assert bits(nats / tokens) == pytest.approx(8 / 4)


@pytest.mark.parametrize("training", [True, False])
def test_validation_leaves_the_mode_of_the_model_as_it_was(training: bool) -> None:
    model = Uniform().train(training)
    cross_entropy_of(model, [torch.zeros(1, 2, dtype=torch.uint8)], torch.device("cpu"))
    assert model.training is training


def test_metrics_are_lines_of_json(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path)
    log.append({"step": 1, "train_bits_per_byte": None})
    log.append({"step": 2, "train_bits_per_byte": 2.5})
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"step": 1, "train_bits_per_byte": None},
        {"step": 2, "train_bits_per_byte": 2.5},
    ]
    assert list(read_metrics(log.path)) == [json.loads(line) for line in lines]


def test_a_metric_that_is_not_finite_is_not_written(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path)
    with pytest.raises(ValueError, match="Out of range float"):
        log.append({"step": 1, "train_bits_per_byte": math.nan})
    assert not log.path.exists()


def test_a_line_is_in_the_file_before_the_process_is_killed(tmp_path: Path) -> None:
    code = (
        "import os, pathlib, signal, sys\n"
        "from simple_hierarchical_transformer.training.metrics import MetricsLog\n"
        "MetricsLog(pathlib.Path(sys.argv[1])).append({'step': 7})\n"
        "os.kill(os.getpid(), getattr(signal, 'SIGKILL', signal.SIGTERM))\n"
    )
    run = subprocess.run([sys.executable, "-c", code, str(tmp_path)], timeout=60)
    assert run.returncode != 0
    assert list(read_metrics(tmp_path / "metrics.jsonl")) == [{"step": 7}]


def test_what_follows_a_line_that_was_cut_off_is_read(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path)
    log.path.write_bytes(b'{"step": 1}\n{"step": 2, "lo')
    log.append({"step": 3})
    log.append({"step": 4})
    assert [record["step"] for record in read_metrics(log.path)] == [1, 3, 4]
    assert log.path.read_bytes().endswith(b'\n{"step": 3}\n{"step": 4}\n')


FOREIGN = [
    b"",
    b"a note of the user's",
    b'{"step": 2, "lo{"step": 3}',
    b"[1, 2]",
    b'{"tokens": 5}',
    b'{"step": "2"}',
    b'{"step": true}',
    b'{"step": 2.5}',
    b'{"step": NaN}',
    b"\xff\xfe\x00",
    b"[" * 100_000,
    b"1" * 5_000,
]


@pytest.mark.parametrize("line", FOREIGN, ids=lambda line: repr(line[:20]))
def test_a_foreign_line_in_the_middle_is_passed_over_by_readers_and_taken_out_by_rewind(
    tmp_path: Path, line: bytes
) -> None:
    log = MetricsLog(tmp_path)
    log.path.write_bytes(b'{"step": 1}\n' + line + b'\n{"step": 4, "loss": 1.5}\n')
    assert list(read_metrics(log.path)) == [{"step": 1}, {"step": 4, "loss": 1.5}]
    log.rewind(4)
    assert log.path.read_bytes() == b'{"step": 1}\n{"step": 4, "loss": 1.5}\n'


@given(steps=st.lists(st.integers(0, 20), max_size=12).map(sorted), goal=st.integers(0, 20), data=st.data())
def test_rewind_keeps_the_whole_lines_up_to_a_step_wherever_the_file_was_cut(
    steps: list[int], goal: int, data: st.DataObject
) -> None:
    lines = [b'{"step": %d, "loss": 1.25}\n' % step for step in steps]
    content = b"".join(lines)
    cut = data.draw(st.integers(0, len(content)))
    with tempfile.TemporaryDirectory() as folder:
        log = MetricsLog(Path(folder))
        log.path.write_bytes(content[:cut])
        log.rewind(goal)
        # a line that lacks nothing but its end is whole
        whole = len(re.findall(rb"}", content[:cut]))
        assert log.path.read_bytes() == b"".join(
            line for line, step in zip(lines[:whole], steps, strict=False) if step <= goal
        )
        assert os.listdir(folder) == ["metrics.jsonl"]


def test_rewind_of_a_run_without_metrics_makes_no_file(tmp_path: Path) -> None:
    MetricsLog(tmp_path).rewind(3)
    assert not any(tmp_path.iterdir())


def test_rewind_replaces_the_file_only_where_something_goes(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path)
    log.append({"step": 1})
    before = log.path.stat().st_ino
    log.rewind(1)
    assert log.path.stat().st_ino == before


def test_rewind_that_fails_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(path: Path, content: bytes) -> None:
        path.write_bytes(content[:5])
        raise OSError(errno.ENOSPC, "No space left on device")

    log = MetricsLog(tmp_path)
    for step in range(3):
        log.append({"step": step})
    before = log.path.read_bytes()
    monkeypatch.setattr(files, "write_flushed", no_space)
    with pytest.raises(OSError, match="No space left"):
        log.rewind(1)
    assert log.path.read_bytes() == before
    assert os.listdir(tmp_path) == ["metrics.jsonl"]


def test_memory_is_the_peak_of_the_process_in_bytes() -> None:
    before = peak_memory(torch.device("cpu"))
    if before is None:
        pytest.skip("the system doesn't say")
    assert 50e6 < before < 1e12
    held = torch.ones(before // 4 + 20_000_000)  # as much again, and more
    after = peak_memory(torch.device("cpu"))
    del held
    assert after is not None
    assert after > 1.1 * before
    assert peak_memory(torch.device("cpu")) == after


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_memory_of_a_gpu_is_the_peak_of_its_tensors() -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    torch.cuda.reset_peak_memory_stats(device)
    held = torch.ones(30_000_000, device=device)
    del held
    peak = peak_memory(device)
    assert peak is not None
    assert peak >= 120_000_000
