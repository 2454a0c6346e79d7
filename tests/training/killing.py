"""A process that runs trainings in children of its own, and kills them when it is told to.

Started by a test (`Killer`), so that a training costs a fork instead of a new interpreter that imports torch. It uses
no threads before it forks, which a child could not have.

Each line of its input is a run: `{"config": …, "kill": null | {"save": n | null, "after": seconds}}`. The kill comes so
many seconds after the n-th save has begun, or the run. Each line of its output says how it went:
`{"status": …, "in_save": …}`.
"""

from __future__ import annotations

import json
import mmap
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from simple_hierarchical_transformer.training import TrainConfig

STARTED, SAVES, IN_SAVE = range(3)  # bytes of the memory that parent and child share


class Killer:
    """For tests: runs trainings, and kills them."""

    def __enter__(self) -> Killer:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, __file__]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        return self

    def run(self, config: dict[str, Any], *, save: int | None = None, after: float | None = None) -> dict[str, Any]:
        """Run a training, to its end or until `after` seconds from its beginning, or from that of its n-th save."""
        assert self.process.stdin is not None and self.process.stdout is not None
        kill = None if after is None else {"save": save, "after": after}
        self.process.stdin.write(json.dumps({"config": config, "kill": kill}, default=str) + "\n")
        self.process.stdin.flush()
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


def serve() -> None:
    from simple_hierarchical_transformer.training import checkpoints, loop

    def train(settings: dict[str, Any], shared: mmap.mmap) -> int:
        def marked(call: Callable[..., Any]) -> Callable[..., Any]:
            def marking(*arguments: Any) -> Any:
                shared[SAVES] += 1
                shared[IN_SAVE] = 1
                result = call(*arguments)
                shared[IN_SAVE] = 0
                return result

            return marking

        checkpoints.write_folder = marked(checkpoints.write_folder)
        config = config_of(settings)
        shared[STARTED] = 1
        loop.train(config, report=lambda line: None)
        return 0

    for line in sys.stdin:
        request = json.loads(line)
        shared = mmap.mmap(-1, 3)
        child = os.fork()
        if child == 0:
            status = 1
            try:
                quiet = os.open(os.devnull, os.O_WRONLY)
                os.dup2(quiet, 1)
                if "KILLING_SHOWS_ERRORS" not in os.environ:
                    os.dup2(quiet, 2)
                status = train(request["config"], shared)
            finally:
                os._exit(status)
        kill = request["kill"]
        if kill is not None:
            byte, least = (STARTED, 1) if kill["save"] is None else (SAVES, kill["save"])
            wait_for(child, partial(reached, shared, byte, least))
            time.sleep(kill["after"])
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        answer = {"status": os.waitstatus_to_exitcode(status), "in_save": bool(shared[IN_SAVE])}
        print(json.dumps(answer), flush=True)


def reached(shared: mmap.mmap, byte: int, least: int) -> bool:
    return shared[byte] >= least


def wait_for(child: int, condition: Callable[[], Any]) -> None:
    """Wait until it holds, or the child has ended, which stays to be waited for."""
    while not condition() and os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        pass


def config_of(settings: dict[str, Any]) -> TrainConfig:
    """The configuration of settings that have been JSON, in which tuples are lists."""
    from simple_hierarchical_transformer.training import ModelArguments, TrainConfig

    values = {name: tupled(value) for name, value in settings.items()}
    model = ModelArguments(**{name: tupled(value) for name, value in settings["model"].items()})
    return TrainConfig(**{**values, "out": Path(settings["out"]), "model": model})


def tupled(value: Any) -> Any:
    return tuple(map(tupled, value)) if isinstance(value, list) else value


if __name__ == "__main__":
    serve()
