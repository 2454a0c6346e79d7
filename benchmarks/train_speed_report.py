"""What train_speed.py has found, as a table and as a figure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

COLORS = {  # by the contender's name, without its precision
    "ours": "#1f5fbf",
    "ours, compiled": "#7a4fc9",
    "ours, huge pages": "#0f9e8f",
    "our single stream, equal parameters": "#5b93dd",
    "our single stream, equal width and depth": "#a9c8ef",
    "reference 0.2.0": "#c8542b",
    "reference 0.4.0": "#e6a23c",
    "x-transformers": "#555555",
    "x-transformers, compiled": "#333333",
    "MEGABYTE": "#8a8a3a",
    "hourglass": "#b07aa1",
}
COLUMNS = 2


def split(contender: str) -> tuple[str, str]:
    name, _, precision = contender.rpartition(", ")
    return name, precision


def is_half(contender: str) -> bool:
    return contender.endswith("autocast")


def short(contender: str) -> str:
    """For a figure, in which float32 goes without saying."""
    return contender.removesuffix(", float32").replace(" autocast", "")


def print_cells(cells: list[dict[str, Any]]) -> None:
    """Of one case."""
    for i, cell in enumerate(cells):
        if i == 0:
            place = f"{cell['case']}, {cell['batch']} × {cell['length']:,} tokens"
            units = f"{'tokens/s':>9} {'step':>12} {'peak':>10} {'parameters':>11} {'rounds':>6}"
            print(f"\n{place:60} {units} {'over floor':>10} {'utilised':>8}")
        if cell["skipped"]:
            print(f"  {cell['contender']:58} skipped: {cell['skipped']}", flush=True)
            continue
        rest = f"{cell['tokens_per_second']:9,.0f} {cell['seconds_per_step'] * 1e3:9,.1f} ms"
        rest += f" {cell['peak_bytes'] / 1e6:7,.0f} MB {cell['parameters'] / 1e6:9.2f} M {len(cell['seconds']):6}"
        if cell["floor_seconds"]:
            over = cell["seconds_per_step"] / cell["floor_seconds"]
            rest += f" {over:10.2f} {1 / over:8.1%}"
        print(f"  {cell['contender']:58} {rest}", flush=True)


def print_machine(rates: dict[str, float]) -> None:
    print("\nthe machine, beside our steps:")
    for name, rate in rates.items():
        print(f"  {name:58} {rate / 1e9:9,.1f} G")


def print_claims(claims: dict[str, Any]) -> None:
    for case, found in claims.items():
        print(f"\nclaims, {case}:")
        for name, claim in found.items():
            value = claim["value"] if "value" in claim else claim["ratio"]
            rest = f"{value:9,.3g}" if value is not None else "  not found"
            for bound in ("at least", "at most"):
                if bound in claim:
                    rest += f"   {bound} {claim[bound]:g}: {'holds' if claim['holds'] else 'does not hold'}"
            if "parameters" in claim:
                rest += f"   with {claim['parameters']:.2f} of the parameters"
            print(f"  {name:84} {rest}")


def draw(content: dict[str, Any], path: Path) -> None:
    """Time and memory against length, and a panel of bars for each other case."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    cells = [cell for cell in content["cells"] if not cell["skipped"]]
    swept = [cell for cell in cells if cell["family"]]
    cases = list(dict.fromkeys(cell["case"] for cell in cells if not cell["family"]))
    bars = [[cell for cell in cells if cell["case"] == case] for case in cases]
    rows = [bars[i : i + COLUMNS] for i in range(0, len(bars), COLUMNS)]
    most = [max(len(panel) for panel in row) for row in rows]
    heights = [0.2 * bars + 0.85 for bars in most] + [4.2] * bool(swept)
    if not heights:
        return
    figure = pyplot.figure(figsize=(12, sum(heights)), layout="constrained")
    grid = figure.add_gridspec(len(heights), COLUMNS, height_ratios=heights)
    for i, row in enumerate(rows):
        for j, panel in enumerate(row):
            draw_bars(figure.add_subplot(grid[i, j]), panel, most[i])
    if swept:
        time, memory = (figure.add_subplot(grid[-1, j]) for j in range(2))
        draw_lines(time, swept, "seconds_per_step", 1e3, "ms per step")
        draw_lines(memory, swept, "peak_bytes", 1e-6, "peak memory, MB")
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)


def draw_bars(axis: Any, cells: list[dict[str, Any]], places: int) -> None:
    """Tokens per second of one case, the fastest first, in a panel with room for so many; bfloat16 is hatched."""
    from matplotlib.ticker import MaxNLocator

    cells = sorted(cells, key=lambda cell: cell["tokens_per_second"])
    names = [short(cell["contender"]) for cell in cells]
    speeds = [cell["tokens_per_second"] for cell in cells]
    colors = [COLORS[split(cell["contender"])[0]] for cell in cells]
    hatches = ["////" if is_half(cell["contender"]) else "" for cell in cells]
    axis.barh(names, speeds, color=colors, hatch=hatches, edgecolor="white", linewidth=0, height=0.75)
    for row, cell in enumerate(cells):
        label = f" {cell['tokens_per_second']:,.0f}, {cell['peak_bytes'] / 1e6:,.0f} MB"
        axis.text(cell["tokens_per_second"], row, label, va="center", fontsize=7, color="#333333")
    axis.set_xlim(0, 1.4 * max(speeds))
    axis.set_ylim(len(cells) - places - 0.6, len(cells) - 0.4)
    place = f"{cells[0]['case']}\n{cells[0]['batch']} × {cells[0]['length']:,} tokens"
    axis.set_title(f"{place}: tokens per second, peak memory", fontsize=8.5, loc="left")
    axis.tick_params(labelsize=7.5, length=0)
    axis.xaxis.set_major_locator(MaxNLocator(4))
    axis.xaxis.set_major_formatter("{x:,g}")
    axis.spines[["top", "right", "left"]].set_visible(False)


def draw_lines(axis: Any, cells: list[dict[str, Any]], key: str, factor: float, label: str) -> None:
    from matplotlib.ticker import LogLocator

    axis.set_xscale("log", base=2)
    axis.set_yscale("log", subs=())
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 3)))
    axis.yaxis.set_major_formatter("{x:,g}")
    axis.grid(color="#e5e5e5", linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)
    for contender in dict.fromkeys(cell["contender"] for cell in cells):
        own = [cell for cell in cells if cell["contender"] == contender]
        lengths = [cell["length"] for cell in own]
        color = COLORS[split(contender)[0]]
        axis.plot(
            lengths,
            [cell[key] * factor for cell in own],
            color=color,
            marker="o",
            markersize=3.5,
            label=short(contender),
        )
        if key == "seconds_per_step" and own[0]["floor_seconds"]:
            floors = [cell["floor_seconds"] * factor for cell in own]
            axis.plot(lengths, floors, color=color, linestyle=":", linewidth=1.3, label=f"floor of {short(contender)}")
    ticks = sorted({cell["length"] for cell in cells})
    axis.set_xticks(ticks, [f"{n:,}" for n in ticks], rotation=30)
    axis.minorticks_off()
    axis.tick_params(labelsize=7.5)
    axis.set_xlabel("length of one sequence, tokens", fontsize=8)
    axis.set_title(f"{cells[0]['family']}: {label}", fontsize=8.5, loc="left")
    axis.legend(frameon=False, fontsize=7.5, loc="upper left", bbox_to_anchor=(-0.1, -0.25), ncols=2)
