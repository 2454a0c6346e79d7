"""Contenders of decoding.py in processes of their own: a worker holds one, and is asked about its texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from peers import CONTENDERS, MODELS, TRAINING_MODEL, Floor, Ours, Session
from processes import Memory, Service, serve, timed

ROOM = 256  # tokens that a text may grow by


class Decoding(Service):
    """Sessions by name, and what can be asked about them."""

    def __init__(self, name: str, device: str) -> None:
        self.contender = CONTENDERS[name]
        # imports and first uses count as nobody's time or memory
        self.contender.make(TRAINING_MODEL, 2048, torch.zeros(1, 8, dtype=torch.long, device=device)).start()
        super().__init__(device)
        self.sessions: dict[str, Session] = {}
        self.floors: dict[str, Floor] = {}

    def open(self, session: str, model: str, context: int, batch: int) -> dict[str, Any]:
        self.memory = Memory(self.device)
        torch.manual_seed(0)
        prompt = torch.randint(MODELS[model]["num_tokens"], (batch, context)).to(self.device)
        made = self.contender.make(model, max(2048, context + ROOM), prompt)
        self.sessions[session] = made
        if isinstance(made, Ours):
            self.floors[session] = Floor(made, prompt)
        self.memory.reset()
        weights = list(made.model.parameters())
        return {"parameters": sum(w.numel() for w in weights), "weight_bytes": sum(w.nbytes for w in weights)}

    def start(self, session: str) -> dict[str, Any]:
        return {"seconds": timed(self.sessions[session].start, self.device), "peak": self.memory.peak()}

    def advance(self, session: str, tokens: int) -> dict[str, Any]:
        seconds = timed(lambda: self.sessions[session].advance(tokens), self.device)
        return {"seconds": seconds, "peak": self.memory.peak()}

    def floor(self, session: str, tokens: int) -> dict[str, Any]:
        facts = self.floors[session].measure(tokens)
        self.memory.reset()
        return facts

    def state_bytes(self, session: str) -> dict[str, Any]:
        made = self.sessions[session]
        assert isinstance(made, Ours)
        return {"bytes": made.state.nbytes}

    def close(self, session: str) -> dict[str, Any]:
        self.sessions.pop(session, None)
        self.floors.pop(session, None)
        self.memory = Memory(self.device)
        return {}

    def questions(self) -> Sequence[Callable[..., dict[str, Any]]]:
        return (self.open, self.start, self.advance, self.floor, self.state_bytes, self.close)


def serve_decoding(name: str, cache: Path, device: str, threads: int, memory: int) -> None:
    package = CONTENDERS[name].package
    torch.set_grad_enabled(False)
    serve(lambda: Decoding(name, device), None if package is None else cache / package, device, threads, memory)
