"""The folder of a run: `config.json`, `metrics.jsonl` and `model/`. What a user has is never overwritten."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

from ..files import write_atomically

CONFIG_FILE = "config.json"
MODEL_FOLDER = "model"
RUN_FORMAT = "simple-hierarchical-transformer run, version 1"


def is_run(folder: Path) -> bool:
    """Whether a folder was written by an earlier training run."""
    try:
        written = json.loads((folder / CONFIG_FILE).read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(written, dict) and written.get("format") == RUN_FORMAT


def check_run_folder(out: Path) -> None:
    """Refuse, before any work is done, a folder that a run must not write to.

    Raises:
        ValueError: it is a file, or a folder of something else than an earlier run
    """
    if out.is_dir():
        if any(out.iterdir()) and not is_run(out):
            raise ValueError(
                f"out: the folder {out} holds files that aren't those of an earlier run: "
                "choose another with --out, such as --out runs/mine"
            )
    elif out.exists() or out.is_symlink():
        raise ValueError(f"out: {out} is not a folder: choose another path with --out, such as --out runs/mine")


def open_run_folder(out: Path, config: dict[str, Any], report: Callable[[str], None]) -> None:
    """Make the folder of a run and write its `config.json`; an earlier run in the same place is moved aside."""
    check_run_folder(out)
    if out.is_dir() and any(out.iterdir()):
        # "." and ".." can't be renamed by these names
        out = out.resolve()
        aside = next(path for n in count(1) if not (path := out.with_name(f"{out.name}.{n}")).exists())
        out.rename(aside)
        report(f"the earlier run in {out} is now in {aside}")
    out.mkdir(parents=True, exist_ok=True)
    written = json.dumps({"format": RUN_FORMAT, **config}, indent=2)
    write_atomically({out / CONFIG_FILE: f"{written}\n".encode()})
