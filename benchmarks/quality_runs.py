"""A training run of quality.py: what it is, and the file that says how it went.

A run is known by all that decides its outcome. Its file carries a digest of that in its name, so a run that is there is
never repeated, and one that is changed in any way is another run.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "results" / "quality"


@dataclass(frozen=True, kw_only=True)
class Run:
    """One model, trained once."""

    contender: str  # as the tables call it
    kind: str  # one of quality_contenders.KINDS
    arguments: dict[str, Any] = field(default_factory=dict)  # of the model
    optimizer: str = "muon"  # for hidden matrices, or "adamw" for everything
    lr: float = 0.02  # of what `optimizer` moves
    rest_lr: float = 3e-3  # of what AdamW moves beside Muon
    ngram_lr: float = 1e-2
    coarse_lr: float = 1.0  # times `lr`, for the matrices of our coarse streams
    text: str = "library"
    seq_len: int = 512
    batch: int = 4
    seconds: float | None = None  # the budget: one of the three
    flops: float | None = None  # of training, forward and backward, without the optimiser's
    steps: int | None = None
    seed: int = 0
    device: str = "cpu"

    @property
    def digest(self) -> str:
        content = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:10]

    @property
    def path(self) -> Path:
        name = re.sub(r"[^a-z0-9.]+", "-", self.contender.lower()).strip("-")
        return FOLDER / f"{name}-{self.digest}.json"

    @property
    def budget(self) -> str:
        if self.seconds is not None:
            return f"{self.seconds:g} s"
        return f"{self.flops:.3g} FLOPs" if self.flops is not None else f"{self.steps:,} steps"

    def result(self) -> dict[str, Any] | None:
        """How it went, if it has run."""
        if not self.path.exists():
            return None
        found: dict[str, Any] = json.loads(self.path.read_text())["result"]
        return found

    def save(self, result: dict[str, Any]) -> None:
        """Write it beside its place and rename it, so that a file that is there is whole."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        beside = self.path.with_suffix(".part")
        with beside.open("w") as file:
            json.dump({"run": asdict(self), "result": result}, file, indent=1)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        beside.replace(self.path)

    @classmethod
    def of(cls, content: dict[str, Any]) -> Run:
        """From JSON, which has lists where arguments have tuples."""
        arguments = {name: tuple(v) if isinstance(v, list) else v for name, v in content["arguments"].items()}
        return cls(**content | {"arguments": arguments})
