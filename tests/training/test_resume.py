"""Going on with a run: what is refused, what is offered, and what may be changed."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from simple_hierarchical_transformer import CheckpointError, HierarchicalTransformer
from simple_hierarchical_transformer.training import ModelArguments, TrainConfig
from simple_hierarchical_transformer.training.checkpoint_folder import write_folder
from simple_hierarchical_transformer.training.loop import train
from simple_hierarchical_transformer.training.random_state import random_state, set_random_state
from simple_hierarchical_transformer.training.run_state import RunState, read_state

from .conftest import TINY_MODEL, read_figures

MakeRun = Callable[..., TrainConfig]
ROOT = Path(__file__).parents[2]


def ignore(line: str) -> None:
    pass


@pytest.fixture
def checkpointed(tiny_run: MakeRun) -> MakeRun:
    """A run of six steps that has checkpoints at 2, 4 and 6."""

    def make(**changes: Any) -> TrainConfig:
        return tiny_run(**{"steps": 6, "checkpoint_every": 2, **changes})

    train(make(), report=ignore)
    return make


def path_of(config: TrainConfig, step: int) -> Path:
    return config.out / "checkpoints" / f"step-{step:08d}"


def damage(path: Path, name: str = "train.safetensors") -> None:
    data = bytearray((path / name).read_bytes())
    data[-1] ^= 1
    (path / name).write_bytes(data)


def rewrite(path: Path, name: str, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change a file of a checkpoint as somebody who also writes the manifest anew."""
    files = {file.name: file.read_bytes() for file in path.iterdir() if file.name != "manifest.json"}
    content = json.loads(files[name])
    changed = change(content)
    files[name] = json.dumps(content if changed is None else changed).encode()
    shutil.rmtree(path)
    write_folder(path, files)


# what there is to go on from


def test_where_there_is_nothing_yet_a_run_begins(tiny_run: MakeRun, tmp_path: Path) -> None:
    lines: list[str] = []
    train(tiny_run(resume=True), report=lines.append)
    assert "there is no checkpoint yet: starting at the beginning" in lines
    train(tiny_run(out=tmp_path / "other"), report=ignore)
    assert read_figures(tmp_path / "run") == read_figures(tmp_path / "other")


def test_a_finished_run_has_nothing_left_to_do(checkpointed: MakeRun) -> None:
    config = checkpointed()
    before, model = read_figures(config.out), (config.out / "model" / "model.safetensors").stat()
    lines: list[str] = []
    result = train(checkpointed(resume=True), report=lines.append)
    assert (result.steps, result.interrupted) == (6, False)
    assert result.validation_bits_per_byte == before[-1]["final_validation_bits_per_byte"]
    assert any(line.startswith("the run is over: ") and "raise --steps" in line for line in lines)
    assert read_figures(config.out) == before
    assert (config.out / "model" / "model.safetensors").stat() == model


def test_a_run_that_was_ended_in_its_last_validation_is_validated(checkpointed: MakeRun) -> None:
    config = checkpointed()
    figures = read_figures(config.out)
    lines = (config.out / "metrics.jsonl").read_text().splitlines(keepends=True)
    (config.out / "metrics.jsonl").write_text("".join(lines[:-1]))
    train(checkpointed(resume=True), report=ignore)
    assert read_figures(config.out) == figures


def test_a_checkpoint_is_a_model_too(checkpointed: MakeRun) -> None:
    config = checkpointed()
    final = HierarchicalTransformer.from_pretrained(config.out / "model").state_dict()
    loaded = HierarchicalTransformer.from_pretrained(path_of(config, 6)).state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in final.items())


