"""Contenders of a benchmark in processes of their own, and what is measured in them.

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
import time
from collections.abc import Callable, Mapping, Sequence
from math import log
from pathlib import Path
from typing import Any

import torch

COPIED = 2**28  # bytes, beyond any cache
SPARE = 2 * 10**9  # bytes that are left to others
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
    return proc_bytes("self/status", key)


def proc_bytes(file: str, key: str) -> int:
    lines = Path("/proc", file).read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


def memory_of(device: str) -> int:
    if device == "cuda":
        return torch.cuda.get_device_properties(0).total_memory
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def limit_memory(device: str, size: int) -> None:
    """Let this process fail, rather than another one, where it asks for more bytes."""
    if device == "cpu":
        resource.setrlimit(resource.RLIMIT_DATA, (size, resource.getrlimit(resource.RLIMIT_DATA)[1]))
    else:
        torch.cuda.set_per_process_memory_fraction(min(size / torch.cuda.mem_get_info()[1], 1.0))


def limit_growth(device: str, most: int) -> None:
    """Let this process fail where it asks for more than `most` bytes, or than the machine has left."""
    if device == "cpu":
        limit_memory(device, min(most, process_bytes("VmData") + proc_bytes("meminfo", "MemAvailable") - SPARE))


def timed(call: Callable[[], Any], device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def copy_bandwidth(device: str) -> float:
    """Bytes read and written per second by a large copy, the fastest of some."""
    source = torch.ones(COPIED, dtype=torch.uint8, device=device)
    target = source.clone()
    return 2 * COPIED / min(timed(lambda: target.copy_(source), device) for _ in range(3))


def matmul_peak(device: str, dtype: torch.dtype) -> float:
    """Floating-point operations per second of a large product of matrices, the fastest of some."""
    n = 8192 if device == "cuda" else 2048
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    out = a @ b
    return 2 * n**3 / min(timed(lambda: torch.mm(a, b, out=out), device) for _ in range(5))


def power_law(points: Sequence[tuple[float, float]], x: float) -> float:
    """What the last two of some points lead to expect at `x`, with an exponent between 1 and 2; 1 for a single one."""
    (last, value), exponent = points[-1], 1.0
    if len(points) > 1:
        before, less = points[-2]
        growth = log(max(value, 1e-9) / max(less, 1e-9)) / log(last / before)
        exponent = min(max(growth, 1.0), 2.0)
    expected: float = value * (x / last) ** exponent
    return expected


class Service:
    """A worker's side: what can be asked of it."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.memory = Memory(device)

    def questions(self) -> Sequence[Callable[..., dict[str, Any]]]:
        """They are asked by name."""
        raise NotImplementedError

    def answer(self, do: str, **question: Any) -> dict[str, Any]:
        known = {f.__name__: f for f in self.questions()}
        try:
            answer = known[do](**question)
        except (RuntimeError, MemoryError) as error:  # out of memory, as a rule: the cell is skipped
            answer = {"error": reason(error)}
        return answer | {"resident": self.memory.now()}


def reason(error: Exception) -> str:
    message = str(error)
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in message:
        return "out of memory"
    return f"{type(error).__name__}: {(message.splitlines() or [''])[0][:100]}"


def serve(start: Callable[[], Service], folder: Path | None, device: str, threads: int, memory: int) -> None:
    """Answer until the input ends; `folder` holds packages that go before the environment's."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a peer prints is no answer
    if folder is not None:
        sys.path.insert(0, str(folder))
    torch.set_num_threads(threads)
    limit_memory(device, memory)
    service = start()
    for line in sys.stdin:
        print(json.dumps(service.answer(**json.loads(line))), file=answers, flush=True)


class CannotMeasure(Exception):
    """Its message is the reason."""


class Worker:
    """The driver's side: a process that is started when it is first asked, and again after it has ended."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        self.command = [sys.executable, "-W", "ignore", *command]
        self.environment = QUIET | dict(environment or {})
        self.process: subprocess.Popen[str] | None = None
        self.resident = 0

    def ask(self, do: str, limit: float, **question: Any) -> dict[str, Any]:
        """Raises CannotMeasure after `limit` seconds, and where the worker fails."""
        if self.process is None:
            pipe, environment = subprocess.PIPE, os.environ | self.environment
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
