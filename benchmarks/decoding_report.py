"""What decoding.py has found, as a table and as a figure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

COLORS = {
    "ours": "#1f5fbf",
    "ours, cuda graphs": "#0f9e8f",
    "ours, compiled": "#7a4fc9",
    "ours without a state": "#7fb2e8",
    "reference 0.2.0": "#c8542b",
    "reference 0.4.0": "#e6a23c",
    "x-transformers": "#555555",
}


def print_cells(cells: list[dict[str, Any]]) -> None:
    for cell in cells:
        place = f"{cell['model']}, batch {cell['batch']}, context {cell['context']}"
        name = cell["contender"]
        if name == cells[0]["contender"]:
            print(f"\n{place:44} {'tokens/s':>9} {'per step':>12} {'first token':>12} {'peak':>9} {'over floor':>11}")
        if cell["skipped"]:
            print(f"  {name:42} skipped: {cell['skipped']}", flush=True)
            continue
        over = f"{cell['seconds_per_token'] / cell['floor']['seconds']:11.2f}" if cell["floor"] else ""
        step, first = cell["seconds_per_token"] * 1e3, cell["seconds_to_first_token"] * 1e3
        rest = f"{step:9.2f} ms {first:9.0f} ms {cell['peak_bytes'] / 1e6:6.0f} MB {over}"
        print(f"  {name:42} {cell['tokens_per_second']:9.1f} {rest}", flush=True)


def print_claims(found: dict[str, Any]) -> None:
    for name, content in found.items():
        print(f"\nclaim {name}: {json.dumps(content, indent=2)}")


def draw(content: dict[str, Any], path: Path) -> None:
    """Time of a step against context: a column per batch, a row per model, a line per contender."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    cells = [cell for cell in content["cells"] if not cell["skipped"]]
    models, batches = (list(dict.fromkeys(cell[key] for cell in cells)) for key in ("model", "batch"))
    contexts = sorted({cell["context"] for cell in cells})
    size = (3.6 * len(batches) + 0.6, 2.7 * len(models) + 1.1)
    figure, axes = pyplot.subplots(
        len(models), len(batches), figsize=size, sharex=True, sharey="row", squeeze=False, layout="constrained"
    )
    for row, model in zip(axes, models, strict=True):
        for axis, batch in zip(row, batches, strict=True):
            draw_panel(axis, [cell for cell in cells if (cell["model"], cell["batch"]) == (model, batch)])
            axis.set_title(f"{model}, batch {batch}", fontsize=9)
            axis.set_xticks(contexts, [f"{context:,}" for context in contexts])
            axis.minorticks_off()
        row[0].set_ylabel("ms per token of each row")
    for axis in axes[-1]:
        axis.set_xlabel("context, tokens")
    lines = {line.get_label(): line for axis in axes.flat for line in axis.get_lines()}
    shown = sorted(lines, key=lambda label: label.startswith("floor"))
    handles = [lines[label] for label in shown]
    figure.legend(handles, shown, loc="outside lower center", ncols=2 * len(batches), frameon=False, fontsize=9)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)


def draw_panel(axis: Any, cells: list[dict[str, Any]]) -> None:
    from matplotlib.ticker import LogLocator

    axis.set_xscale("log")
    axis.set_yscale("log", subs=())
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 3)))
    axis.yaxis.set_major_formatter("{x:,g}")
    axis.grid(color="#e5e5e5", linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)
    for name, color in COLORS.items():
        own = [cell for cell in cells if cell["contender"] == name]
        if not own:
            continue
        contexts = [cell["context"] for cell in own]
        steps = [cell["seconds_per_token"] * 1e3 for cell in own]
        axis.plot(contexts, steps, color=color, marker="o", markersize=3.5, linewidth=1.6, label=name)
        if own[0]["floor"]:
            floors = [cell["floor"]["seconds"] * 1e3 for cell in own]
            axis.plot(contexts, floors, color=color, linestyle=":", linewidth=1.3, label=f"floor of {name}")
