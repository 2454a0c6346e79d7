"""What a built model offers about its own cost: `flops`, `num_parameters` and `describe`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, cast

from torch import Tensor

from . import breakdown
from .breakdown import Breakdown, aligned, stream_name
from .config import ModelConfig
from .cost import activation_bytes, multiply_adds, receptive_field
from .merge import Merge
from .state import DecodingState, Leaf
from .validation import flag, whole

if TYPE_CHECKING:
    from .model import HierarchicalTransformer, ModelState

L = TypeVar("L")


class DescriptionMixin:
    """The cost of a `HierarchicalTransformer`; it takes no memory for one that was built on the meta device."""

    def flops(self, seq_len: int | None = None, *, training: bool = False) -> Breakdown:
        """Floating-point operations of one forward of one sequence, two for each multiply-add; see `multiply_adds`.

        Args:
            seq_len: input tokens that are seen; the model's `seq_len` by default.
            training: of a step on one sequence instead: of forward, losses and backward, three times a forward with
                the heads of the losses.

        Raises:
            TypeError, ValueError: unless seq_len is a positive whole number, at most the model's.
        """
        model = cast("HierarchicalTransformer", self)
        seq_len = check_seq_len(model.config, seq_len)
        return multiply_adds(model.config, seq_len, training=flag("training", training)).times(2, "flops")

    def num_parameters(self) -> Breakdown:
        """Parameters of each part and stream; `.total` is the sum. A merge's projections belong to what they read."""
        amounts = parameters_by_part(cast("HierarchicalTransformer", self))
        return Breakdown.of("parameters", ((part, s, sum(p.numel() for p in each)) for part, s, each in amounts))

    def describe(self, seq_len: int | None = None, *, batch_size: int = 1) -> Description:
        """All that the model costs. A built model allocates a decoding state for it, for a moment.

        Args:
            seq_len: input tokens of a sequence; the model's `seq_len` by default.
            batch_size: sequences whose activations are counted together.

        Raises:
            TypeError, ValueError: unless both are positive whole numbers, and seq_len at most the model's.
        """
        model = cast("HierarchicalTransformer", self)
        config, seq_len = model.config, check_seq_len(model.config, seq_len)
        batch_size = whole("batch_size", batch_size, least=1)
        return Description(
            config=config,
            seq_len=seq_len,
            batch_size=batch_size,
            dtype=str(model.dtype).removeprefix("torch."),
            parameters=self.num_parameters(),
            multiply_adds=multiply_adds(config, seq_len),
            training_multiply_adds=multiply_adds(config, seq_len, training=True),
            activation_bytes=activation_bytes(config, seq_len, model.dtype.itemsize, batch_size=batch_size),
            cache_bytes=Breakdown.of("bytes", cache_by_part(config, model.init_state(1))),
            receptive_field=receptive_field(config, seq_len),
            receptive_fields={
                s.compress_factor: receptive_field(config, seq_len, i) for i, s in enumerate(config.streams)
            },
        )


def check_seq_len(config: ModelConfig, seq_len: int | None) -> int:
    return config.seq_len if seq_len is None else whole("seq_len", seq_len, least=1, most=config.seq_len)


@dataclass(frozen=True, kw_only=True)
class Description:
    """What a model costs.

    Attributes:
        config: of the model.
        seq_len: input tokens of a sequence, for all that depends on them.
        batch_size: sequences that the activations are of.
        dtype: the type that activations and cache are in, such as "float32".
        parameters: of all modules.
        multiply_adds: of one forward of one sequence.
        training_multiply_adds: of forward, losses and backward, of one sequence.
        activation_bytes: what a training call keeps for the backward pass: an estimate.
        cache_bytes: the decoding state of one text, `model.init_state(1).nbytes`; it doesn't depend on `seq_len`.
        receptive_field: input tokens that a prediction can depend on, itself included.
        receptive_fields: the same of the tokens of each stream after the layers, by compress factor.
    """

    config: ModelConfig
    seq_len: int
    batch_size: int
    dtype: str
    parameters: Breakdown
    multiply_adds: Breakdown
    training_multiply_adds: Breakdown
    activation_bytes: Breakdown
    cache_bytes: Breakdown
    receptive_field: int
    receptive_fields: Mapping[int, int]

    def as_dict(self) -> dict[str, Any]:
        """The same as numbers and strings, for JSON. Multiply-adds are per input token."""
        return {
            "seq_len": self.seq_len,
            "batch_size": self.batch_size,
            "dtype": self.dtype,
            "receptive_field": self.receptive_field,
            "total": self._row(*(column.total for column in self._columns)),
            "streams": [
                {
                    "compress_factor": s.compress_factor,
                    "stride": s.stride,
                    "dim": s.dim,
                    "window_size": s.window_size,
                    "receptive_field": self.receptive_fields[s.compress_factor],
                }
                for s in self.config.streams
            ],
            "parts": [
                {"part": part, "stream": stream, **self._row(*amounts)} for part, stream, *amounts in self._shares()
            ],
        }

    def table(self) -> str:
        """In lines: the cost of every part of every stream, then what each stream sees."""
        head = ["part", "stream", "parameters", "forward", "training", "activations", "cache"]
        rows = [[part, stream_name(stream), *self._cells(amounts)] for part, stream, *amounts in self._shares()]
        total = ["total", "", *self._cells([column.total for column in self._columns])]
        streams = [["stream", "stride", "dim", "window", "receptive field"]]
        for s in self.config.streams:
            window = "all" if s.window_size is None else str(s.window_size)
            field = self.receptive_fields[s.compress_factor]
            streams.append([str(s.compress_factor), str(s.stride), str(s.dim), window, f"{field:,}"])
        sequences = "1 sequence" if self.batch_size == 1 else f"{self.batch_size} sequences"
        return "\n".join(
            [
                f"forward, training: multiply-adds per input token, in a sequence of {self.seq_len:,}",
                f"activations: bytes kept for the backward pass of {sequences}, in {self.dtype}, roughly",
                f"cache: bytes of the decoding state of one text, in {self.dtype}",
                "",
                aligned([head, *rows, total], words=2),
                "",
                aligned(streams, words=0),
                "",
                f"A prediction depends on at most {self.receptive_field:,} of {self.seq_len:,} input tokens.",
            ]
        )

    __str__ = table

    @property
    def _columns(self) -> tuple[Breakdown, ...]:
        return (
            self.parameters, self.multiply_adds, self.training_multiply_adds, self.activation_bytes, self.cache_bytes,
        )  # fmt: skip

    def _shares(self) -> list[tuple[Any, ...]]:
        """Part, stream and the amount of each column, of all that cost something."""
        amounts = [{(part, stream): amount for part, stream, amount in column} for column in self._columns]
        factors = [None, *(s.compress_factor for s in self.config.streams)]
        keys = [(part, stream) for part in breakdown.PARTS for stream in factors]
        return [(*key, *(each.get(key, 0) for each in amounts)) for key in keys if any(key in each for each in amounts)]

    def _row(self, parameters: int, forward: int, training: int, activations: int, cache: int) -> dict[str, float]:
        return {
            "parameters": parameters,
            "multiply_adds_per_token": forward / self.seq_len,
            "training_multiply_adds_per_token": training / self.seq_len,
            "activation_bytes": activations,
            "cache_bytes": cache,
        }

    def _cells(self, amounts: Iterable[int]) -> list[str]:
        return [f"{round(amount):,}" if amount else "" for amount in self._row(*amounts).values()]


