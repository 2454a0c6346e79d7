"""Writing token by token: one call after the other, by a compiled step, or by replaying CUDA graphs.

All three run the same modules. A compiled step and a captured block run at many positions, so that they take their
position from a tensor. Of steps, one is compiled for each way in which streams can be due; a block is a whole cycle.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from .chunk import StreamChunk
from .state import DecodingState
from .writing import Decoder, Request, Writer, prefill

LEAST_BLOCK = 8  # tokens per replay of a CUDA graph
LEAST_BLOCKS = 4  # replays that a capture must be worth
NO_LIMIT = {"recompile_limit": 2**30, "accumulated_recompile_limit": 2**30}  # one step of several, by design


class Stepper(Protocol):
    def advance(self, most: int) -> int:
        """Feed the last column and write the next; how many columns were written, at most `most`."""
        ...


class EagerSteps:
    def __init__(self, model: Decoder, writer: Writer, state: DecodingState) -> None:
        self.model = model
        self.writer = writer
        self.state = state

    def advance(self, most: int) -> int:
        logits = self.model(
            self.writer.last[:, None], state=self.state, ablate_hierarchical_merge=self.writer.request.ablate
        )
        self.writer.choose(logits[:, 0])
        return 1


def one_step(model: Decoder, ids: Tensor, state: DecodingState, chunks: Sequence[StreamChunk], merge: bool) -> Tensor:
    """Logits (b, v) after one token (b,) more, remembered at once."""
    logits = model.decode(ids[:, None], state, chunks, merge)
    state.take_over()
    return logits[:, 0]


def cycle_of(model: Decoder) -> int:
    """After so many positions, each stream is in the same phase again."""
    return max(stream.compress_factor for stream in model.config.streams)


def block_size(model: Decoder) -> int:
    """Tokens per replay of a CUDA graph: whole cycles."""
    return max(cycle_of(model), LEAST_BLOCK)


def positions_standing_for(model: Decoder) -> list[int]:
    """For each position of a cycle, the first past the first cycle at which the same streams are due, in phase."""

    def due(position: int) -> tuple[int, ...]:
        streams = model.config.streams
        return tuple(position % s.compress_factor if position % s.stride == 0 else -1 for s in streams)

    cycle, first = cycle_of(model), dict[tuple[int, ...], int]()
    for position in range(cycle, 2 * cycle):
        first.setdefault(due(position), position)
    return [first[due(position)] for position in range(cycle)]


class CompiledSteps:
    """A step by `torch.compile`: nothing is compiled any more once each phase has come once."""

    def __init__(self, model: Decoder, writer: Writer, state: DecodingState) -> None:
        self.model = model
        self.writer = writer
        self.state = state
        self.standing_for = positions_standing_for(model)
        state.blank_unseen()
        self.step: Callable[..., Tensor] = torch.compile(one_step, fullgraph=True, dynamic=False)

    def advance(self, most: int) -> int:
        position, ablate = self.state.position, self.writer.request.ablate
        at = torch.tensor([position], device=self.writer.last.device)
        chunks = self.model.chunks(self.standing_for[position % len(self.standing_for)], 1, at)
        self.state.begin(1)
        with torch._dynamo.config.patch(NO_LIMIT):
            logits = self.step(self.model, self.writer.last, self.state, chunks, not ablate)
        self.state.advance(1, ablate)
        self.writer.choose(logits)
        return 1


class GraphedSteps:
    """Whole cycles of steps, with the choice of their tokens, as one CUDA graph: one launch for several tokens.

    Within a cycle each stream is due where it is due; so nothing is masked, and nothing is computed that isn't due.
    """

    def __init__(self, model: Decoder, writer: Writer, state: DecodingState) -> None:
        self.model = model
        self.writer = writer
        self.state = state
        self.eager = EagerSteps(model, writer, state)
        self.cycle = cycle_of(model)
        self.size = block_size(model)
        self.position = torch.zeros(1, dtype=torch.long, device=writer.last.device)
        self.replay: Callable[[], Any] | None = None
        state.blank_unseen()

    def advance(self, most: int) -> int:
        if most < self.size or self.state.position % self.cycle:
            return self.eager.advance(most)
        if self.replay is None:
            self.replay = self.capture()
        self.run(self.replay)
        return self.size

    def run(self, block: Callable[[], Any]) -> None:
        self.state.begin(self.size)
        self.position.fill_(self.state.position)
        block()
        self.state.advance(self.size, self.writer.request.ablate)

    def tick(self) -> None:
        self.position.add_(1)

    def block(self) -> None:
        """Feed and write `size` columns. All that changes from one block to the next lies in tensors."""
        for i in range(self.size):
            chunks = self.model.chunks(self.cycle + i % self.cycle, 1, self.position)
            merge = not self.writer.request.ablate
            self.writer.choose(one_step(self.model, self.writer.last, self.state, chunks, merge))
            self.position.add_(1)

    def capture(self) -> Callable[[], Any]:
        """The block as a CUDA graph. What is written and remembered to warm up is taken back."""
        device, generator = self.position.device, self.writer.request.generator
        source = generator or torch.cuda.default_generators[device.index]
        tensors = self.writer.tensors()
        before, random = [tensor.clone() for tensor in tensors], source.get_state()
        autocast = torch.autocast(  # what its cache holds may be gone when the graph is replayed
            "cuda", torch.get_autocast_dtype("cuda"), torch.is_autocast_enabled("cuda"), cache_enabled=False
        )
        with torch.cuda.device(device), autocast:
            stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            stream.wait_stream(torch.cuda.current_stream())
            try:
                # where capturing fails, the inner context may leave its stream the current one; this one doesn't
                with torch.cuda.stream(stream):
                    self.run(self.block)
                    self.state.rewind(self.size)
                    return capture_graph(self.block, generator, stream).replay
            except RuntimeError as error:
                capture_graph(self.tick, generator, stream)  # so that the generator knows that the capture has ended
                warnings.warn(f"CUDA graphs can't capture this model's step, so it runs without: {error}", stacklevel=2)
                return self.block
            finally:
                torch.cuda.current_stream().wait_stream(stream)
                torch._foreach_copy_(tensors, before)
                source.set_state(random)


def capture_graph(block: Callable[[], Any], generator: torch.Generator | None, stream: Any) -> torch.cuda.CUDAGraph:
    graph = torch.cuda.CUDAGraph()
    if generator is not None:
        graph.register_generator_state(generator)
    with torch.cuda.graph(graph, stream=stream):
        block()
    return graph


class PlainRun:
    """Write column by column."""

    def __init__(
        self, model: Decoder, request: Request, state: DecodingState, make_stepper: Callable[..., Stepper]
    ) -> None:
        self.model = model
        self.request = request
        self.state = state
        self.writer = Writer(request, model.config, model.dtype)
        self.stepper = make_stepper(model, self.writer, state)

    def __iter__(self) -> Iterator[int]:
        request, writer = self.request, self.writer
        logits = prefill(self.model, request, self.state)
        first, done = self.state.position, 0
        latest = request.columns - request.length  # column at which the longest prompt ends
        if request.columns:
            writer.choose(logits)
            done = 1
        while done:
            writer.check_finite(first)
            if done == request.columns or (request.ends and bool(writer.finished.all())):
                break
            yield max(done - latest, 0)
            done += self.stepper.advance(request.columns - done)
        if request.ends and not request.prompts.is_ragged:
            # a block may have gone on behind the end: in the end the state has seen all of the text but its last token
            self.state.rewind(max(done - writer.result()[0].shape[1], 0))

    def token(self, index: int) -> Tensor:
        return self.writer.new(self.writer.tokens, index, 1)[:, 0]

    def result(self) -> tuple[Tensor, Tensor]:
        return self.writer.result()
