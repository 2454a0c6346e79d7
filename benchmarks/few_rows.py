"""Products of few rows with a weight on CPUs: torch's linear against a batch of products with parts of the weight.

    python benchmarks/few_rows.py

What simple_hierarchical_transformer/linear.py chooses by: microseconds of one product, over as many weights as don't
fit into the cache, as medians of interleaved rounds. Writes benchmarks/results/few_rows.json.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor

from simple_hierarchical_transformer.linear import is_faster_in_parts, linear_in_parts

RESULTS = Path(__file__).parent / "results" / "few_rows.json"
SHAPES = [(256, 192), (768, 192), (192, 768), (512, 512), (2048, 512), (512, 2048), (4096, 1024), (20000, 512)]
ROWS = (1, 2, 4, 8, 16, 64)
TOTAL = 40_000_000  # elements of all weights of one shape: beyond any cache


def measure(shape: tuple[int, int], rows: int, rounds: int) -> dict[str, float]:
    """Microseconds of one product, by either kernel."""
    weights = [torch.randn(shape) for _ in range(max(TOTAL // (shape[0] * shape[1]), 2))]
    x = torch.randn(1, rows, shape[1])
    kernels: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "linear": F.linear,
        "in parts": lambda x, weight: linear_in_parts(x, weight, None),
    }
    seconds: dict[str, list[float]] = {name: [] for name in kernels}
    for _ in range(rounds + 1):  # one to warm up
        for name, kernel in kernels.items():
            start = time.perf_counter()
            for weight in weights:
                kernel(x, weight)
            seconds[name].append(time.perf_counter() - start)
    return {name: 1e6 * median(times[1:]) / len(weights) for name, times in seconds.items()}


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    results = []
    print(f"{'weight':>12} {'rows':>5} {'linear':>10} {'in parts':>10} {'ratio':>6}  taken")
    for shape in SHAPES:
        for rows in ROWS:
            found = measure(shape, rows, rounds)
            ratio = found["linear"] / found["in parts"]
            taken = is_faster_in_parts(torch.empty(rows, shape[1]), torch.empty(shape))
            results.append({"weight": shape, "rows": rows, "microseconds": found, "ratio": ratio, "taken": taken})
            figures = f"{found['linear']:7.1f} µs {found['in parts']:7.1f} µs {ratio:6.2f}"
            print(f"{shape[0]:6} ×{shape[1]:5} {rows:5} {figures}  {'in parts' if taken else 'linear'}", flush=True)
    machine = {"processor": platform.processor() or platform.machine(), "threads": torch.get_num_threads()}
    RESULTS.parent.mkdir(exist_ok=True)
    content = {"torch": torch.__version__, **machine, "rounds": rounds, "results": results}
    RESULTS.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
