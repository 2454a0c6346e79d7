from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from simple_hierarchical_transformer import HierarchicalTransformer
from simple_hierarchical_transformer.text.data import load_split, validation_batches
from simple_hierarchical_transformer.training import TrainConfig, loop
from simple_hierarchical_transformer.training.loop import NonFiniteError, Run, train
from simple_hierarchical_transformer.training.metrics import MetricsLog, validate

MakeRun = Callable[..., TrainConfig]


def ignore(line: str) -> None:
    pass


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return HierarchicalTransformer.from_pretrained(folder).state_dict()


def test_a_run_leaves_its_model_configuration_and_metrics(tiny_run: MakeRun, tmp_path: Path) -> None:
    lines: list[str] = []
    result = train(tiny_run(), report=lines.append)
    assert (result.steps, result.interrupted) == (3, False)
    assert result.model_folder == tmp_path / "run" / "model"
    assert json.loads((tmp_path / "run" / "config.json").read_text())["steps"] == 3

    metrics = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in metrics] == [2, 3]
    assert [record["tokens"] for record in metrics] == [2 * 2 * 32, 3 * 2 * 32]
    assert metrics[-1]["validation_bits_per_byte"] == result.validation_bits_per_byte
    assert metrics[-1]["train_bits_per_byte"] == result.train_bits_per_byte
    assert 0 < metrics[-1]["learning_rate"] < 0.01

    report = "\n".join(lines)
    assert f"saved: {result.model_folder}" in report
    assert f"training: {result.train_bits_per_byte:.3f} bits per byte in the last 1 step\n" in report
    assert f"validation: {result.validation_bits_per_byte:.3f} bits per byte after 3 steps" in report
    assert result.sample is not None
    assert result.sample in report


def test_the_reported_validation_is_that_of_the_saved_model(tiny_run: MakeRun) -> None:
    config = tiny_run()
    result = train(config, report=ignore)
    model = HierarchicalTransformer.from_pretrained(result.model_folder)
    corpus = load_split(config.data_paths, config.seq_len).validation
    batches = validation_batches(corpus, config.final_validation_sequences, config.batch_size, config.seq_len)
    assert validate(model, batches, torch.device("cpu")) == result.validation_bits_per_byte


def test_the_same_seed_and_steps_give_the_same_bits(tiny_run: MakeRun, tmp_path: Path) -> None:
    results = [train(tiny_run(out=tmp_path / name, seed=seed), ignore) for name, seed in (("a", 1), ("b", 1), ("c", 2))]
    first, second, other = (weights(result.model_folder) for result in results)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)
    assert results[0].sample == results[1].sample
    assert results[0].validation_bits_per_byte == results[1].validation_bits_per_byte


def test_training_learns(tiny_run: MakeRun) -> None:
    result = train(tiny_run(steps=40, validate_every=100), report=ignore)
    assert result.validation_bits_per_byte is not None
    assert result.validation_bits_per_byte < 6


