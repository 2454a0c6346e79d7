"""One layer: a block per stream, then the merge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recompute_for_backward

from .block import Block, BlockState
from .chunk import StreamChunk
from .config import ModelConfig, StreamConfig
from .merge import LayerMerge, LayerMergeState
from .modules import module_list
from .state import StateNode, StateSpec


@dataclass
class LayerState(StateNode):
    blocks: tuple[BlockState, ...]
    merge: LayerMergeState | None


class Layer(nn.Module):
    """One block per stream, then all streams are merged into the predict stream, or into every stream."""

    def __init__(self, config: ModelConfig, streams: Sequence[StreamConfig], targets: Sequence[int]) -> None:
        super().__init__()
        self.blocks = module_list(
            Block(stream, seq_len=config.seq_len, use_flash_attn=config.use_flash_attn, use_xpos=config.use_xpos)
            for stream in streams
        )
        dims, strides = [s.dim for s in streams], [s.stride for s in streams]
        self.merge = LayerMerge(dims, strides, targets, config.merge_type) if len(streams) > 1 else None

    def init_state(self, spec: StateSpec) -> LayerState:
        return LayerState(
            blocks=tuple(block.init_state(spec) for block in self.blocks),
            merge=self.merge.init_state(spec) if self.merge is not None else None,
        )

    def forward(
        self,
        streams: Sequence[Tensor],
        chunks: Sequence[StreamChunk],
        state: LayerState | None = None,
        merge: bool | frozenset[int] = True,
    ) -> list[Tensor]:
        """`merge` says whether streams are merged, or holds the indices of those that contribute."""
        states = state.blocks if state is not None else (None,) * len(self.blocks)
        streams = [block(x, c, s) for block, x, c, s in zip(self.blocks, streams, chunks, states, strict=True)]
        if self.merge is None or merge is False:
            return streams
        sources = None if merge is True else merge
        merged: list[Tensor] = self.merge(streams, chunks, state.merge if state is not None else None, sources)
        return merged


def recomputed(
    layer: Layer, streams: Sequence[Tensor], chunks: Sequence[StreamChunk], merge: bool | frozenset[int]
) -> list[Tensor]:
    """What a layer makes of whole streams, keeping only these: all else is computed again for the backward pass."""

    def run(*streams: Tensor) -> list[Tensor]:
        return layer(streams, chunks, None, merge)  # type: ignore[no-any-return]

    # as arguments of their own, autograd keeps the streams, and lets go of them when it has been through the layer
    given: list[Tensor] = recompute_for_backward(run, *streams, use_reentrant=False, preserve_rng_state=False)
    return given
