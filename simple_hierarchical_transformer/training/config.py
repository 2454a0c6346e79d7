"""What a training run is: every setting, its default and its check, in this one place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..text.printing import NUM_BYTES
from ..validation import flag, number, whole

DEVICES = ("auto", "cpu", "cuda", "mps")
DEFAULT_MINUTES = 3.0
NEAR_WINDOW = 64  # of the finest stream, where no other is given


@dataclass(frozen=True, kw_only=True)
class ModelArguments:
    """The model's main arguments, under the names `HierarchicalTransformer` gives them; the model checks them.

    The default is a small byte model of two streams: a fine one that sees 64 bytes back, and one of an eighth of
    its length that sees everything.
    """

    dim: int | Sequence[int] = 192
    depth: int = 4
    heads: int | Sequence[int] = 6
    dim_head: int | Sequence[int] = 32
    ff_mult: float | Sequence[float] = 4
    hierarchies: int | Sequence[int] = (1, 8)
    hierarchical_stride: int | Sequence[int] = (1, 8)
    window_sizes: int | Sequence[int | None] | None = (NEAR_WINDOW, None)
    prophet_loss_weight: float = 0.0
    checkpoint_activations: bool = False


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run, checked when it is made.

    Attributes:
        data: files and folders to train on; none: the Python interpreter's own standard library
        out: the run folder
        steps: number of optimiser steps; None: as many as `minutes` allow
        minutes: time for steps and the validations between them. With `steps` too, what ends first ends the run;
            with neither, three minutes
        batch_size: sequences per step
        seq_len: bytes that are predicted per sequence
        muon_lr: learning rate of the hidden matrices (Muon)
        adamw_lr: learning rate of the embedding, the head and all that is no matrix (AdamW)
        warmup: share of the run in which the learning rates rise from 0
        cooldown: share of the run, at its end, in which they fall to 0
        clip_norm: gradients are scaled down to this norm
        compile: let torch.compile fuse the training step: a minute or more at the start, less for each step
        seed: of weights, batches and the sample
        device: "auto" (the fastest there is), "cpu", "cuda" or "mps"
        validate_every: steps between two validations
        validation_sequences: sequences of a validation during the run
        final_validation_sequences: sequences of the last validation, whose figure counts
        sample_length: bytes that the trained model writes at the end; 0: none
        model: the model's arguments

    Raises:
        TypeError: a value of the wrong type
        ValueError: a value out of range
    """

    data: Sequence[Path | str] = ()
    out: Path | str = Path("runs/default")
    steps: int | None = None
    minutes: float | None = None
    batch_size: int = 4
    seq_len: int = 512
    muon_lr: float = 0.02
    adamw_lr: float = 3e-3
    warmup: float = 0.02
    cooldown: float = 0.5
    clip_norm: float = 1.0
    compile: bool = False
    seed: int = 0
    device: str = "auto"
    validate_every: int = 200
    validation_sequences: int = 64
    final_validation_sequences: int = 256
    sample_length: int = 400
    model: ModelArguments = field(default_factory=ModelArguments)

    def __post_init__(self) -> None:
        def normalise(name: str, value: Any) -> None:
            object.__setattr__(self, name, value)

        if isinstance(self.data, (str, bytes, Path)) or not isinstance(self.data, Sequence):
            raise TypeError(f"data must be a list of paths, got {self.data!r}: put it in a list, [{self.data!r}]")
        normalise("data", tuple(as_path("data", path) for path in self.data))
        normalise("out", as_path("out", self.out))
        if self.steps is None and self.minutes is None:
            normalise("minutes", DEFAULT_MINUTES)
        if self.steps is not None:
            normalise("steps", whole("steps", self.steps, least=1))
        if self.minutes is not None:
            normalise("minutes", number("minutes", self.minutes, positive=True))
        for name in ("batch_size", "seq_len", "validate_every", "validation_sequences", "final_validation_sequences"):
            normalise(name, whole(name, getattr(self, name), least=1))
        for name in ("seed", "sample_length"):
            normalise(name, whole(name, getattr(self, name), least=0))
        for name in ("muon_lr", "adamw_lr", "clip_norm"):
            normalise(name, number(name, getattr(self, name), positive=True))
        normalise("compile", flag("compile", self.compile))
        if number("warmup", self.warmup) + number("cooldown", self.cooldown) > 1:
            raise ValueError(
                f"warmup and cooldown are shares of the run and add up to at most 1, got {self.warmup} and "
                f"{self.cooldown}: lower one of them"
            )
        if self.device not in DEVICES:
            raise ValueError(
                f"device must be one of {', '.join(DEVICES)}, got {self.device!r}: choose one of them (and set "
                "CUDA_VISIBLE_DEVICES to choose among several GPUs)"
            )
        if not isinstance(self.model, ModelArguments):
            raise TypeError(f"model must be ModelArguments, got {self.model!r}: write ModelArguments(dim=…, …)")

    @property
    def data_paths(self) -> tuple[Path, ...]:
        return tuple(map(Path, self.data))

    @property
    def out_path(self) -> Path:
        return Path(self.out)

    @property
    def seconds(self) -> float | None:
        return None if self.minutes is None else 60.0 * self.minutes

    def model_arguments(self) -> dict[str, Any]:
        """All that `HierarchicalTransformer` is built from."""
        return {"num_tokens": NUM_BYTES, "seq_len": self.seq_len, **asdict(self.model)}

    def as_json(self) -> dict[str, Any]:
        """The same settings, of types that JSON knows."""
        return {**asdict(self), "data": [str(path) for path in self.data], "out": str(self.out)}


def as_path(name: str, value: Any) -> Path:
    if not isinstance(value, (str, Path)):
        raise TypeError(f"{name} must be a path, got {value!r} of type {type(value).__name__}")
    if not str(value):
        raise ValueError(f"{name} is an empty path: name a file or folder, or leave {name} out")
    return Path(value)
