"""Token shift (Peng, RWKV, arXiv 2305.13048): half of the features come from the previous token of the phase."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .linear import product_dtype
from .norm import rms_norm, shifted_rms_norm
from .state import Register, StateSpec


class TokenShift(nn.Module):
    """The norm of shifted tokens (b, m, d): the second half of token `j` is that of token `j - g`, and first zeros.

    With g = 2 phase groups, tokens a b c d become  a₁0 b₁0 c₁a₂ d₁b₂  before the norm. It stands before a linear map,
    and returns what that will multiply: under autocast, halves.
    """

    def __init__(self, dim: int, *, stride: int, phase_groups: int) -> None:
        super().__init__()
        self.dim_shifted = dim // 2
        self.stride = stride
        self.phase_groups = phase_groups

    def init_state(self, spec: StateSpec) -> Register:
        return Register(spec, stride=self.stride, keep=self.phase_groups, dim=self.dim_shifted)

    def forward(self, x: Tensor, state: Register | None = None) -> Tensor:
        dtype = product_dtype(x)
        if state is None:
            return shifted_rms_norm(x, self.phase_groups, dtype)
        stay, shift = x.chunk(2, dim=-1)
        shifted = state.extend(shift)[:, : x.shape[1]]
        return rms_norm(torch.cat((stay, shifted), dim=-1), dtype)
