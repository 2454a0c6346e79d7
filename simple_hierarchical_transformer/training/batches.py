"""The batches of a run, in their order: each is a function of seed and step, whoever reads it and from when on."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from itertools import count
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from ..text.corpus import Corpus
from ..text.data import train_batch
from .config import TrainConfig
from .stopping import SIGNALS


class Batches(Dataset[Tensor]):
    """By the step: the rows (b, n + 1) of that step's batch that one of several processes learns from."""

    def __init__(self, corpus: Corpus, config: TrainConfig, process: int, processes: int) -> None:
        self.corpus, self.seed = corpus, config.seed
        self.batch_size, self.seq_len = config.batch_size, config.seq_len
        rows = config.batch_size // processes
        self.rows = slice(process * rows, (process + 1) * rows)

    def __getitem__(self, step: int) -> Tensor:
        return train_batch(self.corpus, self.seed, step, self.batch_size, self.seq_len)[self.rows]


class Steps(Sampler[int]):
    """The steps from one on, without end."""

    def __init__(self, first: int) -> None:
        self.first = first

    def __iter__(self) -> Iterator[int]:
        return count(self.first)


def leave_signals_alone(worker: int) -> None:
    """Ctrl-C and SIGTERM may be sent to all processes of a group: what they mean is the run's affair."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def batches_from(step: int, corpus: Corpus, config: TrainConfig, accelerator: Accelerator) -> Iterator[Tensor]:
    """The batches of a step and those after it, for this process; read ahead by `config.workers` others."""
    batches = Batches(corpus, config, accelerator.process_index, accelerator.num_processes)
    loader: DataLoader[Any] = DataLoader(
        batches,
        sampler=Steps(step),
        batch_size=None,  # what the dataset gives is a batch
        num_workers=config.workers,
        pin_memory=accelerator.device.type == "cuda",
        worker_init_fn=leave_signals_alone,
        generator=torch.Generator(),  # else it would draw a number from everybody's
    )
    return iter(loader)
