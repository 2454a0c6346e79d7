"""Several processes learn what one does, and a run may go on with another number of them."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from simple_hierarchical_transformer.training import TrainConfig, processes
from simple_hierarchical_transformer.training.loop import train

from .conftest import TEXT, TINY_MODEL, TINY_RUN, read_figures
from .killing import config_of
from .test_loop import Recorder, ignore

MakeRun = Callable[..., TrainConfig]
ROOT = Path(__file__).parents[2]
LAUNCH = [
    sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
    "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0",
]  # fmt: skip
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true"}
# Muon takes its steps in bfloat16, in which the last bit of a sum over processes is worth 1e-4
SETTINGS: dict[str, Any] = {
    "steps": 8, "batch_size": 4, "optimizer": "adamw", "checkpoint_every": 3, "final_validation_sequences": None,
    "model": TINY_MODEL,
}  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which all the runs of these tests are, by their names."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "text.txt").write_bytes(TEXT)

    def settings(name: str, **changes: Any) -> dict[str, Any]:
        paths = {"data": [str(folder / "text.txt")], "out": str(folder / name)}
        return {**TINY_RUN, **SETTINGS, **paths, **changes}

    def alone(name: str, stop: int | None = None, **changes: Any) -> None:
        config = config_of(settings(name, **changes))
        train(config, ignore, [Recorder(stop, lambda: os.kill(os.getpid(), signal.SIGTERM))])

    def run(name: str, stop: int | None = None, sharded: bool = False, **changes: Any) -> dict[str, Any]:
        return {"settings": settings(name, **changes), "stop": stop, "sharded": sharded}

    alone("one")
    alone("changing", stop=3)
    together = [
        run("two"),
        run("two in parts", accumulate=2, workers=1),
        run("changing", stop=5, resume=True),
        run("muon", optimizer="muon"),
        run("by the clock", steps=None, minutes=0.005),
        run("by the clock", steps=None, minutes=0.005, resume=True),
        run("sharded", sharded=True),
        run("sharded and stopped", sharded=True, stop=4),
        run("sharded and stopped", sharded=True, resume=True),
        run("sharded muon", sharded=True, optimizer="muon"),
    ]
    done = subprocess.run(
        [*LAUNCH, str(ROOT / "tests" / "training" / "several.py"), json.dumps(together)],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        check=False,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "on cpu:0, 2 processes\n" in done.stdout and "2 processes that share it" in done.stdout
    assert "stopped by SIGTERM after 5 steps" in done.stdout and "the run is over: " in done.stdout
    alone("changing", resume=True)
    alone("one with muon", optimizer="muon")
    return folder


def check_figures(one: Path, other: Path, tolerance: float) -> None:
    figures = read_figures(one)
    assert [record["step"] for record in figures if "loss" in record] == list(range(1, 9))
    assert len(figures) == len(read_figures(other))
    for first, second in zip(figures, read_figures(other), strict=True):
        for figure, value in first.items():
            in_bits = figure.endswith("bits_per_byte")
            assert value == pytest.approx(second[figure], abs=tolerance / (math.log(2) if in_bits else 1)), figure


@pytest.mark.parametrize("name", ["two", "two in parts", "changing", "sharded", "sharded and stopped"])
def test_whatever_the_processes_the_losses_are_those_of_one(finished: Path, name: str) -> None:
    check_figures(finished / "one", finished / name, 1e-6)


@pytest.mark.parametrize("name", ["muon", "sharded muon"])
def test_with_muon_they_are_so_but_for_its_rounding(finished: Path, name: str) -> None:
    check_figures(finished / "one with muon", finished / name, 2e-3)


def test_a_sharded_run_that_was_stopped_goes_on_to_the_same_bits(finished: Path) -> None:
    models = [finished / name / "model" / "model.safetensors" for name in ("sharded", "sharded and stopped")]
    assert models[0].read_bytes() == models[1].read_bytes()
    assert read_figures(finished / "sharded") == read_figures(finished / "sharded and stopped")


def test_the_clock_of_one_process_is_that_of_all(finished: Path) -> None:
    """Whether a run is over the main process asked alone, and waited for an answer of the others."""
    steps = [record["step"] for record in read_figures(finished / "by the clock") if "loss" in record]
    assert steps and steps == list(range(1, steps[-1] + 1))


def test_every_number_of_processes_writes_the_same_kind_of_checkpoint(finished: Path) -> None:
    listed = [
        sorted(path.name for path in (finished / name / "checkpoints" / "step-00000008").iterdir())
        for name in ("one", "two", "sharded")
    ]
    assert listed[0] == listed[1] == listed[2]


def test_the_command_is_launched_in_two_processes(finished: Path, tmp_path: Path) -> None:
    flags = "--dim 16 --depth 1 --heads 2 --dim-head 8 --hierarchies 1 4 --stride 1 4 --window-sizes 8 none"
    run = "--steps 2 --seq-len 32 --batch-size 4 --sample-length 0 --device cpu"
    files = ["--data", str(finished / "text.txt"), "--out", str(tmp_path / "run")]
    done = subprocess.run(
        [*LAUNCH, "-m", "simple_hierarchical_transformer", "train", *files, *flags.split(), *run.split()],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("validation: ") == 1  # one process speaks for all
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()


# what is refused


def test_a_batch_that_cannot_be_shared_is_refused(tiny_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes.Accelerator, "num_processes", 3)
    with pytest.raises(ValueError, match=r"4 can't be shared equally by 3 .* in 1 part\(s\): make it a multiple of 3"):
        train(tiny_run(batch_size=4), report=ignore)


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        (
            "ACCELERATE_USE_FSDP",
            "true",
            "asked for FSDP, which it leaves out for one process and on CPUs: start",
        ),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4", "asked for 4 steps of gradient accumulation: leave that out"),
        ("ACCELERATE_DYNAMO_BACKEND", "EAGER", "asked for the dynamo backend EAGER: leave that out, and use --compile"),
        ("ACCELERATE_MIXED_PRECISION", "fp16", "asked for mixed precision fp16, and the run for float32: leave the"),
        ("ACCELERATE_MIXED_PRECISION", "bf16", "asked for mixed precision bf16, and the run for float32: leave the"),
    ],
)
def test_what_accelerate_was_asked_for_and_a_run_does_not_do_is_refused(
    tiny_run: MakeRun, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, message: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ValueError, match=message):
        train(tiny_run(), report=ignore)


def test_where_the_main_process_fails_the_others_do_not_wait_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    accelerator = processes.make_accelerator(TrainConfig(device="cpu"))

    def broken() -> None:
        raise OSError("full")

    with pytest.raises(OSError, match="full"):
        processes.on_main(accelerator, broken)
    assert processes.on_main(accelerator, lambda: 3) == 3
    # on another process, that it has failed comes as a sum
    monkeypatch.setattr(processes.Accelerator, "is_main_process", False)
    assert processes.on_main(accelerator, broken) is None
    monkeypatch.setattr(processes, "from_main", lambda accelerator, value: 1.0)
    with pytest.raises(processes.MainProcessError, match="see what it says"):
        processes.on_main(accelerator, broken)
