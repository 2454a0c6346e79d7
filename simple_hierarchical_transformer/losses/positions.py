"""Which input tokens a coarse token is about. `c` compress factor, `s` stride, `g = c / s`, `N` length of the ids."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor


def gather_targets(ids: Tensor, valid: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Ids and validity at fine `positions` (m, c): (b, m, c) each; what lies outside of the text isn't valid."""
    n = ids.shape[1]
    inside = (positions >= 0) & (positions < n)
    positions = positions.clamp(0, n - 1)
    return ids[:, positions], valid[:, positions] & inside


def covered(first: int, count: int, compress_factor: int, device: torch.device) -> Tensor:
    """Fine positions (count, c) that tokens at `first`, `first + c`, … summarise: p-c+1 … p."""
    end = first + torch.arange(count, device=device) * compress_factor
    return rearrange(end, "m -> m 1") + torch.arange(1 - compress_factor, 1, device=device)


def following(first: int, count: int, compress_factor: int, device: torch.device) -> Tensor:
    """Fine positions (count, c) that come after tokens at `first`, `first + c`, …: p+1 … p+c."""
    return covered(first, count, compress_factor, device) + compress_factor
