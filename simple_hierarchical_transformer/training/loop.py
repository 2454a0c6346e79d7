"""The training loop, on `accelerate`: from a configuration to a trained model in a run folder."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ..text.corpus import Corpus
from ..text.data import load_split
from ..text.tokenizer import Tokenizer, load_tokenizer
from .config import TrainConfig
from .finite import NonFiniteError
from .processes import make_accelerator
from .run import Run
from .run_folder import check_run_folder
from .session import CheckpointNotWrittenError, Report, Session, TrainResult
from .trackers import Tracker, Trackers, make_trackers

__all__ = ["CheckpointNotWrittenError", "NonFiniteError", "TrainResult", "train"]


def train(
    config: TrainConfig,
    report: Report = print,
    trackers: Sequence[Tracker] = (),
    tokenizer: Tokenizer | None = None,
) -> TrainResult:
    """Train a model, and leave it in `config.out` beside the run's configuration, metrics and checkpoints.

    Args:
        config: of the run
        report: is given each line that is for the user to see, on the main process
        trackers: are given the figures, beside those that `config.log` names
        tokenizer: an object with `encode`, `decode` and `vocab_size`, in place of the one that `config` names

    Raises:
        FileNotFoundError, PermissionError, ValueError: for the data, the folder, the model's arguments, or what is
            resumed, before anything is written
        CheckpointError: the checkpoint to resume from is damaged
        CheckpointNotWrittenError: a checkpoint couldn't be written
        NonFiniteError: the training diverged
    """
    check_run_folder(config.out)
    # an earlier run is moved aside, and a working directory within it with it
    config = with_absolute_paths(config)
    accelerator = make_accelerator(config)
    report = report if accelerator.is_main_process else ignore
    if tokenizer is not None and config.tokenizer != TrainConfig.tokenizer:
        raise ValueError(
            f"tokenizer is given beside a configuration that names {config.tokenizer!r}: give one of the two"
        )
    text_tokenizer = load_tokenizer(config.tokenizer if tokenizer is None else tokenizer)
    split = load_split(
        config.data,
        config.seq_len,
        tokenizer=text_tokenizer,
        text_field=config.text_field,
        separator=config.separator,
        split=config.split_sizes,
        cache=config.cache,
        report=report,
    )
    run = Run(config, accelerator, split, text_tokenizer)
    all_trackers = [*make_trackers(config.log), *trackers] if accelerator.is_main_process else []
    session = Session(run, report, Trackers(all_trackers))
    try:
        session.open()
        report(
            f"text: {split.description}: {megabytes(split.train)} to train, {megabytes(split.validation)} to validate"
        )
        report(f"model: {run.num_parameters / 1e6:.2f} M parameters, on {described(run)}")
        return session.train()
    finally:
        session.close()


def with_absolute_paths(config: TrainConfig) -> TrainConfig:
    """So that a run goes on from whatever folder."""
    is_file = Path(config.tokenizer).is_file()
    return replace(
        config,
        out=config.out.resolve(),
        data=tuple(name if name.startswith("hf:") else os.path.abspath(name) for name in config.data),
        cache=None if config.cache is None else config.cache.absolute(),
        tokenizer=str(Path(config.tokenizer).absolute()) if is_file else config.tokenizer,
    )


def ignore(line: str) -> None:
    pass


def megabytes(corpus: Corpus) -> str:
    return f"{corpus.num_bytes / 1e6:.2f} MB"


def described(run: Run) -> str:
    processes = run.accelerator.num_processes
    shared = "" if processes == 1 else f", {processes} processes{' that share it' * run.is_sharded}"
    return f"{run.device}{shared}"
