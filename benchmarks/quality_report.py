"""What quality.py has found, as tables of docs/evidence.md and as figures."""

from __future__ import annotations

import math
from bisect import bisect
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from quality_plan import TABLES
from quality_runs import Run

FIGURES = Path(__file__).parents[1] / "docs" / "figures"
# blue and its lighter shades are ours; these differ for the colour-blind too (Okabe and Ito)
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999", "#8a6d3b")


Results = dict[str, list[dict[str, Any]]]  # by contender


def found(runs: Iterable[Run]) -> Results:
    """The results of the runs that have been made, in the order of the plan."""
    results: Results = {}
    for run in runs:
        result = run.result()
        if result is not None:
            results.setdefault(run.contender, []).append(result)
    return results


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [list(head), ["---"] * len(head), *map(list, rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def spread(values: Sequence[float]) -> str:
    """Mean and half of the range."""
    if len(values) == 1:
        return f"{values[0]:.3f}"
    return f"{mean(values):.3f} ± {(max(values) - min(values)) / 2:.3f}"


def bits(results: Sequence[Mapping[str, Any]]) -> list[float]:
    return [result["bits_per_byte"] for result in results]


def steps(results: Sequence[Mapping[str, Any]]) -> float:
    return mean(result["steps"] for result in results)


def contest(name: str) -> str:
    """Contenders under one budget, the best first."""
    results = found(TABLES[name].runs())
    ranked = sorted(results, key=lambda contender: mean(bits(results[contender])))
    best = mean(bits(results[ranked[0]])) if ranked else 0.0
    rows = []
    for contender in ranked:
        own = results[contender]
        first = own[0]
        rows.append(
            [
                contender,
                f"**{spread(bits(own))}**" if contender == ranked[0] else spread(bits(own)),
                f"{mean(bits(own)) - best:+.3f}" if contender != ranked[0] else "",
                f"{first['parameters'] / 1e6:.2f}",
                f"{steps(own):,.0f}",
                f"{mean(r['tokens'] / r['seconds'] for r in own):,.0f}",
                f"{mean(r['flops_per_step'] * r['steps'] for r in own) / 1e12:.1f}",
                f"{max(r['peak_bytes'] for r in own) / 1e6:,.0f}",
                str(len(own)),
            ]
        )
    head = ("contender", "bits per byte", "over the best", "parameters, M", "steps", "bytes per second")
    return table((*head, "training TFLOP", "peak, MB", "seeds"), rows)


def per_step(name: str, results: Results) -> dict[str, float]:
    """What each row has over its base when that is given as many steps, by the base's own runs of other budgets."""
    plan = TABLES[name]
    known = [results[row] for row in (plan.base, *plan.budgets) if row in results]
    points = sorted((math.log(steps(own)), mean(bits(own))) for own in known)
    if len(points) < 2:
        return {}

    def of_the_base(place: float) -> float:
        # straight between its runs, and on as straight beyond them
        above = min(max(bisect(points, (place,)), 1), len(points) - 1)
        (x0, y0), (x1, y1) = points[above - 1], points[above]
        return y0 + (y1 - y0) * (place - x0) / (x1 - x0)

    rows = [row for row in results if row != plan.base and row not in plan.budgets]
    return {row: mean(bits(results[row])) - of_the_base(math.log(steps(results[row]))) for row in rows}


def ablation(name: str) -> str:
    """Variants beside their base, in the order of the plan."""
    results = found(TABLES[name].runs())
    base, by_step = TABLES[name].base, per_step(name, results)
    rows = []
    for contender, own in results.items():
        difference = ""
        if base in results and contender != base:
            difference = f"{mean(bits(own)) - mean(bits(results[base])):+.3f}"
        at_equal_steps = f"{by_step[contender]:+.3f}" if contender in by_step else ""
        milliseconds = f"{mean(r['seconds'] / r['steps'] for r in own) * 1e3:.0f}"
        rows.append([contender, spread(bits(own)), difference, at_equal_steps, milliseconds, str(len(own))])
    return table(("", "bits per byte", "over the base", "at equal steps", "ms per step", "seeds"), rows)


def grid(name: str) -> str:
    """Bits per byte of every contender at every point of its grid, the one that was chosen in bold."""
    columns: list[str] = []
    by_contender: dict[str, dict[str, float]] = {}
    for run in TABLES[name].runs():
        result = run.result()
        point = f"{'Muon' if run.optimizer == 'muon' else 'AdamW'} {run.lr:g}"
        if point not in columns:
            columns.append(point)
        if result is not None:
            by_contender.setdefault(run.contender, {})[point] = result["bits_per_byte"]
    rows = []
    for contender, values in by_contender.items():
        best = min(values.values())
        cells = [f"{values[c]:.3f}" if c in values else "" for c in columns]
        rows.append([contender, *(f"**{cell}**" if cell == f"{best:.3f}" else cell for cell in cells)])
    return table(("contender", *columns), rows)


STYLES = {"contest": contest, "ablation": ablation, "grid": grid}


def shortfall(name: str) -> str:
    """How many of a table's runs haven't been made, where some haven't."""
    runs = [*TABLES[name].needs(), *TABLES[name].runs()]
    done = sum(run.result() is not None for run in runs)
    return "" if done == len(runs) else f"\nOpen: {len(runs) - done} of {len(runs)} runs.\n"


def written(name: str) -> str:
    """A table of docs/evidence.md, of the runs that are there."""
    return STYLES[TABLES[name].style](name) + shortfall(name)


def print_plan(names: Iterable[str]) -> None:
    for name in names:
        runs = list(TABLES[name].runs())
        done = sum(run.result() is not None for run in runs)
        print(f"{name}: {TABLES[name].title}: {done} of {len(runs)} runs")
        for run in runs:
            result = run.result()
            shown = f"{result['bits_per_byte']:.3f}" if result else "–"
            print(f"  {run.contender:50} {run.optimizer} {run.lr:g}, {run.budget}, seed {run.seed}: {shown}")


def print_run(name: str, run: Run) -> None:
    result = run.result()
    assert result is not None
    speed = f"{result['steps']:,} steps, {result['seconds'] / result['steps'] * 1e3:.0f} ms each"
    where = f"{name}: {run.contender}, {run.optimizer} {run.lr:g}, {run.budget}, seed {run.seed}"
    print(f"{where}: {result['bits_per_byte']:.4f} bits per byte, {speed}", flush=True)


# figures


def draw(folder: Path = FIGURES) -> None:
    """All figures that there are runs for."""
    import matplotlib

    matplotlib.use("Agg")
    # so that the same results give the same file
    matplotlib.rcParams.update({"svg.hashsalt": "evidence", "font.size": 9, "axes.spines.right": False})
    matplotlib.rcParams.update({"axes.spines.top": False, "legend.frameon": False})
    for name, make in (("curves", curves), ("questions", bars), ("recipe", bars), ("places", places)):
        figure = make(name)
        if figure is not None:
            figure.savefig(folder / f"evidence-{name}.svg", metadata={"Date": None}, bbox_inches="tight")


def color_of(contender: str, contenders: Sequence[str]) -> str:
    return COLORS[list(contenders).index(contender) % len(COLORS)]


def curves(_: str) -> Any:
    """Training loss against time and against FLOPs, by length; and what comes out against parameters."""
    import matplotlib.pyplot as plt

    names = [name for name in ("wall_512", "wall_2048", "wall_8192", "long") if found(TABLES[name].runs())]
    if not names:
        return None
    contenders = list(dict.fromkeys(c for name in names for c in found(TABLES[name].runs())))
    figure, axes = plt.subplots(len(names), 3, figsize=(11, 3 * len(names)), squeeze=False, layout="constrained")
    for row, name in zip(axes, names, strict=True):
        results = found(TABLES[name].runs())
        for contender, own in results.items():
            color = color_of(contender, contenders)
            points = min(len(r["curve"]) for r in own)
            ys = [[r["curve"][i][2] for r in own] for i in range(points)]
            middle, low, high = ([f(y) for y in ys] for f in (mean, min, max))
            seconds = [mean(r["curve"][i][0] for r in own) for i in range(points)]
            flops = [mean(r["curve"][i][1] * r["flops_per_step"] for r in own) / 1e12 for i in range(points)]
            for axis, xs in zip(row[:2], (seconds, flops), strict=True):
                axis.plot(xs, middle, color=color, label=contender, lw=1.4)
                axis.fill_between(xs, low, high, color=color, alpha=0.2, lw=0)
            parameters = own[0]["parameters"] / 1e6
            row[2].errorbar(
                parameters, mean(bits(own)), yerr=(max(bits(own)) - min(bits(own))) / 2, color=color, marker="o", ms=5
            )
        top = max(r["curve"][len(r["curve"]) // 4][2] for own in results.values() for r in own)
        bottom = min(min(r["bits_per_byte"] for r in own) for own in results.values())
        for axis in row:
            axis.set_ylim(bottom - 0.15, top + 0.1)
            axis.set_ylabel("bits per byte")
        row[0].set_title(TABLES[name].title, loc="left")
        row[0].set_xlabel("seconds of training (text seen for the first time)")
        row[1].set_xlabel("training TFLOP")
        row[2].set_xlabel("parameters, M (held-out text)")
        row[2].set_xscale("log")
    axes[0][1].legend(fontsize=7)
    return figure


def bars(name: str) -> Any:
    """By how much each row differs from the base; the line across a bar is the range over seeds."""
    import matplotlib.pyplot as plt

    results, base = found(TABLES[name].runs()), TABLES[name].base
    if base not in results or len(results) < 2:
        return None
    level = mean(bits(results[base]))
    rows = [contender for contender in results if contender not in (base, *TABLES[name].budgets)]
    differences = [mean(bits(results[contender])) - level for contender in rows]
    figure, axis = plt.subplots(figsize=(7.5, 0.26 * len(rows) + 0.9), layout="constrained")
    for place, (contender, difference) in enumerate(zip(rows, differences, strict=True)):
        values = bits(results[contender])
        axis.barh(place, difference, color=COLORS[0] if difference < 0 else COLORS[1], height=0.7)
        axis.plot([min(values) - level, max(values) - level], [place, place], color="black", lw=1)
    spread_of_base = bits(results[base])
    axis.axvspan(min(spread_of_base) - level, max(spread_of_base) - level, color="#dddddd", zorder=0)
    axis.axvline(0, color="black", lw=0.8)
    axis.set_yticks(range(len(rows)), rows)
    axis.invert_yaxis()
    axis.set_xlabel(f"bits per byte over the base ({level:.3f}); grey: the base's seeds; left of 0 is better")
    return figure


def places(_: str) -> Any:
    """Loss by position in the stride, and by position in the sequence, of our models."""
    import matplotlib.pyplot as plt

    found_at = {name: found(TABLES[name].runs()) for name in ("wall_512", "wall_2048", "wall_8192")}
    ours = {
        name: {c: own for c, own in results.items() if "by_phase" in own[0] and c.startswith("ours")}
        for name, results in found_at.items()
    }
    ours = {name: results for name, results in ours.items() if results}
    if not ours:
        return None
    figure, axes = plt.subplots(2, len(ours), figsize=(3.7 * len(ours), 5), squeeze=False, layout="constrained")
    contenders = list(dict.fromkeys(c for results in ours.values() for c in results))
    for column, (name, results) in zip(axes.T, ours.items(), strict=True):
        for contender, own in results.items():
            color = color_of(contender, contenders)
            phases = [mean(r["by_phase"][i] for r in own) for i in range(len(own[0]["by_phase"]))]
            folded = [mean(phases[i::16]) for i in range(16)]
            column[0].plot(range(16), folded, color=color, label=contender, marker=".")
            keys = list(own[0]["by_distance"])
            column[1].plot(
                [int(key.split("-")[1]) for key in keys],
                [mean(r["by_distance"][key] for r in own) for key in keys],
                color=color,
                marker=".",
            )
        column[0].set_title(TABLES[name].title, loc="left", fontsize=8)
        column[0].set_xlabel("position modulo 16")
        column[1].set_xlabel("bytes before, up to")
        column[1].set_xscale("log", base=2)
        for axis in column:
            axis.set_ylabel("bits per byte")
    axes[0][0].legend(fontsize=7)
    return figure
