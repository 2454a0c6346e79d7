"""The tables of docs/, written from what the benchmarks have measured.

    python benchmarks/tables.py
    python benchmarks/tables.py --check

Each stands between `<!-- table: NAME -->` and `<!-- end -->`. With --check nothing is written, and it fails where a
table isn't what the results say.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import quality_plan
import quality_report
from quality_report import table

RESULTS = Path(__file__).parent / "results"
PAGES = [
    Path(__file__).parents[1] / "docs" / f"{name}.md" for name in ("performance", "training", "evidence", "promises")
]
TABLE = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def read(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return content


def training() -> str:
    """Every contender of every case that isn't of the sweep over lengths."""
    cells = [cell for cell in read("train_speed")["cells"] if not cell["family"]]
    head = ("contender", "tokens per second", "step, s", "over floor", "peak, MB", "parameters, M")
    found = []
    for case in dict.fromkeys(cell["case"] for cell in cells):
        own = [cell for cell in cells if cell["case"] == case]
        rows = [measured(cell) for cell in sorted(own, key=lambda cell: -cell["tokens_per_second"])]
        found.append(f"\n**{case}**, {own[0]['batch']} × {own[0]['length']:,} tokens\n\n{table(head, rows)}")
    return "".join(found) + "\n"


def measured(cell: dict[str, Any]) -> list[str]:
    if cell["skipped"]:
        return [cell["contender"], f"skipped: {cell['skipped']}", "", "", "", ""]
    floor, seconds = cell["floor_seconds"], cell["seconds_per_step"]
    return [
        cell["contender"] + few(cell),
        f"{cell['tokens_per_second']:,.0f}",
        f"{seconds:.3g}",
        f"{seconds / floor:.2f}" if floor else "",
        f"{cell['peak_bytes'] / 1e6:,.0f}",
        f"{cell['parameters'] / 1e6:.2f}",
    ]


def lengths() -> str:
    """Seconds and megabytes of each contender by length."""
    cells = [cell for cell in read("train_speed")["cells"] if cell["family"]]
    names = list(dict.fromkeys(cell["contender"] for cell in cells))
    rows = []
    for length in dict.fromkeys(cell["length"] for cell in cells):
        by_name = {cell["contender"]: cell for cell in cells if cell["length"] == length}
        rows.append([f"{length:,}", *(step_and_peak(by_name[name]) for name in names)])
    return table(("tokens", *(name.removesuffix(", float32") for name in names)), rows)


def step_and_peak(cell: dict[str, Any]) -> str:
    if cell["skipped"]:
        return cell["skipped"].replace("skipped at a shorter length", "–")
    return f"{cell['seconds_per_step']:.3g} s, {cell['peak_bytes'] / 1e6:,.0f} MB{few(cell)}"


def few(cell: dict[str, Any]) -> str:
    """How many steps were timed, where that is fewer than five."""
    return f" ({len(cell['seconds'])} steps)" if len(cell["seconds"]) < 5 else ""


def claims() -> str:
    found = []
    for case, claimed in read("train_speed")["claims"].items():
        for name, claim in claimed.items():
            value = claim.get("value", claim.get("ratio"))
            asked = " ".join(f"{bound} {claim[bound]:g}" for bound in ("at least", "at most") if bound in claim)
            holds = {True: "holds", False: "**does not hold**", None: ""}[claim.get("holds")]
            beside = f"with {claim['parameters']:.2f} of the parameters" if "parameters" in claim else asked
            found.append([case, name, "none" if value is None else f"{value:,.3g}", beside, holds])
    return table(("case", "ratio", "measured", "asked", ""), found)


def windows() -> str:
    """By length and window, the time of each way over that of the first."""
    results = read("windowed_attention")["results"]
    first = next(iter(results[0]["seconds"]))
    ways = [way for way in results[0]["seconds"] if way != first]
    head = ["tokens", "window", f"{first}, ms", *ways]
    rows = [
        [f"{row['length']:,}", f"{row['window']:,}", f"{row['seconds'][first] * 1e3:,.0f}"]
        + [f"{row['ratios'][way]:.2f}" if way in row["ratios"] else "–" for way in ways]
        for row in results
    ]
    return table(head, rows)


def streams() -> str:
    rows = [
        [" × ".join(map(str, row["shape"])), str(row["streams"]), f"{row['ratio']:.2f}"]
        for row in read("batched_streams")["results"]
    ]
    return table(("rows × in × out", "streams", "one by one over batched"), rows)


def training_costs() -> str:
    """Of the loop around the steps, and of a checkpoint."""
    results = read("training_costs")
    rows = []
    for workers in (0, 1):
        found = results[f"loop_with_{workers}_workers"]
        share = 100 * found["loop_seconds"] / found["step_seconds"]
        rows.append(
            [f"a step of the small byte model, {workers} workers", f"{found['step_seconds'] * 1e3:.0f} ms",
             f"of which the loop around it {share:.2f} %"]
        )  # fmt: skip
    saved = results["checkpoint"]
    what = f"a checkpoint of {saved['parameters'] / 1e6:.0f} M parameters, {saved['bytes'] / 1e6:,.0f} MB"
    ratio = (saved["write_seconds"] + saved["verify_seconds"]) / saved["copy_seconds"]
    took = f"{saved['write_seconds']:.2f} s to write, {saved['verify_seconds']:.2f} s to verify"
    rows.append([what, took, f"{ratio:.2f} × the time of copying its bytes to the disk"])
    return table(("", "takes", ""), rows)


def promises() -> str:
    """Each promise, the files of its tests, and how many of these passed."""
    if not (RESULTS / "promises.json").exists():
        return "\nOpen: not run yet.\n\n"
    results = read("promises")
    rows = []
    for found in results["promises"]:
        skipped = f", {found['skipped']} skipped here" if found["skipped"] else ""
        outcome = f"**{found['failed']} failed**" if found["failed"] else "all passed"
        names = ", ".join(f"`{name}`" for name in found["tests"])
        rows.append([found["promise"], names, f"{found['passed']:,} tests{skipped}: {outcome}"])
    versions = results["versions"]
    proofs = "with the long proofs" if versions["slow"] else "without the long proofs"
    where = f"Python {versions['python']}, torch {versions['torch']}, {proofs}"
    return table(("promise", "tests", where), rows)


TABLES: dict[str, Callable[[], str]] = {
    f.__name__: f for f in (training, lengths, claims, windows, streams, training_costs, promises)
} | {f"quality_{name}": partial(quality_report.written, name) for name in quality_plan.TABLES}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail where a table is out of date")
    check = parser.parse_args(arguments).check
    for page in PAGES:
        text = page.read_text()
        written = TABLE.sub(lambda match: match[1] + TABLES[match[2]]() + match[3], text)
        if not check:
            page.write_text(written)
        elif written != text:
            raise SystemExit(f"{page.name} is out of date: run benchmarks/tables.py")


if __name__ == "__main__":
    main()