def test_every_parameter_is_trained(tiny_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    before: dict[str, torch.Tensor] = {}

    class Remembering(HierarchicalTransformer):
        def __init__(self, **arguments: Any) -> None:
            super().__init__(**arguments)
            before.update({name: tensor.clone() for name, tensor in self.state_dict().items()})

    monkeypatch.setattr(loop, "HierarchicalTransformer", Remembering)
    after = weights(train(tiny_run(steps=1), report=ignore).model_folder)
    assert [name for name in after if torch.equal(before[name], after[name])] == []


@pytest.mark.parametrize(
    ("steps", "minutes", "step", "elapsed", "progress"),
    [(10, None, 4, 1e9, 0.4), (None, 2, 10**9, 30, 0.25), (10, 2, 4, 30, 0.4), (10, 2, 4, 90, 0.75)],
)
def test_progress_is_that_of_the_budget_that_ends_first(
    tiny_run: MakeRun,
    monkeypatch: pytest.MonkeyPatch,
    steps: int | None,
    minutes: float | None,
    step: int,
    elapsed: float,
    progress: float,
) -> None:
    run = Run.__new__(Run)
    run.config = tiny_run(steps=steps, minutes=minutes)
    monkeypatch.setattr(Run, "elapsed", elapsed)
    assert run.progress(step) == progress


def test_a_budget_of_time_ends_the_run(tiny_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(10**6))
    monkeypatch.setattr(loop.time, "perf_counter", lambda: float(next(clock)))
    result = train(tiny_run(steps=None, minutes=1), report=ignore)
    assert 0 < result.steps < 60


def test_the_shortest_budget_is_enough_for_one_step(tiny_run: MakeRun) -> None:
    assert train(tiny_run(steps=None, minutes=1e-9), report=ignore).steps == 1


def test_no_gradient_is_carried_into_the_next_step(tiny_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    take_step = Run.take_step

    def check(run: Run, batch: torch.Tensor) -> float:
        assert all(parameter.grad is None for parameter in run.model.parameters())
        return take_step(run, batch)

    monkeypatch.setattr(Run, "take_step", check)
    assert train(tiny_run(), report=ignore).steps == 3


@pytest.mark.parametrize("broken", ["loss", "gradient"])
def test_what_is_not_finite_stops_the_run_before_the_model_changes(
    tiny_run: MakeRun, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    models = []

    class Diverging(HierarchicalTransformer):
        def __init__(self, **arguments: Any) -> None:
            super().__init__(**arguments)
            models.append(self)
            self.calls = 0

        def forward(self, *arguments: Any, **options: Any) -> Any:
            output = super().forward(*arguments, **options)
            if not options.get("return_loss"):
                return output
            loss, losses = output
            self.calls += 1
            if self.calls == 2:
                self.kept = {name: tensor.clone() for name, tensor in self.state_dict().items()}
                # the gradient of a square root is infinite at 0, where its value is finite
                loss = loss * torch.nan if broken == "loss" else loss + (loss - loss.detach()).sqrt()
            return loss, losses

    monkeypatch.setattr(loop, "HierarchicalTransformer", Diverging)
    what = "loss" if broken == "loss" else "norm of the gradient"
    with pytest.raises(NonFiniteError, match=rf"the {what} of step 1 is (nan|inf): .*lower --muon-lr \(0.02\)"):
        train(tiny_run(), report=ignore)
    (model,) = models
    assert all(torch.equal(tensor, model.kept[name]) for name, tensor in model.state_dict().items())


def test_an_interrupted_run_saves_its_model(tiny_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    take_step = Run.take_step

    def interrupt(run: Run, batch: torch.Tensor) -> float:
        if run.step == 1:
            raise KeyboardInterrupt
        return take_step(run, batch)

    monkeypatch.setattr(Run, "take_step", interrupt)
    lines: list[str] = []
    result = train(tiny_run(), report=lines.append)
    assert result.interrupted
    assert result.sample is None
    assert lines[-1] == f"interrupted: the model as it is after 1 step is in {result.model_folder}"
    assert weights(result.model_folder)


def test_a_mistake_is_found_before_an_earlier_run_is_moved(tiny_run: MakeRun, tmp_path: Path) -> None:
    train(tiny_run(), report=ignore)
    with pytest.raises(FileNotFoundError, match="doesn't exist"):
        train(tiny_run(data=[tmp_path / "none"]), report=ignore)
    with pytest.raises(ValueError, match="seq_len"):
        train(tiny_run(seq_len=100_000), report=ignore)
    assert not (tmp_path / "run.1").exists()
    train(tiny_run(), report=ignore)
    assert (tmp_path / "run.1" / "model").is_dir()


def test_a_device_that_is_not_there_is_refused(tiny_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    device = "mps" if torch.cuda.is_available() else "cuda"
    if device == "mps" and torch.backends.mps.is_available():
        pytest.skip("this machine has every device")
    with pytest.raises(ValueError, match=f"device is '{device}', but torch finds none here: use --device auto"):
        train(tiny_run(device=device), report=ignore)


def test_several_processes_are_refused(tiny_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop.Accelerator, "num_processes", 2)
    with pytest.raises(ValueError, match="2 processes were started, but a run is one process for now: start it"):
        train(tiny_run(), report=ignore)


def test_an_error_in_the_middle_of_a_run_loses_no_model(tiny_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk was full, or the reader of the output had gone: two steps of work were lost."""

    def full(self: MetricsLog, **record: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(MetricsLog, "append", full)
    config = tiny_run()
    with pytest.raises(OSError, match="No space left") as caught:
        train(config, report=ignore)
    assert "2 steps" in caught.value.__notes__[0]
    HierarchicalTransformer.from_pretrained(config.out_path / "model")


def test_a_run_started_from_within_an_earlier_one_leaves_that_as_it_was(
    tiny_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--out .` moved the earlier run aside, the working directory with it, and then wrote over it."""
    train(tiny_run(), report=ignore)
    weights = (tmp_path / "run" / "model" / "model.safetensors").read_bytes()
    monkeypatch.chdir(tmp_path / "run")
    train(tiny_run(out=".", seed=1), report=ignore)
    assert (tmp_path / "run.1" / "model" / "model.safetensors").read_bytes() == weights
    assert (tmp_path / "run" / "model" / "model.safetensors").read_bytes() != weights


def test_numbers_of_numpy_are_numbers(tiny_run: MakeRun, tmp_path: Path) -> None:
    train(tiny_run(steps=np.int64(1), muon_lr=np.float64(0.01)), report=ignore)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["steps"] == 1


def test_a_compiled_run_learns_what_the_plain_one_does(tiny_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = train(tiny_run(steps=3), ignore)
    compiled = []

    def compile_quickly(module: torch.nn.Module) -> Any:
        compiled.append(module)
        return original(module, backend="eager")

    original = torch.compile
    monkeypatch.setattr(torch, "compile", compile_quickly)
    again = train(tiny_run(steps=3, compile=True), ignore)
    assert len(compiled) == 1
    assert again.train_bits_per_byte == pytest.approx(plain.train_bits_per_byte, rel=1e-5)
