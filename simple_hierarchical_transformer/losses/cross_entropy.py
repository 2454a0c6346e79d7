"""Cross-entropy of a linear map, without ever holding the logits of all positions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import LinearCrossEntropyOptions

IGNORED = -100
CHUNKED_ABOVE = 1 << 22  # logits; below, computing them at once measures faster
CHUNK_LOGITS = 1 << 23
LEAST_CHUNK = 64


def linear_cross_entropy(x: Tensor, weight: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Mean cross-entropy, in nats, of the logits `x @ weight.T` over the valid targets; 0 where there are none.

    Args:
        x: (…, d)
        weight: (v, d)
        target: (…,) class indices below v; any value where not valid
        valid: (…,) booleans
    """
    num_classes = weight.shape[0]
    x = x.reshape(-1, x.shape[-1])
    target = target.masked_fill(~valid, IGNORED).reshape(-1)
    if target.numel() * num_classes > CHUNKED_ABOVE:
        total = _chunked(x, weight, target)
    else:
        logits = F.linear(x, weight)
        precise = torch.promote_types(logits.dtype, torch.float32)
        total = F.cross_entropy(logits.to(precise), target, reduction="sum", ignore_index=IGNORED)
    return total / valid.sum().clamp(min=1)


def _chunked(x: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    """The sum over all targets but ignored ones, in float32 or above: torch would add it up in the type of `x`."""
    rows = max(CHUNK_LOGITS // weight.shape[0], LEAST_CHUNK)
    options = LinearCrossEntropyOptions(batch_chunk_size=rows, allow_retain_graph=True)
    precise = torch.promote_types(x.dtype, torch.float32)
    with torch.autocast(x.device.type, enabled=False):
        return F.linear_cross_entropy(
            x.to(precise), weight.to(precise), target, reduction="sum", ignore_index=IGNORED, options=options
        )


def masked_mean(values: Tensor, valid: Tensor) -> Tensor:
    """Mean of `values` where `valid`; 0, and still part of the graph, where nothing is."""
    return (values * valid).sum() / valid.sum().clamp(min=1)
