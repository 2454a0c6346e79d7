"""The figures of a run: in bits per byte, on the progress bar, and as lines of JSON."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

METRICS_FILE = "metrics.jsonl"
BAR = "{percentage:3.0f}% |{bar:8}| {elapsed}<{remaining}{postfix}"  # with its figures, 80 columns


def bits(nats: float) -> float:
    """A cross-entropy in nats, as `torch` gives it, in bits; per byte where a token is a byte."""
    return nats / math.log(2)


@torch.no_grad()
def validate(model: nn.Module, batches: Iterable[Tensor], device: torch.device) -> float:
    """Bits per byte of a byte model over windows `(b, n + 1)` of uint8: the mean over all `n` predicted bytes."""
    nats, count = 0.0, 0
    was_training = model.training
    model.eval()
    for batch in batches:
        ids = batch.to(device).long()
        logits = model(ids[:, :-1])
        nats += F.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="sum").item()
        count += ids[:, 1:].numel()
    model.train(was_training)
    return bits(nats / count)


class MetricsLog:
    """`metrics.jsonl`: one JSON object per line, there as soon as it is known."""

    def __init__(self, out: Path) -> None:
        self.path = out / METRICS_FILE

    def append(self, **record: float | int | None) -> None:
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(record, allow_nan=False) + "\n")


class ProgressBar:
    """How far a run is, the time it has left, and its figures; lines that are reported go above it."""

    def __init__(self, report: Callable[[str], None]) -> None:
        # where nobody watches, such as in a log file, a new state of the bar now and then is enough
        interval = 0.2 if sys.stderr.isatty() else 10.0
        self.bar = tqdm(total=1.0, bar_format=BAR, mininterval=interval, file=sys.stderr)
        self.write = report
        self.validation = math.nan

    def update(self, progress: float, train: float, tokens_per_second: float) -> None:
        validation = "" if math.isnan(self.validation) else f" validation {self.validation:.3f},"
        figures = f"{train:.3f} bits/byte,{validation} {tokens_per_second:,.0f} tokens/s"
        self.bar.set_postfix_str(figures, refresh=False)
        self.bar.update(min(progress, 1.0) - self.bar.n)

    def report(self, line: str) -> None:
        self.bar.clear()
        self.write(line)
        self.bar.refresh()

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.bar.close()
