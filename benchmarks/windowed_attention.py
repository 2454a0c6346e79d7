"""Ways to attend within a window, by whole training steps.

    python benchmarks/windowed_attention.py
    python benchmarks/windowed_attention.py --device cuda

- blockwise: views that overlap, through the fused kernel (what CPUs take: simple_hierarchical_transformer/blockwise.py)
- chunk and halo: copies of each block with the keys before it (what is taken elsewhere, and while compiling)
- local-attention: the package of that name
- FlexAttention: compiled for the window, with a mask of blocks (CUDA)
- varlen: torch.nn.attention.varlen, whose kernel knows windows (CUDA)
- a mask: all keys, of which a mask leaves those in the window
- no window: plain causal attention to all that is before, another function, for comparison

All but the last compute the same: tests/test_parts.py holds those of CPUs to it, and the attention of random tokens
is compared with the first way's before a way is timed. Forward, backward and optimiser step are timed in one process,
interleaved, as medians; what counts is the ratio. On CUDA, steps are under bfloat16 autocast. Writes
benchmarks/results/windowed_attention.json, or windowed_attention_cuda.json.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from processes import reason, timed
from torch import Tensor

from simple_hierarchical_transformer import HierarchicalTransformer, attention

RESULTS = Path(__file__).parent / "results"
WINDOWS = (16, 32, 64, 128, 256, 1024)
LENGTHS = (512, 2048, 8192, 32768)
TOLERANCE = 0.02  # between the outputs of ways that compute the same, as the norm of their difference over their own
ANOTHER = "no window"  # function


@dataclass(frozen=True, kw_only=True)
class Setting:
    model: dict[str, Any]
    tokens: int  # of a batch, at least
    most_pairs: int  # of queries and keys, in the ways that look at all


SETTINGS = {
    "cpu": Setting(
        model={"num_tokens": 256, "dim": 192, "depth": 2, "dim_head": 32, "heads": 6}, tokens=2048, most_pairs=2**24
    ),
    "cuda": Setting(
        model={"num_tokens": 256, "dim": 1024, "depth": 4, "dim_head": 64, "heads": 16}, tokens=65536, most_pairs=2**28
    ),
}


def by_mask(q: Tensor, k: Tensor, v: Tensor, window: int, *others: object) -> Tensor:
    mask = attention.band(q.shape[2], q.shape[2], 0, window, q.device)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def without_window(q: Tensor, k: Tensor, v: Tensor, *others: object) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def by_package(q: Tensor, k: Tensor, v: Tensor, window: int, *others: object) -> Tensor:
    return attention.attend_local(q, k, v, window)


@lru_cache(maxsize=1)
def compiled_flex_attention() -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    compiled: Callable[..., Tensor] = torch.compile(flex_attention, dynamic=False)
    return compiled


@lru_cache(maxsize=8)
def block_mask(length: int, window: int, device: torch.device) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    def sees(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (query - key <= window)

    return create_block_mask(sees, None, None, length, length, device=device, _compile=True)


def by_flex_attention(q: Tensor, k: Tensor, v: Tensor, window: int, *others: object) -> Tensor:
    return compiled_flex_attention()(q, k, v, block_mask=block_mask(q.shape[2], window, q.device))


def by_varlen(q: Tensor, k: Tensor, v: Tensor, window: int, *others: object) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    b, _, m, _ = q.shape
    starts = torch.arange(0, b * m + 1, m, device=q.device, dtype=torch.int32)
    packed = (rearrange(t, "b h m d -> (b m) h d") for t in (q, k, v))
    out = varlen_attn(*packed, starts, starts, m, m, window_size=(window, 0))
    return rearrange(out, "(b m) h d -> b h m d", b=b)


def never(q: Tensor, fused: bool | None) -> bool:
    return False


def instead(function: Callable[..., Tensor]) -> dict[str, Callable[..., Any]]:
    """Of whole phases (b, h, m, d), whatever the window."""
    return {"is_for_blockwise": never, "attend_phase": function}


WAYS: dict[str, dict[str, dict[str, Callable[..., Any]]]] = {
    "cpu": {
        "blockwise": {},
        "chunk and halo": {"is_for_blockwise": never},
        "local-attention": instead(by_package),
        "a mask": instead(by_mask),
        ANOTHER: instead(without_window),
    },
    "cuda": {
        "chunk and halo": {},
        "FlexAttention": instead(by_flex_attention),
        "varlen": instead(by_varlen),
        "a mask": instead(by_mask),
        ANOTHER: instead(without_window),
    },
}
LONGEST_LOCAL = 1024  # window for which local-attention is timed; beyond, it takes minutes


@contextmanager
def taken(functions: dict[str, Callable[..., Any]]) -> Iterator[None]:
    before = {name: getattr(attention, name) for name in functions}
    vars(attention).update(functions)
    try:
        yield
    finally:
        vars(attention).update(before)


class Training:
    def __init__(self, device: str, window: int, length: int) -> None:
        torch.manual_seed(0)
        setting = SETTINGS[device]
        self.device = device
        model = HierarchicalTransformer(**setting.model, window_sizes=window, seq_len=length)
        self.model = model.to(device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), fused=True)
        self.ids = torch.randint(0, 256, (max(setting.tokens // length, 1), length + 1)).to(device)

    def loss(self) -> Tensor:
        with torch.autocast(self.device, torch.bfloat16, enabled=self.device == "cuda"):
            loss, _ = self.model(self.ids, return_loss=True)
        return loss

    def step(self) -> None:
        self.loss().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def differing(training: Training, ways: list[str], length: int) -> dict[str, str]:
    """Why some of these ways can't be timed: they fail, or their attention of random tokens isn't the first way's."""
    module = training.model.layers[0].blocks[0].attention
    chunk = training.model.chunks(0, length)[0]
    x = torch.randn(1, length, SETTINGS[training.device].model["dim"], device=training.device)
    outputs, found = {}, {}
    for way in ways:
        try:
            half = torch.autocast(training.device, torch.bfloat16, enabled=training.device == "cuda")
            with taken(WAYS[training.device][way]), torch.no_grad(), half:
                outputs[way] = module(x, chunk).float()
        except (RuntimeError, ValueError) as error:
            found[way] = reason(error)
    expected = outputs[ways[0]]
    for way, output in outputs.items():
        difference = ((output - expected).norm() / expected.norm()).item()
        if way == ANOTHER:
            assert difference > TOLERANCE, "the check can't tell windows"
        elif not difference <= TOLERANCE:
            found[way] = f"another function: differs by {difference:.1%}"
    return found


