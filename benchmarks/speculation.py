"""Speculative decoding against plain decoding, on a model that `hierarchical-transformer train` has left.

    hierarchical-transformer train --prophet-loss-weight 0.3 --out runs/prophet
    python benchmarks/speculation.py --model runs/prophet/model

First it compares the greedy text of both, token by token, over many prompts of held-out text. Then it times both in
turns, on held-out text and on text that the model can predict: each of some held-out passages, repeated. Speed-ups are
medians over the prompts of the ratio within each pair. Writes benchmarks/results/speculation.json.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
from torch import Tensor

from simple_hierarchical_transformer import HierarchicalTransformer
from simple_hierarchical_transformer.training.data import load_split

RESULTS = Path(__file__).parent / "results" / "speculation.json"
PROMPT, LENGTH = 256, 128  # bytes
PASSAGE = 48  # bytes, repeated until they fill a prompt
WAYS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0},
    "temperature 0.7, top_p 0.9": {"temperature": 0.7, "top_p": 0.9},
    "all of the distribution": {"filter_thres": 0.0},
}


def held_out(count: int, repeated: bool) -> list[Tensor]:
    """Prompts (1, t) from the validation text, evenly spread."""
    text = load_split([], seq_len=512).validation
    length = PASSAGE if repeated else PROMPT
    starts = [i * (len(text) - length) // count for i in range(count)]
    passages = [torch.tensor([list(text.read(start, start + length))]) for start in starts]
    return [passage.repeat(1, -(-PROMPT // length))[:, :PROMPT] for passage in passages]


def count_differences(model: HierarchicalTransformer, prompts: list[Tensor], length: int) -> dict[str, int]:
    """Over all prompts, greedily."""
    tokens = differing = 0
    for prompt in prompts:
        plain, speculative = (model.generate(prompt, length, temperature=0, speculative=s) for s in (False, True))
        tokens += plain.numel()
        differing += int((plain != speculative).sum())
    return {"prompts": len(prompts), "tokens": tokens, "differing": differing}


def compare(model: HierarchicalTransformer, prompts: list[Tensor], options: dict[str, Any]) -> dict[str, float]:
    ratios, acceptance, plain = [], [], []
    for i, prompt in enumerate(prompts):
        start = time.perf_counter()
        model.generate(prompt, LENGTH, **options, generator=torch.Generator().manual_seed(i))
        middle = time.perf_counter()
        generator = torch.Generator().manual_seed(i)
        _, accepted = model.generate(
            prompt, LENGTH, **options, generator=generator, speculative=True, return_acceptance_length=True
        )
        ratios.append((middle - start) / (time.perf_counter() - middle))
        plain.append((middle - start) / LENGTH)
        acceptance.append(accepted)
    return {
        "speed_up": median(ratios),
        "acceptance_length": mean(acceptance),
        "plain_milliseconds_per_token": 1e3 * median(plain),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="folder of a byte model with a prophet loss")
    parser.add_argument("--prompts", type=int, default=1000, help="to compare token by token")
    parser.add_argument("--length", type=int, default=64, help="tokens of each of these")
    parser.add_argument("--timed", type=int, default=30, help="prompts to time")
    options = parser.parse_args()
    model = HierarchicalTransformer.from_pretrained(options.model).eval()
    content: dict[str, Any] = {
        "torch": torch.__version__,
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "parameters": sum(p.numel() for p in model.parameters()),
        "timed": [],
    }
    compare(model, held_out(2, False), WAYS["greedy"])  # to warm up
    for text, repeated in (("held-out text", False), ("held-out passages, repeated", True)):
        for way, filters in WAYS.items():
            found = compare(model, held_out(options.timed, repeated), filters)
            content["timed"].append({"text": text, "way": way} | found)
            figures = f"{found['speed_up']:.2f} times as fast, {found['acceptance_length']:.2f} tokens per forward"
            print(f"{text}, {way}: {figures}", flush=True)
    content["greedy"] = count_differences(model, held_out(options.prompts, False), options.length)
    print(content["greedy"])
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
