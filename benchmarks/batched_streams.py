"""Products of streams of equal shape on CPUs: one by one, against all in one batch of products.

    python benchmarks/batched_streams.py

Why streams aren't batched: as a batch, they would also have to be laid out side by side first, which isn't counted
here. Medians of interleaved rounds. Writes benchmarks/results/batched_streams.json.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from processes import timed

RESULTS = Path(__file__).parent / "results" / "batched_streams.json"
SHAPES = [(2048, 512, 1536), (2048, 512, 2048), (2048, 2048, 512), (512, 192, 576), (512, 192, 768), (128, 64, 256)]
OPERATIONS = 2e9  # of a measurement, at least


def measure(shape: tuple[int, int, int], streams: int, rounds: int) -> dict[str, float]:
    """Seconds per multiplication of all streams, in either way."""
    rows, d, out = shape
    x, weights, results = torch.randn(streams, rows, d), torch.randn(streams, out, d), torch.empty(streams, rows, out)
    times = max(int(OPERATIONS / (2 * rows * d * out * streams)), 1)

    def one_by_one() -> None:
        for _ in range(times):
            for i in range(streams):
                torch.mm(x[i], weights[i].t(), out=results[i])

    def batched() -> None:
        for _ in range(times):
            torch.bmm(x, weights.transpose(1, 2), out=results)

    ways: dict[str, Callable[[], None]] = {"one by one": one_by_one, "batched": batched}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds + 1):  # one to warm up
        for name, way in ways.items():
            seconds[name].append(timed(way, "cpu"))
    return {name: median(found[1:]) / times for name, found in seconds.items()}


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    results = []
    print(f"{'rows × in × out':>20} {'streams':>7} {'one by one':>13} {'batched':>13} {'ratio':>6}")
    for shape in SHAPES:
        for streams in (2, 3):
            found = measure(shape, streams, rounds)
            ratio = found["one by one"] / found["batched"]
            results.append({"shape": shape, "streams": streams, "seconds": found, "ratio": ratio})
            figures = f"{found['one by one'] * 1e6:10,.0f} µs {found['batched'] * 1e6:10,.0f} µs {ratio:6.2f}"
            print(f"{' × '.join(map(str, shape)):>20} {streams:7} {figures}", flush=True)
    machine = {"processor": platform.processor() or platform.machine(), "threads": torch.get_num_threads()}
    content = {"torch": torch.__version__, **machine, "rounds": rounds, "results": results}
    RESULTS.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
