"""Token shift (Peng, RWKV, arXiv 2305.13048): half of the features come from the previous token of the phase."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .state import Register, StateSpec, extend_padded


class TokenShift(nn.Module):
    """(b, m, d) → (b, m, d): the second half of token `j` is that of token `j - g`, and zeros before the start.

    With g = 2 phase groups, tokens a b c d become  a₁0 b₁0 c₁a₂ d₁b₂.
    """

    def __init__(self, dim: int, *, stride: int, phase_groups: int) -> None:
        super().__init__()
        self.dim_shifted = dim // 2
        self.stride = stride
        self.phase_groups = phase_groups

    def init_state(self, spec: StateSpec) -> Register:
        return Register(spec, stride=self.stride, keep=self.phase_groups, dim=self.dim_shifted)

    def forward(self, x: Tensor, state: Register | None = None) -> Tensor:
        stay, shift = x.chunk(2, dim=-1)
        shifted = extend_padded(state, shift, back=self.phase_groups)[:, : x.shape[1]]
        return torch.cat((stay, shifted), dim=-1)
