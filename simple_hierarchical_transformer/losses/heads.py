"""From one coarse token to the logits of `c` input tokens."""

from __future__ import annotations

from einops import rearrange
from torch import Tensor, nn


class TokensHead(nn.Module):
    """(b, m, dim) → (b, m, c, dim_head), one vector per input token, to be read by the model's own output head.

    Tied to the output head, it costs c·dim·dim_head parameters; a head of its own would cost c·dim·vocabulary.
    """

    def __init__(self, dim: int, compress_factor: int, dim_head: int) -> None:
        super().__init__()
        self.compress_factor = compress_factor
        self.to_tokens = nn.Linear(dim, compress_factor * dim_head, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        vectors: Tensor = rearrange(self.to_tokens(x), "b m (c d) -> b m c d", c=self.compress_factor)
        return vectors
