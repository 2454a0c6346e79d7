"""Rotary positions (Su et al., arXiv 2104.09864), and the length-extrapolatable scale of xPos (arXiv 2212.10554).

Shapes: `m` tokens, `d` features of a head.
"""

from __future__ import annotations

import torch
from torch import Tensor

BASE = 10_000.0
XPOS_SCALE_BASE = 512  # tokens over which the scale of a feature decays by its own factor


def rotary_table(position: Tensor, dim_head: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines (m, d) of stream tokens at `position` (m,) within their phase, in `dtype`.

    Features `i` and `i + d/2` are turned together; the sine of the first carries the minus. Angles are computed in
    double precision: past position 100,000 float32 would be off by 0.01 rad.
    """
    # devices without double precision (mps) get the table from the CPU
    where = position.device if position.device.type in ("cpu", "cuda", "meta") else torch.device("cpu")
    half = dim_head // 2
    frequency = BASE ** -(torch.arange(half, device=where, dtype=torch.float64) / half)
    angle = position.to(where)[:, None] * frequency
    cos, sin = angle.cos().to(dtype), angle.sin().to(dtype)
    cos, sin = torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)
    return cos.to(position.device), sin.to(position.device)


def rotate(x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """Turn pairs of features of `x` (…, d) by the table's angles, which broadcast; in the table's precision."""
    cos, sin = table
    precise = x.to(cos.dtype)
    return torch.addcmul(precise * cos, precise.roll(x.shape[-1] // 2, dims=-1), sin).to(x.dtype)


def xpos_scale(offset: Tensor, dim_head: int, dtype: torch.dtype) -> Tensor:
    """Scale (…, dim_head) of tokens `offset` (…,) positions after a reference token.

    Queries are multiplied by the scale and keys divided by it, both against the same reference, so only distances
    count. The reference is always near the queries, never the start of the text: no scale grows with the position.
    """
    feature = torch.arange(0, dim_head, 2, device=offset.device, dtype=dtype)
    base = (feature + 0.4 * dim_head) / (1.4 * dim_head)
    scale = base ** (offset[..., None].to(dtype) / XPOS_SCALE_BASE)
    return torch.cat((scale, scale), dim=-1)
