"""Prophet: a coarse token predicts the input tokens that follow it (after ProphetNet, arXiv 2001.04063)."""

from __future__ import annotations

from torch import Tensor, nn

from .cross_entropy import linear_cross_entropy
from .heads import TokensHead
from .positions import following, gather_targets


class ProphetLoss(nn.Module):
    """Mean cross-entropy of the input tokens p+1 … p+c, given the coarse token at fine position `p`.

    The tokens at 0, c, 2c, … are asked: together they predict once every input token but the first.
    """

    def __init__(self, dim: int, compress_factor: int, stride: int, dim_head: int) -> None:
        super().__init__()
        self.compress_factor = compress_factor
        self.stride = stride
        self.head = TokensHead(dim, compress_factor, dim_head)

    def forward(self, embeds: Tensor, ids: Tensor, valid: Tensor, output_weight: Tensor) -> Tensor:
        """Of `embeds` (b, m, dim), `ids` and `valid` (b, N), where N may exceed what the embeds have seen."""
        tokens = self.head(embeds[:, :: self.compress_factor // self.stride])
        positions = following(0, tokens.shape[1], self.compress_factor, ids.device)
        return linear_cross_entropy(tokens, output_weight, *gather_targets(ids, valid, positions))
