"""Reconstruction: a coarse token tells which input tokens it summarises."""

from __future__ import annotations

from torch import Tensor, nn

from .cross_entropy import linear_cross_entropy
from .heads import TokensHead
from .positions import covered, gather_targets


class ReconstructionLoss(nn.Module):
    """Mean cross-entropy of the input tokens p-c+1 … p, given the coarse token at fine position `p`.

    Neighbouring tokens overlap, so every g-th is asked, counted back from the last: together they cover once all that
    the stream has seen. For factor 4, stride 1 and 10 inputs, those at 1, 5 and 9: [·, ·, 0, 1] [2 … 5] [6 … 9].
    """

    def __init__(self, dim: int, compress_factor: int, stride: int, dim_head: int) -> None:
        super().__init__()
        self.compress_factor = compress_factor
        self.stride = stride
        self.head = TokensHead(dim, compress_factor, dim_head)

    def forward(self, embeds: Tensor, ids: Tensor, valid: Tensor, output_weight: Tensor) -> Tensor:
        """Of `embeds` (b, m, dim), `ids` and `valid` (b, n), and the output head's weight (vocabulary, dim_head)."""
        groups = self.compress_factor // self.stride
        first = (embeds.shape[1] - 1) % groups
        tokens = self.head(embeds[:, first::groups])
        positions = covered(first * self.stride, tokens.shape[1], self.compress_factor, ids.device)
        return linear_cross_entropy(tokens, output_weight, *gather_targets(ids, valid, positions))
