"""`state.json`: where a run stands, in numbers. What it has learnt stands beside it, as tensors."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ..checkpoint import CheckpointError
from .checkpoint_folder import REMEDY, read_small

STATE_FILE = "state.json"
STATE_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class RunState:
    """All that a run goes on from, beside tensors.

    Attributes:
        step: optimiser steps taken, which is all that the order of the data and the schedule depend on
        tokens: tokens trained on
        sequences: position in the data: sequences seen
        seconds: time trained
        data: fingerprint of the data
        best: step and bits per byte of the best validation; none: there was none yet
        since_log: sums since the last line of training metrics, and
        since_validation: since the last validation
        settings: of the run, as JSON
        environment: versions and numbers of processes and threads, which the exact bits depend on
    """

    step: int
    tokens: int
    sequences: int
    seconds: float
    data: str
    best: tuple[int, float] | None
    since_log: Mapping[str, float]
    since_validation: Mapping[str, float]
    settings: Mapping[str, Any]
    environment: Mapping[str, str | int]

    def as_bytes(self) -> bytes:
        content = {"format_version": STATE_VERSION, **asdict(self)}
        return f"{json.dumps(content, indent=1, allow_nan=False)}\n".encode()


def read_state(path: Path) -> RunState:
    """What a state file holds.

    Raises:
        CheckpointError: it isn't as it should be.
    """
    try:
        content = json.loads(read_small(path))
    except (ValueError, RecursionError):
        raise CheckpointError(path, "the file is no JSON", REMEDY) from None
    if not isinstance(content, dict):
        raise CheckpointError(path, "the file holds no state of a run", REMEDY)
    version = content.pop("format_version", None)
    if version != STATE_VERSION:
        newer = "continue with the version of simple-hierarchical-transformer that wrote it"
        raise CheckpointError(path, f"format version {version!r} is not {STATE_VERSION}", newer)
    known = {field.name for field in fields(RunState)}
    if content.keys() != known:
        differing = ", ".join(sorted(content.keys() ^ known))
        raise CheckpointError(path, f"these are missing, or not known: {differing[:200]}", REMEDY)
    best = content["best"]
    is_sound = (
        all(type(content[name]) is int and content[name] >= 0 for name in ("step", "tokens", "sequences"))
        and is_number(content["seconds"])
        and isinstance(content["data"], str)
        and (best is None or is_best(best))
        and all(is_numbers(content[name]) for name in ("since_log", "since_validation"))
        and all(isinstance(content[name], dict) for name in ("settings", "environment"))
    )
    if not is_sound:
        raise CheckpointError(path, "a value is of the wrong type", REMEDY)
    return RunState(**{**content, "best": None if best is None else (best[0], float(best[1]))})


def is_best(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and type(value[0]) is int and is_number(value[1])


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def is_numbers(values: Any) -> bool:
    return isinstance(values, dict) and all(is_number(value) for value in values.values())
