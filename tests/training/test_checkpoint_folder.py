"""A checkpoint is there as a whole or not at all, and one with any damage is known."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from simple_hierarchical_transformer import CheckpointError, files
from simple_hierarchical_transformer.files import is_beside
from simple_hierarchical_transformer.training import checkpoint_folder
from simple_hierarchical_transformer.training.checkpoint_folder import (
    MANIFEST_FILE,
    manifest_bytes,
    read_manifest,
    verify_folder,
    write_folder,
)
from simple_hierarchical_transformer.training.checkpoints import REQUIRED, Checkpoints

CHANCE = random.Random(0)
PAGE = 4096


def content(step: int) -> dict[str, bytes]:
    chance = random.Random(step)
    sizes = dict(zip(sorted(REQUIRED), (700, 3 * PAGE, 1500, 5 * PAGE), strict=True))
    return {name: chance.randbytes(size) for name, size in sizes.items()}


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    return Checkpoints(tmp_path, keep=2)


# writing


class Fault:
    """Counts writes, flushes, renames and new folders, and at one of them fails, having written half, or is killed."""

    def __init__(self, patch: pytest.MonkeyPatch, at: int | None, happen: Callable[[], None]) -> None:
        self.calls, self.at, self.happen = 0, at, happen
        self.patch = patch
        real_open = open

        def faulty_open(*arguments: Any) -> Any:
            file = real_open(*arguments)
            return FaultyFile(file, self) if arguments[1] != "rb" else file

        patch.setattr(files, "open", faulty_open, raising=False)
        for module, name in ((os, "fsync"), (os, "rename"), (os, "replace"), (Path, "mkdir"), (shutil, "rmtree")):
            patch.setattr(module, name, self.counted(getattr(module, name)))

    def counted(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def counting(*arguments: Any, **options: Any) -> Any:
            self.count()
            return call(*arguments, **options)

        return counting

    def count(self) -> None:
        self.calls += 1
        if self.calls == self.at:
            self.happen()


class FaultyFile:
    def __init__(self, file: Any, fault: Fault) -> None:
        self.file, self.fault = file, fault

    def write(self, data: bytes) -> None:
        self.file.write(data[: len(data) // 2])
        self.file.flush()
        self.fault.count()
        self.file.write(data[len(data) // 2 :])

    def __enter__(self) -> FaultyFile:
        return self

    def __exit__(self, *arguments: object) -> None:
        self.file.__exit__(*arguments)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


def fail(number: int) -> Callable[..., None]:
    def failing(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    return failing


def count_calls(checkpoints: Checkpoints) -> int:
    with pytest.MonkeyPatch.context() as patch:
        fault = Fault(patch, None, lambda: None)
        save_third(checkpoints)
    return fault.calls


def save_two(checkpoints: Checkpoints) -> None:
    for step in (1, 2):
        checkpoints.save(step, content(step), None)


def save_third(checkpoints: Checkpoints) -> None:
    """Which makes the first one superfluous."""
    checkpoints.save(3, content(3), None)


def holds(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir() if file.name != MANIFEST_FILE}


def check_what_is_left(checkpoints: Checkpoints) -> None:
    """The newest is whole, and is the second or the third as they were given; nothing with a name is half."""
    newest = checkpoints.newest(fallback=False)
    assert newest in (checkpoints.path(2), checkpoints.path(3))
    for step in checkpoints.steps():
        checkpoints.verify(checkpoints.path(step))
        assert holds(checkpoints.path(step)) == content(step)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_an_error_at_any_call_leaves_the_checkpoints_before_as_they_were(tmp_path: Path, number: int) -> None:
    counted = Checkpoints(tmp_path / "counted", keep=2)
    save_two(counted)
    calls = count_calls(counted)
    assert calls > 2 * (len(REQUIRED) + 1) + 3  # writes and flushes, and those of folders
    refused = 0
    for at in range(1, calls + 1):
        checkpoints = Checkpoints(tmp_path / str(at), keep=2)
        save_two(checkpoints)
        with pytest.MonkeyPatch.context() as patch:
            Fault(patch, at, fail(number))
            try:
                save_third(checkpoints)
            except OSError as error:
                assert error.errno == number
                refused += 1
        check_what_is_left(checkpoints)
        checkpoints.save(4, content(4), None)  # once there is room again
        assert checkpoints.newest(fallback=False) == checkpoints.path(4)
        checkpoints.sweep()
        assert not [path for path in checkpoints.folder.iterdir() if is_beside(path)]
    assert refused >= calls - 1  # what can't be removed stays, and is no error of the save


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a child is killed")
def test_a_kill_at_any_call_leaves_whole_checkpoints(tmp_path: Path) -> None:
    counted = Checkpoints(tmp_path / "counted", keep=2)
    save_two(counted)
    for at in range(1, count_calls(counted) + 1):
        checkpoints = Checkpoints(tmp_path / str(at), keep=2)
        save_two(checkpoints)
        child = os.fork()
        if child == 0:
            with pytest.MonkeyPatch.context() as patch:
                Fault(patch, at, lambda: os.kill(os.getpid(), signal.SIGKILL))
                save_third(checkpoints)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL
        check_what_is_left(checkpoints)
        checkpoints.sweep()
        assert not [path for path in checkpoints.folder.iterdir() if is_beside(path)]
        if checkpoints.newest(fallback=False) != checkpoints.path(3):  # as a run does that goes on
            save_third(checkpoints)
        assert checkpoints.newest(fallback=False) == checkpoints.path(3)


def test_a_checkpoint_that_is_there_is_not_written_over(checkpoints: Checkpoints) -> None:
    """Of two runs in one folder, one took the other's for its own."""
    save_two(checkpoints)
    with pytest.raises(FileExistsError, match="step-00000002 is there already"):
        checkpoints.save(2, content(3), None)
    assert holds(checkpoints.path(2)) == content(2)


