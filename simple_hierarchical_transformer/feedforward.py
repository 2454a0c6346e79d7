"""Feed-forward of one stream."""

from __future__ import annotations

from torch import Tensor, nn

from .activation import squared_relu
from .linear import Linear
from .norm import rms_norm


class FeedForward(nn.Module):
    """Pre-norm feed-forward (b, m, dim) → (b, m, dim), token by token."""

    def __init__(self, dim: int, dim_hidden: int) -> None:
        super().__init__()
        self.expand = Linear(dim, dim_hidden, bias=False)
        self.to_out = Linear(dim_hidden, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.to_out(squared_relu(self.expand(rms_norm(x))))
        return out
