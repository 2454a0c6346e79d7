"""What quality.py has found, as tables of docs/evidence.md and as figures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from quality_plan import TABLES
from quality_runs import Run

FIGURES = Path(__file__).parents[1] / "docs" / "figures"
# blue and its lighter shades are ours; these differ for the colour-blind too (Okabe and Ito)
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999", "#8a6d3b")


def found(runs: Iterable[Run]) -> dict[str, list[dict[str, Any]]]:
    """The results of the runs that have been made, by contender, in the order of the plan."""
    results: dict[str, list[dict[str, Any]]] = {}
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
                f"{mean(r['steps'] for r in own):,.0f}",
                f"{mean(r['tokens'] / r['seconds'] for r in own):,.0f}",
                f"{mean(r['flops_per_step'] * r['steps'] for r in own) / 1e12:.1f}",
                f"{max(r['peak_bytes'] for r in own) / 1e6:,.0f}",
                str(len(own)),
            ]
        )
    head = ("contender", "bits per byte", "over the best", "parameters, M", "steps", "bytes per second")
    return table((*head, "training TFLOP", "peak, MB", "seeds"), rows)


def ablation(name: str) -> str:
    """Variants beside their base, in the order of the plan."""
    results = found(TABLES[name].runs())
    base = TABLES[name].base
    rows = []
    for contender, own in results.items():
        difference = ""
        if base in results and contender != base:
            difference = f"{mean(bits(own)) - mean(bits(results[base])):+.3f}"
        seconds = mean(r["seconds"] / r["steps"] for r in own)
        rows.append([contender, spread(bits(own)), difference, f"{seconds * 1e3:.0f}", str(len(own))])
    return table(("", "bits per byte", "over the base", "ms per step", "seeds"), rows)


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


def written(name: str) -> str:
    return STYLES[TABLES[name].style](name)


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
