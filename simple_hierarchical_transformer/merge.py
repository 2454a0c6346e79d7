"""Pool all streams into the tokens of one, per layer.

A linear map of a concatenation is a sum of linear maps, so every stream is projected at its own rate, and only the
result is brought to the rate of the stream that receives.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .chunk import StreamChunk
from .linear import Linear, add_residual, has_own_backward, product_dtype, returns_its_own
from .modules import module_list
from .norm import rms_norm
from .squared_relu import linear_squared_relu_linear, squared_relu
from .state import Register, StateNode, StateSpec


class Hold(nn.Module):
    """Bring the tokens of one stream to the rate of another: (b, m_source, d) → (b, m_target, d).

    The target token at fine position `p` takes source token `p // s`. From stride 4 to stride 1, over 6 inputs:

        fine position   0 1 2 3 4 5
        source token    0 0 0 0 1 1

    and from stride 1 to stride 4 every fourth token is taken.
    """

    def __init__(self, source_stride: int, target_stride: int, dim: int) -> None:
        super().__init__()
        self.source_stride = source_stride
        self.target_stride = target_stride
        self.dim = dim

    @property
    def repeats(self) -> bool:
        """Whether tokens of the source are taken more than once, and so have to be remembered."""
        return self.source_stride > self.target_stride

    def init_state(self, spec: StateSpec) -> Register | None:
        if not self.repeats:
            return None
        return Register(spec, stride=self.source_stride, keep=1, dim=self.dim)

    def forward(
        self, rows: Tensor | None, source: StreamChunk, target: StreamChunk, state: Register | None = None
    ) -> Tensor:
        """Of the `rows` of a chunk of the source, or None where it has none, for a chunk of the target."""
        s, t = self.source_stride, self.target_stride
        if not self.repeats:
            assert rows is not None
            if s == t:
                return rows
            return rows[:, target.start * (t // s) - source.start :: t // s][:, : target.length]
        first = source.start  # index of the first of the rows
        if state is not None:
            rows, first = (state.held if rows is None else state.extend(rows)), first - 1
        assert rows is not None
        low = target.start * t // s - first
        high = (target.start + target.length - 1) * t // s - first
        if low == high:  # all take the same
            return rows[:, low : low + 1].expand(-1, target.length, -1)
        ratio = s // t
        repeated = rows.repeat_interleave(ratio, dim=1)[:, target.start - first * ratio :]
        return repeated[:, : target.length]


def brought(
    merge: Merge | LinearMerge,
    normed: Sequence[Tensor | None],
    chunks: Sequence[StreamChunk],
    state: MergeState | None,
    sources: frozenset[int] | None,
) -> Iterator[Tensor]:
    """What a merge projects of each stream that it pools, at the rate of its target: (b, m, d), stream by stream."""
    held = state.held if state is not None else (None,) * len(merge.holds)
    for index, project, hold, register in zip(merge.sources, merge.projections, merge.holds, held, strict=True):
        if sources is not None and index not in sources:
            continue
        tokens, chunk = normed[index], chunks[index]
        if hold.repeats:  # what is projected at the lower rate is less
            yield hold(None if tokens is None else project(tokens), chunk, chunks[merge.target], register)
        else:
            yield project(hold(tokens, chunk, chunks[merge.target]))


@dataclass
class MergeState(StateNode):
    held: tuple[Register | None, ...]
    sources: Sequence[int]  # the streams that they are of


class Merge(nn.Module):
    """What one stream receives from all: (b, m_i, d_i) of every stream i → (b, m, d) of the target stream."""

    def __init__(self, dims: Sequence[int], strides: Sequence[int], target: int) -> None:
        super().__init__()
        dim = dims[target]
        self.target = target
        self.sources: Sequence[int] = range(len(dims))
        self.projections = module_list(Linear(d, 2 * dim, bias=False) for d in dims)
        self.holds = module_list(Hold(stride, strides[target], 2 * dim) for stride in strides)
        self.bias = nn.Parameter(torch.zeros(2 * dim))
        self.to_out = Linear(2 * dim, dim, bias=False)

    def init_state(self, spec: StateSpec) -> MergeState:
        return MergeState(tuple(hold.init_state(spec) for hold in self.holds), self.sources)

    def forward(
        self,
        normed: Sequence[Tensor | None],
        chunks: Sequence[StreamChunk],
        state: MergeState | None = None,
        sources: frozenset[int] | None = None,
    ) -> Tensor:
        """`normed` holds None for a stream that has no token in its chunk: what it had last is still held.

        Where `sources` are given, only the streams with these indices are pooled, as if the others were zero.
        """
        if state is None and sources is None and has_own_backward(*self.projections, self.to_out):
            return self._whole(normed, chunks)
        own = normed[self.target]
        assert own is not None
        hidden: Tensor = self.bias.expand(*own.shape[:2], -1)
        for rows in brought(self, normed, chunks, state, sources):
            hidden = hidden + rows
        out: Tensor = self.to_out(squared_relu(hidden))
        return out

    def _whole(self, normed: Sequence[Tensor | None], chunks: Sequence[StreamChunk]) -> Tensor:
        """For all tokens from the first on: the target's own before those of the other streams."""
        inputs, weights, ratios = [], [], []
        for i in (self.target, *(i for i in range(len(normed)) if i != self.target)):
            hold, tokens = self.holds[i], normed[i]
            assert tokens is not None
            inputs.append(tokens if hold.repeats else hold(tokens, chunks[i], chunks[self.target]))
            weights.append(self.projections[i].weight)
            ratios.append(hold.source_stride // hold.target_stride if hold.repeats else 1)
        return linear_squared_relu_linear(inputs, weights, self.to_out.weight, self.bias, ratios)


class LinearMerge(nn.Module):
    """What one stream receives from the others, each by one linear map: no hidden layer, and nothing of its own.

    A coarse stream costs then what it costs at its own rate, and a sum.
    """

    def __init__(self, dims: Sequence[int], strides: Sequence[int], target: int) -> None:
        super().__init__()
        dim = dims[target]
        self.target = target
        self.sources: Sequence[int] = [i for i in range(len(dims)) if i != target]
        self.projections = module_list(Linear(dims[i], dim, bias=False) for i in self.sources)
        self.holds = module_list(Hold(strides[i], strides[target], dim) for i in self.sources)

    def init_state(self, spec: StateSpec) -> MergeState:
        return MergeState(tuple(hold.init_state(spec) for hold in self.holds), self.sources)

    def forward(
        self,
        normed: Sequence[Tensor | None],
        chunks: Sequence[StreamChunk],
        state: MergeState | None = None,
        sources: frozenset[int] | None = None,
    ) -> Tensor | None:
        """See `Merge.forward`; None where no other stream is pooled. The target's own tokens aren't read."""
        received: Tensor | None = None
        for rows in brought(self, normed, chunks, state, sources):
            received = rows if received is None else received + rows
        return received


MERGES: dict[str, type[Merge] | type[LinearMerge]] = {"mlp": Merge, "linear": LinearMerge}


@dataclass
class LayerMergeState(StateNode):
    merges: tuple[MergeState, ...]


class LayerMerge(nn.Module):
    """All merges of one layer; each adds what it pooled to the stream that it is for."""

    def __init__(self, dims: Sequence[int], strides: Sequence[int], targets: Sequence[int], merge_type: str) -> None:
        super().__init__()
        made = MERGES[merge_type]
        self.merges: Sequence[Merge | LinearMerge] = module_list(made(dims, strides, target) for target in targets)
        self.read = frozenset(source for merge in self.merges for source in merge.sources)

    def init_state(self, spec: StateSpec) -> LayerMergeState:
        return LayerMergeState(tuple(merge.init_state(spec) for merge in self.merges))

    def forward(
        self,
        streams: Sequence[Tensor],
        chunks: Sequence[StreamChunk],
        state: LayerMergeState | None = None,
        sources: frozenset[int] | None = None,
    ) -> list[Tensor]:
        normed = [
            rms_norm(tokens, product_dtype(tokens)) if i in self.read and tokens.shape[1] else None
            for i, tokens in enumerate(streams)
        ]
        states = state.merges if state is not None else (None,) * len(self.merges)
        merged = list(streams)
        for merge, merge_state in zip(self.merges, states, strict=True):
            # a target without a token in this chunk has no source with a token that it would have to hold
            if chunks[merge.target].length:
                received, owns = merge(normed, chunks, merge_state, sources), returns_its_own(merge, Merge)
                if received is not None:
                    merged[merge.target] = add_residual(received, streams[merge.target], in_place=owns)
        return merged
