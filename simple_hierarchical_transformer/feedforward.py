"""Feed-forward with squared ReLU (So et al., Primer, arXiv 2109.08668)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from .norm import rms_norm


class FeedForward(nn.Module):
    """Pre-norm feed-forward (b, m, dim) → (b, m, dim), token by token."""

    def __init__(self, dim: int, dim_hidden: int) -> None:
        super().__init__()
        self.expand = nn.Linear(dim, dim_hidden, bias=False)
        self.to_out = nn.Linear(dim_hidden, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.to_out(F.relu(self.expand(rms_norm(x))).square())
        return out
