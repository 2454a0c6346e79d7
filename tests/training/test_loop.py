from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from simple_hierarchical_transformer import HierarchicalTransformer
from simple_hierarchical_transformer.evaluation.bits_per_byte import score
from simple_hierarchical_transformer.files import RUN_MARK
from simple_hierarchical_transformer.text.data import load_split
from simple_hierarchical_transformer.training import ModelArguments, TrainConfig, checkpoints, loop
from simple_hierarchical_transformer.training import run as run_module
from simple_hierarchical_transformer.training.loop import CheckpointNotWrittenError, NonFiniteError, train
from simple_hierarchical_transformer.training.metrics import MetricsLog
from simple_hierarchical_transformer.training.run import Run

from .conftest import TINY_MODEL, read_figures

MakeRun = Callable[..., TrainConfig]


def ignore(line: str) -> None:
    pass


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return HierarchicalTransformer.from_pretrained(folder).state_dict()


class Recorder:
    """A tracker that remembers what it was told, and may do something at a step."""

    def __init__(self, at: int | None = None, do: Callable[[], None] = lambda: None) -> None:
        self.at, self.do = at, do
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.started: tuple[Any, ...] = ()
        self.status: str | None = None

    def start(self, config: Mapping[str, Any], folder: Path, step: int) -> None:
        self.started = (dict(config), folder, step)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self.logged.append((step, dict(metrics)))
        if step == self.at and "loss" in metrics:
            self.do()

    def finish(self, status: str) -> None:
        self.status = status


def test_a_run_leaves_its_model_checkpoints_configuration_and_metrics(tiny_run: MakeRun, tmp_path: Path) -> None:
    lines: list[str] = []
    result = train(tiny_run(), report=lines.append)
    run = tmp_path / "run"
    assert (result.steps, result.interrupted) == (3, False)
    assert result.folder == run / "model"
    assert {path.name for path in run.iterdir()} == {RUN_MARK, "checkpoints", "config.toml", "metrics.jsonl", "model"}
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"step-00000002", "step-00000003"}
    assert "3 steps" in " ".join(lines) and f"saved: {result.folder}" in lines

    figures = read_figures(run)
    assert [record["step"] for record in figures if "loss" in record] == [1, 2, 3]
    assert [record["step"] for record in figures if "validation_bits_per_byte" in record] == [2, 3]
    assert [record["tokens"] for record in figures if "loss" in record] == [64, 128, 192]
    assert figures[-1]["final_validation_bits_per_byte"] == result.validation_bits_per_byte
    assert result.train_bits_per_byte == figures[-3]["train_bits_per_byte"]
    assert f"validation: {result.validation_bits_per_byte:.3f} bits per byte after 3 steps" in lines
    assert result.sample is not None and result.sample in "\n".join(lines)


def test_its_card_says_what_it_was_trained_on_and_came_to(tiny_run: MakeRun) -> None:
    result = train(tiny_run(), report=ignore)
    card = (result.folder / "README.md").read_text(encoding="utf-8")
    assert "text.txt" in card and "3" in card
    assert f"{result.validation_bits_per_byte:.4g}" in card


def test_the_reported_validation_is_that_of_the_saved_model_on_the_whole_text(tiny_run: MakeRun) -> None:
    config = tiny_run(final_validation_sequences=None)
    result = train(config, report=ignore)
    model = HierarchicalTransformer.from_pretrained(result.folder)
    corpus = load_split(config.data, config.seq_len).validation
    scored = score(model, corpus)
    assert scored.tokens == len(corpus) - 1
    assert result.validation_bits_per_byte == pytest.approx(scored.bits_per_token, abs=1e-6)


def test_the_same_seed_and_steps_give_the_same_bits(tiny_run: MakeRun, tmp_path: Path) -> None:
    results = [train(tiny_run(out=tmp_path / name, seed=seed), ignore) for name, seed in (("a", 1), ("b", 1), ("c", 2))]
    first, second, other = (weights(result.folder) for result in results)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)
    assert results[0].sample == results[1].sample
    assert read_figures(tmp_path / "a") == read_figures(tmp_path / "b")
    for name in ("model.safetensors", "config.json", "train.safetensors"):
        files = [tmp_path / run / "checkpoints" / "step-00000003" / name for run in "ab"]
        assert files[0].read_bytes() == files[1].read_bytes(), name