def test_a_damaged_checkpoint_is_refused_and_the_newest_whole_one_offered(checkpointed: MakeRun) -> None:
    config = checkpointed()
    figures = read_figures(config.out)
    damage(path_of(config, 6))
    message = rf"{path_of(config, 6)}/train.safetensors: the SHA-256 is wrong.*{path_of(config, 4)} is whole: add --res"
    with pytest.raises(CheckpointError, match=message):
        train(checkpointed(resume=True), report=ignore)
    lines: list[str] = []
    train(checkpointed(resume=True, resume_fallback=True), report=lines.append)
    aside = config.out / "checkpoints" / "damaged-step-00000006"
    assert f"the damaged checkpoint {path_of(config, 6)} is now {aside}" in lines
    assert f"going on from {path_of(config, 4)}" in lines
    assert read_figures(config.out) == figures  # the same steps again
    assert path_of(config, 6).is_dir() and aside.is_dir()


def test_a_run_in_the_folder_of_its_data_is_not_read_as_text(
    tiny_run: MakeRun, text_file: Path, tmp_path: Path
) -> None:
    """Its own metrics were: no run could go on, or be started, on that folder any more."""
    data = tmp_path / "data"
    data.mkdir()
    text_file.rename(data / "text.txt")
    lines: list[str] = []
    for resume in (False, True, False):
        train(tiny_run(data=[str(data)], out=data / "run", resume=resume), report=lines.append)
    assert (data / "run.1").is_dir()
    assert sum(f"{data} (1 file)" in line for line in lines) == 3


