"""The curves of runs as a picture, and as a page with a table of their figures."""

from __future__ import annotations

import html
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..figures import drawn
from ..files import write_atomically
from .config import as_path, choice, listed
from .curves import AXES, STEEP_SHARE, TRAINING, VALIDATION, Run, draw, finite
from .metrics import METRICS_FILE, read_metrics

PICTURE_FILE = "curves.png"
PAGE_FILE = "curves.html"
STYLE = """body { font: 15px/1.5 system-ui, sans-serif; color: #222; background: #fff }
body { max-width: 62rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.3rem } svg { width: 100%; height: auto } .table { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; white-space: nowrap }
th, td { padding: .3rem .8rem; text-align: right; border-bottom: 1px solid #ddd }
th:first-child, td:first-child { text-align: left }"""


def plot(runs: Sequence[Path], out: Path | None = None, by: str = "step") -> list[Path]:
    """Draw bits per byte of one run or several, of training as a smoothed line and of validation as markers.

    Args:
        runs: folders of runs, finished or not; a folder that is named twice counts once
        out: folder for `curves.png`, and `curves.html` with the figure and a table, which needs no other file; what
            stands there under these names is replaced. None: the folder of the first run
        by: what the curves are drawn against: step, tokens, or time, which is that spent on training

    Returns:
        the two files

    Raises:
        TypeError: runs isn't a list of paths
        ValueError: no run, a folder that isn't that of a run or holds no figures yet, an unknown `by`, an `out` that
            isn't a folder, or matplotlib isn't installed
        OSError: a file can't be read or written
    """
    loaded = load_runs(runs, by)
    out = as_path("runs", runs[0]).resolve() if out is None else as_path("out", out)
    if (out.exists() or out.is_symlink()) and not out.is_dir():
        raise ValueError(f"out: {out} is not a folder: choose another path")

    figure = draw(loaded, by)
    contents = {
        out / PICTURE_FILE: drawn(figure, ".png"),
        out / PAGE_FILE: page(loaded, by, drawn(figure, ".svg").decode()).encode(),
    }
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(contents)
    return list(contents)


def load_runs(runs: Sequence[str | Path], by: str) -> list[Run]:
    """The records of runs, each under a name that tells it from the others, where they have figures by `by`."""
    by = choice("by", by, tuple(AXES))
    folders = list(dict.fromkeys(as_path("runs", run).resolve() for run in listed("runs", runs, "folders")))
    if not folders:
        raise ValueError("runs is empty: name the folder of one run at least")
    return [load(folder, name, by) for folder, name in zip(folders, unique_names(folders), strict=True)]


def load(folder: Path, name: str, by: str) -> Run:
    path = folder / METRICS_FILE
    if not path.is_file():
        raise ValueError(f"runs: {folder} isn't the folder of a run, since it has no {METRICS_FILE}: give another")
    run = Run(name, list(read_metrics(path)))
    if not any(run.points(AXES[by], figures) for figures in (TRAINING, VALIDATION)):
        raise ValueError(f"runs: {path} holds no bits per byte by {by} yet: wait for the first, or leave that run out")
    return run


def unique_names(folders: Sequence[Path]) -> list[str]:
    """The last part of each path, with as many before it as tell it from the others."""
    return [
        next(name for length in range(1, len(folder.parts) + 1) if (name := unique_ending(folder, length, folders)))
        for folder in folders
    ]


def unique_ending(folder: Path, length: int, folders: Sequence[Path]) -> str | None:
    """The last parts of a path, if no other path ends with the same."""
    if length < len(folder.parts) and sum(other.parts[-length:] == folder.parts[-length:] for other in folders) > 1:
        return None
    # a name on the disk may hold bytes that aren't text, which a legend can't show
    return os.fsencode(Path(*folder.parts[-length:]).as_posix()).decode(errors="replace")


def page(runs: Sequence[Run], by: str, drawing: str) -> str:
    """The figure and a table of the last and the best figures, in one file."""
    title = f"Bits per byte by {by}: {', '.join(run.name for run in runs)}"
    heads = ("run", "steps", "tokens", "time", "training, last", "validation, last", "validation, best", "at step")
    rows = [heads, *(tuple(row(run)) for run in runs)]
    cells = [
        "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells)
        for cells, tag in zip(rows, ["th", *["td"] * len(runs)], strict=True)
    ]
    table = "\n".join(f"<tr>{line}</tr>" for line in cells)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title>
<style>
{STYLE}
</style>
</head>
<body>
<h1>{html.escape(title)}</h1>
{drawing[drawing.index("<svg") :].strip()}
<p>The steep first {STEEP_SHARE:.0%} of a curve may stand above the figure.</p>
<div class="table"><table>
{table}
</table></div>
</body>
</html>
"""


def row(run: Run) -> Iterator[str]:
    """What the table says of a run, a dash where nothing is known."""
    last = run.records[-1]
    training, validation = run.points("step", TRAINING), run.points("step", VALIDATION)
    yield run.name
    yield f"{last['step']:,}"
    yield "–" if (tokens := finite(last.get("tokens"))) is None else f"{tokens:,.0f}"
    yield "–" if (seconds := finite(last.get("seconds"))) is None else clock(seconds)
    yield f"{training[-1][1]:.3f}" if training else "–"
    yield f"{validation[-1][1]:.3f}" if validation else "–"
    best = min(validation, key=lambda point: point[1], default=None)
    yield "–" if best is None else f"{best[1]:.3f}"
    yield "–" if best is None else f"{best[0]:,.0f}"


def clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
