"""The training loop, on `accelerate`: from a configuration to a trained model in a run folder."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from ..model import HierarchicalTransformer
from ..text.data import Corpus, Split, load_split, train_batch, validation_batches
from ..text.printing import continue_text, printable
from .config import TrainConfig
from .metrics import MetricsLog, ProgressBar, bits, validate
from .optimizer import learning_rate_factor, make_optimizers, scale_learning_rates
from .run_folder import MODEL_FOLDER, check_run_folder, open_run_folder

SAMPLE_PROMPT_BYTES = 64

Report = Callable[[str], None]


class NonFiniteError(ArithmeticError):
    """The loss or its gradient isn't a finite number any more."""


@dataclass(frozen=True)
class TrainResult:
    """What a run came to. An interrupted one has neither a final validation nor a sample."""

    model_folder: Path
    steps: int
    train_bits_per_byte: float | None
    validation_bits_per_byte: float | None
    sample: str | None
    interrupted: bool


def train(config: TrainConfig, report: Report = print) -> TrainResult:
    """Train a model, and leave it in `config.out` beside the run's configuration and metrics.

    Raises:
        FileNotFoundError, PermissionError, ValueError: for the data, the folder or the model's arguments, before
            anything is written
        NonFiniteError: the training diverged
    """
    check_run_folder(config.out_path)
    # an earlier run is moved aside, and a working directory within it with it
    config = replace(config, out=config.out_path.resolve(), data=[path.resolve() for path in config.data_paths])
    accelerator = make_accelerator(config.device)
    torch.manual_seed(config.seed)
    model = HierarchicalTransformer(**config.model_arguments())
    split = load_split(config.data_paths, config.seq_len)
    open_run_folder(config.out_path, config.as_json(), report)
    report(f"text: {split.description}: {megabytes(split.train)} to train, {megabytes(split.validation)} to validate")
    parameters = sum(parameter.numel() for parameter in model.parameters())
    report(f"model: {parameters / 1e6:.2f} M parameters, on {accelerator.device}")

    run = Run(config, accelerator, model, split, report)
    try:
        run.train()
    except Exception as error:
        if run.step:
            error.add_note(f"the model as it is after {count(run.step, 'step')} is in {run.save()}")
        raise
    except KeyboardInterrupt:
        folder = run.save()
        report(f"interrupted: the model as it is after {count(run.step, 'step')} is in {folder}")
        return TrainResult(folder, run.step, run.train_bits_per_byte, None, None, interrupted=True)
    # before the last figures are taken, since that may be interrupted too
    folder = run.save()
    report(f"saved: {folder}")
    report("validating, which takes some seconds more …")
    validation = run.validate(config.final_validation_sequences)
    run.log(validation)
    report(f"training: {run.train_bits_per_byte:.3f} bits per byte in the last {count(run.averaged, 'step')}")
    report(f"validation: {validation:.3f} bits per byte after {count(run.step, 'step')}")
    if config.sample_length:
        report(f"writing a sample of {count(config.sample_length, 'byte')} …")
    sample = run.sample() if config.sample_length else None
    if sample is not None:
        report(f"sample, after the first {SAMPLE_PROMPT_BYTES} bytes of the validation text:\n{sample}")
    return TrainResult(folder, run.step, run.train_bits_per_byte, validation, sample, interrupted=False)


