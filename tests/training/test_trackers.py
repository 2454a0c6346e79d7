from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from simple_hierarchical_transformer.training.config import TRACKERS
from simple_hierarchical_transformer.training.trackers import (
    TensorBoardTracker,
    Tracker,
    Trackers,
    TrackioTracker,
    WandbTracker,
    kept_name,
    make_trackers,
)


def needs(package: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(importlib.util.find_spec(package) is None, reason=f"needs {package}")


class Recorder:
    """A user's own tracker, which fails where it is told to."""

    def __init__(self, fails: str = "") -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.fails = fails

    def note(self, *call: Any) -> None:
        self.calls.append(call)
        if call[0] == self.fails:
            raise ConnectionError("the line is dead")

    def start(self, config: Mapping[str, Any], folder: Path, step: int) -> None:
        self.note("start", dict(config), folder, step)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self.note("log", step, dict(metrics))
        metrics.clear()  # type: ignore[attr-defined]

    def finish(self, status: str) -> None:
        self.note("finish", status)


FIGURES = {"loss": 1.5, "train_bits_per_byte": 2.25}
CALLS = [("log", 10, FIGURES), ("log", 20, {"validation_bits_per_byte": 2.5})]


def log_calls(trackers: Trackers) -> None:
    for _, step, metrics in CALLS:
        trackers.log(step, metrics)


def test_every_tracker_gets_all_calls_and_figures_of_its_own(tmp_path: Path) -> None:
    recorders = [Recorder(), Recorder()]
    trackers = Trackers(recorders)
    trackers.start({"seed": 3}, tmp_path, 5)
    log_calls(trackers)
    trackers.finish("finished")
    for recorder in recorders:
        assert recorder.calls == [("start", {"seed": 3}, tmp_path, 5), *CALLS, ("finish", "finished")]


def test_a_tracker_that_fails_while_logging_is_left_out_with_one_warning(tmp_path: Path) -> None:
    broken, good = Recorder(fails="log"), Recorder()
    trackers = Trackers([broken, good])
    trackers.start({}, tmp_path, 0)
    with pytest.warns(RuntimeWarning, match="Recorder failed at step 10.*ConnectionError: the line is dead") as caught:
        log_calls(trackers)
        trackers.finish("finished")
    assert len(caught) == 1
    assert [call[0] for call in broken.calls] == ["start", "log"]
    assert good.calls[1:] == [*CALLS, ("finish", "finished")]


def test_a_tracker_that_fails_to_finish_keeps_none_from_it(tmp_path: Path) -> None:
    good = Recorder()
    trackers = Trackers([Recorder(fails="finish"), good])
    trackers.start({}, tmp_path, 0)
    with pytest.warns(RuntimeWarning, match="Recorder failed to finish: ConnectionError: the line is dead"):
        trackers.finish("interrupted")
    assert good.calls[-1] == ("finish", "interrupted")


def test_a_tracker_that_cannot_start_ends_the_run_before_it_begins(tmp_path: Path) -> None:
    started, last = Recorder(), Recorder()
    trackers = Trackers([started, Recorder(fails="start"), last])
    with pytest.raises(ConnectionError, match="the line is dead"):
        trackers.start({}, tmp_path, 0)
    assert started.calls[-1] == ("finish", "failed")
    assert last.calls == []


def test_ctrl_c_passes_through_a_tracker(tmp_path: Path) -> None:
    class Interrupted(Recorder):
        def log(self, step: int, metrics: Mapping[str, float]) -> None:
            raise KeyboardInterrupt

    trackers = Trackers([Interrupted()])
    trackers.start({}, tmp_path, 0)
    with pytest.raises(KeyboardInterrupt):
        trackers.log(1, {})


@pytest.mark.parametrize("wrong", [object(), "wandb", Recorder, print], ids=str)
def test_what_is_no_tracker_is_refused(wrong: Any) -> None:
    with pytest.raises(TypeError, match="must be objects with the methods start, log and finish, got"):
        Trackers([wrong])


def test_one_tracker_outside_of_a_list_is_refused() -> None:
    with pytest.raises(TypeError, match="put it in a list"):
        Trackers(Recorder())  # type: ignore[arg-type]


@needs("tensorboard")
@needs("wandb")
@needs("trackio")
def test_trackers_are_made_by_name_and_once() -> None:
    made = make_trackers(["tensorboard", *TRACKERS])
    assert [type(tracker) for tracker in made] == [TensorBoardTracker, WandbTracker, TrackioTracker]
    assert all(isinstance(tracker, Tracker) for tracker in made)


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(ValueError, match=r"log must be one of tensorboard, wandb, trackio, got 'mlflow'"):
        make_trackers(["mlflow"])


@pytest.mark.parametrize(
    ("name", "module"), [("tensorboard", "torch.utils.tensorboard"), ("wandb", "wandb"), ("trackio", "trackio")]
)
def test_a_missing_package_is_named_with_what_installs_it(
    name: str, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    remedy = rf'log: {name} isn\'t installed: pip install "simple-hierarchical-transformer\[log\]"'
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError, match=remedy):
        make_trackers([name])
    # a folder of this name in the working directory, such as wandb makes, is a module without anything in it
    monkeypatch.setitem(sys.modules, module, ModuleType(module))
    with pytest.raises(ValueError, match=remedy):
        make_trackers([name])


def test_a_name_elsewhere_is_kept_in_the_folder(tmp_path: Path) -> None:
    path = tmp_path / "wandb-id"
    assert kept_name(path, "abc") == "abc"
    assert kept_name(path, "other") == "abc"
    path.write_text("two words\n")
    with pytest.raises(ValueError, match=r"wandb-id must hold the name of a run, got 'two words'.*delete the file"):
        kept_name(path, "other")


def read_scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    return {tag: [(point.step, point.value) for point in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


@needs("tensorboard")
def test_tensorboard_reads_all_that_was_logged_before_a_run_is_killed(tmp_path: Path) -> None:
    tracker = TensorBoardTracker()
    tracker.start({"out": tmp_path, "split": (1, 2)}, tmp_path, 0)
    for step in range(1, 51):
        tracker.log(step, {"loss": step / 4, "train_bits_per_byte": 2.25})
    tracker.log(50, {"validation_bits_per_byte": 2.5})
    expected = {
        "loss": [(step, step / 4) for step in range(1, 51)],
        "train_bits_per_byte": [(step, 2.25) for step in range(1, 51)],
        "validation_bits_per_byte": [(50, 2.5)],
    }
    assert read_scalars(tmp_path) == expected  # nothing was closed yet
    tracker.finish("finished")
    assert read_scalars(tmp_path) == expected


@needs("tensorboard")
def test_tensorboard_hides_what_a_resumed_run_takes_again_and_nothing_else(tmp_path: Path) -> None:
    first = TensorBoardTracker()
    first.start({}, tmp_path, 0)
    for step in (10, 20, 30, 40):
        first.log(step, {"loss": float(step)})
    second = TensorBoardTracker()  # the first was killed
    second.start({}, tmp_path, 20)
    second.log(30, {"loss": 3.0})
    second.finish("finished")
    assert read_scalars(tmp_path)["loss"] == [(10, 10.0), (20, 20.0), (30, 3.0)]
    first.finish("failed")


class FakeWandbRun:
    def __init__(self, step: int) -> None:
        self.step = step
        self.rows: list[tuple[int, dict[str, float]]] = []
        self.exit_code: int | None = None

    def log(self, data: dict[str, float], step: int) -> None:
        assert step >= self.step  # else W&B drops it, with a warning each time
        self.step = step
        self.rows.append((step, data))

    def finish(self, exit_code: int) -> None:
        self.exit_code = exit_code


@pytest.fixture
def fake_wandb(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A module with W&B's calls: how it was called, the run that it gives next, or the error that it raises."""
    noted: dict[str, Any] = {"run": FakeWandbRun(0), "error": None}

    class Error(Exception):
        pass

    def init(**settings: Any) -> FakeWandbRun:
        noted["settings"] = settings
        if noted["error"]:
            raise Error(noted["error"])
        run: FakeWandbRun = noted["run"]
        return run

    module = ModuleType("wandb")
    module.__dict__.update(init=init, Error=Error)
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    return noted


def test_a_resumed_run_goes_on_in_the_same_wandb_run(tmp_path: Path, fake_wandb: dict[str, Any]) -> None:
    keys = []
    for _ in range(2):
        WandbTracker().start({"cache": tmp_path}, tmp_path, 0)
        settings = fake_wandb["settings"]
        keys.append(settings.pop("id"))
        assert settings == {
            "project": "hierarchical-transformer",
            "name": tmp_path.name,
            "resume": "allow",
            "dir": tmp_path,
            "config": {"cache": str(tmp_path)},
        }
    assert keys[0] == keys[1] == (tmp_path / "wandb-id").read_text().strip()


def test_wandb_gets_no_step_twice(tmp_path: Path, fake_wandb: dict[str, Any]) -> None:
    run = fake_wandb["run"] = FakeWandbRun(21)  # it has steps up to 20, and the run goes on after step 10
    tracker = WandbTracker()
    tracker.start({}, tmp_path, 10)
    for step in (20, 30):
        tracker.log(step, {"loss": 1.0})
        tracker.log(step, {"validation_bits_per_byte": 2.0})
    assert run.rows == [(30, {"loss": 1.0}), (30, {"validation_bits_per_byte": 2.0})]


@pytest.mark.parametrize(("status", "exit_code"), [("finished", 0), ("interrupted", 255), ("failed", 1)])
def test_wandb_is_told_how_the_run_ended(
    tmp_path: Path, fake_wandb: dict[str, Any], status: str, exit_code: int
) -> None:
    tracker = WandbTracker()
    tracker.start({}, tmp_path, 0)
    tracker.finish(status)
    assert fake_wandb["run"].exit_code == exit_code


def test_the_project_of_wandb_may_be_chosen(
    tmp_path: Path, fake_wandb: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_PROJECT", "theirs")
    assert WandbTracker().project == "theirs"
    assert WandbTracker("mine").project == "mine"


def test_wandb_without_a_login_is_an_error_that_says_what_to_do(tmp_path: Path, fake_wandb: dict[str, Any]) -> None:
    fake_wandb["error"] = "No API key configured"
    with pytest.raises(ValueError, match="No API key configured: run `wandb login`, set WANDB_MODE=offline"):
        WandbTracker().start({}, tmp_path, 0)


def in_a_process(code: str, folder: Path, **environment: str) -> Any:
    """What a program prints last, as JSON: these packages read the environment once, and keep threads."""
    script = "import json, os, sys, pathlib\nfolder = pathlib.Path(sys.argv[1])\n" + code
    home = {name: str(folder / "home") for name in ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME")}
    settings = {**os.environ, **home, "HF_HUB_OFFLINE": "1", **environment}
    run = subprocess.run(
        [sys.executable, "-c", script, str(folder)], env=settings, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


@needs("wandb")
def test_the_real_wandb_takes_our_calls_offline(tmp_path: Path) -> None:
    code = """
from simple_hierarchical_transformer.training.trackers import WandbTracker
tracker = WandbTracker()
tracker.start({"out": folder, "model": {"dim": (1, 2)}}, folder, 0)
tracker.log(10, {"loss": 1.5})
tracker.log(10, {"validation_bits_per_byte": 2.5})
tracker.log(20, {"loss": 1.25})  # which closes the row of step 10
tracker.log(15, {"loss": 9.0})
run = tracker._run
seen = {"id": run.id, "config": dict(run.config), "summary": dict(run.summary), "step": run.step}
tracker.finish("interrupted")
print()
print(json.dumps(seen, default=str))
"""
    seen = in_a_process(code, tmp_path, WANDB_MODE="offline", WANDB_SILENT="true", WANDB_CONSOLE="off")
    assert seen["id"] == (tmp_path / "wandb-id").read_text().strip()
    assert seen["config"] == {"out": str(tmp_path), "model": {"dim": [1, 2]}}
    assert {name: value for name, value in seen["summary"].items() if name not in ("_runtime", "_timestamp")} == {
        "_step": 10,
        "loss": 1.5,
        "validation_bits_per_byte": 2.5,
    }
    assert seen["step"] == 20
    assert [path.name.rpartition("-")[2] for path in (tmp_path / "wandb").glob("offline-run-*")] == [seen["id"]]


@needs("trackio")
def test_the_real_trackio_goes_on_in_the_same_run(tmp_path: Path) -> None:
    code = """
from simple_hierarchical_transformer.training.trackers import TrackioTracker
for step in (0, 10):
    tracker = TrackioTracker("a-project")
    tracker.start({"out": folder, "model": {"dim": (1, 2)}}, folder, step)
    tracker.log(step + 10, {"loss": 1.5})
    tracker.finish("finished")
from trackio.sqlite_storage import SQLiteStorage
runs = SQLiteStorage.get_runs("a-project")
logs = SQLiteStorage.get_logs("a-project", runs[0])
print()
print(json.dumps([runs, [[entry["step"], entry["loss"]] for entry in logs]]))
"""
    runs, logs = in_a_process(code, tmp_path, TRACKIO_DIR=str(tmp_path / "trackio"))
    assert runs == [(tmp_path / "trackio-name").read_text().strip()]
    assert runs[0].startswith("test_the_real_trackio_goes")
    assert logs == [[10, 1.5], [20, 1.5]]


def test_a_run_without_trackers_warns_of_nothing(tmp_path: Path) -> None:
    trackers = Trackers([])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trackers.start({}, tmp_path, 0)
        log_calls(trackers)
        trackers.finish("finished")
