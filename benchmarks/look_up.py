"""Compressors that look up the products of all ids against those that multiply the text, by forward and backward.

    python benchmarks/look_up.py

What simple_hierarchical_transformer/compressor.py chooses by: the time of one compressor, and of whole training steps,
looked up always, or as chosen, over never, as medians of interleaved rounds. Writes benchmarks/results/look_up.json.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from peers import TRAINING_MODEL
from torch import Tensor
from train_cases import CASES, THIRD_EXAMPLE

from simple_hierarchical_transformer import HierarchicalTransformer, compressor
from simple_hierarchical_transformer import model as model_module
from simple_hierarchical_transformer.compressor import Compressor, Source, is_faster_looked_up

RESULTS = Path(__file__).parent / "results" / "look_up.json"
NUM_TOKENS = 256
WIDTHS = [(32, 32), (64, 64), (192, 192), (512, 512), (1024, 512)]  # of the embeddings and of the stream
KERNELS = [(2, 1), (8, 1), (8, 8), (16, 8)]  # compress factor and stride
TIMES = (1, 1.25, 1.5, 2, 4, 8)  # as many windows as ids
STEPS: dict[str, tuple[dict[str, Any], int, int]] = {  # model, length, batch
    **{name: (CASES[name].model, CASES[name].length, CASES[name].batch) for name in (TRAINING_MODEL, THIRD_EXAMPLE)},
    f"{TRAINING_MODEL}, batch 16": (CASES[TRAINING_MODEL].model, 512, 16),
    f"{TRAINING_MODEL}, stride 1": (CASES[TRAINING_MODEL].model | {"hierarchical_stride": 1}, 512, 4),
    f"{THIRD_EXAMPLE}, length 2048": (CASES[THIRD_EXAMPLE].model, 2048, 1),
}


@contextmanager
def rule(chosen: Callable[..., bool]) -> Iterator[None]:
    modules = (compressor, model_module)
    for module in modules:
        module.is_faster_looked_up = chosen
    try:
        yield
    finally:
        for module in modules:
            module.is_faster_looked_up = is_faster_looked_up


def text(batch: int, length: int, device: str) -> Tensor:
    """Of ids that are as unequally frequent as words are."""
    frequencies = 1 / torch.arange(1, NUM_TOKENS + 1)
    return torch.multinomial(frequencies, batch * length, replacement=True).view(batch, length).to(device)


def in_turns(kinds: dict[str, Callable[..., bool]], run: Callable[[], object], rounds: int, device: str) -> list[float]:
    """Median milliseconds of each kind of choice."""
    times: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(rounds + 2):  # two to warm up
        for name, chosen in kinds.items():
            start = time.perf_counter()
            with rule(chosen):
                run()
            if device == "cuda":
                torch.cuda.synchronize()
            times[name].append(time.perf_counter() - start)
    return [1e3 * median(each[2:]) for each in times.values()]


def one_compressor(dims: tuple[int, int], kernel: tuple[int, int], windows: int, device: str) -> Callable[[], object]:
    (dim_in, dim_out), (factor, stride) = dims, kernel
    module = Compressor(dim_in, dim_out, compress_factor=factor, stride=stride).to(device)
    rows = text(2, windows * stride // 2, device)
    table = torch.randn(NUM_TOKENS + 1, dim_in, device=device, requires_grad=True)
    return lambda: module(F.embedding(rows, table), source=Source(rows, table)).sum().backward()


def training_step(arguments: dict[str, Any], length: int, batch: int, device: str) -> Callable[[], object]:
    model = HierarchicalTransformer(**{**arguments, "seq_len": length}).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    ids = text(batch, length + 1, device)

    def step() -> None:
        model(ids, return_loss=True)[0].backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    rounds, device = arguments.rounds, arguments.device
    never: dict[str, Callable[..., bool]] = {"never": lambda *shapes: False}
    torch.manual_seed(0)
    found: dict[str, list[dict[str, Any]]] = {"compressors": [], "steps": []}
    for dims, kernel, times in product(WIDTHS, KERNELS, TIMES):
        windows = int(times * NUM_TOKENS)
        run = one_compressor(dims, kernel, windows, device)
        plain, looked_up = in_turns(never | {"always": lambda *shapes: True}, run, rounds, device)
        taken = is_faster_looked_up(windows, NUM_TOKENS, dims[0], torch.device(device))
        row = {"dims": dims, "factor": kernel[0], "stride": kernel[1], "windows": windows, "taken": taken}
        found["compressors"].append(row | {"plain": plain, "looked up": looked_up, "ratio": plain / looked_up})
        shape = f"{dims[0]:5} →{dims[1]:5}, factor {kernel[0]:2}, stride {kernel[1]}, {windows:5} windows"
        print(f"{shape}: {plain:8.2f} ms {looked_up:8.2f} ms {plain / looked_up:6.2f} {'taken' * taken}", flush=True)
    for name, case in STEPS.items():
        run = training_step(*case, device)
        plain, chosen = in_turns(never | {"chosen": is_faster_looked_up}, run, rounds, device)
        found["steps"].append({"case": name, "plain": plain, "as chosen": chosen, "ratio": plain / chosen})
        print(f"{name}: {plain:8.1f} ms {chosen:8.1f} ms {plain / chosen:6.3f}", flush=True)
    machine = {"processor": platform.processor() or platform.machine(), "threads": torch.get_num_threads()}
    RESULTS.parent.mkdir(exist_ok=True)
    content = {"torch": torch.__version__, "device": device, **machine, "rounds": rounds, **found}
    RESULTS.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
