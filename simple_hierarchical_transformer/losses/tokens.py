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

    def first(self, tokens: int) -> int:
        """The first of so many coarse tokens that is asked; every g-th after it is, too."""
        raise NotImplementedError

    @property
    def ahead(self) -> int:
        """How far beyond its own position `p` a coarse token is asked: for the input tokens p-c+1+ahead … p+ahead."""
        raise NotImplementedError

    def targets(self, tokens: int, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Which input tokens the asked ones of so many coarse tokens are asked for.

        Args:
            tokens: m, coarse tokens that there are.
            valid: (b, n), which input tokens count.

        Returns:
            Their positions (m', c), kept within the text, and (b, m', c), which of them are in the text and valid.
        """
        c, n, first = self.compress_factor, valid.shape[1], self.first(tokens)
        asked = len(range(first, tokens, self.phase_groups))
        end = (first * self.stride + self.ahead) + c * torch.arange(asked, device=valid.device)
        positions = rearrange(end, "m -> m 1") + torch.arange(1 - c, 1, device=valid.device)
        inside = (positions >= 0) & (positions < n)
        positions = positions.clamp(0, n - 1)
        return positions, valid[:, positions] & inside

    def forward(self, embeds: Tensor, ids: Tensor, positions: Tensor, valid: Tensor) -> Question:
        """Of `embeds` (b, m, dim), `ids` (b, n), and what `targets` says of these."""
        asked = self.vectors(embeds[:, self.first(embeds.shape[1]) :: self.phase_groups])
        return Question(asked, ids[:, positions], valid)


class ReconstructionLoss(TokensLoss):
    """Mean cross-entropy of the input tokens p-c+1 … p, given the coarse token at fine position `p`.

    Asked are the last token and every g-th before it, which cover all that the stream has seen. For factor 4,
    stride 1 and 10 inputs, those at 1, 5 and 9: [·, ·, 0, 1] [2 … 5] [6 … 9].
    """

    def first(self, tokens: int) -> int:
        return (tokens - 1) % self.phase_groups

    @property
    def ahead(self) -> int:
        return 0


class ProphetLoss(TokensLoss):
    """Mean cross-entropy of the input tokens p+1 … p+c, given the coarse token at fine position `p`.

    After ProphetNet (arXiv 2001.04063). Asked are the tokens at 0, c, 2c, …, which predict every input token but the
    first.
    """

    def first(self, tokens: int) -> int:
        return 0

    @property
    def ahead(self) -> int:
        return self.compress_factor
