"""The curves of runs, drawn: training as a smoothed line, validation as markers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from ..figures import COLORS, new_figure, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

AXES = {"step": "step", "tokens": "tokens", "time": "seconds"}  # by what is drawn, and its key in the metrics
TRAINING = "train_bits_per_byte"
VALIDATION = "validation_bits_per_byte"
MOST_POINTS = 1000  # of a line, which is about one for each dot that there is room for
MOST_MARKERS = 100
SMOOTHED_SHARE = 0.04  # of a training curve, over which it is averaged
STEEP_SHARE = 0.1  # of a curve, at its beginning, where it may stand above the figure
NAME_WIDTH = 36  # letters in the legend
MARKERS = "osD^v"  # another one each time all colours are used up
PLAIN = "#444444"

Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Run:
    """The records of a run, under the shortest name that tells it from the others."""

    name: str
    records: list[dict[str, Any]]

    def points(self, x: str, y: str, unit: float = 1.0) -> Points:
        """The figures `y` against `x`, in so large a unit, where a record has both."""
        return [
            (position / unit, figure)
            for record in self.records
            if (position := finite(record.get(x))) is not None and (figure := finite(record.get(y))) is not None
        ]


def draw(runs: Sequence[Run], by: str) -> Figure:
    figure = new_figure(9, max(5.2, 0.23 * len(runs) + 1))
    axis = figure.add_subplot()
    unit, label = unit_of(runs, by)
    shown: list[float] = []
    for index, run in enumerate(runs):
        color, marker = look(index)
        shown += draw_training(axis, run.points(AXES[by], TRAINING, unit), color)
        shown += draw_validation(axis, run.points(AXES[by], VALIDATION, unit), color, marker)
    margin = 0.05 * (max(shown) - min(shown)) or 0.05
    axis.set_ylim(min(shown) - margin, max(shown) + margin)
    axis.margins(x=0.02)
    axis.set_xlabel(label)
    axis.set_ylabel("bits per byte")
    lay_out(axis, by)
    add_legend(figure, axis, runs)
    return figure


def draw_training(axis: Axes, points: Points, color: str) -> list[float]:
    """A line through the means, before the figures themselves in a pale colour; what must be seen of it."""
    if not points:
        return []
    points = thinned(points)
    means = smoothed(points)
    if means != points:
        axis.plot(*columns(points), color=color, alpha=0.22, linewidth=0.7)
    alone = "." if len(points) == 1 else ""  # of a line of one point, nothing would be seen
    axis.plot(*columns(means), color=color, linewidth=1.2, marker=alone, label="training")
    return settled(means)


def draw_validation(axis: Axes, points: Points, color: str, marker: str) -> list[float]:
    if not points:
        return []
    # counted from the last one, which is always there
    points = points[:: -math.ceil(len(points) / MOST_MARKERS)][::-1]
    axis.plot(
        *columns(points),
        color=color,
        linestyle="none",
        marker=marker,
        markersize=5.5,
        markeredgecolor="white",
        zorder=3,
        label="validation",
    )
    return settled(points)


def look(index: int) -> tuple[str, str]:
    """Colour and marker of a run."""
    return COLORS[index % len(COLORS)], MARKERS[index // len(COLORS) % len(MARKERS)]


def lay_out(axis: Axes, by: str) -> None:
    from matplotlib.ticker import EngFormatter, MaxNLocator, StrMethodFormatter

    axis.xaxis.set_major_locator(MaxNLocator(7, integer=by != "time"))
    formatters = {"step": StrMethodFormatter("{x:,.0f}"), "tokens": EngFormatter(sep="")}
    axis.xaxis.set_major_formatter(formatters.get(by, StrMethodFormatter("{x:,g}")))
    tidy(axis)


def add_legend(figure: Figure, axis: Axes, runs: Sequence[Run]) -> None:
    """What lines and markers are, and, beside the figure where there are several runs, what the colours are."""
    from matplotlib.lines import Line2D

    several = len(runs) > 1
    color = PLAIN if several else COLORS[0]
    names = ["training, smoothed", "validation"]
    handles = [
        Line2D([], [], color=color, linewidth=1.2),
        Line2D([], [], color=color, linestyle="none", marker="o", markersize=5.5, markeredgecolor="white"),
    ]
    if several:
        names += [shortened(run.name) for run in runs]
        looks = [look(index) for index in range(len(runs))]
        handles += [Line2D([], [], color=color, linewidth=1.2, marker=mark, markersize=5) for color, mark in looks]
    else:
        axis.set_title(shortened(runs[0].name), loc="left", fontsize=11, parse_math=False)
    blank = [""] * len(names)
    if several:
        legend = figure.legend(handles, blank, loc="outside right upper", frameon=False, fontsize=9)
    else:
        legend = axis.legend(handles, blank, loc="upper right", frameon=False, fontsize=9)
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set_text(name)  # only now, since older legends leave out what is called _
        text.set_parse_math(False)


def shortened(name: str) -> str:
    half = NAME_WIDTH // 2
    return name if len(name) <= NAME_WIDTH else f"{name[: half - 1]}…{name[-half:]}"


def finite(value: Any) -> float | None:
    """A number that can be drawn, or None: a file may hold anything."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if abs(value) < 1e300 else None  # nan isn't below anything


def columns(points: Points) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


def thinned(points: Points) -> Points:
    """At most so many points as there is room for, each the mean of those that it stands for."""
    size = math.ceil(len(points) / MOST_POINTS)
    if size <= 1:
        return points
    parts = [columns(points[start : start + size]) for start in range(0, len(points), size)]
    return [(sum(xs) / len(xs), sum(ys) / len(ys)) for xs, ys in parts]


def smoothed(points: Points) -> Points:
    """Each with the mean of as many points before it as after it, so that the curve doesn't lag.

    Only at the end, where one point would be all that is left, those before it count although fewer come after it.
    """
    reach = round(SMOOTHED_SHARE * len(points) / 2)
    if reach == 0:
        return points
    sums = [0.0, *accumulate(y for _, y in points)]
    means = []
    for index, (x, _) in enumerate(points):
        first = max(0, index - reach)
        end = min(len(points), index + min(reach, index) + 1)
        means.append((x, (sums[end] - sums[first]) / (end - first)))
    return means


def settled(points: Points) -> list[float]:
    """The figures after the steep beginning of a curve, or all where there are few."""
    return [y for _, y in points[int(STEEP_SHARE * len(points)) :]]


def unit_of(runs: Sequence[Run], by: str) -> tuple[float, str]:
    """What the figures of the horizontal axis are divided by, and what it is called."""
    if by != "time":
        return 1.0, {"step": "optimiser steps", "tokens": "tokens"}[by]
    points = [point for run in runs for y in (TRAINING, VALIDATION) for point in run.points(AXES[by], y)]
    seconds = max(x for x, _ in points)
    if seconds < 300:
        return 1.0, "training time, seconds"
    return (60.0, "training time, minutes") if seconds < 3 * 3600 else (3600.0, "training time, hours")
