"""Who trains in train_speed.py, and the worker that holds one of them and takes its steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peers import TRAINING_MODEL
from processes import Memory, Service, copy_bandwidth, limit_growth, matmul_peak, serve, timed
from torch import Tensor, nn
from train_cases import EQUAL_PARAMETERS, EQUAL_SHAPE, Case, chosen

IGNORED = -100  # no id, so that every token is a target
CUDA_STEPS = 5  # that are timed at once
PRECISIONS = {"float32": torch.float32, "bfloat16 autocast": torch.bfloat16}


@dataclass(frozen=True)
class Trained:
    model: nn.Module
    loss: Callable[[Tensor], Tensor]  # of ids (b, n + shift), where each of n tokens is predicted
    shift: int = 1


def hierarchical(case: Case, shape: str | None = None, compiled: bool = False) -> Trained:
    """Of whichever package of this name the process has, ours or the reference."""
    from simple_hierarchical_transformer import HierarchicalTransformer

    arguments = case.model if shape is None else case.shapes[shape]
    model = HierarchicalTransformer(**arguments, seq_len=case.length, ignore_index=IGNORED)
    forward: Callable[..., Any] = torch.compile(model, dynamic=False) if compiled else model
    return Trained(model, lambda ids: forward(ids, return_loss=True)[0])


def x_transformers(case: Case, compiled: bool = False) -> Trained:
    from x_transformers import AutoregressiveWrapper, Decoder, TransformerWrapper

    shape = case.shapes["x-transformers"]
    attention = {"heads": shape["heads"], "attn_dim_head": shape["dim_head"], "attn_flash": True}
    layers = Decoder(dim=shape["dim"], depth=shape["depth"], rotary_pos_emb=True, **attention)
    model = TransformerWrapper(
        num_tokens=shape["num_tokens"], max_seq_len=case.length, use_abs_pos_emb=False, attn_layers=layers
    )
    wrapped = AutoregressiveWrapper(model, ignore_index=IGNORED)
    return Trained(wrapped, torch.compile(wrapped, dynamic=False) if compiled else wrapped)


def megabyte(case: Case) -> Trained:
    """It begins with a token of its own, and so predicts all that it is given."""
    from MEGABYTE_pytorch import MEGABYTE

    shape = dict(case.shapes["MEGABYTE"])
    patch = shape.pop("patch")
    lengths = (case.length // patch, patch)
    model = MEGABYTE(**shape, max_seq_len=lengths, rel_pos=True, flash_attn=True, pad_id=IGNORED)
    return Trained(model, partial(model, return_loss=True), shift=0)


def hourglass(case: Case) -> Trained:
    from hourglass_transformer_pytorch import HourglassTransformerLM
    from hourglass_transformer_pytorch.autoregressive_wrapper import AutoregressiveWrapper

    model = HourglassTransformerLM(**case.shapes["hourglass"], max_seq_len=case.length)
    wrapped = AutoregressiveWrapper(model, pad_value=IGNORED)
    return Trained(wrapped, wrapped)


@dataclass(frozen=True, kw_only=True)
class Contender:
    make: Callable[[Case], Trained]
    precision: str
    shape: str | None = None  # of the case, that it needs
    package: str | None = None  # in the folder of packages
    is_ours: bool = False
    devices: tuple[str, ...] = ()  # on which it takes part unasked
    environment: dict[str, str] = field(default_factory=dict)


def makers() -> dict[str, dict[str, Any]]:
    """By name; the precisions in which each takes part unasked, by device."""
    everywhere = {"cpu": ("float32",), "cuda": ("bfloat16 autocast",)}
    both = {"cpu": tuple(PRECISIONS), "cuda": ("bfloat16 autocast",)}
    on_cuda = {"cuda": ("bfloat16 autocast",)}
    ours = {"is_ours": True}
    huge_pages = {"environment": {"THP_MEM_ALLOC_ENABLE": "1"}}
    compiled = partial(hierarchical, compiled=True)
    return {
        "ours": ours | {"make": hierarchical, "on": both},
        "ours, compiled": ours | {"make": compiled, "on": on_cuda},
        "ours, huge pages": ours | huge_pages | {"make": hierarchical, "on": {}},
        **{
            f"our single stream, {shape}": ours
            | {"make": partial(hierarchical, shape=shape), "shape": shape, "on": everywhere}
            for shape in (EQUAL_PARAMETERS, EQUAL_SHAPE)
        },
        "reference 0.2.0": {"make": hierarchical, "package": "reference 0.2.0", "on": both},
        "reference 0.4.0": {"make": hierarchical, "package": "reference 0.4.0", "on": everywhere},
        "x-transformers": {"make": x_transformers, "package": "x-transformers", "shape": "x-transformers"}
        | {"on": everywhere},
        "x-transformers, compiled": {"make": partial(x_transformers, compiled=True), "package": "x-transformers"}
        | {"shape": "x-transformers", "on": on_cuda},
        "MEGABYTE": {"make": megabyte, "package": "MEGABYTE", "shape": "MEGABYTE", "on": everywhere},
        "hourglass": {"make": hourglass, "package": "hourglass", "shape": "hourglass", "on": everywhere},
    }


CONTENDERS = {
    f"{name}, {precision}": Contender(
        **{key: value for key, value in maker.items() if key != "on"},
        precision=precision,
        devices=tuple(device for device, precisions in maker["on"].items() if precision in precisions),
    )
    for name, maker in makers().items()
    for precision in PRECISIONS
}


def takes_part(name: str, case: Case) -> bool:
    shape = CONTENDERS[name].shape
    return shape is None or shape in case.shapes


class Training(Service):
    """Training steps of one contender on one batch."""

    def __init__(self, name: str, device: str, memory: int) -> None:
        self.contender = CONTENDERS[name]
        self.dtype = PRECISIONS[self.contender.precision]
        self.device = device
        self.most = memory
        # imports and first uses count as nobody's time or memory
        self.begin(chosen(TRAINING_MODEL, quick=True))
        self.take_steps(1)
        self.end()
        super().__init__(device)

    def begin(self, case: Case) -> None:
        torch.manual_seed(0)
        ids = torch.randint(case.model["num_tokens"], (case.batch, case.length + 1))
        torch.manual_seed(0)
        self.trained = trained = self.contender.make(case)
        trained.model.to(self.device).train()
        self.ids = ids[:, : case.length + trained.shift].to(self.device)
        self.optimizer = torch.optim.AdamW(trained.model.parameters(), fused=True)
        for parameter in trained.model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        self.optimizer.step()  # to allocate what it holds
        self.optimizer.zero_grad()

    def end(self) -> None:
        """Whatever is there of a model, which may have failed on the way."""
        for name in ("trained", "optimizer", "ids"):
            vars(self).pop(name, None)
        torch.compiler.reset()

    def take_steps(self, count: int) -> None:
        for _ in range(count):
            with torch.autocast(self.device, dtype=torch.bfloat16, enabled=self.dtype == torch.bfloat16):
                loss = self.trained.loss(self.ids)
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()

    def open(self, case: str, quick: bool) -> dict[str, Any]:
        self.memory = Memory(self.device)
        limit_growth(self.device, self.most)
        asked = chosen(case, quick)
        self.begin(asked)
        model: Any = self.trained.model
        flops = model.flops(asked.length, training=True).total * asked.batch if self.contender.is_ours else 0
        return {"parameters": sum(p.numel() for p in model.parameters() if p.requires_grad), "flops": flops}

    def step(self) -> dict[str, Any]:
        """Seconds, and the peak since `open`, unless `floor` was asked since."""
        limit_growth(self.device, self.most)
        steps = 1
        if self.device == "cuda":  # memory was left to the others; taking it again is nobody's time
            self.take_steps(1)
            steps = CUDA_STEPS
        seconds = timed(lambda: self.take_steps(steps), self.device) / steps
        answer = {"seconds": seconds, "peak": self.memory.peak()}
        if self.device == "cuda":
            torch.cuda.empty_cache()
        return answer

    def floor(self) -> dict[str, Any]:
        """What the machine can do at this moment."""
        return {"matmul_flops": matmul_peak(self.device, self.dtype), "bandwidth": copy_bandwidth(self.device)}

    def close(self) -> dict[str, Any]:
        self.end()
        self.memory = Memory(self.device)
        return {}

    def questions(self) -> Sequence[Callable[..., dict[str, Any]]]:
        return (self.open, self.step, self.floor, self.close)


def serve_training(name: str, cache: Path, device: str, threads: int, memory: int) -> None:
    package = CONTENDERS[name].package
    serve(lambda: Training(name, device, memory), None if package is None else cache / package, device, threads, memory)
