"""Runs trainings in as many processes as `accelerate launch` has started; its argument is a list of runs, as JSON.

Each run is `{"settings": {…}, "stop": step | null, "sharded": bool}`: `stop` lets the main process receive SIGTERM at
that step. CPUs are left out of FSDP by `accelerate`, not by torch, so `sharded` makes it believe otherwise.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.state import PartialState
from accelerate.utils import DistributedType
from killing import config_of  # this is a script, and its folder the first place to look in

from simple_hierarchical_transformer.training import loop


class Stopper:
    def __init__(self, at: int | None) -> None:
        self.at = at

    def start(self, config: Mapping[str, Any], folder: Path, step: int) -> None:
        pass

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        if step == self.at and "loss" in metrics:
            os.kill(os.getpid(), signal.SIGTERM)

    def finish(self, status: str) -> None:
        pass


def share_out(accelerator: Accelerator) -> Accelerator:
    accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="transformer_based_wrap", transformer_cls_names_to_wrap=["Layer"]
    )
    for state in (accelerator.state, PartialState()):
        state.distributed_type = DistributedType.FSDP
    return accelerator


def main() -> None:
    make_accelerator = loop.make_accelerator
    for run in json.loads(sys.argv[1]):
        if run["sharded"]:
            loop.make_accelerator = lambda config: share_out(make_accelerator(config))
        loop.train(config_of(run["settings"]), trackers=[Stopper(run["stop"])])


if __name__ == "__main__":
    main()
