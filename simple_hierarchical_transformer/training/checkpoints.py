"""The checkpoints of a run: which there are, which are kept, and which one to go on from."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Mapping
from itertools import count
from pathlib import Path

from ..checkpoint import CONFIG_FILE, WEIGHTS_FILE, CheckpointError
from ..files import Content, is_beside
from .checkpoint_folder import remove_folder, verify_folder, write_folder
from .run_state import STATE_FILE

CHECKPOINTS_FOLDER = "checkpoints"
TRAIN_FILE = "train.safetensors"
REQUIRED = frozenset({CONFIG_FILE, WEIGHTS_FILE, TRAIN_FILE, STATE_FILE})
OPTIONAL = frozenset({"tokenizer.json", "tokenizer_name.json"})
NAME = re.compile(r"step-(\d{8,})")


class Checkpoints:
    """Those in the folder of a run, by step: `checkpoints/step-00000200` and so on."""

    def __init__(self, run: Path, keep: int) -> None:
        self.folder, self.keep = run / CHECKPOINTS_FOLDER, keep

    def path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def steps(self) -> list[int]:
        """The steps at which there is a checkpoint, whole or not, in their order."""
        if not self.folder.is_dir():
            return []
        named = [NAME.fullmatch(path.name) for path in self.folder.iterdir() if path.is_dir()]
        return sorted(int(match[1]) for match in named if match)

    def save(self, step: int, files: Mapping[str, Content], best: int | None) -> Path:
        """Write the checkpoint of a step, and take away what isn't kept any more.

        Raises:
            OSError: it can't be written, or there is one of this step; those that were there still are.
        """
        path = self.path(step)
        if path.exists():
            raise FileExistsError(f"{path} is there already")
        write_folder(path, files)
        kept = {*self.steps()[-self.keep :], best}
        for old in self.steps():
            if old not in kept:
                remove_folder(self.path(old))
        return path

    def sweep(self) -> None:
        """Remove what a process was ended in the middle of writing or removing."""
        if self.folder.is_dir():
            for path in self.folder.iterdir():
                if is_beside(path):
                    shutil.rmtree(path, ignore_errors=True)

    def newest(self, fallback: bool) -> Path | None:
        """The checkpoint to go on from: the newest one, or with `fallback` the newest that is whole; None: none.

        Raises:
            CheckpointError: it is damaged. The message names the newest one that isn't.
        """
        steps = self.steps()
        if not steps:
            return None
        damage: CheckpointError | None = None
        for step in reversed(steps):
            try:
                self.verify(self.path(step))
            except CheckpointError as error:
                damage = damage or error
                continue
            if damage is None or fallback:
                return self.path(step)
            offer = f"{self.path(step)} is whole: add --resume-fallback to go on from there"
            raise CheckpointError(damage.path, damage.reason, offer)
        assert damage is not None
        none = "no checkpoint of this run is whole: start anew, with another --out"
        raise CheckpointError(damage.path, damage.reason, none)

    def verify(self, path: Path) -> None:
        """Check all files of a checkpoint.

        Raises:
            CheckpointError: naming the file, what is wrong with it, and what to do.
        """
        verify_folder(path, REQUIRED, OPTIONAL)

    def set_aside(self, after: int, report: Callable[[str], None]) -> None:
        """Rename the checkpoints after a step, which are damaged, so that new ones of these steps can be written."""
        for step in self.steps():
            if step > after:
                path = self.path(step)
                names = (path.with_name(f"damaged-{path.name}{f'.{n}' * (n > 0)}") for n in count())
                aside = next(name for name in names if not name.exists())
                os.rename(path, aside)
                report(f"the damaged checkpoint {path} is now {aside}")