def test_training_learns(tiny_run: MakeRun) -> None:
    result = train(tiny_run(steps=40, validate_every=100), report=ignore)
    assert result.validation_bits_per_byte is not None
    assert result.validation_bits_per_byte < 6


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_every_parameter_is_trained(tiny_run: MakeRun, monkeypatch: pytest.MonkeyPatch, optimizer: str) -> None:
    before: dict[str, torch.Tensor] = {}

    class Remembering(HierarchicalTransformer):
        def __init__(self, **arguments: Any) -> None:
            super().__init__(**arguments)
            before.update({name: tensor.clone() for name, tensor in self.state_dict().items()})

    monkeypatch.setattr(run_module, "HierarchicalTransformer", Remembering)
    after = weights(train(tiny_run(steps=1, optimizer=optimizer), report=ignore).folder)
    assert [name for name in after if torch.equal(before[name], after[name])] == []


@pytest.mark.parametrize(
    ("budgets", "step", "seconds", "progress"),
    [
        ({"steps": 10}, 4, 1e9, 0.4),
        ({"minutes": 2}, 10**9, 30, 0.25),
        ({"steps": 10, "minutes": 2}, 4, 30, 0.4),
        ({"steps": 10, "minutes": 2}, 4, 90, 0.75),
        ({"tokens": 6400}, 50, 0, 0.5),
        ({"tokens": 6400, "steps": 60}, 50, 0, 50 / 60),
    ],
)
def test_progress_is_that_of_the_budget_that_ends_first(
    tiny_run: MakeRun,
    monkeypatch: pytest.MonkeyPatch,
    budgets: dict[str, float],
    step: int,
    seconds: float,
    progress: float,
) -> None:
    run = Run.__new__(Run)
    run.config = tiny_run(**{"steps": None, **budgets})
    run.accelerator = loop.make_accelerator(run.config)
    monkeypatch.setattr(Run, "seconds", seconds)
    assert run.progress(step) == progress


def test_a_budget_of_time_ends_the_run(tiny_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(10**6))
    monkeypatch.setattr(run_module.time, "perf_counter", lambda: float(next(clock)))
    config = tiny_run(steps=None, minutes=1, checkpoint_every=10**6, validate_every=10**6, log_every=10**6)
    result = train(config, report=ignore)
    assert 0 < result.steps < 60
    # whatever the clock says while these are made
    assert (config.out / "checkpoints" / f"step-{result.steps:08d}").is_dir()
    assert [set(record) & {"loss", "validation_bits_per_byte"} for record in read_figures(config.out)][:2] == [
        {"loss"}, {"validation_bits_per_byte"},
    ]  # fmt: skip


def test_the_shortest_budget_is_enough_for_one_step(tiny_run: MakeRun) -> None:
    assert train(tiny_run(steps=None, minutes=1e-9), report=ignore).steps == 1


def test_no_gradient_is_carried_into_the_next_step(tiny_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    take_step = Run.take_step

    def check(run: Run) -> dict[str, float]:
        assert all(parameter.grad is None for parameter in run.model.parameters())
        return take_step(run)

    monkeypatch.setattr(Run, "take_step", check)
    assert train(tiny_run(), report=ignore).steps == 3


def test_a_batch_in_parts_is_learnt_from_as_a_whole(tiny_run: MakeRun, tmp_path: Path) -> None:
    for accumulate in (1, 2, 4):
        config = tiny_run(out=tmp_path / str(accumulate), batch_size=4, accumulate=accumulate, optimizer="adamw")
        train(config, ignore)
    whole, *parts = (read_figures(tmp_path / name) for name in "124")
    for figures in parts:
        for one, other in zip(whole, figures, strict=True):
            assert one == pytest.approx(other, abs=1e-6)


def test_the_order_of_the_data_does_not_depend_on_who_reads_them(tiny_run: MakeRun, tmp_path: Path) -> None:
    for workers in (0, 2):
        train(tiny_run(out=tmp_path / str(workers), workers=workers), ignore)
    assert read_figures(tmp_path / "0") == read_figures(tmp_path / "2")


def test_averaged_weights_are_validated_and_saved(tiny_run: MakeRun, tmp_path: Path) -> None:
    kept: list[dict[str, torch.Tensor]] = []

    class Keeping(Run):
        def take_step(self) -> dict[str, float]:
            figures = super().take_step()
            plain = self.accelerator.unwrap_model(self.model)
            kept.append({name: value.clone() for name, value in plain.state_dict().items()})
            return figures

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "Run", Keeping)
        saved = weights(train(tiny_run(average=0.9), report=ignore).folder)
    for name, value in saved.items():
        expected = kept[0][name]
        for seen, step in enumerate(kept[1:], start=1):
            expected = torch.lerp(expected, step[name], 1 - min(0.9, (1 + seen) / (10 + seen)))
        assert torch.allclose(value, expected, atol=1e-6), name
    assert not torch.equal(saved["to_logits.weight"], kept[-1]["to_logits.weight"])