def measure(training: Training, window: int, length: int, rounds: int) -> tuple[dict[str, float], dict[str, str]]:
    """Median seconds of a step in each way, in turns; and why some have none."""
    torch.compiler.reset()  # else what compiles for each window in turn would reach torch's limit and stop compiling
    most = SETTINGS[training.device].most_pairs
    limits = {"a mask": most, ANOTHER: 4 * most}
    ways = [way for way in WAYS[training.device] if way not in limits or length * length <= limits[way]]
    if window > LONGEST_LOCAL:
        ways = [way for way in ways if way != "local-attention"]
    failed = differing(training, ways, length)
    seconds: dict[str, list[float]] = {way: [] for way in ways if way not in failed}
    for _ in range(rounds + 1):  # one to warm up
        for way in list(seconds):
            try:
                with taken(WAYS[training.device][way]):
                    seconds[way].append(timed(training.step, training.device))
            except (RuntimeError, ValueError) as error:
                failed[way] = reason(error)
                del seconds[way]
    return {way: statistics.median(times[1:]) for way, times in seconds.items()}, failed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", choices=SETTINGS, default="cpu")
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    options = parser.parse_args()
    setting, first = SETTINGS[options.device], next(iter(WAYS[options.device]))
    results = []
    print(f"length window  {first}, and the others over it")
    for length in options.lengths:
        # what covers most of the longest would take minutes
        for window in (*(w for w in WINDOWS if w < length), *([length * 3 // 4] if length <= LENGTHS[2] else [])):
            seconds, failed = measure(Training(options.device, window, length), window, length, options.rounds)
            ratios = {way: each / seconds[first] for way, each in seconds.items() if way != first}
            shown = "".join(f"  {way} {ratio:.2f}" for way, ratio in ratios.items())
            shown += "".join(f"  {way}: {why}" for way, why in failed.items())
            print(f"{length:6} {window:6} {seconds[first] * 1e3:7.1f} ms{shown}", flush=True)
            results.append({"length": length, "window": window, "seconds": seconds, "ratios": ratios, "failed": failed})
    content = {
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if options.device == "cuda" else "cpu",
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "rounds": options.rounds,
        "model": setting.model,
        "results": results,
    }
    RESULTS.mkdir(exist_ok=True)
    name = "windowed_attention.json" if options.device == "cpu" else "windowed_attention_cuda.json"
    (RESULTS / name).write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
