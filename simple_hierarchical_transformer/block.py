"""One transformer block of one stream: shift, attend, shift, feed forward."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from .attention import Attention
from .chunk import StreamChunk
from .config import StreamConfig
from .feedforward import FeedForward
from .linear import add_residual, returns_its_own
from .ring import KeyValueRing
from .state import Register, StateNode, StateSpec
from .token_shift import TokenShift


@dataclass
class BlockState(StateNode):
    shift: Register | None
    attention: KeyValueRing | None
    ff_shift: Register


class Block(nn.Module):
    """(b, m, dim) → (b, m, dim). A window of 0 leaves the attention out, and the shift before it."""

    def __init__(self, stream: StreamConfig, *, seq_len: int, use_flash_attn: bool | None, use_xpos: bool) -> None:
        super().__init__()
        self.shift = TokenShift(stream.dim, stride=stream.stride, phase_groups=stream.phase_groups)
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

    def init_state(self, spec: StateSpec) -> BlockState:
        attends = self.attention is not None
        return BlockState(
            shift=self.shift.init_state(spec) if attends else None,
            attention=self.attention.init_state(spec) if self.attention is not None else None,
            ff_shift=self.shift.init_state(spec),
        )

    def forward(self, x: Tensor, chunk: StreamChunk, state: BlockState | None = None) -> Tensor:
        if x.shape[1] == 0:  # a strided stream emits nothing on most single steps
            return x
        shift, attention, ff_shift = (state.shift, state.attention, state.ff_shift) if state else (None, None, None)
        attend, feed = self.attention, self.feedforward
        if attend is not None:
            attended = attend(self.shift(x, shift), chunk, attention)
            x = add_residual(attended, x, in_place=returns_its_own(attend, Attention))
        return add_residual(feed(self.shift(x, ff_shift)), x, in_place=returns_its_own(feed, FeedForward))
