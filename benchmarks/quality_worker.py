"""Trains one run of quality.py and says how it went: bits per byte, speed, memory.

    python benchmarks/quality_worker.py RUN.json TEXT PACKAGES ANSWER.json

It imports nothing of the package but the model, since the reference is a package of the same name.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from processes import Memory
from quality_contenders import KINDS, Contender, flops_of_step, optimizers, trained_parameters
from quality_runs import Run
from torch import Tensor

POINTS = 60  # of a curve
WARMUP, COOLDOWN = 0.02, 0.5  # shares of the budget, as the package trains by default
CLIP = 1.0
SCORED = 1 << 18  # bytes of held-out text
AT_ONCE = 4096  # of them
PHASES = 64  # the loss is told by position modulo this


class Text:
    """Bytes of a file, and the windows of it that a step sees: a function of seed and step alone."""

    def __init__(self, path: Path) -> None:
        self.ids = torch.from_file(str(path), size=path.stat().st_size, dtype=torch.uint8)

    def batch(self, seed: int, step: int, batch: int, seq_len: int) -> Tensor:
        digest = hashlib.sha256(f"{seed} {step}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        starts = torch.randint(len(self.ids) - seq_len, (batch,), generator=generator)
        return torch.stack([self.ids[start : start + seq_len + 1] for start in starts.tolist()]).long()

    def windows(self, seq_len: int) -> Tensor:
        """Evenly spaced, of SCORED bytes together: (windows, seq_len + 1)."""
        count = max(min(SCORED, len(self.ids) - 1) // seq_len, 1)
        starts = [i * (len(self.ids) - seq_len - 1) // max(count - 1, 1) for i in range(count)]
        return torch.stack([self.ids[start : start + seq_len + 1] for start in starts]).long()


def schedule(progress: float) -> float:
    """What the learning rates are multiplied with: up, constant, and down to 0."""
    return min(progress / WARMUP, (1 - progress) / COOLDOWN, 1.0)


class Budget:
    """How far a run is: by the clock, or by its steps."""

    def __init__(self, run: Run, flops_per_step: int) -> None:
        self.seconds, self.steps = run.seconds, run.steps
        if run.flops is not None:
            self.steps = max(round(run.flops / flops_per_step), 1)

    def progress(self, step: float, seconds: float) -> float:
        return seconds / self.seconds if self.seconds is not None else step / (self.steps or 1)


def train(run: Run, contender: Contender, text: Text) -> dict[str, Any]:
    device, model = run.device, contender.model
    flops = flops_of_step(contender, text.batch(run.seed, 0, run.batch, run.seq_len).to(device))
    made = optimizers(model, run)
    rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in made]
    budget, parameters = Budget(run, flops), [p for p in model.parameters() if p.requires_grad]
    model.train()
    step, spent, curve, nats, since = 0, 0.0, [], 0.0, 0
    start = time.perf_counter()
    while (progress := budget.progress(step + (0.5 if run.seconds is None else 0), spent)) < 1:
        for optimizer, initial in zip(made, rates, strict=True):
            for group, rate in zip(optimizer.param_groups, initial, strict=True):
                group["lr"] = rate * schedule(progress)
        ids = text.batch(run.seed, step, run.batch, run.seq_len).to(device)
        with torch.autocast(device, torch.bfloat16, enabled=device != "cpu"):
            loss, next_byte = contender.losses(ids)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, CLIP)
        for optimizer in made:
            optimizer.step()
            optimizer.zero_grad()
        nats, since, step = nats + next_byte.item(), since + 1, step + 1
        spent = time.perf_counter() - start
        if budget.progress(step, spent) >= (len(curve) + 1) / POINTS:
            # until now, and the mean since the point before, of text that is seen for the first time
            curve.append([round(spent, 2), step, round(nats / since / math.log(2), 4)])
            nats, since = 0.0, 0
    if not math.isfinite(curve[-1][2]):
        raise ArithmeticError(f"the loss of {run.contender} isn't finite")
    return {
        "parameters": trained_parameters(model),
        "flops_per_step": flops,
        "steps": step,
        "seconds": round(spent, 2),
        "tokens": step * run.batch * run.seq_len,
        "curve": curve,
    }


@torch.no_grad()
def score(run: Run, contender: Contender, text: Text) -> dict[str, Any]:
    """Bits per byte of held-out windows, and where the model gives logits, by place."""
    contender.model.eval()
    windows = text.windows(run.seq_len)
    at_once = max(AT_ONCE // run.seq_len, 1)
    total = torch.zeros(run.seq_len, dtype=torch.float64)
    ablated: dict[str, float] = {}
    factors = [s.compress_factor for s in getattr(getattr(contender.model, "config", None), "streams", ())]
    for ids in windows.split(at_once):
        ids = ids.to(run.device)
        with torch.autocast(run.device, torch.bfloat16, enabled=run.device != "cpu"):
            if contender.logits is None:
                total += contender.losses(ids)[1].item() * len(ids)
                continue
            total += nats_by_place(contender.logits(ids[:, :-1]), ids)
            for factor in factors[1:]:
                logits = contender.model(ids[:, :-1], ablate_hierarchical_merge=factor)
                nats = nats_by_place(logits, ids).sum().item()
                ablated[str(factor)] = ablated.get(str(factor), 0.0) + nats
    bits = total / len(windows) / math.log(2)
    result: dict[str, Any] = {"bits_per_byte": bits.mean().item()}
    if contender.logits is not None:
        places = torch.arange(run.seq_len)
        late = places >= run.seq_len // 2  # where all have seen enough
        result["by_phase"] = [bits[late & (places % PHASES == phase)].mean().item() for phase in range(PHASES)]
        edges = [0, *(2**k for k in range(4, run.seq_len.bit_length()) if 2**k <= run.seq_len)]
        result["by_distance"] = {f"{low}-{high}": bits[low:high].mean().item() for low, high in pairwise(edges)}
        scale = len(windows) * run.seq_len * math.log(2)
        result["ablated"] = {factor: nats / scale for factor, nats in ablated.items()}
    return result


def nats_by_place(logits: Tensor, ids: Tensor) -> Tensor:
    nats = F.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    return nats.view(len(ids), -1).double().sum(dim=0).cpu()


def main() -> None:
    what, texts, packages, answer = map(Path, sys.argv[1:])
    run = Run.of(json.loads(what.read_text()))
    kind = KINDS[run.kind]
    if kind.package is not None:
        sys.path.insert(0, str(packages / kind.package))
    torch.manual_seed(run.seed)
    memory = Memory(run.device)
    contender = kind.make(run.arguments, run.seq_len)
    contender.model.to(run.device)
    trained = train(run, contender, Text(texts / "train.bin"))
    peak = memory.peak()
    scored = score(run, contender, Text(texts / "validation.bin"))
    machine = {"threads": torch.get_num_threads(), "torch": torch.__version__, "cores": os.cpu_count()}
    answer.write_text(json.dumps({**scored, **trained, "peak_bytes": peak, "machine": machine}))


if __name__ == "__main__":
    main()
