"""Does the hierarchy pay? Bits per byte of our models, of their variants and of the peers, under equal budgets.

    python benchmarks/quality.py                      # trains what hasn't been, and draws everything: many hours
    python benchmarks/quality.py --tables wall_512    # some of it
    python benchmarks/quality.py --draw-only          # tables and figures from the runs that are there
    python benchmarks/quality.py --list               # what there is to train, and what has been

Each run is a process of its own and writes one file in benchmarks/results/quality/; a run whose file is there isn't
repeated, so a stopped command goes on where it was. Runs of a table are interleaved: all contenders of one seed, then
all of the next. What they are is in quality_plan.py, and what follows from them in docs/evidence.md.

Budgets in seconds want a machine that does nothing else. The text is the standard library's source; --text trains on
files of your own instead, and keeps their runs apart.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import quality_report
import tables
from packages import install
from processes import QUIET
from quality_contenders import KINDS
from quality_plan import TABLES, WHERE
from quality_runs import Run

from simple_hierarchical_transformer.text.data import Split, load_split

CACHE = Path(tempfile.gettempdir()) / "benchmark-packages"
LONGEST = 8192  # bytes of a sequence; no document of the text may be shorter than the split assumes


def write_text(folder: Path, paths: Sequence[str], split: tuple[int, int, int] | None) -> str:
    """Training and held-out bytes as plain files, which every contender's process can read; and what the text is."""
    found: Split = load_split(paths, LONGEST, split=split)
    for name in ("train", "validation"):
        corpus = getattr(found, name)
        (folder / f"{name}.bin").write_bytes(corpus.windows([0], len(corpus)).numpy().tobytes())
    return found.fingerprint


def train(run: Run, texts: Path, cache: Path) -> None:
    package = KINDS[run.kind].package
    if package is not None:
        install(package, cache)
    with tempfile.TemporaryDirectory() as scratch:
        what, answer = Path(scratch, "run.json"), Path(scratch, "answer.json")
        what.write_text(json.dumps(asdict(run)))
        worker = Path(__file__).with_name("quality_worker.py")
        command = [sys.executable, "-W", "ignore", worker, what, texts, cache, answer]
        done = subprocess.run(command, stdout=sys.stderr, env=os.environ | QUIET)
        if done.returncode:
            raise SystemExit(f"{run.contender} failed: see above")
        run.save(json.loads(answer.read_text()))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--tables", nargs="+", choices=TABLES, default=list(TABLES), metavar="TABLE", help=", ".join(TABLES)
    )
    parser.add_argument(
        "--text", nargs="+", default=[], help="files or folders; default: the standard library's source"
    )
    parser.add_argument("--contenders", nargs="+", metavar="NAME", help="train these rows only")
    parser.add_argument("--split", help="bytes of them to train, validate and test on, such as 90e6,5e6,5e6")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--cache", type=Path, default=CACHE, help="folder that peers are installed into")
    parser.add_argument("--minutes", type=float, help="start no run after so many of them")
    parser.add_argument("--draw-only", action="store_true", help="tables and figures from the runs that are there")
    parser.add_argument("--list", action="store_true", help="what there is to train, and what has been")
    return parser.parse_args()


def missing(options: argparse.Namespace) -> tuple[str, Run] | None:
    """The next run that hasn't been made, and its table. What is planned depends on what earlier runs have found."""
    for name in options.tables:
        for planned in (TABLES[name].needs, TABLES[name].runs):
            for run in planned():
                is_asked = options.contenders is None or run.contender in options.contenders
                if is_asked and run.result() is None:
                    return name, run
    return None


def main() -> None:
    options = parse()
    split = tuple(int(float(size)) for size in options.split.split(",")) if options.split else None
    with tempfile.TemporaryDirectory() as folder:
        if options.text:
            WHERE["text"] = f"text {write_text(Path(folder), options.text, split)[:10]}"
        elif not (options.list or options.draw_only):
            write_text(Path(folder), (), None)
        if options.device != "cpu":
            WHERE["device"] = options.device
        if options.list:
            quality_report.print_plan(options.tables)
            return
        started = time.perf_counter()
        while not options.draw_only and (found := missing(options)):
            if options.minutes is not None and time.perf_counter() - started > 60 * options.minutes:
                break
            name, run = found
            train(run, Path(folder), options.cache)
            quality_report.print_run(name, run)
    if WHERE:  # the page is about the usual ones
        print("\n\n".join(f"{TABLES[name].title}\n\n{quality_report.written(name)}" for name in options.tables))
        return
    quality_report.draw()
    tables.main([])


if __name__ == "__main__":
    main()
