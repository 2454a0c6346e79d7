from __future__ import annotations

from pathlib import Path

import pytest

from simple_hierarchical_transformer.files import name_beside
from simple_hierarchical_transformer.training import TrainConfig
from simple_hierarchical_transformer.training.run_folder import (
    check_run_folder,
    is_run,
    open_run_folder,
    reopen_run_folder,
)
from simple_hierarchical_transformer.training.settings import read_toml


def ignore(line: str) -> None:
    pass


def test_a_new_folder_is_made_and_known_as_a_run(tmp_path: Path) -> None:
    out = tmp_path / "a" / "run"
    open_run_folder(TrainConfig(out=out, seed=3), ignore)
    assert is_run(out)
    assert read_toml(out / "config.toml")["seed"] == 3


def test_an_empty_folder_is_used(tmp_path: Path) -> None:
    open_run_folder(TrainConfig(out=tmp_path), ignore)
    assert is_run(tmp_path)


def test_earlier_runs_are_moved_aside_and_nothing_is_lost(tmp_path: Path) -> None:
    out = tmp_path / "default"
    lines: list[str] = []
    for number in range(3):
        open_run_folder(TrainConfig(out=out, seed=number), lines.append)
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
    for use in (check_run_folder, lambda out: open_run_folder(TrainConfig(out=out), ignore)):
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
    reopen_run_folder(TrainConfig(out=tmp_path))
    assert is_run(tmp_path)