# what is refused


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"batch_size": 4},
            r"the run in .* was started with batch_size = 2, not 4: leave that as it was, or",
        ),
        ({"seed": 1, "clip_norm": 2.0}, r"started with clip_norm = 1\.0, not 2\.0 and seed = 0, not 1: leave"),
        ({"adamw_lr": 0.1}, r"started with adamw_lr = 0\.003, not 0\.1"),
        ({"average": 0.9}, r"started with average = 0\.0, not 0\.9"),
        ({"optimizer": "adamw"}, "started with optimizer = muon, not adamw"),
        ({"model": ModelArguments(**{**TINY_MODEL, "dim": 32})}, "started with dim = 16, not 32"),
        ({"model": ModelArguments(**{**TINY_MODEL, "depth": 2})}, "started with depth = 1, not 2"),
    ],
)
def test_a_run_does_not_go_on_as_another(checkpointed: MakeRun, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        train(checkpointed(resume=True, **changes), report=ignore)


def test_other_data_are_refused_wherever_they_lie(checkpointed: MakeRun, text_file: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    moved = tmp_path / "elsewhere" / text_file.name
    moved.write_bytes(text_file.read_bytes())
    train(checkpointed(resume=True, data=[str(moved)]), report=ignore)
    moved.write_bytes(text_file.read_bytes().replace(b"line 7 ", b"Line 7 "))
    with pytest.raises(ValueError, match=r"resume: the data aren't those of the run in .*give the same --data"):
        train(checkpointed(resume=True, data=[str(moved)]), report=ignore)


def test_a_tokenizer_is_known_wherever_its_file_lies(checkpointed: MakeRun, tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({"line": 0, "of": 1, "?": 2}, unk_token="?"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    for name in ("one.json", "other.json"):
        tokenizer.save(str(tmp_path / name))
    settings = {"seq_len": 16, "out": tmp_path / "words"}
    train(checkpointed(tokenizer=str(tmp_path / "one.json"), **settings), report=ignore)
    result = train(
        checkpointed(tokenizer=str(tmp_path / "other.json"), resume=True, steps=7, **settings), report=ignore
    )
    assert result.steps == 7
    assert (result.folder / "tokenizer.json").read_bytes() == (tmp_path / "one.json").read_bytes()
    with pytest.raises(ValueError, match=r"was started with tokenizer = tokenizers [0-9a-f]+, not bytes"):
        train(checkpointed(resume=True, **settings), report=ignore)


def test_settings_that_decide_nothing_may_change(checkpointed: MakeRun, tmp_path: Path) -> None:
    model = ModelArguments(**TINY_MODEL, checkpoint_activations=True)
    config = checkpointed(resume=True, steps=8, accumulate=2, keep=1, workers=1, model=model)
    lines: list[str] = []
    result = train(config, report=lines.append)
    assert "the bits may differ from those of a run that wasn't stopped: steps 6 → 8, accumulate 1 → 2" in lines
    assert result.steps == 8
    assert "steps = 8" in (tmp_path / "run" / "config.toml").read_text()


def change_state(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: content.update(changes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (change_state(format_version=2), "format version 2 is not 1: continue with the version"),
        (change_state(code="print()"), "these are missing, or not known: code"),
        (lambda content: content.pop("step") and None, "these are missing, or not known: step"),
        (change_state(step="4"), "a value is of the wrong type"),
        (change_state(step=-4), "a value is of the wrong type"),
        (change_state(seconds=float("inf")), "a value is of the wrong type"),
        (change_state(best=[1, 2, 3]), "a value is of the wrong type"),
        (change_state(since_log={"loss": "much"}), "a value is of the wrong type"),
        (change_state(step=4), "it is the state of step 4"),
        (lambda content: [], "holds no state of a run"),
    ],
)
def test_a_state_of_another_kind_is_refused(
    checkpointed: MakeRun, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    config = checkpointed()
    rewrite(path_of(config, 6), "state.json", change)
    with pytest.raises(CheckpointError, match=message):
        train(checkpointed(resume=True), report=ignore)


def test_tensors_of_another_model_are_refused_before_they_are_read(checkpointed: MakeRun, tmp_path: Path) -> None:
    config = checkpointed()
    other = checkpointed(out=tmp_path / "other", model=ModelArguments(**{**TINY_MODEL, "dim": 32}))
    train(other, report=ignore)
    files = {file.name: file.read_bytes() for file in path_of(config, 6).iterdir() if file.name != "manifest.json"}
    files["train.safetensors"] = (path_of(other, 6) / "train.safetensors").read_bytes()
    shutil.rmtree(path_of(config, 6))
    write_folder(path_of(config, 6), files)
    with pytest.raises(CheckpointError, match=r"train\.safetensors: optimizer/.* is missing, unknown, or of another"):
        train(checkpointed(resume=True), report=ignore)


# its parts


def test_a_state_is_read_as_it_was_written(tmp_path: Path) -> None:
    state = RunState(
        step=3, tokens=192, sequences=6, seconds=0.1 + 0.2, data="abc", best=(2, 7.123456789012345),
        since_log={"loss": 1 / 3, "steps": 1}, since_validation={}, settings={"seed": 0}, environment={"torch": "2"},
    )  # fmt: skip
    (tmp_path / "state.json").write_bytes(state.as_bytes())
    assert read_state(tmp_path / "state.json") == state


def test_random_numbers_go_on_where_they_were() -> None:
    import random

    random.gauss(0, 1)  # which keeps a second number for the next call
    states = {name: tensor.clone() for name, tensor in random_state().items()}
    expected = (torch.rand(3), random.gauss(0, 1), random.random())
    torch.rand(5), random.random()
    set_random_state(states)
    again = (torch.rand(3), random.gauss(0, 1), random.random())
    assert torch.equal(expected[0], again[0]) and expected[1:] == again[1:]
    with pytest.raises(ValueError, match="python's random numbers is missing, or of another size"):
        set_random_state({"torch": states["torch"], "python": states["python"][1:]})


GUARDED = """
import builtins, pickle, sys
from pathlib import Path
import torch
from simple_hierarchical_transformer import HierarchicalTransformer
from simple_hierarchical_transformer.training import ModelArguments, TrainConfig, loop

class Stop:
    def start(self, *_): pass
    def log(self, step, metrics):
        if step == 3:
            raise_signal()
    def finish(self, *_): pass

def raise_signal():
    import os, signal
    os.kill(os.getpid(), signal.SIGTERM)

def refuse(*arguments, **options):
    raise AssertionError("something was executed from a file")

def run(trackers=(), name="run", **changes):
    model = ModelArguments(dim=16, depth=1, heads=2, dim_head=8, window_sizes=(8, None))
    config = TrainConfig(data=(sys.argv[1],), out=Path(sys.argv[2]) / name, steps=6, seq_len=32, batch_size=2,
                         checkpoint_every=2, log_every=1, device="cpu", sample_length=5, model=model, **changes)
    return loop.train(config, report=lambda line: None, trackers=trackers)

run(name="warm")
kept = builtins.eval, builtins.exec
pickle.loads = pickle.load = torch.load = builtins.eval = builtins.exec = refuse
stopped = run([Stop()])
assert stopped.interrupted and stopped.steps == 3, stopped
resumed = run(resume=True)
assert resumed.steps == 6 and not resumed.interrupted
model = HierarchicalTransformer.from_pretrained(resumed.folder)
model.generate(torch.tensor([[1, 2]]), 5)
builtins.eval, builtins.exec = kept  # what torch tidies up at the end is another matter
print("guarded")
"""


def test_nothing_is_unpickled_or_executed_to_save_resume_and_load(text_file: Path, tmp_path: Path) -> None:
    """What a library sets up by `exec` at its first use (dataclasses, say) a first run has set up before the guard."""
    done = subprocess.run(
        [sys.executable, "-c", GUARDED, str(text_file), str(tmp_path)], capture_output=True, text=True, cwd=ROOT
    )
    assert done.stdout == "guarded\n", done.stderr


def grown(code: str, *arguments: str) -> str:
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


GROWTH = """
import gc, json, sys
from pathlib import Path
import torch
from simple_hierarchical_transformer import HierarchicalTransformer
from simple_hierarchical_transformer.training import ModelArguments, TrainConfig, loop

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

def tensors():
    gc.collect()
    return sum(isinstance(each, torch.Tensor) for each in gc.get_objects())

class Watch:
    seen = []
    def start(self, *_): pass
    def log(self, step, metrics):
        if "loss" in metrics and step % (steps // 10) == 0 and step < steps:
            self.seen.append((resident(), tensors()))
    def finish(self, *_): pass

steps, tokens = int(sys.argv[3]), int(sys.argv[4])
model = ModelArguments(dim=16, depth=1, heads=2, dim_head=8, window_sizes=(8, None))
config = TrainConfig(data=(sys.argv[1],), out=Path(sys.argv[2]) / "run", steps=steps, seq_len=32, batch_size=2,
                     checkpoint_every=steps // 10, validate_every=steps // 10, device="cpu", sample_length=0,
                     model=model)
watch = Watch()
result = loop.train(config, report=lambda line: None, trackers=[watch])
model = HierarchicalTransformer.from_pretrained(result.folder)
written = []
for i, token in enumerate(model.stream(torch.tensor([[1, 2]]), tokens)):
    if (i + 1) % (tokens // 10) == 0:
        written.append((resident(), tensors()))
print(json.dumps([watch.seen, written]))
"""


def check_growth(text_file: Path, tmp_path: Path, steps: int, tokens: int) -> None:
    for seen in json.loads(grown(GROWTH, str(text_file), str(tmp_path), str(steps), str(tokens))):
        memory, tensors = zip(*seen[3:], strict=True)  # allocators and caches have settled by then
        assert max(tensors) == tensors[0], tensors
        assert max(memory) - memory[0] < 8e6, memory


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="resident memory is read there")
def test_neither_steps_nor_tokens_leave_anything_in_memory(text_file: Path, tmp_path: Path) -> None:
    check_growth(text_file, tmp_path, steps=200, tokens=1000)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="resident memory is read there")
def test_two_thousand_steps_and_ten_thousand_tokens_leave_nothing_in_memory(text_file: Path, tmp_path: Path) -> None:
    check_growth(text_file, tmp_path, steps=2000, tokens=10_000)
