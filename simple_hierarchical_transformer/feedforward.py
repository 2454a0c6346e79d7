"""Feed-forward of one stream."""

from __future__ import annotations

from torch import Tensor, nn

from .linear import Linear, has_own_backward
from .squared_relu import linear_squared_relu_linear, squared_relu


class FeedForward(nn.Module):
    """Of normed tokens (b, m, dim) → (b, m, dim), token by token."""

    def __init__(self, dim: int, dim_hidden: int) -> None:
        super().__init__()
        self.expand = Linear(dim, dim_hidden, bias=False)
        self.to_out = Linear(dim_hidden, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if has_own_backward(self.expand, self.to_out):
            return linear_squared_relu_linear([x], [self.expand.weight], self.to_out.weight, recompute=True)
        out: Tensor = self.to_out(squared_relu(self.expand(x)))
        return out