def test_a_checkpoint_is_written_when_the_last_is_too_long_ago(tiny_run: MakeRun) -> None:
    config = tiny_run(checkpoint_every=10**6, checkpoint_minutes=1e-9, validate_every=10**6, keep=9)
    train(config, report=ignore)
    steps = sorted(path.name for path in (config.out / "checkpoints").iterdir())
    assert steps == ["step-00000001", "step-00000002", "step-00000003"]


# what goes wrong


@pytest.mark.parametrize("broken", ["loss", "gradient"])
def test_what_is_not_finite_stops_the_run_before_the_model_changes(
    tiny_run: MakeRun, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, broken: str
) -> None:
    class Diverging(HierarchicalTransformer):
        calls = 0

        def forward(self, *arguments: Any, **options: Any) -> Any:
            output = super().forward(*arguments, **options)
            if not options.get("return_loss"):
                return output
            loss, losses = output
            self.calls += 1
            if self.calls == 2:
                # the gradient of a square root is infinite at 0, where its value is finite
                loss = loss * torch.nan if broken == "loss" else loss + (loss - loss.detach()).sqrt()
            return loss, losses

    monkeypatch.setattr(run_module, "HierarchicalTransformer", Diverging)
    what = "loss" if broken == "loss" else "gradient norm"
    where = "the output of every module is" if broken == "loss" else "the first gradient that isn't finite is that of"
    message = rf"the {what} of step 1 is (nan|inf), and {where}.*lower --muon-lr \(0.02\) and --adamw-lr"
    with pytest.raises(NonFiniteError, match=message) as caught:
        train(tiny_run(checkpoint_every=1), report=ignore)
    path = tmp_path / "run" / "checkpoints" / "step-00000001"
    assert caught.value.__notes__ == [f"the last good checkpoint is {path}"]
    monkeypatch.undo()
    train(tiny_run(out=tmp_path / "good", checkpoint_every=1), report=ignore)
    good = weights(tmp_path / "good" / "checkpoints" / "step-00000001")
    assert all(torch.equal(tensor, good[name]) for name, tensor in weights(path).items())


