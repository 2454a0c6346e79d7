"""Who decodes in decoding.py: this package, its reference, and a plain decoder."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from processes import copy_bandwidth, timed
from torch import Tensor, nn

STREAM = 4096  # tokens asked of `stream`, of which only the first are taken

FIRST_EXAMPLE = "first README example"
TRAINING_MODEL = "small byte model"
SMALL: dict[str, Any] = {"num_tokens": 256, "dim": 192, "depth": 4, "heads": 6, "dim_head": 32}
STRIDED: dict[str, Any] = {"hierarchies": (1, 8), "hierarchical_stride": (1, 8)}
WIDE: dict[str, Any] = {"num_tokens": 256, "depth": 6, "window_sizes": 64}
MODELS: dict[str, dict[str, Any]] = {
    FIRST_EXAMPLE: {"num_tokens": 20000, "dim": 512, "depth": 6, "dim_head": 64, "heads": 8}
    | {"hierarchies": (1, 2, 8), "window_sizes": (32, 64, None)},
    TRAINING_MODEL: SMALL | STRIDED | {"window_sizes": (64, None)},
    "finite windows": SMALL | STRIDED | {"window_sizes": (64, 64)},
}
TRAINED: dict[str, Any] = {  # the training model as `ModelArguments`
    **{name: value for name, value in MODELS[TRAINING_MODEL].items() if name != "num_tokens"},
    **{"merge_type": "mlp", "compress_after": 0, "ngram_sizes": ()},
    **{"recon_loss_weight": 0.1, "hierarchical_ar_loss_weight": 0.25},
}
WIDTHS: dict[str, dict[str, Any]] = {  # of a fine and a coarse stream
    "512 and 512": {"dim": (512, 512), "heads": (8, 8)},
    "256 and 1024": {"dim": (256, 1024), "heads": (4, 16)},
}
for name, widths in WIDTHS.items():
    fine = {key: both[0] for key, both in widths.items()}
    MODELS[f"{name}, fine stream only"] = WIDE | fine
    MODELS[f"{name}, stride 1"] = WIDE | widths | {"hierarchies": (1, 8)}
    MODELS[f"{name}, stride 8"] = WIDE | widths | STRIDED
# layers of a plain decoder of the same width, heads and number of parameters (training heads left out)
PLAIN_DEPTHS = {FIRST_EXAMPLE: 23, TRAINING_MODEL: 11}


class Session(Protocol):
    """One model and one text that it continues greedily."""

    model: nn.Module

    def start(self) -> None:
        """Take in the prompt, and choose the first token."""

    def advance(self, tokens: int) -> None:
        """Choose so many tokens more."""


def hierarchical(model: str, seq_len: int, device: torch.device) -> Any:
    """Of whichever package of this name the process has, ours or the reference."""
    from simple_hierarchical_transformer import HierarchicalTransformer

    return HierarchicalTransformer(**MODELS[model], seq_len=seq_len).to(device).eval()


class Ours:
    """`stream` is `generate`, token by token."""

    def __init__(self, model: str, seq_len: int, prompt: Tensor, backend: str) -> None:
        self.model = hierarchical(model, seq_len, prompt.device)
        self.prompt = prompt
        self.backend = backend

    def start(self) -> None:
        self.state = self.model.init_state(len(self.prompt), max_rewind=1)
        self.text = self.model.stream(self.prompt, STREAM, temperature=0, state=self.state, backend=self.backend)
        next(self.text)

    def advance(self, tokens: int) -> None:
        for _ in range(tokens):
            next(self.text)

    def step_weights(self) -> Iterator[tuple[Tensor, int]]:
        """The weight of each linear map that decoding needs, and how many tokens one use of it lasts for."""
        strides = [stream.stride for stream in self.model.config.streams]
        for compressor, stride in zip(self.model.compressors, strides, strict=True):
            yield from linear_weights(compressor, stride)
        for layer in self.model.layers:
            for block, stride in zip(layer.blocks, strides, strict=True):
                yield from linear_weights(block, stride)
            for merge in layer.merge.merges if layer.merge is not None else ():
                target = strides[merge.target]
                for projection, stride in zip(merge.projections, strides, strict=True):
                    yield projection.weight, max(stride, target)
                yield merge.to_out.weight, target
        yield self.model.to_logits.weight, 1


def linear_weights(module: nn.Module, every: int) -> Iterator[tuple[Tensor, int]]:
    for part in module.modules():
        if isinstance(part, nn.Linear):
            yield part.weight, every


class Recomputing:
    """Reads the whole text again for each token, as the reference's `generate` does."""

    def __init__(self, model: str, seq_len: int, prompt: Tensor, choose: Callable[[Any, Tensor], Tensor]) -> None:
        self.model = hierarchical(model, seq_len, prompt.device)
        self.prompt = prompt
        self.choose = choose

    def start(self) -> None:
        self.ids = self.prompt
        self.advance(1)

    def advance(self, tokens: int) -> None:
        for _ in range(tokens):
            self.ids = torch.cat((self.ids, self.choose(self.model, self.ids)), dim=1)


