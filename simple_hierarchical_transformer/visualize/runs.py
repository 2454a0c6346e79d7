"""The curves of training runs, in one figure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..training.curves import draw
from ..training.plot import load_runs

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_runs(runs: Sequence[str | Path], by: str = "step") -> Figure:
    """Bits per byte of one run or several: training as a smoothed line, validation as markers.

    `hierarchical-transformer plot` writes it, together with a page that has the figures in a table.

    Args:
        runs: folders of runs, finished or not; a folder that is named twice counts once.
        by: what the curves are drawn against: "step", "tokens", or "time", which is that spent on training.

    Raises:
        TypeError: runs isn't a list of paths.
        ValueError: no run, a folder that isn't that of a run or holds no figures yet, an unknown `by`, or matplotlib
            isn't installed.
    """
    return draw(load_runs(runs, by), by)
