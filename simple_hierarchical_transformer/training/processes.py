"""What the processes of a run agree on, by `accelerate`."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import nn
from torch.distributed.fsdp import FSDPModule

from .config import TrainConfig

T = TypeVar("T")
KINDS = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU, DistributedType.FSDP)


def make_accelerator(config: TrainConfig) -> Accelerator:
    """One process on the wanted device, or those that `accelerate launch` has started.

    Raises:
        ValueError: this machine has no such device, or the processes can't share the batch
    """
    # precision is the run's own affair: `accelerate` allows but one in the life of a process
    accelerator = Accelerator(cpu=config.device == "cpu", mixed_precision="no")
    device = accelerator.device.type
    if config.device not in ("auto", device):
        raise ValueError(f"device is {config.device!r}, but torch finds none here: use --device auto, or --device cpu")
    processes = accelerator.num_processes
    if config.batch_size % (processes * config.accumulate):
        raise ValueError(
            f"batch_size counts the sequences of a step over all processes, and {config.batch_size} can't be shared "
            f"equally by {processes} processes that take theirs in {config.accumulate} part(s): make it a multiple of "
            f"{processes * config.accumulate}"
        )
    check_kind(accelerator, config)
    return accelerator


def check_kind(accelerator: Accelerator, config: TrainConfig) -> None:
    """Refuse what `accelerate` knows and a run doesn't."""
    kind = accelerator.distributed_type
    if kind not in KINDS:
        raise ValueError(
            f"accelerate was set up for {kind.value}, but a run knows one process, data parallel and FSDP: choose one "
            "of these with `accelerate config`"
        )
    wanted = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if wanted not in ("no", "bf16") or (wanted == "bf16" and config.precision != "bfloat16"):
        raise ValueError(
            f"accelerate was asked for mixed precision {wanted}, and the run for {config.precision}: leave the former "
            "out, and give the run --precision float32 or bfloat16"
        )
    wants_fsdp = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    if wants_fsdp and kind is not DistributedType.FSDP:
        raise ValueError(
            "accelerate was asked for FSDP, which it leaves out for one process and on CPUs: start without --use_fsdp, "
            "or on several GPUs"
        )
    if kind is DistributedType.FSDP and accelerator.state.fsdp_plugin.fsdp_version != 2:
        raise ValueError("accelerate was set up for FSDP 1, but a run knows FSDP 2: add --fsdp_version 2")
    if accelerator.gradient_accumulation_steps != 1:
        raise ValueError(
            f"accelerate was asked for {accelerator.gradient_accumulation_steps} steps of gradient accumulation: leave "
            "that out, and cut batches into parts by --accumulate"
        )
    backend = os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no")
    if backend.lower() != "no":
        raise ValueError(f"accelerate was asked for the dynamo backend {backend}: leave that out, and use --compile")
    if kind is DistributedType.FSDP and config.sample_every:
        raise ValueError(
            f"sample_every={config.sample_every} isn't there for a model that is shared out by FSDP, which writes at "
            "the end only: leave --sample-every out"
        )
    if kind is DistributedType.FSDP and config.average:
        raise ValueError(
            f"average={config.average} isn't there for a model that is shared out by FSDP: leave --average out, or use "
            "data parallel"
        )


def is_sharded(model: nn.Module) -> bool:
    """Whether each process holds a part of the model only; `accelerate` forgets that it made it so."""
    return any(isinstance(module, FSDPModule) for module in model.modules())


def summed(accelerator: Accelerator, values: torch.Tensor) -> torch.Tensor:
    """The sum over all processes of values (k,)."""
    if accelerator.num_processes > 1:
        dist.all_reduce(values)
    return values


def agreed_sums(accelerator: Accelerator, values: Sequence[float]) -> list[float]:
    """The sums over all processes of numbers, in float64."""
    if accelerator.num_processes == 1:
        return list(values)
    # no double precision on Apple's devices, where there is one process anyway
    total = torch.tensor(values, dtype=torch.float64, device=accelerator.device)
    return [float(value) for value in summed(accelerator, total)]


def from_main(accelerator: Accelerator, value: float) -> float:
    """The number that the main process has."""
    (agreed,) = agreed_sums(accelerator, [value if accelerator.is_main_process else 0.0])
    return agreed


class MainProcessError(RuntimeError):
    """The main process has failed at what it does for all, and says itself how."""


def on_main(accelerator: Accelerator, do: Callable[[], T]) -> T | None:
    """What the main process returns from a call that it makes alone, and None on the others.

    Raises:
        Exception: on the main process, what the call raises
        MainProcessError: on all others then, so that none waits for it in vain
    """
    result, error = None, None
    if accelerator.is_main_process:
        try:
            result = do()
        except Exception as raised:
            error = raised
    if from_main(accelerator, float(error is not None)):
        raise error or MainProcessError("the main process has failed: see what it says")
    return result