def test_a_folder_that_is_written_in_place_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the tests above could fail."""
    monkeypatch.setattr(checkpoint_folder, "name_beside", lambda path: path)
    monkeypatch.setattr(checkpoint_folder.shutil, "rmtree", lambda *_, **__: None)
    checkpoints = Checkpoints(tmp_path, keep=2)
    monkeypatch.setattr(files.os, "fsync", fail(errno.EIO))
    with pytest.raises(OSError, match="Input/output"):
        checkpoints.save(1, content(1), None)
    with pytest.raises(CheckpointError):
        checkpoints.newest(fallback=False)


# damage


def flip(data: bytes) -> bytes:
    place = CHANCE.randrange(len(data) * 8)
    return data[: place // 8] + bytes([data[place // 8] ^ 1 << place % 8]) + data[place // 8 + 1 :]


def zero(data: bytes) -> bytes:
    start = CHANCE.randrange(0, len(data), PAGE)
    page = data[start : start + PAGE]
    return data[:start] + bytes(len(page)) + data[start + PAGE :]


def truncate(data: bytes) -> bytes:
    return data[: CHANCE.randrange(len(data))]


def append(data: bytes) -> bytes:
    return data + CHANCE.randbytes(CHANCE.choice([1, 8, PAGE]))


DAMAGES = (flip, zero, truncate, append)


def damages(path: Path, other: Path) -> Iterator[Path]:
    """Each time one file of a checkpoint is damaged, or swapped for one of another checkpoint, or gone."""
    names = sorted([*REQUIRED, MANIFEST_FILE])
    while True:
        for damage in (*DAMAGES, None, "swap"):
            file = path / CHANCE.choice(names)
            good = file.read_bytes()
            if damage is None:
                file.unlink()
            elif damage == "swap":
                file.write_bytes((other / file.name).read_bytes())
            else:
                damaged = damage(good)
                if damaged == good:
                    continue
                file.write_bytes(damaged)
            yield file
            file.write_bytes(good)


def test_two_thousand_damaged_checkpoints_are_refused(checkpoints: Checkpoints) -> None:
    save_two(checkpoints)
    newest = checkpoints.path(2)
    for _, file in zip(range(2000), damages(newest, checkpoints.path(1)), strict=False):
        with pytest.raises(CheckpointError) as caught:
            checkpoints.newest(fallback=False)
        # a manifest of another checkpoint tells of other files than there are
        assert str(newest) in str(caught.value) and (file.name in str(caught.value) or file.name == MANIFEST_FILE)
        assert f"{checkpoints.path(1)} is whole: add --resume-fallback" in str(caught.value)
        assert checkpoints.newest(fallback=True) == checkpoints.path(1)
    newest_again = checkpoints.path(2)
    for name, data in content(2).items():
        (newest_again / name).write_bytes(data)
    write_manifest(newest_again)
    assert checkpoints.newest(fallback=False) == newest_again


def write_manifest(folder: Path) -> None:
    """As if what stands there now had been written so."""
    shutil.rmtree(folder.parent / "again", ignore_errors=True)
    write_folder(folder.parent / "again", holds(folder))
    shutil.copy(folder.parent / "again" / MANIFEST_FILE, folder / MANIFEST_FILE)
    shutil.rmtree(folder.parent / "again")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 2}, "format version 2 is not 1: continue with the version of"),
        ({"format_version": True}, "format version True is not 1"),
        ({"format": "something else"}, "no manifest of a checkpoint"),
        ({"files": []}, "isn't as it was written"),
        ({"files": {"../secret": {"bytes": 1, "sha256": ""}}}, r"it lists \.\./secret, not config\.json"),
        ({"more": 1}, "isn't as it was written"),
        ({"files": {"state.json": {"bytes": "1", "sha256": ""}}}, "isn't as it was written"),
    ],
)
def test_a_manifest_of_something_else_is_refused(
    checkpoints: Checkpoints, changes: dict[str, Any], message: str
) -> None:
    save_two(checkpoints)
    path = checkpoints.path(2) / MANIFEST_FILE
    changed = json.loads(path.read_bytes()) | changes
    path.write_text(json.dumps(changed, indent=1, sort_keys=True) + "\n")
    with pytest.raises(CheckpointError, match=message):
        checkpoints.verify(checkpoints.path(2))


def test_a_manifest_is_read_as_it_was_written(checkpoints: Checkpoints) -> None:
    save_two(checkpoints)
    path = checkpoints.path(2) / MANIFEST_FILE
    entries = read_manifest(path)
    assert {name: entry["bytes"] for name, entry in entries.items()} == {n: len(c) for n, c in content(2).items()}
    assert manifest_bytes(entries) == path.read_bytes()


def test_a_link_in_place_of_a_file_is_refused(checkpoints: Checkpoints) -> None:
    save_two(checkpoints)
    file = checkpoints.path(2) / "state.json"
    file.rename(checkpoints.folder / "elsewhere")
    file.symlink_to(checkpoints.folder / "elsewhere")
    with pytest.raises(CheckpointError, match="missing"):
        checkpoints.verify(checkpoints.path(2))


# which are kept, and which is taken


def test_the_newest_and_the_best_are_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in range(1, 7):
        checkpoints.save(step, content(1), best=2 if step >= 2 else 1)
    assert checkpoints.steps() == [2, 5, 6]
    checkpoints.save(7, content(1), best=7)
    assert checkpoints.steps() == [6, 7]


def test_other_files_among_the_checkpoints_are_left_alone(checkpoints: Checkpoints) -> None:
    save_two(checkpoints)
    others = ["notes.txt", "step-00000001.txt", "step-1"]
    for name in others:
        (checkpoints.folder / name).write_text("mine")
    save_third(checkpoints)
    checkpoints.sweep()
    assert {path.name for path in checkpoints.folder.iterdir()} == {"step-00000002", "step-00000003", *others}


def test_where_none_is_whole_that_is_said(checkpoints: Checkpoints) -> None:
    assert checkpoints.newest(fallback=False) is None
    save_two(checkpoints)
    for step in (1, 2):
        (checkpoints.path(step) / "state.json").write_bytes(b"")
    for fallback in (False, True):
        with pytest.raises(CheckpointError, match="no checkpoint of this run is whole: start anew"):
            checkpoints.newest(fallback)


def test_damaged_checkpoints_are_set_aside_and_not_lost(checkpoints: Checkpoints) -> None:
    save_two(checkpoints)
    lines: list[str] = []
    checkpoints.set_aside(after=1, report=lines.append)
    assert checkpoints.steps() == [1]
    aside = checkpoints.folder / "damaged-step-00000002"
    assert holds(aside) == content(2)
    assert lines == [f"the damaged checkpoint {checkpoints.path(2)} is now {aside}"]
    checkpoints.save(2, content(2), None)
    checkpoints.set_aside(after=1, report=lines.append)
    assert holds(checkpoints.folder / "damaged-step-00000002.1") == content(2)


def test_unknown_files_in_a_manifest_are_refused(checkpoints: Checkpoints, tmp_path: Path) -> None:
    write_folder(tmp_path / "more", content(1) | {"code.py": b"print()"})
    with pytest.raises(CheckpointError, match=r"it lists code\.py, config\.json"):
        verify_folder(tmp_path / "more", REQUIRED, frozenset())
