from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from simple_hierarchical_transformer.files import fcntl, name_beside
from simple_hierarchical_transformer.training import TrainConfig
from simple_hierarchical_transformer.training.run_folder import (
    check_run_folder,
    is_run,
    lock_run_folder,
    write_config,
)
from simple_hierarchical_transformer.training.settings import read_toml

ROOT = Path(__file__).parents[2]


def ignore(line: str) -> None:
    pass


def opened(config: TrainConfig, report: Callable[[str], None] = ignore) -> None:
    """As a run does it from its beginning to its end."""
    lock = lock_run_folder(config, report)
    write_config(config)
    lock.release()


def test_a_new_folder_is_made_and_known_as_a_run(tmp_path: Path) -> None:
    out = tmp_path / "a" / "run"
    opened(TrainConfig(out=out, seed=3))
    assert is_run(out)
    assert read_toml(out / "config.toml")["seed"] == 3


def test_an_empty_folder_is_used(tmp_path: Path) -> None:
    opened(TrainConfig(out=tmp_path))
    assert is_run(tmp_path)


def test_earlier_runs_are_moved_aside_and_nothing_is_lost(tmp_path: Path) -> None:
    out = tmp_path / "default"
    lines: list[str] = []
    for number in range(3):
        opened(TrainConfig(out=out, seed=number), lines.append)
        (out / "note.txt").write_text(f"a note on run {number}")
    assert [(folder.name, (folder / "note.txt").read_text()) for folder in sorted(tmp_path.iterdir())] == [
        ("default", "a note on run 2"),
        ("default.1", "a note on run 0"),
        ("default.2", "a note on run 1"),
    ]
    assert lines == [f"the earlier run in {out} is now in {out}.{number}" for number in (1, 2)]


@pytest.mark.parametrize("content", [None, b"", b"seed = 3", b"no toml", b"\xff", b'format = "something else"'])
def test_a_folder_of_something_else_is_refused_and_left_alone(tmp_path: Path, content: bytes | None) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    if content is not None:
        (tmp_path / "config.toml").write_bytes(content)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for use in (check_run_folder, lambda out: opened(TrainConfig(out=out))):
        with pytest.raises(ValueError, match="holds files that aren't those of an earlier run: choose another with"):
            use(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("text")
    with pytest.raises(ValueError, match="run is not a folder: choose another path with --out"):
        check_run_folder(tmp_path / "run")


def test_what_a_run_was_killed_in_the_middle_of_writing_is_in_nobodys_way(tmp_path: Path) -> None:
    """A run killed as it wrote its configuration left a folder that no run could be started in."""
    name_beside(tmp_path / "config.toml").write_bytes(b"half")
    opened(TrainConfig(out=tmp_path, resume=True))
    assert is_run(tmp_path)


@pytest.mark.skipif(fcntl is None, reason="this system has no such locks")
@pytest.mark.parametrize("resume", [True, False])
def test_a_folder_in_which_another_process_trains_is_refused(tmp_path: Path, resume: bool) -> None:
    """The second run moved the first one's folder aside, which then wrote into that of the second."""
    config = TrainConfig(out=tmp_path / "run")
    lock = lock_run_folder(config, ignore)
    write_config(config)
    code = (
        "import sys; from pathlib import Path; from simple_hierarchical_transformer.training import TrainConfig;"
        "from simple_hierarchical_transformer.training.run_folder import lock_run_folder;"
        f"lock_run_folder(TrainConfig(out=Path(sys.argv[1]), resume={resume}), print)"
    )
    command = [sys.executable, "-c", code, str(config.out)]
    refused = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert f"another process is training in {config.out}: wait for it, or choose another with --out" in refused.stderr
    assert list(tmp_path.iterdir()) == [config.out]
    lock.release()
    assert subprocess.run(command, capture_output=True, cwd=ROOT, check=False).returncode == 0


def test_a_place_that_can_not_be_written_to_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    with pytest.raises(OSError, match=r"out: .*file/run can't be written to \(Not a directory\): make room, or choose"):
        lock_run_folder(TrainConfig(out=tmp_path / "file" / "run"), ignore)
