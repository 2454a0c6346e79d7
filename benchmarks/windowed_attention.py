"""Ways to attend within a window on CPUs, by whole training steps.

    python benchmarks/windowed_attention.py

- blockwise: views that overlap, through the fused kernel (what is taken: simple_hierarchical_transformer/blockwise.py)
- chunk and halo: copies of each block with the keys before it (what is taken elsewhere, and while compiling)
- local-attention: the package of that name
- a mask: all keys, of which a mask leaves those in the window
- no window: plain causal attention to all that is before, another function, for comparison

The first four compute the same (tests/test_parts.py). Forward, backward and optimiser step are timed in one process,
interleaved, as medians; what counts is the ratio. Writes benchmarks/results/windowed_attention.json.
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
import torch.nn.functional as F
from torch import Tensor

from simple_hierarchical_transformer import HierarchicalTransformer, attention

RESULTS = Path(__file__).parent / "results" / "windowed_attention.json"
MODEL: dict[str, Any] = {"num_tokens": 256, "dim": 192, "depth": 2, "dim_head": 32, "heads": 6}
WINDOWS = (16, 32, 64, 128, 256)
LENGTHS = (512, 2048, 8192, 32768)
TOKENS = 2048  # of a batch, at least
MOST_PAIRS = 2**24  # of queries and keys, in the ways that look at all


def by_mask(q: Tensor, k: Tensor, v: Tensor, window: int, groups: int) -> Tensor:
    mask = attention.band(q.shape[2], q.shape[2], 0, window, q.device)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def without_window(q: Tensor, k: Tensor, v: Tensor, window: int, groups: int) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def by_package(q: Tensor, k: Tensor, v: Tensor, window: int, block: int, fused: bool | None) -> Tensor:
    return attention.attend_local(q, k, v, window)


def never(q: Tensor, fused: bool | None) -> bool:
    return False


WAYS: dict[str, dict[str, Callable[..., Any]]] = {
    "blockwise": {},
    "chunk and halo": {"is_for_blockwise": never},
    "local-attention": {"is_for_blockwise": never, "attend_chunk_and_halo": by_package},
    "a mask": {"attend_blockwise": by_mask},
    "no window": {"attend_blockwise": without_window},
}
SEE_ALL = ("a mask", "no window")


@contextmanager
def taken(functions: dict[str, Callable[..., Any]]) -> Iterator[None]:
    before = {name: getattr(attention, name) for name in functions}
    vars(attention).update(functions)
    try:
        yield
    finally:
        vars(attention).update(before)


def training_step(window: int, length: int) -> Callable[[], None]:
    torch.manual_seed(0)
    model = HierarchicalTransformer(**MODEL, window_sizes=window, seq_len=length)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    ids = torch.randint(0, 256, (max(TOKENS // length, 1), length + 1))

    def step() -> None:
        loss, _ = model(ids, return_loss=True)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def measure(step: Callable[[], None], length: int, rounds: int) -> dict[str, float]:
    """Median seconds of a step in each way, in turns."""
    ways = [way for way in WAYS if way not in SEE_ALL or length * length <= MOST_PAIRS]
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(rounds + 1):  # one to warm up
        for way, times in seconds.items():
            with taken(WAYS[way]):
                start = time.perf_counter()
                step()
                times.append(time.perf_counter() - start)
    return {way: statistics.median(times[1:]) for way, times in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    results = []
    print("length window  blockwise, and the others over it")
    for length in LENGTHS:
        for window in (*WINDOWS, length * 3 // 4):
            seconds = measure(training_step(window, length), length, rounds)
            ratios = {way: each / seconds["blockwise"] for way, each in seconds.items() if way != "blockwise"}
            shown = "".join(f"  {way} {ratio:.2f}" for way, ratio in ratios.items())
            print(f"{length:6} {window:6} {seconds['blockwise'] * 1e3:7.1f} ms{shown}", flush=True)
            results.append({"length": length, "window": window, "seconds": seconds, "ratios": ratios})
            if length == LENGTHS[-1] and window == WINDOWS[-1]:
                break  # what covers most of the longest would take minutes
    machine = {"processor": platform.processor() or platform.machine(), "threads": torch.get_num_threads()}
    RESULTS.parent.mkdir(exist_ok=True)
    content = {"torch": torch.__version__, **machine, "rounds": rounds, "model": MODEL, "results": results}
    RESULTS.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