class Run:
    """A training run: what it holds between two steps."""

    def __init__(
        self,
        config: TrainConfig,
        accelerator: Accelerator,
        model: HierarchicalTransformer,
        split: Split,
        report: Report,
    ) -> None:
        self.config, self.accelerator, self.split, self.report = config, accelerator, split, report
        optimizers = make_optimizers(model, config.muon_lr, config.adamw_lr)
        self.model, *self.optimizers = accelerator.prepare(model, *optimizers)
        # validation and sampling, of other shapes, stay as they are
        self.forward = torch.compile(self.model) if config.compile else self.model
        self.metrics = MetricsLog(config.out_path)
        self.step = 0
        self.train_bits_per_byte: float | None = None
        self.averaged = 0
        self.losses: list[float] = []
        self.started = time.perf_counter()

    @property
    def elapsed(self) -> float:
        return time.perf_counter() - self.started

    @property
    def tokens(self) -> int:
        return self.step * self.config.batch_size * self.config.seq_len

    def progress(self, step: float) -> float:
        """The share of the budget, of steps or of time, that is used up; 1 and more: the run is over."""
        by_steps = step / self.config.steps if self.config.steps is not None else 0.0
        by_time = self.elapsed / self.config.seconds if self.config.seconds is not None else 0.0
        return max(by_steps, by_time)

    def train(self) -> None:
        config = self.config
        self.model.train()
        with ProgressBar(self.report) as bar:
            while self.step == 0 or self.progress(self.step) < 1:
                # at the middle of the step, so that neither the first nor the last one has a learning rate of 0
                factor = learning_rate_factor(self.progress(self.step + 0.5), config.warmup, config.cooldown)
                scale_learning_rates(self.optimizers, factor)
                batch = train_batch(self.split.train, config.seed, self.step, config.batch_size, config.seq_len)
                loss = bits(self.take_step(batch))
                self.losses.append(loss)
                bar.update(self.progress(self.step), loss, self.tokens / self.elapsed)
                if self.step % config.validate_every == 0 and self.progress(self.step) < 1:
                    bar.validation = self.validate(config.validation_sequences)
                    self.log(bar.validation)
                    bar.report(
                        f"step {self.step}: train {self.train_bits_per_byte:.3f}, "
                        f"validation {bar.validation:.3f} bits per byte"
                    )

    def take_step(self, batch: Tensor) -> float:
        """Learn from a batch `(b, n + 1)` of uint8; its cross-entropy in nats per byte, before the step."""
        ids = batch.to(self.accelerator.device).long()
        loss, losses = self.forward(ids, return_loss=True)
        self.require_finite("loss", loss.item())
        self.accelerator.backward(loss)
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.clip_norm)
        self.require_finite("norm of the gradient", float(norm))
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1
        return float(losses.cross_entropy.detach())

    def require_finite(self, what: str, value: float) -> None:
        if not math.isfinite(value):
            raise NonFiniteError(
                f"the {what} of step {self.step} is {value}: training stopped before that step changed the model; "
                f"lower --muon-lr ({self.config.muon_lr}) and --adamw-lr ({self.config.adamw_lr})"
            )

    def validate(self, sequences: int) -> float:
        config = self.config
        batches = validation_batches(self.split.validation, sequences, config.batch_size, config.seq_len)
        return validate(self.model, batches, self.accelerator.device)

    def log(self, validation: float) -> None:
        """Note the figures; those of training are means over the steps since the last time."""
        if self.losses:
            self.averaged = len(self.losses)
            self.train_bits_per_byte = sum(self.losses) / self.averaged
        self.losses = []
        self.metrics.append(
            step=self.step,
            seconds=round(self.elapsed, 3),
            tokens=self.tokens,
            train_bits_per_byte=self.train_bits_per_byte,
            validation_bits_per_byte=validation,
            learning_rate=self.optimizers[0].param_groups[0]["lr"],
        )

    def save(self) -> Path:
        folder = self.config.out_path / MODEL_FOLDER
        self.accelerator.unwrap_model(self.model).save_pretrained(folder)
        return folder

    def sample(self) -> str:
        prompt = self.split.validation.read(0, min(SAMPLE_PROMPT_BYTES, len(self.split.validation)))
        model = self.accelerator.unwrap_model(self.model)
        return printable(prompt + continue_text(model, prompt, self.config.sample_length, seed=self.config.seed))


def make_accelerator(device: str) -> Accelerator:
    """An accelerator of one process on the wanted device.

    Raises:
        ValueError: this machine has no such device, or several processes were started
    """
    accelerator = Accelerator(cpu=device == "cpu")
    if device not in ("auto", accelerator.device.type):
        raise ValueError(f"device is {device!r}, but torch finds none here: use --device auto, or --device cpu")
    if accelerator.num_processes > 1:
        raise ValueError(
            f"{accelerator.num_processes} processes were started, but a run is one process for now: "
            "start it without `accelerate launch` or `torchrun`"
        )
    return accelerator


def megabytes(corpus: Corpus) -> str:
    return f"{len(corpus) / 1e6:.2f} MB"


def count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"
