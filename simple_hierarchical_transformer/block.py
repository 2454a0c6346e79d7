"""One transformer block of one stream: shift, attend, shift, feed forward."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from .attention import Attention, AttentionState
from .config import StreamConfig
from .feedforward import FeedForward
from .state import StateNode, Tail
from .token_shift import TokenShift


@dataclass
class BlockState(StateNode):
    shift: Tail | None
    attention: AttentionState | None
    ff_shift: Tail


class Block(nn.Module):
    """(b, m, dim) → (b, m, dim). A window of 0 leaves the attention out, and the shift before it."""

    def __init__(self, stream: StreamConfig, *, seq_len: int, use_flash_attn: bool | None, use_xpos: bool) -> None:
        super().__init__()
        self.shift = TokenShift(stride=stream.stride, phase_groups=stream.phase_groups)
        self.attention = (
            None
            if stream.window_size == 0
            else Attention(
                stream.dim,
                stream.dim_head,
                stream.heads,
                stride=stream.stride,
                phase_groups=stream.phase_groups,
                reach=stream.reach(seq_len),
                use_flash_attn=use_flash_attn,
                use_xpos=use_xpos,
            )
        )
        self.feedforward = FeedForward(stream.dim, stream.ff_dim)

    def init_state(self, max_rewind: int) -> BlockState:
        attends = self.attention is not None
        return BlockState(
            shift=self.shift.init_state(max_rewind) if attends else None,
            attention=self.attention.init_state(max_rewind) if self.attention is not None else None,
            ff_shift=self.shift.init_state(max_rewind),
        )

    def forward(self, x: Tensor, state: BlockState | None = None) -> Tensor:
        if x.shape[1] == 0:  # a strided stream emits nothing on most single steps
            return x
        shift, attention, ff_shift = (state.shift, state.attention, state.ff_shift) if state else (None, None, None)
        if self.attention is not None:
            x = x + self.attention(self.shift(x, shift), attention)
        out: Tensor = x + self.feedforward(self.shift(x, ff_shift))
        return out
