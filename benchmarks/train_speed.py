"""Training speed: tokens per second of forward, backward and optimiser step, and peak memory, against the peers.

    python benchmarks/train_speed.py --quick
    python benchmarks/train_speed.py
    python benchmarks/train_speed.py --draw-only

Contenders (train_contenders.py) run in processes of their own (processes.py) and take their steps in turns, so that
what else the machine does meets all alike; figures are medians over the rounds, of steps that come after others. All
take the same random ids, predict as many tokens and are moved by the same optimiser. The models and the peers' shapes,
of as many parameters, are in train_cases.py. A contender that reaches --cell-seconds takes fewer rounds, which the
table says; one that would reach it in two steps, going by shorter sequences, is skipped.

Beside our times stands their floor: the model's floating-point operations at the rate of a large product of matrices,
measured in the same process in turns with the steps. Writes benchmarks/results/train_speed.json after each case, and
draws docs/figures/training.svg from it.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch
from packages import install
from processes import CannotMeasure, Worker, memory_of, power_law
from train_cases import CASES, chosen
from train_claims import read_claims
from train_contenders import CONTENDERS, serve_training, takes_part
from train_speed_report import draw, print_cells, print_claims, print_machine

RESULTS = Path(__file__).parent / "results" / "train_speed.json"
FIGURE = Path(__file__).parents[1] / "docs" / "figures" / "training.svg"
CACHE = Path(tempfile.gettempdir()) / "benchmark-packages"
OPEN_SECONDS = 300.0  # to start a process, or to compile
FULL: dict[str, Any] = {"rounds": 5, "cell_seconds": 300.0}
QUICK: dict[str, Any] = {"rounds": 1, "cell_seconds": 20.0}


@dataclass
class Cell:
    """One contender on one case: medians in seconds, bytes, or why there are none."""

    case: str
    contender: str
    length: int
    batch: int
    family: str | None = None
    skipped: str | None = None
    parameters: int = 0
    peaks: list[int] = field(default_factory=list)  # of the first steps since a model was made
    peak_bytes: int = 0
    seconds: list[float] = field(default_factory=list)  # of the steps, without the first
    seconds_per_step: float = 0.0
    tokens_per_second: float = 0.0
    flops: int = 0  # of a step
    matmul_flops: list[float] = field(default_factory=list)  # per second, of the machine
    bandwidth: list[float] = field(default_factory=list)  # bytes per second, of the machine
    floor_seconds: float | None = None
    spent: float = 0.0

    def take(self, answer: dict[str, Any]) -> float:
        seconds: float = answer["seconds"]
        self.spent += seconds
        return seconds

    def summarise(self) -> None:
        self.seconds_per_step, self.peak_bytes = median(self.seconds), int(median(self.peaks))
        self.tokens_per_second = self.batch * self.length / self.seconds_per_step
        if self.flops:
            self.floor_seconds = self.flops / median(self.matmul_flops)


class Bench:
    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.workers = {
            name: Worker(worker_command(name, options), contender.environment) for name, contender in CONTENDERS.items()
        }
        self.cells: list[Cell] = []

    def measure(self, name: str) -> list[Cell]:
        """All contenders of a case in turns."""
        case = chosen(name, self.options.quick)
        able = [c for c, contender in CONTENDERS.items() if self.options.device in contender.devices]
        unasked = [c for c in case.only or able if c not in case.without]
        contenders = self.options.contenders or unasked
        cells = [
            Cell(name, contender, case.length, case.batch, case.family)
            for contender in contenders
            if takes_part(contender, case)
        ]
        for cell in cells:
            self.attempt(cell, self.warm_up, case.alone)
        for _ in range(self.options.rounds):
            for cell in cells:
                if not cell.skipped and (not cell.seconds or cell.spent < self.options.cell_seconds):
                    self.attempt(cell, self.round, case.alone)
        for cell in cells:
            if not cell.skipped:
                if not case.alone:
                    self.close(cell)
                cell.summarise()
        self.cells += cells
        return cells

    def attempt(self, cell: Cell, step: Callable[[Cell, bool], None], alone: bool) -> None:
        try:
            step(cell, alone)
        except CannotMeasure as reason:
            cell.skipped = str(reason)
            self.close(cell)

    def ask(self, cell: Cell, do: str, **question: Any) -> dict[str, Any]:
        limit = OPEN_SECONDS + 2 * self.options.cell_seconds
        return self.workers[cell.contender].ask(do, limit, **question)

    def open(self, cell: Cell) -> None:
        facts = self.ask(cell, "open", case=cell.case, quick=self.options.quick)
        cell.parameters, cell.flops = facts["parameters"], facts["flops"]

    def close(self, cell: Cell) -> None:
        if self.workers[cell.contender].process is not None:
            with suppress(CannotMeasure):
                self.ask(cell, "close")

    def warm_up(self, cell: Cell, alone: bool) -> None:
        self.check_affordable(cell)
        if not alone:  # else each round does
            self.open(cell)
            cell.take(self.ask(cell, "step"))

    def round(self, cell: Cell, alone: bool) -> None:
        if alone:
            self.open(cell)
            cell.take(self.ask(cell, "step"))  # takes fresh memory, as later steps don't
        answer = self.ask(cell, "step")
        cell.seconds.append(cell.take(answer))
        if alone or not cell.peaks:  # what is asked of the machine after that isn't the model's memory
            cell.peaks.append(answer["peak"])
        if CONTENDERS[cell.contender].is_ours:
            floor = self.ask(cell, "floor")
            cell.matmul_flops.append(floor["matmul_flops"])
            cell.bandwidth.append(floor["bandwidth"])
        if alone:
            self.close(cell)

    def check_affordable(self, cell: Cell) -> None:
        """Raises CannotMeasure where shorter sequences say that this one takes too much time."""
        shorter = [c for c in self.cells if c.family and (c.family, c.contender) == (cell.family, cell.contender)]
        if any(c.skipped for c in shorter):
            raise CannotMeasure("skipped at a shorter length")
        if shorter:
            seconds = power_law([(c.length, c.seconds_per_step) for c in shorter], cell.length)
            if 2 * seconds > self.options.cell_seconds:
                raise CannotMeasure(f"a step would take {seconds:.0f} s")

    def stop(self) -> None:
        for worker in self.workers.values():
            worker.stop()


def worker_command(name: str, options: argparse.Namespace) -> list[str]:
    shared = {"--device": options.device, "--threads": options.threads, "--memory-gb": options.memory_gb}
    return [__file__, "--worker", name, "--cache", str(options.cache), *(str(x) for p in shared.items() for x in p)]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", choices=CASES, help="default: those that are meant for the device")
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, help="default: those meant for the device")
    parser.add_argument("--rounds", type=int, help=f"default {FULL['rounds']}")
    parser.add_argument(
        "--cell-seconds", type=float, help=f"limit per contender and case, about; default {FULL['cell_seconds']:.0f}"
    )
    parser.add_argument("--memory-gb", type=float, help="limit of all processes; default: four fifths of the machine's")
    parser.add_argument("--quick", action="store_true", help="short sequences, small batches, few rounds")
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
    meant = [n for n, case in CASES.items() if case.device == options.device and (case.is_quick or not options.quick)]
    options.cases = options.cases or meant
    options.memory_gb = options.memory_gb or 0.8 * memory_of(options.device) / 1e9
    return options


def run(options: argparse.Namespace) -> dict[str, Any]:
    for package in dict.fromkeys(CONTENDERS[name].package for name in options.contenders or CONTENDERS):
        if package is not None:
            install(package, options.cache)
    content: dict[str, Any] = {
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if options.device == "cuda" else "cpu",
        "processor": platform.processor() or platform.machine(),
        **{name: getattr(options, name) for name in ("threads", "rounds", "cell_seconds", "memory_gb", "quick")},
        "machine": {},
        "cells": [],
        "claims": {},
    }
    options.output.parent.mkdir(exist_ok=True)
    bench = Bench(options)
    try:
        for name in options.cases:
            cells = [asdict(cell) for cell in bench.measure(name)]
            print_cells(cells)
            content["cells"] += cells
            content["machine"] = machine(content["cells"])
            content["claims"] = read_claims(content["cells"])
            options.output.write_text(json.dumps(content, indent=2) + "\n")
    finally:
        bench.stop()
    return content


def machine(cells: list[dict[str, Any]]) -> dict[str, float]:
    """What the machine could do in between: medians of all that was measured beside our steps."""
    precisions = dict.fromkeys(CONTENDERS[cell["contender"]].precision for cell in cells)
    rates = {
        f"matmul flops per second, {precision.split()[0]}": [
            rate for c in cells if CONTENDERS[c["contender"]].precision == precision for rate in c["matmul_flops"]
        ]
        for precision in precisions
    } | {"bytes per second of a copy": [rate for c in cells for rate in c["bandwidth"]]}
    return {name: median(found) for name, found in rates.items() if found}


def main() -> None:
    options = parse()
    if options.worker:
        serve_training(options.worker, options.cache, options.device, options.threads, int(options.memory_gb * 1e9))
        return
    if options.draw_only:
        content = json.loads(options.output.read_text())
        for case in dict.fromkeys(cell["case"] for cell in content["cells"]):
            print_cells([cell for cell in content["cells"] if cell["case"] == case])
    else:
        content = run(options)
    print_machine(content["machine"])
    print_claims(content["claims"])
    draw(content, options.figure)


if __name__ == "__main__":
    main()
