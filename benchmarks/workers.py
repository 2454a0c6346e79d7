"""Contenders of decoding.py in processes of their own.

A worker holds one contender. It is asked by JSON lines on its standard input, one question at a time, and what it
answers are seconds and bytes. Peak memory of the CPU is read from Linux's /proc.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peers import CONTENDERS, MODELS, TRAINING_MODEL, Floor, Ours, Session, timed

ROOM = 256  # tokens that a text may grow by
QUIET = {"LOGURU_AUTOINIT": "0"}  # what x-transformers has to say about training


class Memory:
    """Bytes that a process takes at its peak, since `reset` and beyond what it took when this was made."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.reset()
        self.before = self.now()

    def reset(self) -> None:
        gc.collect()
        if self.device != "cpu":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            return
        ctypes.CDLL(None).malloc_trim(0)  # what was freed shall not hide what is taken next
        with contextlib.suppress(PermissionError):  # then the peak is that of the process until now
            Path("/proc/self/clear_refs").write_text("5")

    def now(self) -> int:
        return process_bytes("VmRSS") if self.device == "cpu" else torch.cuda.memory_allocated()

    def peak(self) -> int:
        peak = process_bytes("VmHWM") if self.device == "cpu" else torch.cuda.max_memory_allocated()
        return peak - self.before


def process_bytes(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


class Server:
    """A worker's side: sessions by name, and what can be asked about them."""

    def __init__(self, name: str, device: str) -> None:
        self.contender = CONTENDERS[name]
        self.device = device
        # imports and first uses count as nobody's time or memory
        self.contender.make(TRAINING_MODEL, 2048, torch.zeros(1, 8, dtype=torch.long, device=device)).start()
        self.memory = Memory(device)
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

    def answer(self, do: str, **question: Any) -> dict[str, Any]:
        known = {f.__name__: f for f in (self.open, self.start, self.advance, self.floor, self.state_bytes, self.close)}
        try:
            answer = known[do](**question)
        except (RuntimeError, MemoryError) as error:  # out of memory, as a rule: the cell is skipped
            lines = str(error).splitlines() or [""]
            answer = {"error": f"{type(error).__name__}: {lines[0][:100]}"}
        return answer | {"resident": self.memory.now()}


def serve(name: str, cache: Path, device: str, threads: int, memory: int) -> None:
    """Answer until the input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a peer prints is no answer
    if CONTENDERS[name].requirements:
        sys.path.insert(0, str(cache / name))
    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    if device == "cpu":
        resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    else:
        torch.cuda.set_per_process_memory_fraction(min(memory / torch.cuda.mem_get_info()[1], 1.0))
    server = Server(name, device)
    for line in sys.stdin:
        print(json.dumps(server.answer(**json.loads(line))), file=answers, flush=True)


class CannotMeasure(Exception):
    """Its message is the reason."""


class Worker:
    """The driver's side: a process that is started when it is first asked, and again after it has ended."""

    def __init__(self, command: Sequence[str]) -> None:
        self.command = [sys.executable, "-W", "ignore", *command]
        self.process: subprocess.Popen[str] | None = None
        self.resident = 0

    def ask(self, do: str, limit: float, **question: Any) -> dict[str, Any]:
        """Raises CannotMeasure after `limit` seconds, and where the worker fails."""
        if self.process is None:
            pipe, environment = subprocess.PIPE, os.environ | QUIET
            self.process = subprocess.Popen(self.command, stdin=pipe, stdout=pipe, text=True, env=environment)
        process = self.process
        assert process.stdin is not None and process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended, so there is no answer either
            print(json.dumps({"do": do} | question), file=process.stdin, flush=True)
        timer = threading.Timer(limit, process.kill)
        timer.start()
        line = process.stdout.readline()
        late = not timer.is_alive()
        timer.cancel()
        if not line:
            self.stop()
            raise CannotMeasure(
                f"took more than {limit:.0f} s" if late else f"its process ended ({process.returncode})"
            )
        answer: dict[str, Any] = json.loads(line)
        self.resident = answer.pop("resident")
        if "error" in answer:
            raise CannotMeasure(answer["error"])
        return answer

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
        self.process, self.resident = None, 0
