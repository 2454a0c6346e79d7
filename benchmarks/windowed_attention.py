"""Windowed attention: our chunk and halo against the package local-attention, by whole training steps.

    python benchmarks/windowed_attention.py

Both compute the same function (tests/test_parts.py). Forward, backward and optimiser step are timed in one process,
interleaved, as the median of many rounds; what counts is the ratio. Writes benchmarks/results/windowed_attention.json.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from simple_hierarchical_transformer import HierarchicalTransformer, attention

RESULTS = Path(__file__).parent / "results" / "windowed_attention.json"
SINGLE: dict[str, Any] = {"dim": 192, "depth": 4, "dim_head": 32, "heads": 6}
TWO: dict[str, Any] = SINGLE | {"hierarchies": (1, 8), "hierarchical_stride": (1, 8)}
# model, length, batch
CASES: dict[str, tuple[dict[str, Any], int, int]] = {
    "README's training model": (TWO | {"window_sizes": (64, None)}, 512, 4),
    **{
        f"one stream, window {window}, length {length}": (SINGLE | {"window_sizes": window}, length, 2048 // length)
        for length in (512, 2048)
        for window in (16, 32, 64, 128)
    },
}


@contextmanager
def local_attention() -> Iterator[None]:
    """Let all windowed attention take the package's path."""
    ours = attention.attend_chunk_and_halo

    def theirs(q: Tensor, k: Tensor, v: Tensor, window: int, block: int, fused: bool | None) -> Tensor:
        return attention.attend_local(q, k, v, window)

    attention.attend_chunk_and_halo = theirs
    try:
        yield
    finally:
        attention.attend_chunk_and_halo = ours


def training_step(arguments: dict[str, Any], length: int, batch: int) -> Callable[[], None]:
    torch.manual_seed(0)
    model = HierarchicalTransformer(num_tokens=256, seq_len=length, **arguments)
    optimizer = torch.optim.AdamW(model.parameters())
    ids = torch.randint(0, 256, (batch, length + 1))

    def step() -> None:
        loss, _ = model(ids, return_loss=True)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def measure(step: Callable[[], None], rounds: int) -> dict[str, float]:
    """Median seconds of a step by either path, in turns."""
    seconds: dict[str, list[float]] = {"chunk and halo": [], "local-attention": []}
    for round_ in range(rounds + 3):  # three to warm up
        for name, times in seconds.items():
            start = time.perf_counter()
            if name == "local-attention":
                with local_attention():
                    step()
            else:
                step()
            if round_ >= 3:
                times.append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    results = []
    print(f"{'case':40} {'chunk and halo':>15} {'local-attention':>16} {'ratio':>6}")
    for name, case in CASES.items():
        seconds = measure(training_step(*case), rounds)
        ours, theirs = seconds.values()
        print(f"{name:40} {ours * 1e3:12.1f} ms {theirs * 1e3:13.1f} ms {theirs / ours:6.2f}", flush=True)
        results.append({"case": name, "seconds": seconds, "ratio": theirs / ours})
    machine = {"processor": platform.processor() or platform.machine(), "threads": torch.get_num_threads()}
    RESULTS.parent.mkdir(exist_ok=True)
    content = {"torch": torch.__version__, **machine, "rounds": rounds, "results": results}
    RESULTS.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
