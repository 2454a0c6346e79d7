"""What a training run is: every setting, its default and its check, in this one place."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..arguments import NGRAM_TABLE_SIZE
from ..validation import flag, number, only_with, shown, whole

DEVICES = ("auto", "cpu", "cuda", "mps")
OPTIMIZERS = ("muon", "adamw")
PRECISIONS = ("float32", "bfloat16")
SCHEDULES = ("constant", "cosine", "linear")
TRACKERS = ("tensorboard", "wandb", "trackio")
DEFAULT_MINUTES = 3.0
DEFAULT_MUON_LR = 0.02
DEFAULT_NGRAM_LR = 0.01
DEFAULT_COOLDOWN = 0.5
NEAR_WINDOW = 64  # of the finest stream, where no other is given
MOST_TOKENS = 2**53  # beyond it, a float isn't exact


@dataclass(frozen=True, kw_only=True)
class ModelArguments:
    """The model's main arguments, under the names `HierarchicalTransformer` gives them; the model checks them.

    The default is a small byte model of two streams, the best of two that three minutes on two CPU cores give
    (docs/evidence.md): a fine one that sees 64 bytes back in each layer, and one of a sixteenth of its length that sees
    everything.

    Attributes:
        dim: width, of all streams or of each
        depth: layers
        heads: attention heads, of all streams or of each
        dim_head: width of a head, of all streams or of each
        ff_mult: hidden width of the feed-forward, as a multiple of dim, of all streams or of each
        hierarchies: compress factor of each stream
        hierarchical_stride: stride of each stream
        window_sizes: previous tokens that are attended to, of all streams or of each, or none for all of them
        merge_type: mlp, or linear, which is cheaper; none: linear
        compress_after: layers of the predict stream alone, after which coarse streams begin, in its states; none: half
            of the depth
        ngram_sizes: sizes of the n-grams that have vectors of their own
        ngram_table_size: rows of the table of each size
        recon_loss_weight: weight of what coarse streams learn by telling what they summarise
        hierarchical_ar_loss_weight: weight of what they learn by predicting their next disjoint token
        next_latent_loss_weight: weight of what streams learn by predicting their next latents, of all or of each
        prophet_loss_weight: let coarse streams predict the next tokens, so that they can draft them
        checkpoint_activations: train in less memory and more time: compute the layers again instead of keeping their
            activations
    """

    dim: int | tuple[int, ...] = 96
    depth: int = 2
    heads: int | tuple[int, ...] = 3
    dim_head: int | tuple[int, ...] = 32
    ff_mult: float | tuple[float, ...] = 4
    hierarchies: int | tuple[int, ...] = (1, 16)
    hierarchical_stride: int | tuple[int, ...] = (1, 16)
    window_sizes: int | tuple[int | None, ...] | None = (NEAR_WINDOW, None)
    merge_type: str | None = None
    compress_after: int | None = None
    ngram_sizes: tuple[int, ...] = (2, 3, 4)
    ngram_table_size: int = NGRAM_TABLE_SIZE
    recon_loss_weight: float = 0.0
    hierarchical_ar_loss_weight: float = 0.0
    prophet_loss_weight: float = 0.0
    next_latent_loss_weight: float | tuple[float, ...] = 0.0
    checkpoint_activations: bool = False

    def resolved(self) -> dict[str, Any]:
        """All of them, with what stands for those that are none."""
        arguments = asdict(self)
        several = isinstance(self.hierarchies, Sequence) and len(self.hierarchies) > 1
        half = self.depth // 2 if isinstance(self.depth, int) else 0  # what is no number, the model refuses
        for name, value in (("merge_type", "linear"), ("compress_after", half)):
            if arguments[name] is None:
                arguments.pop(name)
                if several:  # with one stream there is nothing to choose
                    arguments[name] = value
        return arguments


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run, checked when it is made.

    Attributes:
        data: files, folders and globs to train on, or a Hugging Face dataset as hf:NAME; none: the Python
            interpreter's own standard library
        text_field: the field of .jsonl lines and of a dataset's rows that holds the text
        tokenizer: bytes, a `tokenizers` JSON file, or the name of a tiktoken encoding
        separator: id that is put between two documents; none: nothing is
        split: bytes to train on, to validate on and to test on, in the order of the text, such as 90e6,5e6,5e6;
            none: one document, or byte, in twenty is validated on
        cache: folder in which text that can't be read in place is kept once it is prepared; none: that of the user
        out: folder of the run; an earlier run in it is moved aside
        resume: go on with the run in `out` where its newest checkpoint stands, or start it where there is none
        resume_fallback: with `resume`, pass over damaged checkpoints to the newest one that is whole
        steps: optimiser steps; none: as many as the other budgets allow
        tokens: tokens to train on. Of several budgets, the one that ends first ends the run
        minutes: time to train, in all sittings, without the last validation and the sample; three of them where no
            budget is given
        batch_size: sequences per optimiser step, of all processes and accumulated parts together
        accumulate: parts into which each process cuts its share of a batch, to need less memory
        seq_len: tokens that are predicted per sequence
        optimizer: muon (for the hidden matrices, with AdamW for the rest) or adamw
        muon_lr: learning rate of the hidden matrices with muon; none: 0.02
        adamw_lr: learning rate of all else that AdamW moves
        ngram_lr: learning rate of the vectors of n-grams, each of which is rare; none: 0.01
        weight_decay: decoupled decay of matrices, times the learning rate
        schedule: what the learning rates do between warm-up and end: constant, with a cooldown; cosine; linear
        warmup: share of the run in which the learning rates rise from 0
        cooldown: share of the run, at the end of a constant schedule, in which they fall linearly; none: 0.5
        final_lr: learning rate at the end, as a share of the full one
        clip_norm: gradients are scaled down to this norm
        average: share of the averaged weights that a step keeps, such as 0.999; they are validated and saved. 0: off
        precision: float32, or bfloat16 for mixed precision
        compile: let torch.compile fuse the training step: slow to start; made for GPUs
        device: auto (the fastest there is), cpu, cuda or mps
        workers: processes that read batches ahead; 0: they are read between the steps
        seed: of weights, batches and samples
        validate_every: steps between two validations
        validation_sequences: sequences of a validation during the run
        final_validation_sequences: sequences of the last validation, whose figure counts; none: the whole text, each
            token after up to seq_len others
        sample_every: steps between two samples; 0: at the end only
        sample_length: tokens of a sample; 0: no sample
        checkpoint_every: steps between two checkpoints
        checkpoint_minutes: time after which there is one, however many steps that are; none: steps alone count
        keep: newest checkpoints that are kept, beside the best one by validation
        log_every: steps between two lines of metrics
        log: where the metrics go too: tensorboard, wandb, trackio
        model: the model's arguments

    Raises:
        TypeError: a value of the wrong type
        ValueError: a value out of range
    """

    data: tuple[str, ...] = ()
    text_field: str = "text"
    tokenizer: str = "bytes"
    separator: int | None = None
    split: str | tuple[int, ...] | None = None
    cache: Path | None = None
    out: Path = Path("runs/default")
    resume: bool = False
    resume_fallback: bool = False
    steps: int | None = None
    tokens: int | None = None
    minutes: float | None = None
    batch_size: int = 4
    accumulate: int = 1
    seq_len: int = 512
    optimizer: str = "muon"
    muon_lr: float | None = None
    adamw_lr: float = 3e-3
    ngram_lr: float | None = None
    weight_decay: float = 0.0
    schedule: str = "constant"
    warmup: float = 0.02
    cooldown: float | None = None
    final_lr: float = 0.0
    clip_norm: float = 1.0
    average: float = 0.0
    precision: str = "float32"
    compile: bool = False
    device: str = "auto"
    workers: int = 0
    seed: int = 0
    validate_every: int = 200
    validation_sequences: int = 64
    final_validation_sequences: int | None = None
    sample_every: int = 0
    sample_length: int = 400
    checkpoint_every: int = 200
    checkpoint_minutes: float | None = 15.0
    keep: int = 3
    log_every: int = 10
    log: tuple[str, ...] = ()
    model: ModelArguments = field(default_factory=ModelArguments)

    def __post_init__(self) -> None:
        def normalise(name: str, value: Any) -> None:
            object.__setattr__(self, name, value)

        normalise("data", tuple(str(as_path("data", path)) for path in listed("data", self.data, "paths")))
        normalise("out", as_path("out", self.out))
        if self.cache is not None:
            normalise("cache", as_path("cache", self.cache))
        if self.split is not None:
            normalise("split", as_split(self.split))
        for name in ("text_field", "tokenizer"):
            value = getattr(self, name)
            if not isinstance(value, (str, Path)):
                raise TypeError(f"{name} must be a text, got {shown(value)}")
            if not str(value):
                raise ValueError(f"{name} is empty: give one, or leave {name} out")
            normalise(name, str(value))
        if self.separator is not None:
            normalise("separator", whole("separator", self.separator, least=0))
        for name in ("steps", "tokens", "final_validation_sequences"):
            if getattr(self, name) is not None:
                normalise(name, whole(name, getattr(self, name), least=1, most=MOST_TOKENS))
        if self.minutes is not None:
            normalise("minutes", number("minutes", self.minutes, positive=True))
        for name in ("batch_size", "accumulate", "seq_len", "validate_every", "validation_sequences"):
            normalise(name, whole(name, getattr(self, name), least=1))
        for name in ("checkpoint_every", "keep", "log_every"):
            normalise(name, whole(name, getattr(self, name), least=1))
        for name in ("seed", "workers", "sample_every", "sample_length"):
            normalise(name, whole(name, getattr(self, name), least=0))
        for name in ("adamw_lr", "clip_norm"):
            normalise(name, number(name, getattr(self, name), positive=True))
        for name in ("weight_decay", "final_lr", "average", "warmup"):
            normalise(name, number(name, getattr(self, name)))
        for name in ("resume", "resume_fallback", "compile"):
            normalise(name, flag(name, getattr(self, name)))
        for name, allowed in (
            ("optimizer", OPTIMIZERS),
            ("schedule", SCHEDULES),
            ("precision", PRECISIONS),
        ):
            choice(name, getattr(self, name), allowed)
        choice("device", self.device, DEVICES, " (and set CUDA_VISIBLE_DEVICES to choose among several GPUs)")
        normalise("log", tuple(choice("log", name, TRACKERS) for name in listed("log", self.log, "names")))
        for name in ("muon_lr", "ngram_lr", "cooldown", "checkpoint_minutes"):
            if getattr(self, name) is not None:
                normalise(name, number(name, getattr(self, name), positive=name != "cooldown"))
        self._check_together()

    def _check_together(self) -> None:
        """What depends on more than one setting."""
        only_with(self.sample_length > 0, "sample_length above 0", sample_every=(self.sample_every, 0))
        only_with(self.resume, "resume", resume_fallback=(self.resume_fallback, False))
        only_with(self.optimizer == "muon", "optimizer='muon'", muon_lr=(self.muon_lr, None))
        if isinstance(self.model, ModelArguments):
            only_with(bool(self.model.ngram_sizes), "ngram_sizes", ngram_lr=(self.ngram_lr, None))
        only_with(self.schedule == "constant", "schedule='constant'", cooldown=(self.cooldown, None))
        if self.schedule == "constant" and self.warmup + self.cooldown_share > 1:
            raise ValueError(
                f"warmup and cooldown are shares of the run and add up to at most 1, got {self.warmup} and "
                f"{self.cooldown_share}: lower one of them"
            )
        for name, most in (("warmup", 1), ("final_lr", 1)):
            if getattr(self, name) > most:
                raise ValueError(f"{name} is a share of at most {most}, got {getattr(self, name)}: lower it")
        if self.average >= 1:
            raise ValueError(f"average is the share that is kept and below 1, got {self.average}: give 0.999, say")
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"accumulate cuts a batch into equal parts, got {self.accumulate} for batch_size {self.batch_size}: "
                "choose one that divides it"
            )
        if not isinstance(self.model, ModelArguments):
            raise TypeError(f"model must be ModelArguments, got {self.model!r}: write ModelArguments(dim=…, …)")

    # what stands for a setting that is none, so that a configuration holds only what was given

    @property
    def seconds(self) -> float | None:
        if self.steps is None and self.tokens is None and self.minutes is None:
            return 60.0 * DEFAULT_MINUTES
        return None if self.minutes is None else 60.0 * self.minutes

    @property
    def hidden_lr(self) -> float:
        return DEFAULT_MUON_LR if self.muon_lr is None else self.muon_lr

    @property
    def rare_lr(self) -> float:
        return DEFAULT_NGRAM_LR if self.ngram_lr is None else self.ngram_lr

    @property
    def cooldown_share(self) -> float:
        return DEFAULT_COOLDOWN if self.cooldown is None else self.cooldown

    @property
    def split_sizes(self) -> tuple[int, int, int] | None:
        return None if self.split is None else as_split(self.split)

    @property
    def tokens_per_step(self) -> int:
        return self.batch_size * self.seq_len

    def as_json(self) -> dict[str, Any]:
        """The same settings, of types that JSON knows."""
        paths = {"out": str(self.out), "cache": None if self.cache is None else str(self.cache)}
        settings: dict[str, Any] = json.loads(json.dumps({**asdict(self), **paths}))
        return settings

    def model_arguments(self, num_tokens: int) -> dict[str, Any]:
        """All that `HierarchicalTransformer` is built from, for a vocabulary of so many tokens."""
        return {"num_tokens": num_tokens, "seq_len": self.seq_len, **self.model.resolved()}


