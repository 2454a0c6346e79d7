"""Losses by which coarse tokens tell input tokens: those they cover, or those that follow."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn

from ..linear import Linear
from .cross_entropy import Question


class TokensLoss(nn.Module):
    """One vector (dim_head,) for each of `c` input tokens, read by the model's own output head.

    Tied to the output head, it costs c·dim·dim_head parameters; a head of its own would cost c·dim·vocabulary.
    Neighbouring coarse tokens overlap, so every g-th is asked: together they tell each input token once.
    """

    def __init__(self, dim: int, compress_factor: int, stride: int, dim_head: int) -> None:
        super().__init__()
        self.compress_factor = compress_factor
        self.stride = stride
        self.phase_groups = compress_factor // stride
        self.to_tokens = Linear(dim, compress_factor * dim_head, bias=False)

    def vectors(self, embeds: Tensor) -> Tensor:
        """One vector for each of the c input tokens of each coarse token: (b, m, dim) → (b, m, c, dim_head)."""
        vectors: Tensor = rearrange(self.to_tokens(embeds), "b m (c d) -> b m c d", c=self.compress_factor)
        return vectors

    def ask(self, embeds: Tensor, first: int, ahead: int, ids: Tensor, valid: Tensor) -> Question:
        """For the input tokens p-c+1+ahead … p+ahead that are in the text and valid.

        Args:
            embeds: coarse tokens (b, m, dim), of which `first` and every g-th after it are asked; theirs is the `p`.
            ids: (b, n), and
            valid: (b, n), which of them count.
        """
        c, n = self.compress_factor, ids.shape[1]
        asked = self.vectors(embeds[:, first :: self.phase_groups])
        end = (first * self.stride + ahead) + c * torch.arange(asked.shape[1], device=ids.device)
        positions = rearrange(end, "m -> m 1") + torch.arange(1 - c, 1, device=ids.device)
        inside = (positions >= 0) & (positions < n)
        positions = positions.clamp(0, n - 1)
        return Question(asked, ids[:, positions], valid[:, positions] & inside)


class ReconstructionLoss(TokensLoss):
    """Mean cross-entropy of the input tokens p-c+1 … p, given the coarse token at fine position `p`.

    Asked are the last token and every g-th before it, which cover all that the stream has seen. For factor 4,
    stride 1 and 10 inputs, those at 1, 5 and 9: [·, ·, 0, 1] [2 … 5] [6 … 9].
    """

    def forward(self, embeds: Tensor, ids: Tensor, valid: Tensor) -> Question:
        """Of `embeds` (b, m, dim), `ids` and `valid` (b, n)."""
        return self.ask(embeds, (embeds.shape[1] - 1) % self.phase_groups, 0, ids, valid)


class ProphetLoss(TokensLoss):
    """Mean cross-entropy of the input tokens p+1 … p+c, given the coarse token at fine position `p`.

    After ProphetNet (arXiv 2001.04063). Asked are the tokens at 0, c, 2c, …, which predict every input token but the
    first.
    """

    def forward(self, embeds: Tensor, ids: Tensor, valid: Tensor) -> Question:
        """Of `embeds` (b, m, dim), `ids` and `valid` (b, N), where N may exceed what the embeds have seen."""
        return self.ask(embeds, 0, self.compress_factor, ids, valid)
