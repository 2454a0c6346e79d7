"""Rotary positions (Su et al., arXiv 2104.09864), and the length-extrapolatable scale of xPos (arXiv 2212.10554).

Shapes: `m` tokens, `d` features of a head.
"""

from __future__ import annotations

import torch
from torch import Tensor

BASE = 10_000.0
XPOS_SCALE_BASE = 512  # tokens over which the scale of a feature decays by its own factor


def rotary_table(start: int, length: int, groups: int, dim_head: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines (length, dim_head / 2) of the stream tokens `start …`, in float64.

    Positions count within a phase: token `j` has position `j // groups`, so that neighbours are 1 apart. Angles are
    computed in double precision: past position 100,000 float32 would be off by 0.01 rad.
    """
    # devices without double precision (mps) get the table from the CPU
    where = device if device.type in ("cpu", "cuda", "meta") else torch.device("cpu")
    position = torch.arange(start, start + length, device=where) // groups
    exponent = torch.arange(0, dim_head, 2, device=where, dtype=torch.float64) / dim_head
    angle = position[:, None].double() * BASE**-exponent
    cos, sin = angle.cos(), angle.sin()
    return (cos, sin) if where == device else (cos.float().to(device), sin.float().to(device))


def rotate(x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """Turn pairs of features of `x` (…, m, d) by the table's angles; computed in float32 or above."""
    precise = torch.promote_types(x.dtype, torch.float32)
    cos, sin = (t.to(precise) for t in table)
    first, second = x.to(precise).chunk(2, dim=-1)
    turned = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
    return turned.to(x.dtype).contiguous()  # for a single head, cat may choose a layout that no fused kernel takes


def xpos_scale(offset: Tensor, dim_head: int, dtype: torch.dtype) -> Tensor:
    """Scale (m, dim_head) of tokens `offset` (m,) positions after a reference token.

    Queries are multiplied by the scale and keys divided by it, both against the same reference, so only distances
    count. The reference is always near the queries, never the start of the text: no scale grows with the position.
    """
    feature = torch.arange(0, dim_head, 2, device=offset.device, dtype=dtype)
    base = (feature + 0.4 * dim_head) / (1.4 * dim_head)
    scale = base ** (offset[:, None].to(dtype) / XPOS_SCALE_BASE)
    return torch.cat((scale, scale), dim=-1)
