"""Whenever a run is killed, it goes on as if it hadn't been: the same losses and the same weights, to the bit."""

from __future__ import annotations

import hashlib
import os
import random
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from .conftest import TEXT, TINY_MODEL, TINY_RUN, read_figures
from .killing import Killer

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="children are forked")

LONGEST_SAVE = 0.03
SAVES = 7  # that a run makes at least


@pytest.fixture(scope="module")
def killer() -> Iterator[Killer]:
    with Killer() as killer:
        yield killer


def weights(run: Path) -> str:
    return hashlib.sha256((run / "model" / "model.safetensors").read_bytes()).hexdigest()


class Runs:
    """The same small run, in any number of folders."""

    def __init__(self, folder: Path, **changes: Any) -> None:
        (folder / "text.txt").write_bytes(TEXT)
        self.folder, self.changes = folder, changes

    def config(self, name: str) -> dict[str, Any]:
        settings = {"data": [str(self.folder / "text.txt")], "out": str(self.folder / name), "model": TINY_MODEL}
        often = {"steps": 20, "checkpoint_every": 3, "validate_every": 4, "resume": True, "average": 0.9, "keep": 2}
        return {**TINY_RUN, **often, **settings, **self.changes}


def check_that_kills_change_nothing(killer: Killer, tmp_path: Path, kills: int, in_saves: int, **changes: Any) -> None:
    """So many kills at random moments, and so many more that come within a save."""
    chance = random.Random(0)
    runs = Runs(tmp_path, **changes)
    start = time.perf_counter()
    assert killer.run(runs.config("whole"))["status"] == 0
    longest_run = time.perf_counter() - start
    figures, expected = read_figures(tmp_path / "whole"), weights(tmp_path / "whole")

    def check(name: str) -> None:
        assert killer.run(runs.config(name))["status"] == 0
        assert weights(tmp_path / name) == expected
        assert read_figures(tmp_path / name) == figures

    for number in range(kills):
        killer.run(runs.config(f"run-{number}"), after=chance.uniform(0, longest_run))
        check(f"run-{number}")
    names = (f"save-{number}" for number in count())
    for _ in range(in_saves):
        save = chance.randint(1, SAVES)
        longest = LONGEST_SAVE
        while not killer.run(runs.config(name := next(names)), save=save, after=chance.uniform(0, longest))["in_save"]:
            longest *= 0.8  # the save was over
        check(name)


def test_a_run_killed_at_any_moment_goes_on_to_the_same_bits(killer: Killer, tmp_path: Path) -> None:
    check_that_kills_change_nothing(killer, tmp_path, kills=5, in_saves=3)


@pytest.mark.slow
def test_a_hundred_kills_change_nothing(killer: Killer, tmp_path: Path) -> None:
    check_that_kills_change_nothing(killer, tmp_path, kills=60, in_saves=40)


def test_with_adamw_and_accumulated_gradients_too(killer: Killer, tmp_path: Path) -> None:
    changes = {"optimizer": "adamw", "weight_decay": 0.1, "accumulate": 2, "schedule": "cosine", "workers": 1}
    check_that_kills_change_nothing(killer, tmp_path, kills=2, in_saves=1, **changes)


def test_a_run_that_forgets_something_is_noticed(killer: Killer, tmp_path: Path) -> None:
    """So that the tests above could fail: the same run with another seed has other weights."""
    runs = Runs(tmp_path)
    other = {**runs.config("other"), "seed": 1}
    for config in (runs.config("one"), other):
        assert killer.run(config)["status"] == 0
    assert weights(tmp_path / "one") != weights(tmp_path / "other")
    assert read_figures(tmp_path / "one") != read_figures(tmp_path / "other")
