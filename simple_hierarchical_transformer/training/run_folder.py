"""The folder of a run: `config.toml`, `metrics.jsonl`, `checkpoints/` and `model/`. Nothing in it is overwritten."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from itertools import count
from pathlib import Path

from ..files import RUN_MARK, FolderLock, InUseError, is_beside, write_atomically
from .config import TrainConfig
from .settings import FORMAT, RUN_FORMAT, write_toml

CONFIG_FILE = "config.toml"
MODEL_FOLDER = "model"
CHOOSE = "choose another with --out, such as --out runs/mine"


def is_run(folder: Path) -> bool:
    """Whether a folder was written by an earlier training run."""
    try:
        written = tomllib.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return written.get(FORMAT) == RUN_FORMAT


def is_empty(folder: Path) -> bool:
    """Whether a folder holds nothing, but for its lock and what a run was ended in the middle of writing."""
    return all(path.name == RUN_MARK or is_beside(path) for path in folder.iterdir())


def check_run_folder(out: Path) -> None:
    """Refuse, before any work is done, a folder that a run must not write to.

    Raises:
        ValueError: it is a file, or a folder of something else than an earlier run
    """
    if out.is_dir():
        if not is_empty(out) and not is_run(out):
            raise ValueError(f"out: the folder {out} holds files that aren't those of an earlier run: {CHOOSE}")
    elif out.exists() or out.is_symlink():
        raise ValueError(f"out: {out} is not a folder: {CHOOSE.replace('another', 'another path')}")


def lock_run_folder(config: TrainConfig, report: Callable[[str], None]) -> FolderLock:
    """Make the folder of a run, or take up the one that is there, for as long as the lock is held.

    Unless the run is resumed, an earlier one in the same place is moved aside.

    Raises:
        ValueError: it isn't one for a run, or another process is training in it
        OSError: it can't be written to
    """
    out = config.out
    check_run_folder(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = take_lock(out)
        if not config.resume and not is_empty(out):
            # "." and ".." can't be renamed by these names
            out = out.resolve()
            aside = next(path for n in count(1) if not (path := out.with_name(f"{out.name}.{n}")).exists())
            out.rename(aside)
            lock.release()  # which has gone with the folder
            report(f"the earlier run in {out} is now in {aside}")
            out.mkdir()
            lock = take_lock(out)
    except InUseError:
        raise ValueError(f"out: another process is training in {out}: wait for it, or {CHOOSE}") from None
    except OSError as error:
        raise not_writable(out, error) from error
    return lock


def take_lock(out: Path) -> FolderLock:
    lock = FolderLock(out / RUN_MARK)
    lock.take()
    return lock


def write_config(config: TrainConfig) -> None:
    head = (
        "# The settings of this run, which `hierarchical-transformer train --config` takes back.\n"
        f'{FORMAT} = "{RUN_FORMAT}"\n'
    )
    try:
        write_atomically({config.out / CONFIG_FILE: f"{head}{write_toml(config)}".encode()})
    except OSError as error:
        raise not_writable(config.out, error) from error


def not_writable(out: Path, error: OSError) -> OSError:
    return OSError(f"out: {out} can't be written to ({error.strerror}): make room, or {CHOOSE}")
