"""Greedy decoding against context length and batch: time per token, time to the first token, peak memory.

    python benchmarks/decoding.py --quick
    python benchmarks/decoding.py
    python benchmarks/decoding.py --draw-only

Contenders (peers.py, workers.py) run in processes of their own (processes.py) and measure in turns, so that what else
the machine does meets all alike; figures are medians over the rounds. A cell that would take too much time or memory,
going by smaller ones, is skipped and says why. Beside our times stands their floor: one pass over the weights that a
token needs, measured in the same process in turns with the steps. Writes benchmarks/results/decoding.json after each
cell, and draws docs/figures/decoding.svg from it.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import torch
from decoding_claims import CLAIMS, attempt_claim
from decoding_report import draw, print_cells, print_claims
from packages import install
from peers import CONTENDERS, FIRST_EXAMPLE, MODELS, TRAINING_MODEL
from processes import CannotMeasure, Worker, memory_of, power_law
from workers import serve_decoding

RESULTS = Path(__file__).parent / "results" / "decoding.json"
FIGURE = Path(__file__).parents[1] / "docs" / "figures" / "decoding.svg"
CACHE = Path(tempfile.gettempdir()) / "benchmark-packages"
OPEN_SECONDS = 300.0
FULL: dict[str, Any] = {
    "contexts": [128, 512, 2048, 8192, 32768],
    "batches": [1, 8, 64],
    "rounds": 5,
    "cell_seconds": 60.0,
}
QUICK: dict[str, Any] = {"contexts": [128, 512], "batches": [1], "rounds": 2, "cell_seconds": 10.0}


@dataclass
class Cell:
    """One contender at one context and batch: medians in seconds, bytes, or why there are none."""

    model: str
    batch: int
    context: int
    contender: str
    skipped: str | None = None
    rounds: int = 0
    parameters: int = 0
    weight_bytes: int = 0
    peak_bytes: int = 0
    seconds_to_first_token: float = 0.0
    seconds_per_token: float = 0.0  # of one step, which gives a token to each row
    tokens_per_second: float = 0.0  # of all rows
    floor: dict[str, float] | None = None


@dataclass
class Timing:
    first: list[float] = field(default_factory=list)
    steps: list[float] = field(default_factory=list)
    floors: list[dict[str, float]] = field(default_factory=list)
    peak: int = 0
    spent: float = 0.0

    def take(self, answer: dict[str, Any]) -> float:
        self.peak = max(self.peak, answer["peak"])
        self.spent += answer["seconds"]
        seconds: float = answer["seconds"]
        return seconds


class Bench:
    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.workers = {name: Worker(worker_command(name, options)) for name in CONTENDERS}
        self.cells: list[Cell] = []

    def measure(self, model: str, batch: int, context: int, contenders: Sequence[str]) -> list[Cell]:
        """All contenders in turns."""
        cells = [Cell(model, batch, context, name) for name in contenders]
        timings = {cell.contender: Timing() for cell in cells}
        for cell in cells:
            self.attempt(cell, self.open)
        for _ in range(self.options.rounds):
            for cell in cells:
                timing = timings[cell.contender]
                if not cell.skipped and timing.spent < self.options.cell_seconds:
                    self.attempt(cell, self.round, timing)
        for cell in cells:
            if self.workers[cell.contender].process is not None:
                self.attempt(cell, self.close)
            if not cell.skipped:
                summarise(cell, timings[cell.contender])
        self.cells += cells
        return cells

    def attempt(self, cell: Cell, step: Callable[..., None], *arguments: Timing) -> None:
        try:
            step(cell, *arguments)
        except CannotMeasure as reason:
            cell.skipped = cell.skipped or str(reason)

    def ask(self, cell: Cell, do: str, limit: float | None = None, **question: Any) -> dict[str, Any]:
        limit = limit or 2 * self.options.cell_seconds
        return self.workers[cell.contender].ask(do, limit, session="cell", **question)

    def open(self, cell: Cell) -> None:
        self.check_affordable(cell)
        facts = self.ask(cell, "open", OPEN_SECONDS, model=cell.model, context=cell.context, batch=cell.batch)
        cell.parameters, cell.weight_bytes = facts["parameters"], facts["weight_bytes"]

    def close(self, cell: Cell) -> None:
        self.ask(cell, "close")

    def check_affordable(self, cell: Cell) -> None:
        """Raises CannotMeasure where smaller cells say that this one takes too much."""
        smaller = [
            c
            for c in self.cells
            if (c.model, c.contender) == (cell.model, cell.contender)
            and c.context <= cell.context
            and c.batch <= cell.batch
        ]
        known = [c for c in smaller if not c.skipped]
        if known:
            tokens = CONTENDERS[cell.contender].tokens
            seconds = predict([(c, c.seconds_to_first_token + tokens * c.seconds_per_token) for c in known], cell)
            if seconds > self.options.cell_seconds:
                raise CannotMeasure(f"would take {seconds:.0f} s")
            size = known[-1].weight_bytes + predict([(c, c.peak_bytes - c.weight_bytes) for c in known], cell)
            others = sum(w.resident for name, w in self.workers.items() if name != cell.contender)
            if size + others > self.options.memory_gb * 1e9:
                raise CannotMeasure(f"would take {size / 1e9:.1f} GB, beside {others / 1e9:.1f} GB of the others")
        for c in smaller:
            if c.skipped:
                raise CannotMeasure(f"skipped at batch {c.batch}, context {c.context}")

    def round(self, cell: Cell, timing: Timing) -> None:
        """A new text where the prompt is cheap, some tokens, and their floor."""
        tokens = CONTENDERS[cell.contender].tokens
        if not tokens or not timing.first or timing.first[-1] * 2 * self.options.rounds < self.options.cell_seconds:
            timing.first.append(timing.take(self.ask(cell, "start")))
        if tokens:
            self.ask(cell, "advance", OPEN_SECONDS, tokens=tokens // 2)  # to warm up, and to compile
            timing.steps.append(timing.take(self.ask(cell, "advance", tokens=tokens)) / tokens)
        else:  # reading the whole text again is what each token costs
            timing.steps.append(timing.first[-1])
        if CONTENDERS[cell.contender].has_floor:
            timing.floors.append(self.ask(cell, "floor", tokens=tokens))

    def stop(self) -> None:
        for worker in self.workers.values():
            worker.stop()


def worker_command(name: str, options: argparse.Namespace) -> list[str]:
    shared = {"--device": options.device, "--threads": options.threads, "--memory-gb": options.memory_gb}
    return [__file__, "--worker", name, "--cache", str(options.cache), *(str(x) for p in shared.items() for x in p)]


def predict(known: list[tuple[Cell, float]], cell: Cell) -> float:
    """What a cell takes, going by smaller ones: a power law of the context, and linear in the batch."""
    base, _ = max(known, key=lambda pair: pair[0].context * pair[0].batch)
    points = sorted((c.context, v) for c, v in known if c.batch == base.batch and c.context <= base.context)
    return power_law(points, cell.context) * cell.batch / base.batch


def summarise(cell: Cell, timing: Timing) -> None:
    cell.rounds = len(timing.steps)
    cell.peak_bytes = timing.peak
    cell.seconds_to_first_token = median(timing.first)
    cell.seconds_per_token = median(timing.steps)
    cell.tokens_per_second = cell.batch / cell.seconds_per_token
    if timing.floors:
        cell.floor = {name: median(f[name] for f in timing.floors) for name in timing.floors[0]}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--contexts", type=int, nargs="+", help=f"default {FULL['contexts']}")
    parser.add_argument("--batches", type=int, nargs="+", help=f"default {FULL['batches']}")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=[FIRST_EXAMPLE, TRAINING_MODEL])
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, help="default: all that the device can run")
    parser.add_argument("--rounds", type=int, help=f"default {FULL['rounds']}")
    parser.add_argument("--cell-seconds", type=float, help="limit per contender and cell, about; default 60")
    parser.add_argument("--memory-gb", type=float, help="limit of all processes; default: four fifths of the machine's")
    parser.add_argument("--quick", action="store_true", help="short contexts, single rows, few rounds")
    parser.add_argument("--parts", nargs="+", choices=("matrix", "claims"), default=("matrix", "claims"))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--cache", type=Path, default=CACHE, help="folder that peers are installed into")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--figure", type=Path, default=FIGURE)
    parser.add_argument("--draw-only", action="store_true", help="table and figure from the results that are there")
    parser.add_argument("--worker", choices=CONTENDERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    for name, value in (QUICK if options.quick else FULL).items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    able = [name for name, contender in CONTENDERS.items() if options.device == "cuda" or not contender.cuda_only]
    options.contenders = options.contenders or able
    options.memory_gb = options.memory_gb or 0.8 * memory_of(options.device) / 1e9
    return options


def run(options: argparse.Namespace) -> dict[str, Any]:
    for package in {CONTENDERS[name].package for name in (*options.contenders, "reference 0.2.0")}:
        if package is not None:
            install(package, options.cache)
    content: dict[str, Any] = {
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if options.device == "cuda" else "cpu",
        "processor": platform.processor() or platform.machine(),
        **{name: getattr(options, name) for name in ("threads", "rounds", "cell_seconds", "memory_gb")},
        "cells": [],
        "claims": {},
    }
    options.output.parent.mkdir(exist_ok=True)
    bench = Bench(options)
    try:
        for model, batch, context in product(options.models, sorted(options.batches), sorted(options.contexts)):
            if "matrix" in options.parts:
                content["cells"] += [asdict(c) for c in bench.measure(model, batch, context, options.contenders)]
                print_cells(content["cells"][-len(options.contenders) :])
                options.output.write_text(json.dumps(content, indent=2) + "\n")
        for name, claim in CLAIMS.items():
            if "claims" in options.parts:
                content["claims"][name] = attempt_claim(claim, bench)
                options.output.write_text(json.dumps(content, indent=2) + "\n")
    finally:
        bench.stop()
    return content


def main() -> None:
    options = parse()
    if options.worker:
        serve_decoding(options.worker, options.cache, options.device, options.threads, int(options.memory_gb * 1e9))
        return
    if options.draw_only:
        content = json.loads(options.output.read_text())
        print_cells(content["cells"])
    else:
        content = run(options)
    print_claims(content["claims"])
    if content["cells"]:
        draw(content, options.figure)


if __name__ == "__main__":
    main()
