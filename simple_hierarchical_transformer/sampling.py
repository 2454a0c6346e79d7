"""From logits to tokens: pure functions of logits (b, v)."""

from __future__ import annotations

import torch
from torch import Tensor


def keep_top(logits: Tensor, filter_thres: float) -> Tensor:
    """Set all but the `1 - filter_thres` of the vocabulary with the highest logits, at least one, to -inf."""
    count = max(int((1 - filter_thres) * logits.shape[-1]), 1)
    values, indices = logits.topk(count, dim=-1)
    return torch.full_like(logits, -torch.inf).scatter(-1, indices, values)


def sample(logits: Tensor, temperature: float, generator: torch.Generator | None = None) -> Tensor:
    """Draw one token (b,) from softmax(logits / temperature); the most likely one where the temperature is 0."""
    if temperature == 0:
        return logits.argmax(dim=-1)
    logits = logits.double()
    # the highest logit becomes 0 first, so that no temperature is too low
    probabilities = ((logits - logits.amax(dim=-1, keepdim=True)) / temperature).softmax(dim=-1)
    return torch.multinomial(probabilities, 1, generator=generator).squeeze(-1)
