"""A training run between two steps: its model, its optimisers, its place in the data, and what it has measured."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Optimizer

from ..model import HierarchicalTransformer
from ..text.corpus import Corpus
from ..text.data import Split, validation_batches
from ..text.text_tokenizer import JsonTokenizer, TextTokenizer
from .batches import batches_from
from .config import TrainConfig
from .finite import NonFiniteError, first_gradient_not_finite, first_module_not_finite
from .metrics import Means, bits, cross_entropy_of
from .optimizer import lay_out_momentum, learning_rate_factor, make_average, make_optimizers, scale_learning_rates
from .processes import agreed_sums, from_main, is_sharded, summed

PARTS = ("loss", "cross_entropy", "reconstruction", "prediction")


class Run:
    """What a run holds between two steps, on each of its processes.

    Args:
        config: of the run
        accelerator: made for it
        split: the text
        tokenizer: that its ids come from
    """

    def __init__(self, config: TrainConfig, accelerator: Accelerator, split: Split, tokenizer: TextTokenizer) -> None:
        self.config, self.accelerator, self.split, self.tokenizer = config, accelerator, split, tokenizer
        torch.manual_seed(config.seed)
        random.seed(config.seed)
        model = HierarchicalTransformer(**config.model_arguments(split.num_tokens))
        self.model_config = model.config
        self.num_parameters = sum(parameter.numel() for parameter in model.parameters())
        self.average = make_average(model, config.average) if config.average else None
        self.model: nn.Module
        self.model, *prepared = accelerator.prepare(model, *make_optimizers(model, config))
        self.is_sharded = is_sharded(self.model)
        self.optimizers: list[Optimizer] = [each.optimizer for each in prepared]
        lay_out_momentum(self.optimizers)
        if self.average is not None:
            self.average.to(accelerator.device)
        # validation and samples, of other shapes, stay as they are
        self.forward: Any = torch.compile(self.model) if config.compile else self.model
        self.step = 0
        self.is_between_steps = True
        self.best: tuple[int, float] | None = None
        self.since_log, self.since_validation = Means(), Means()
        self.begin_at(0, 0.0)

    def begin_at(self, step: int, seconds: float) -> None:
        """Stand after so many steps, on which so much time was spent."""
        self.step = step
        self.seconds_before, self.started = seconds, time.perf_counter()
        self.batches: Iterator[Tensor] = batches_from(step, self.split.train, self.config, self.accelerator)

    @property
    def settings(self) -> dict[str, Any]:
        """Those of the configuration, as JSON, with the tokenizer that is used; a file of one may lie anywhere."""
        tokenizer = self.tokenizer
        known_by = tokenizer.fingerprint if isinstance(tokenizer, JsonTokenizer) else tokenizer.name
        return {**self.config.as_json(), "tokenizer": known_by}

    # how far it is

    @property
    def seconds(self) -> float:
        """Time spent on the run: by this process, since it began, and by those that it goes on from."""
        return self.seconds_before + time.perf_counter() - self.started

    @property
    def tokens(self) -> int:
        return self.step * self.config.tokens_per_step

    def progress(self, step: float) -> float:
        """The share of the budgets that is used up after so many steps; 1 and more: the run is over."""
        config = self.config
        shares = [0.0]
        if config.steps is not None:
            shares.append(step / config.steps)
        if config.tokens is not None:
            shares.append(step * config.tokens_per_step / config.tokens)
        if config.seconds is not None:
            shares.append(from_main(self.accelerator, self.seconds) / config.seconds)
        return max(shares)

    @property
    def is_over(self) -> bool:
        return self.step > 0 and self.progress(self.step) >= 1

    # a step

    def take_step(self) -> dict[str, float]:
        """Learn from the next batch: the means over it, before the step, and the norm of the gradient.

        Raises:
            NonFiniteError: the loss or the gradient isn't finite; nothing has changed then
        """
        # at the middle of the step, so that neither the first nor the last one has a learning rate of 0
        scale_learning_rates(self.optimizers, learning_rate_factor(self.progress(self.step + 0.5), self.config))
        parts = [part.to(self.accelerator.device).long() for part in next(self.batches).chunk(self.config.accumulate)]
        means = self.accumulate_gradients(parts)
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.clip_norm)
        figures = dict(zip((*PARTS, "gradient_norm"), [*means.tolist(), float(norm)], strict=True))
        if not all(map(math.isfinite, figures.values())):
            self.refuse(figures, parts)
        self.is_between_steps = False
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if self.average is not None:
            self.average.update_parameters(self.accelerator.unwrap_model(self.model))
        self.step += 1
        self.is_between_steps = True
        for means_since in (self.since_log, self.since_validation):
            means_since.add(figures)
        return figures

    def autocast(self) -> torch.autocast:
        """What the precision of the run is computed in."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bfloat16")

    def accumulate_gradients(self, parts: list[Tensor]) -> Tensor:
        """Gradients of the mean over all parts (b, n + 1) of all processes; that mean, by PARTS."""
        accelerator = self.accelerator
        processes = accelerator.num_processes
        counts = None
        if len(parts) * processes > 1:
            plain: Any = accelerator.unwrap_model(self.model)
            counts = summed(accelerator, torch.stack([plain.count_targets(part) for part in parts]).sum(dim=0))
        # Apple's devices have no double precision
        precise = torch.float32 if self.device.type == "mps" else torch.float64
        means = torch.zeros(len(PARTS), dtype=precise, device=self.device)
        for i, part in enumerate(parts):
            with nullcontext() if i == len(parts) - 1 else accelerator.no_sync(self.model):
                with self.autocast():
                    loss, losses = self.forward(part, return_loss=True, target_counts=counts)
                # where there are several processes, gradients are averaged over them, not summed
                accelerator.backward(loss * processes)
            means += torch.stack([loss, *losses]).detach()
        return summed(accelerator, means)

    def refuse(self, figures: Mapping[str, float], parts: list[Tensor]) -> None:
        """Say where the numbers of this step stop being finite, and forget its gradients."""
        what, value = next((name, value) for name, value in figures.items() if not math.isfinite(value))
        gradient = first_gradient_not_finite(self.model)
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        if what == "gradient_norm":
            where = f"the first gradient that isn't finite is that of {gradient}" if gradient else "each is finite"
        else:
            where = self.first_module_not_finite(parts)
        raise NonFiniteError(
            f"the {what.replace('_', ' ')} of step {self.step} is {value}, and {where}: training stopped before that "
            f"step changed the model; lower {self.rates()}"
        )

    def rates(self) -> str:
        adamw = f"--adamw-lr ({self.config.adamw_lr})"
        return adamw if self.config.optimizer == "adamw" else f"--muon-lr ({self.config.hidden_lr}) and {adamw}"

    def first_module_not_finite(self, parts: list[Tensor]) -> str:
        plain = self.accelerator.unwrap_model(self.model)
        names = []
        for part in parts:  # all of them on all processes, which may need each other's parts of the model
            with self.autocast():
                names.append(first_module_not_finite(plain, partial(plain, part, return_loss=True)))
        name = next((name for name in names if name is not None), None)
        return f"the first module whose output isn't finite is {name}" if name else "the output of every module is"

    # what it is worth

    @property
    def trained(self) -> HierarchicalTransformer:
        """The model that is validated and saved, of this process alone: the averaged one, where there is one."""
        model = self.average.module if self.average is not None else self.accelerator.unwrap_model(self.model)
        assert isinstance(model, HierarchicalTransformer)
        return model

    def validate(self) -> float:
        """Bits per byte over the fixed windows of the validation text, the same at every step."""
        config, accelerator = self.config, self.accelerator
        corpus = self.split.validation
        batches = validation_batches(corpus, config.validation_sequences, config.batch_size, config.seq_len)
        # the parts of a sharded model are needed by all at once, so each process validates on everything
        shares = 1 if self.is_sharded else accelerator.num_processes
        own = (batch for i, batch in enumerate(batches) if i % shares == accelerator.process_index % shares)
        with self.autocast():
            nats, tokens = cross_entropy_of(self.model if self.is_sharded else self.trained, own, self.device)
        if shares > 1:
            nats, tokens = agreed_sums(accelerator, [nats, tokens])
        validation = bits(nats / tokens) / corpus.bytes_per_token
        if not math.isfinite(validation):
            raise NonFiniteError(f"the validation after step {self.step} is {validation}: lower {self.rates()}")
        return validation

    @property
    def device(self) -> torch.device:
        device: torch.device = self.accelerator.device
        return device

    def bits_per_byte(self, means: Means) -> float:
        """Of the training text, from the cross-entropy in nats per token."""
        corpus: Corpus = self.split.train
        return bits(means["cross_entropy"]) / corpus.bytes_per_token