def as_path(name: str, value: Any) -> Path:
    if not isinstance(value, (str, Path)):
        raise TypeError(f"{name} must be a path, got {value!r} of type {type(value).__name__}")
    if not str(value):
        raise ValueError(f"{name} is an empty path: name a file or folder, or leave {name} out")
    return Path(value)


def listed(name: str, value: Any, what: str) -> Sequence[Any]:
    if isinstance(value, (str, bytes, Path)) or not isinstance(value, Sequence):
        raise TypeError(f"{name} must be a list of {what}, got {value!r}: put it in a list, [{value!r}]")
    return value


def choice(name: str, value: Any, allowed: tuple[str, ...], more: str = "") -> str:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}: choose one of them{more}")
    return str(value)


def as_split(value: Any) -> tuple[int, int, int]:
    """Whole numbers of bytes, from numbers or from a text such as 90e6,5e6,5e6."""
    example = "give bytes to train on, to validate on and to test on, such as 90e6,5e6,5e6"
    parts = value.split(",") if isinstance(value, str) else value
    try:
        sizes = [float(part) for part in parts]
    except (TypeError, ValueError):
        raise ValueError(f"split must be three numbers, got {shown(value)}: {example}") from None
    if len(sizes) != 3 or not all(0 <= size <= MOST_TOKENS and size == int(size) for size in sizes):
        raise ValueError(f"split must be three whole numbers, none below 0, got {shown(value)}: {example}")
    if min(sizes[:2]) == 0:
        raise ValueError(f"split leaves nothing to train or to validate on, got {shown(value)}: {example}")
    train, validation, test = map(int, sizes)
    return train, validation, test
