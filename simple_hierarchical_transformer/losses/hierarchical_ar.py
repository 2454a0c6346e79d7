"""Hierarchical autoregressive: a coarse token predicts the next disjoint one (after Mirasol3B, arXiv 2311.05698)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .cross_entropy import masked_mean


class HierarchicalARLoss(nn.Module):
    """One minus the cosine similarity of what token `j` predicts and token `j + g`, which carries no gradient."""

    def __init__(self, dim: int, phase_groups: int) -> None:
        super().__init__()
        self.phase_groups = phase_groups
        self.predict = nn.Linear(dim, dim, bias=False)

    def forward(self, embeds: Tensor, valid: Tensor, count: Tensor) -> Tensor:
        """Of `embeds` (b, m, dim) and `valid` (b, m - g), the targets without padding; their sum over `count`."""
        groups = self.phase_groups
        precise = torch.promote_types(embeds.dtype, torch.float32)
        predicted = self.predict(embeds[:, :-groups]).to(precise)
        target = embeds[:, groups:].detach().to(precise)
        return masked_mean(1 - F.cosine_similarity(predicted, target, dim=-1), valid, count)