def parameters_by_part(model: HierarchicalTransformer) -> Iterator[tuple[str, int | None, Iterable[Tensor]]]:
    """Part, stream and parameters of every module."""
    factors = [s.compress_factor for s in model.config.streams]
    yield breakdown.EMBED, None, model.token_emb.parameters()
    for factor, compressor in zip(factors, model.compressors, strict=True):
        yield breakdown.COMPRESS, factor, compressor.parameters()
    if model.ngrams is not None:
        yield breakdown.EMBED, model.config.predict_stream.compress_factor, model.ngrams.parameters()
    for layer, through in layers_and_factors(model.config, model.opening, model.layers):
        for factor, block in zip(through, layer.blocks, strict=True):
            if block.attention is not None:
                yield breakdown.ATTENTION, factor, block.attention.parameters()
            yield breakdown.FEEDFORWARD, factor, block.feedforward.parameters()
        for merge in layer.merge.merges if layer.merge is not None else ():
            for source, projection in zip(merge.sources, merge.projections, strict=True):
                yield breakdown.MERGE, factors[source], projection.parameters()
            if isinstance(merge, Merge):
                yield breakdown.MERGE, factors[merge.target], [merge.bias, *merge.to_out.parameters()]
    yield breakdown.HEAD, None, model.to_logits.parameters()
    objective = model.objective
    for part, heads in (
        (breakdown.RECONSTRUCTION, objective.reconstruction),
        (breakdown.HIERARCHICAL_AR, objective.hierarchical_ar),
        (breakdown.PROPHET, objective.prophet),
        (breakdown.NEXT_LATENT, objective.next_latent),
    ):
        for index, head in heads.items():
            yield part, factors[int(index)], head.parameters()


def layers_and_factors(
    config: ModelConfig, opening: Iterable[L], layers: Iterable[L]
) -> Iterator[tuple[L, Sequence[int]]]:
    """Each layer, or its state, and the compress factors of the streams that go through it."""
    yield from ((layer, [config.predict_stream.compress_factor]) for layer in opening)
    yield from ((layer, [s.compress_factor for s in config.streams]) for layer in layers)


def cache_by_part(config: ModelConfig, state: DecodingState) -> Iterator[tuple[str, int | None, int]]:
    """Part, stream and bytes of every leaf of a decoding state."""
    parts = cast("ModelState", state.parts)
    factors = [s.compress_factor for s in config.streams]
    for factor, register in zip(factors, parts.compressors, strict=True):
        yield breakdown.COMPRESS, factor, leaf_bytes(register)
    yield breakdown.EMBED, config.predict_stream.compress_factor, leaf_bytes(parts.ngrams)
    for layer, through in layers_and_factors(config, parts.opening, parts.layers):
        for factor, block in zip(through, layer.blocks, strict=True):
            yield breakdown.ATTENTION, factor, leaf_bytes(block.shift) + leaf_bytes(block.attention)
            yield breakdown.FEEDFORWARD, factor, leaf_bytes(block.ff_shift)
        for merge in layer.merge.merges if layer.merge is not None else ():
            for source, register in zip(merge.sources, merge.held, strict=True):
                yield breakdown.MERGE, factors[source], leaf_bytes(register)
    for factor, register in zip(factors, parts.holds, strict=False):
        yield breakdown.HEAD, factor, leaf_bytes(register)


def leaf_bytes(leaf: Leaf | None) -> int:
    return 0 if leaf is None else sum(tensor.nbytes for tensor in leaf.tensors().values())