class XTransformers:
    """Its own cache of keys and values.

    Its `generate` hands the whole text to each cached step, which embeds all of it and drops all but the last token.
    Here only that one is handed over, an option of its forward: the same logits in less time.
    """

    def __init__(self, model: str, seq_len: int, prompt: Tensor) -> None:
        from x_transformers import Decoder, TransformerWrapper

        size, depth = MODELS[model], PLAIN_DEPTHS[model]
        attention = {"heads": size["heads"], "attn_dim_head": size["dim_head"], "attn_flash": True}
        layers = Decoder(dim=size["dim"], depth=depth, rotary_pos_emb=True, **attention)
        made = TransformerWrapper(
            num_tokens=size["num_tokens"], max_seq_len=seq_len, use_abs_pos_emb=False, attn_layers=layers
        )
        self.model = made.to(prompt.device).eval()
        self.prompt = prompt

    def start(self) -> None:
        logits, self.cache = self.model(self.prompt, return_intermediates=True)
        self.token = logits[:, -1:].argmax(dim=-1)

    def advance(self, tokens: int) -> None:
        for _ in range(tokens):
            logits, self.cache = self.model(
                self.token, return_intermediates=True, cache=self.cache, input_not_include_cache=True
            )
            self.token = logits[:, -1:].argmax(dim=-1)


@dataclass(frozen=True, kw_only=True)
class Contender:
    make: Callable[[str, int, Tensor], Session]  # of a model's name, the longest text, and a prompt
    tokens: int = 0  # of one measurement, whole cycles of phases; 0: each costs what the first does, all is recomputed
    has_floor: bool = False
    cuda_only: bool = False
    package: str | None = None  # in the folder of packages


def ours(backend: str, tokens: int, cuda_only: bool = True) -> Contender:
    return Contender(make=partial(Ours, backend=backend), tokens=tokens, has_floor=True, cuda_only=cuda_only)


def reference(package: str) -> Contender:
    choose = partial(Recomputing, choose=lambda model, ids: model.generate(ids, 1, temperature=0.0))
    return Contender(make=choose, package=package)


CONTENDERS = {
    "ours": ours("eager", tokens=16, cuda_only=False),
    "ours, cuda graphs": ours("cuda_graphs", tokens=64),
    "ours, compiled": ours("compile", tokens=16),
    "ours without a state": Contender(
        make=partial(Recomputing, choose=lambda model, ids: model(ids)[:, -1:].argmax(dim=-1))
    ),
    "reference 0.2.0": reference("reference 0.2.0"),
    "reference 0.4.0": reference("reference 0.4.0"),
    "x-transformers": Contender(make=XTransformers, tokens=4, package="x-transformers"),
}


class Floor:
    """What a decoded token can't cost less than: one pass over the weights that are due, averaged over the phases.

    By the fastest product that is known for each weight, the model's own; and by torch's `linear` for comparison.
    """

    def __init__(self, session: Ours, prompt: Tensor) -> None:
        weights = list(session.step_weights())
        self.session = session
        self.device = prompt.device.type
        self.cycle = max(every for _, every in weights)
        self.due = [[w for w, every in weights if phase % every == 0] for phase in range(self.cycle)]
        self.inputs = {w.shape[1]: torch.randn(len(prompt), w.shape[1], device=w.device) for w, _ in weights}
        self.bytes_per_token = sum(w.nbytes / every for w, every in weights)

    def measure(self, tokens: int) -> dict[str, float]:
        facts = {"bytes_per_token": self.bytes_per_token, "bandwidth": copy_bandwidth(self.device)}
        if self.device == "cpu":
            return facts | {
                "seconds": self.pass_seconds(tokens, model_linear),
                "seconds_by_torch_linear": self.pass_seconds(tokens, F.linear),
            }
        launch = launch_seconds(self.session.backend == "cuda_graphs")
        kernels = kernels_per_token(self.session, tokens)
        bound = max(self.bytes_per_token / facts["bandwidth"], kernels * launch)
        return facts | {"kernels_per_token": kernels, "launch_seconds": launch, "seconds": bound}

    def pass_seconds(self, tokens: int, linear: Callable[[Tensor, Tensor], Tensor]) -> float:
        """Seconds per token of nothing but the products with the weights, in the order in which a step takes them."""
        start = time.perf_counter()
        for position in range(tokens):
            for weight in self.due[position % self.cycle]:
                linear(self.inputs[weight.shape[1]], weight)
        return (time.perf_counter() - start) / tokens


def model_linear(x: Tensor, weight: Tensor) -> Tensor:
    """As the model's `Linear` multiplies."""
    from simple_hierarchical_transformer.linear import is_faster_in_parts, linear_in_parts

    return linear_in_parts(x, weight, None) if is_faster_in_parts(x, weight) else F.linear(x, weight)


def launch_seconds(graphed: bool, kernels: int = 1000) -> float:
    """Seconds per kernel of a row of kernels that do nothing, launched one by one or as one CUDA graph."""
    x = torch.zeros(1, device="cuda")

    def launch() -> None:
        for _ in range(kernels):
            x.add_(1)

    launch()
    if not graphed:
        return timed(launch, "cuda") / kernels
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        launch()
    graph.replay()
    return timed(graph.replay, "cuda") / kernels


def kernels_per_token(session: Session, tokens: int) -> float:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        session.advance(tokens)
        torch.cuda.synchronize()
    kernels = [event for event in profile.events() if event.device_type.name == "CUDA"]
    return len(kernels) / tokens
