"""Speculative decoding against plain decoding, with a small byte model and a prophet loss.

    hierarchical-transformer train --prophet-loss-weight 0.3 --out runs/prophet
    python benchmarks/speculation.py --model runs/prophet/model

First both are timed in turns: on held-out text, and on text that a model can predict, for which the same model is
trained on a log that it writes (about two minutes). Speed-ups are medians over prompts of the ratio of a pair. Then
the greedy text of both is compared, token by token, over many held-out prompts. Writes
benchmarks/results/speculation.json.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path
from random import Random
from statistics import mean, median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from peers import TRAINED
from torch import Tensor

from simple_hierarchical_transformer import HierarchicalTransformer
from simple_hierarchical_transformer.text.data import load_split
from simple_hierarchical_transformer.training import ModelArguments, TrainConfig
from simple_hierarchical_transformer.training.loop import train

RESULTS = Path(__file__).parent / "results" / "speculation.json"
PROMPT, LENGTH = 256, 128  # bytes
LOG_LINES = 40_000
WAYS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0},
    "temperature 0.7, top_p 0.9": {"temperature": 0.7, "top_p": 0.9},
    "all of the distribution": {"filter_thres": 0.0},
}


def write_log(path: Path) -> None:
    """Lines as a server writes them: mostly the same, with fields that follow from the line before, or from nothing."""
    random = Random(0)
    with open(path, "w") as file:
        for second in range(LOG_LINES):
            clock = f"{second // 3600 % 24:02}:{second // 60 % 60:02}:{second % 60:02}"
            place, milliseconds = (
                random.choice(("/index.html", "/about.html", "/images/logo.png")),
                random.randrange(10),
            )
            file.write(f"{clock} INFO server: GET {place} HTTP/1.1 status 200 in {milliseconds} milliseconds\n")


def train_on_log(folder: Path, steps: int) -> tuple[HierarchicalTransformer, Path]:
    log = folder / "server.log"
    write_log(log)
    model = ModelArguments(**TRAINED | {"prophet_loss_weight": 0.3})
    config = TrainConfig(data=[log], out=folder / "run", steps=steps, sample_length=0, model=model)
    return HierarchicalTransformer.from_pretrained(train(config).folder).eval(), log


def held_out(data: list[Path], count: int) -> list[Tensor]:
    """Prompts (1, t) from the validation text, evenly spread."""
    text = load_split(data, seq_len=512).validation
    starts = [i * (len(text) - PROMPT) // count for i in range(count)]
    return [text.read(start, start + PROMPT).long()[None] for start in starts]


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
    parser.add_argument("--log-steps", type=int, default=300, help="steps to train on a log")
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
    with TemporaryDirectory() as folder:
        on_log, log = train_on_log(Path(folder), options.log_steps)
        for text, writer, data in (("held-out Python", model, []), ("held-out log", on_log, [log])):
            prompts = held_out(data, options.timed)
            compare(writer, prompts[:2], WAYS["greedy"])  # to warm up
            for way, filters in WAYS.items():
                found = compare(writer, prompts, filters)
                content["timed"].append({"text": text, "way": way} | found)
                figures = f"{found['speed_up']:.2f} times as fast, {found['acceptance_length']:.2f} tokens per forward"
                print(f"{text}, {way}: {figures}", flush=True)
        content["greedy"] = {
            "held-out Python": count_differences(model, held_out([], options.prompts), options.length),
            "held-out log": count_differences(on_log, held_out([log], options.prompts // 10), options.length),
        }
    print(content["greedy"])
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
