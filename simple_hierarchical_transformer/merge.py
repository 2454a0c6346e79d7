"""Pool all streams into the tokens of one, per layer.

A linear map of a concatenation is a sum of linear maps, so every stream is projected at its own rate, and only the
result is brought to the rate of the stream that receives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .activation import squared_relu
from .modules import module_list
from .norm import rms_norm
from .state import StateNode, Tail


class Hold(nn.Module):
    """Bring the tokens of one stream to the rate of another: (b, m_source, d) → (b, m_target, d).

    The target token at fine position `p` takes source token `p // s`. From stride 4 to stride 1, over 6 inputs:

        fine position   0 1 2 3 4 5
        source token    0 0 0 0 1 1

    and from stride 1 to stride 4 every fourth token is taken.
    """

    def __init__(self, source_stride: int, target_stride: int) -> None:
        super().__init__()
        self.source_stride = source_stride
        self.target_stride = target_stride

    def init_state(self, max_rewind: int) -> Tail | None:
        if self.source_stride <= self.target_stride:  # never repeated, so nothing to remember
            return None
        return Tail(self.source_stride, keep=1, spare=-(-max_rewind // self.source_stride))

    def forward(self, source: Tensor, num_targets: int, position: int = 0, state: Tail | None = None) -> Tensor:
        """`position` is the fine position at which the chunk starts, `num_targets` how many target tokens it has."""
        s, t = self.source_stride, self.target_stride
        first = -(-position // s)  # index of the first source token of this chunk
        first_target = -(-position // t)
        if s <= t:
            return source[:, first_target * (t // s) - first :: t // s][:, :num_targets]
        rows = source if state is None else state.extend(source)
        first -= rows.shape[1] - source.shape[1]
        ratio = s // t
        rows = rows.repeat_interleave(ratio, dim=1)
        return rows[:, first_target - first * ratio :][:, :num_targets]


@dataclass
class MergeState(StateNode):
    held: tuple[Tail | None, ...]


class Merge(nn.Module):
    """What one stream receives from all: (b, m_i, d_i) of every stream i → (b, m, d) of the target stream."""

    def __init__(self, dims: Sequence[int], strides: Sequence[int], target: int) -> None:
        super().__init__()
        dim = dims[target]
        self.target = target
        self.target_stride = strides[target]
        self.projections = module_list(nn.Linear(d, 2 * dim, bias=False) for d in dims)
        self.holds = module_list(Hold(stride, strides[target]) for stride in strides)
        self.bias = nn.Parameter(torch.zeros(2 * dim))
        self.to_out = nn.Linear(2 * dim, dim, bias=False)

    def init_state(self, max_rewind: int) -> MergeState:
        return MergeState(tuple(hold.init_state(max_rewind) for hold in self.holds))

    def forward(
        self, normed: Sequence[Tensor], num_targets: int, position: int = 0, state: MergeState | None = None
    ) -> Tensor:
        held = state.held if state is not None else (None,) * len(normed)
        hidden: Tensor = self.bias
        for tokens, project, hold, tail in zip(normed, self.projections, self.holds, held, strict=True):
            hidden = hidden + hold(project(tokens), num_targets, position, tail)
        out: Tensor = self.to_out(squared_relu(hidden))
        return out


@dataclass
class LayerMergeState(StateNode):
    merges: tuple[MergeState, ...]


class LayerMerge(nn.Module):
    """All merges of one layer; each adds what it pooled to the stream that it is for."""

    def __init__(self, dims: Sequence[int], strides: Sequence[int], targets: Sequence[int]) -> None:
        super().__init__()
        self.merges = module_list(Merge(dims, strides, target) for target in targets)

    def init_state(self, max_rewind: int) -> LayerMergeState:
        return LayerMergeState(tuple(merge.init_state(max_rewind) for merge in self.merges))

    def forward(
        self, streams: Sequence[Tensor], position: int = 0, state: LayerMergeState | None = None
    ) -> list[Tensor]:
        normed = [rms_norm(tokens) for tokens in streams]
        states = state.merges if state is not None else (None,) * len(self.merges)
        merged = list(streams)
        for merge, merge_state in zip(self.merges, states, strict=True):
            tokens = streams[merge.target]
            merged[merge.target] = tokens + merge(normed, tokens.shape[1], position, merge_state)
        return merged