def test_a_model_that_is_not_finite_any_more_is_not_saved(tiny_run: MakeRun, tmp_path: Path) -> None:
    """It was saved as the last good one, with infinite weights."""
    with pytest.raises(NonFiniteError, match=r"the validation after step 1 is (nan|inf): lower --muon-lr") as caught:
        train(tiny_run(steps=1, muon_lr=1e38, adamw_lr=1e38, warmup=0.0), report=ignore)
    assert caught.value.__notes__ == ["there is no checkpoint yet"]
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_the_first_module_that_is_not_finite_is_named(tiny_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    take_step = Run.take_step

    def poison(run: Run) -> dict[str, float]:
        if run.step == 1:
            plain: Any = run.accelerator.unwrap_model(run.model)
            with torch.no_grad():
                plain.layers[0].blocks[1].feedforward.to_out.weight[0, 0] = math.inf
        return take_step(run)

    monkeypatch.setattr(Run, "take_step", poison)
    with pytest.raises(NonFiniteError, match=r"first module whose output isn't finite is layers\.0\.blocks\.1\.feed"):
        train(tiny_run(), report=ignore)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_step_and_leaves_a_checkpoint_to_go_on_from(
    tiny_run: MakeRun, tmp_path: Path, number: signal.Signals
) -> None:
    train(tiny_run(out=tmp_path / "whole"), report=ignore)
    lines: list[str] = []
    tracker = Recorder(at=1, do=lambda: os.kill(os.getpid(), number))
    before = signal.getsignal(number)
    result = train(tiny_run(), report=lines.append, trackers=[tracker])
    assert signal.getsignal(number) == before
    path = tmp_path / "run" / "checkpoints" / "step-00000001"
    assert (result.folder, result.steps, result.interrupted) == (path, 1, True)
    assert result.validation_bits_per_byte is None and result.sample is None
    assert tracker.status == "interrupted"
    assert lines[-1] == (
        f"stopped by {number.name} after 1 step: {path} holds them; go on with hierarchical-transformer train "
        f"--resume --out {tmp_path / 'run'}"
    )
    assert not (tmp_path / "run" / "model").exists()
    train(tiny_run(resume=True), report=ignore)
    assert read_figures(tmp_path / "run") == read_figures(tmp_path / "whole")
    one, other = (weights(tmp_path / name / "model") for name in ("run", "whole"))
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_a_second_signal_interrupts_at_once(tiny_run: MakeRun) -> None:
    def twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(tiny_run(), report=ignore, trackers=[Recorder(at=2, do=twice)])


def test_a_full_disk_stops_the_run_and_leaves_the_checkpoint_before(
    tiny_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(tiny_run(out=tmp_path / "whole", steps=6, checkpoint_every=2), report=ignore)
    write_folder = checkpoints.write_folder

    def full(folder: Path, files: Mapping[str, bytes]) -> None:
        if folder.name == "step-00000004":
            raise OSError(28, "No space left on device")
        write_folder(folder, files)

    config = tiny_run(steps=6, checkpoint_every=2)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "write_folder", full)
        with pytest.raises(CheckpointNotWrittenError, match=r"step 4 can't be written .*No space left") as caught:
            train(config, report=ignore)
    good = config.out / "checkpoints" / "step-00000002"
    assert f"{good}, is as good as it was; make room, and go on with" in str(caught.value)
    HierarchicalTransformer.from_pretrained(good)
    train(tiny_run(steps=6, checkpoint_every=2, resume=True), report=ignore)
    assert read_figures(config.out) == read_figures(tmp_path / "whole")


def test_an_error_in_the_middle_of_a_run_loses_no_step(
    tiny_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk was full, or the reader of the output had gone: two steps of work were lost, or what they had noted."""
    train(tiny_run(out=tmp_path / "whole"), report=ignore)
    append = MetricsLog.append

    def full(self: MetricsLog, record: Mapping[str, float]) -> None:
        if record["step"] == 2:
            raise OSError(28, "No space left on device")
        append(self, record)

    config = tiny_run()
    with monkeypatch.context() as patch:
        patch.setattr(MetricsLog, "append", full)
        with pytest.raises(OSError, match="No space left") as caught:
            train(config, report=ignore)
    path = config.out / "checkpoints" / "step-00000002"
    assert f"the last good checkpoint is {path}" in caught.value.__notes__[0]
    HierarchicalTransformer.from_pretrained(path)
    train(tiny_run(resume=True), report=ignore)
    assert read_figures(config.out) == read_figures(tmp_path / "whole")


def test_a_signal_at_the_end_is_heard_too(tiny_run: MakeRun, tmp_path: Path) -> None:
    tracker = Recorder(at=3, do=lambda: os.kill(os.getpid(), signal.SIGTERM))
    result = train(tiny_run(), report=ignore, trackers=[tracker])
    assert (result.interrupted, result.steps, tracker.status) == (True, 3, "interrupted")
    assert train(tiny_run(resume=True), report=ignore).steps == 3


GROUP = """
import os, signal, sys
from pathlib import Path
from simple_hierarchical_transformer.training import ModelArguments, TrainConfig, loop

class Stop:
    def start(self, *_): pass
    def log(self, step, metrics):
        if step == 3:
            os.killpg(0, signal.SIGTERM)
    def finish(self, *_): pass

model = ModelArguments(dim=16, depth=1, heads=2, dim_head=8, window_sizes=(8, None))
config = TrainConfig(data=(sys.argv[1],), out=Path(sys.argv[2]) / "run", steps=6, seq_len=32, batch_size=2, workers=2,
                     log_every=1, device="cpu", model=model)
print(loop.train(config, report=lambda line: None, trackers=[Stop()]).interrupted)
"""


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="this system has no groups of processes")
def test_a_signal_to_all_processes_leaves_those_that_read_batches_alone(text_file: Path, tmp_path: Path) -> None:
    """Ctrl-C reached them as well; they died of it, and the run of that."""
    done = subprocess.run(
        [sys.executable, "-c", GROUP, str(text_file), str(tmp_path)],
        capture_output=True, text=True, cwd=Path(__file__).parents[2], start_new_session=True, check=False,
    )  # fmt: skip
    assert done.stdout == "True\n", done.stderr


def test_a_mistake_is_found_before_an_earlier_run_is_moved(tiny_run: MakeRun, tmp_path: Path) -> None:
    train(tiny_run(), report=ignore)
    with pytest.raises(FileNotFoundError, match="doesn't exist"):
        train(tiny_run(data=[str(tmp_path / "none")]), report=ignore)
    with pytest.raises(ValueError, match="seq_len"):
        train(tiny_run(seq_len=100_000), report=ignore)
    with pytest.raises(ValueError, match="hierarchies"):
        train(tiny_run(model=ModelArguments(**{**TINY_MODEL, "hierarchies": (1, 3)})), report=ignore)
    assert not (tmp_path / "run.1").exists()
    train(tiny_run(), report=ignore)
    assert (tmp_path / "run.1" / "model").is_dir()


def test_a_device_that_is_not_there_is_refused(tiny_run: MakeRun) -> None:
    device = "mps" if torch.cuda.is_available() else "cuda"
    if device == "mps" and torch.backends.mps.is_available():
        pytest.skip("this machine has every device")
    with pytest.raises(ValueError, match=f"device is '{device}', but torch finds none here: use --device auto"):
        train(tiny_run(device=device), report=ignore)


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


# and what else there is


def test_numbers_of_numpy_are_numbers(tiny_run: MakeRun) -> None:
    train(tiny_run(steps=np.int64(1), muon_lr=np.float64(0.01)), report=ignore)


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


def test_mixed_precision_learns_about_the_same(tiny_run: MakeRun, tmp_path: Path) -> None:
    plain = train(tiny_run(steps=10), ignore)
    mixed = train(tiny_run(steps=10, precision="bfloat16", out=tmp_path / "mixed"), ignore)
    assert mixed.train_bits_per_byte == pytest.approx(plain.train_bits_per_byte, rel=0.02)
    assert mixed.train_bits_per_byte != plain.train_bits_per_byte
    assert {tensor.dtype for tensor in weights(mixed.folder).values()} == {torch.float32}


def test_ones_own_tracker_is_told_everything(tiny_run: MakeRun, tmp_path: Path) -> None:
    tracker = Recorder()
    train(tiny_run(), report=ignore, trackers=[tracker])
    config, folder, step = tracker.started
    assert (config["seed"], folder, step, tracker.status) == (0, tmp_path / "run", 0, "finished")
    assert [step for step, metrics in tracker.logged if "loss" in metrics] == [1, 2, 3]
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [{"step": step, **metrics} for step, metrics in tracker.logged] == [json.loads(line) for line in lines]


def test_samples_are_shown_every_so_often(tiny_run: MakeRun) -> None:
    lines: list[str] = []
    train(tiny_run(sample_every=1), report=lines.append)
    assert [line.split(":")[0] for line in lines if line.startswith("sample at")] == [
        "sample at step 1", "sample at step 2",
    ]  # fmt: skip
    with pytest.raises(ValueError, match="sample_every=1 has no effect without sample_length above 0"):
        tiny_run(sample_every=1, sample_length=0)


def test_a_tokenizer_of_ones_own_is_trained_with(tiny_run: MakeRun) -> None:
    class Words:
        vocab_size = 300

        def encode(self, text: str) -> list[int]:
            return [hash_of(word) for word in text.split()]

        def decode(self, ids: list[int]) -> str:
            return " ".join(str(index) for index in ids)

    def hash_of(word: str) -> int:
        return sum(map(ord, word)) % 300

    config = tiny_run(steps=2, seq_len=16)
    lines: list[str] = []
    stop = Recorder(at=1, do=lambda: os.kill(os.getpid(), signal.SIGTERM))
    train(config, report=lines.append, trackers=[stop], tokenizer=Words())
    assert lines[-1].endswith(
        "go on with train(config, tokenizer=…), with resume=True in the configuration and the same tokenizer"
    )
    config = tiny_run(steps=2, seq_len=16, resume=True)
    with pytest.raises(ValueError, match=r"was started with tokenizer = .*Words, not bytes"):
        train(config, report=ignore)
    result = train(config, report=ignore, tokenizer=Words())
    with pytest.raises(ValueError, match="tokenizer is given beside a configuration that names 'gpt2'"):
        train(tiny_run(tokenizer="gpt2"), report=ignore, tokenizer=Words())
    model = HierarchicalTransformer.from_pretrained(result.folder)
    assert model.num_tokens == 300
    # a word and its space are four bytes or so, and the figure is per byte
    assert result.validation_bits_per_byte is not None and 1 < result.validation_bits_per_byte < 3
