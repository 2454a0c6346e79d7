"""What quality.py trains: contenders, their sizes and grids, and the runs of every table."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from quality_runs import Run

SEEDS = (0, 1, 2)
GRID_SECONDS, SHORT_SECONDS, FULL_SECONDS = 60.0, 90.0, 270.0
LONG_SECONDS = 45 * 60.0
GRID: tuple[dict[str, Any], ...] = (  # what each contender is tuned over
    {"optimizer": "adamw", "lr": 1e-3},
    {"optimizer": "adamw", "lr": 3e-3},
    {"optimizer": "muon", "lr": 0.01},
    {"optimizer": "muon", "lr": 0.02},
    {"optimizer": "muon", "lr": 0.04},
)


@dataclass(frozen=True)
class Table:
    """One table of docs/evidence.md.

    Attributes:
        title: what it is about.
        runs: that it shows; they may depend on what those that it `needs` have found.
        needs: runs that must be there before.
        base: the contender that others are compared with.
    """

    title: str
    runs: Callable[[], Iterator[Run]]
    needs: Callable[[], Iterator[Run]] = lambda: iter(())
    base: str | None = None
