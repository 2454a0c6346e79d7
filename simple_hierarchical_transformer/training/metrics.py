"""The figures of a run: in bits per byte, and as lines of JSON."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..files import write_atomically

METRICS_FILE = "metrics.jsonl"
FINAL_VALIDATION = "final_validation_bits_per_byte"


def bits(nats: float) -> float:
    """A cross-entropy in nats, as `torch` gives it, in bits; per byte where a token is a byte."""
    return nats / math.log(2)


def peak_memory(device: torch.device) -> int | None:
    """The most bytes that tensors took so far on a CUDA device, or else the process in main memory.

    None where the system doesn't say, as on Windows.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return None
    from resource import RUSAGE_SELF, getrusage  # there is none on Windows

    return getrusage(RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class MetricsLog:
    """`metrics.jsonl`: one JSON object per line, in the file as soon as it is known.

    A process that is killed leaves whole lines, and perhaps a last one that is cut off. Such a line harms nothing:
    readers pass over it, the next line doesn't continue it, and `rewind` takes it out.
    """

    def __init__(self, out: Path) -> None:
        self.path = out / METRICS_FILE

    def append(self, record: Mapping[str, float | None]) -> None:
        """Write one line.

        Args:
            record: its `step`, and what is known of that step

        Raises:
            ValueError: a figure isn't finite, which JSON has no word for; nothing is written
            OSError: the disk is full, say
        """
        line = json.dumps(dict(record), allow_nan=False).encode() + b"\n"
        try:
            with open(self.path, "ab+") as file:  # which writes at the end, wherever it has read
                if file.tell() > 0:
                    file.seek(-1, os.SEEK_END)
                    if file.read(1) != b"\n":
                        line = b"\n" + line
                file.write(line)
        except OSError as error:
            raise OSError(f"{self.path} can't be written to ({error.strerror}): make room") from error

    def final_validation(self, step: int) -> float | None:
        """The figure of the validation at the end of a run of so many steps, if it has come to that."""
        try:
            found = [record for record in read_metrics(self.path) if FINAL_VALIDATION in record]
        except FileNotFoundError:
            return None
        return float(found[-1][FINAL_VALIDATION]) if found and found[-1]["step"] == step else None

    def rewind(self, step: int) -> None:
        """Forget what came after a step, for a run that goes on from there.

        What stays are the whole lines of this and earlier steps, but for the validation at the end of a run, which is
        no end any more. All others go: later ones, those that are cut off
        or damaged, wherever they stand, and those that aren't of a run, since they have no `step`. The file is
        replaced in one piece, and only if something goes.

        Raises:
            OSError: the file can't be read, or the new one can't be written; the old one is as it was
        """
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return
        lines = [
            line
            for line in content.split(b"\n")
            if (record := parsed(line)) and record["step"] <= step and FINAL_VALIDATION not in record
        ]
        kept = b"".join(line + b"\n" for line in lines)
        if kept != content:
            write_atomically({self.path: kept})


def read_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a `metrics.jsonl`, in its order; lines that are cut off, damaged or foreign are passed over."""
    with open(path, "rb") as file:
        for line in file:
            record = parsed(line)
            if record is not None:
                yield record


def parsed(line: bytes) -> dict[str, Any] | None:
    """The record that a line holds, or None: a JSON object whose `step` is a whole number."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or type(record.get("step")) is not int:
        return None
    return record


@torch.no_grad()
def cross_entropy_of(model: nn.Module, batches: Iterable[Tensor], device: torch.device) -> tuple[float, float]:
    """The cross-entropy in nats of the `n` predicted tokens of windows `(b, n + 1)`, summed, and their number."""
    nats, count = 0.0, 0.0
    was_training = model.training
    model.eval()
    for batch in batches:
        ids = batch.to(device).long()
        logits = model(ids[:, :-1])
        nats += F.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="sum").item()
        count += ids[:, 1:].numel()
    model.train(was_training)
    return nats, count


class Means:
    """Means of figures since a certain step; what it holds can be saved, and gone on from to the bit."""

    def __init__(self, sums: Mapping[str, float] | None = None) -> None:
        self.sums = dict(sums or {})

    @property
    def steps(self) -> int:
        return int(self.sums.get("steps", 0))

    def add(self, figures: Mapping[str, float]) -> None:
        for name, value in {**figures, "steps": 1}.items():
            self.sums[name] = self.sums.get(name, 0) + value

    def __getitem__(self, name: str) -> float:
        return self.sums[name] / self.steps

    def as_dict(self) -> dict[str, float]:
        return {name: self[name] for name in self.sums if name != "steps"}

    def clear(self) -> None:
        self.sums.clear()
