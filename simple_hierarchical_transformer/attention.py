"""Causal attention of one stream, with a window, phase groups and rotary positions.

Shapes: `b` batch, `h` heads, `m` query tokens, `r` key tokens (those held in a state, then the `m` new ones),
`g` phase groups, `w` window, `d` features of a head, `t` blocks, `i` queries of a block.

A query sees itself and `w` tokens back in steps of `g`. For g = 2, w = 1:

    key       0 1 2 3 4 5
    query 4       x   x        itself, and token 2; token 3 is of the other phase
    query 5         x   x

Folding the phases into the batch makes this plain windowed attention over every `g`-th token.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from .norm import rms_norm
from .rotary import rotary_table, rotate, xpos_scale
from .state import StateNode, Tail

FUSED_KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION]
XPOS_BLOCK = 512  # queries that share one reference for the xPos scale
LEAST_BLOCK = 32  # queries of a block, where the window is smaller


@dataclass
class AttentionState(StateNode):
    keys: Tail  # (b, h, at most g·w + spare, d), rotated by their positions
    values: Tail


class Attention(nn.Module):
    """Pre-norm causal multi-head attention (b, m, dim) → (b, m, dim).

    Queries and keys are RMS-normed (Henry et al., arXiv 2010.04245). A window changes no parameter: it is a number.
    """

    def __init__(
        self,
        dim: int,
        dim_head: int,
        heads: int,
        *,
        stride: int,
        phase_groups: int,
        reach: int,
        use_flash_attn: bool | None,
        use_xpos: bool,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.dim_head = dim_head
        self.stride = stride
        self.phase_groups = phase_groups
        self.reach = reach
        self.use_flash_attn = use_flash_attn
        self.use_xpos = use_xpos
        self.to_qkv = nn.Linear(dim, 3 * heads * dim_head, bias=False)
        self.to_out = nn.Linear(heads * dim_head, dim, bias=False)

    def init_state(self, max_rewind: int) -> AttentionState:
        keep, spare = self.phase_groups * self.reach, -(-max_rewind // self.stride)
        return AttentionState(Tail(self.stride, keep, spare), Tail(self.stride, keep, spare))

    def forward(self, x: Tensor, state: AttentionState | None = None) -> Tensor:
        q, k, v = rearrange(self.to_qkv(rms_norm(x)), "b m (three h d) -> three b h m d", three=3, h=self.heads)
        start = 0 if state is None else state.keys.count
        table = rotary_table(start, x.shape[1], self.phase_groups, self.dim_head, x.device)
        q, k = (rotate(rms_norm(t), table).to(v.dtype) for t in (q, k))
        if state is not None:
            k, v = state.keys.extend(k), state.values.extend(v)
        out: Tensor = attend(
            q, k, v, window=self.reach, groups=self.phase_groups, fused=self.use_flash_attn, xpos=self.use_xpos
        )
        out = self.to_out(rearrange(out, "b h m d -> b m (h d)"))
        return out


def attend(q: Tensor, k: Tensor, v: Tensor, *, window: int, groups: int, fused: bool | None, xpos: bool) -> Tensor:
    """Windowed causal attention of q (b, h, m, d) over k and v (b, h, r, d) within phases; r - m ≤ groups · window."""
    m = q.shape[-2]
    back = k.shape[-2] - m
    if window == 0:  # a full window over no more input tokens than one token summarises
        return v[..., back:, :]
    if groups == 1:
        return attend_phase(q, k, v, window, fused, xpos)

    # where the held rows are no whole number of rounds through the phases, which happens while a state is young, the
    # queries that complete the round are taken one by one, and so are chunks of less than a round
    alone = m if m < groups else -back % groups
    outs = []
    for query in range(alone):
        own = back + query
        phase = slice(own % groups, own + 1, groups)  # its own key, and those before it in steps of g
        outs.append(attend_phase(q[..., query : query + 1, :], k[..., phase, :], v[..., phase, :], window, fused, xpos))
    if alone < m:
        outs.append(attend_folded(q[..., alone:, :], k, v, window, groups, fused, xpos))
    return torch.cat(outs, dim=-2) if len(outs) > 1 else outs[0]


def attend_folded(q: Tensor, k: Tensor, v: Tensor, window: int, groups: int, fused: bool | None, xpos: bool) -> Tensor:
    """The same where r - m is a multiple of `groups`: the phases become part of the batch."""
    b, m = q.shape[0], q.shape[-2]
    q, k, v = (F.pad(t, (0, 0, 0, -m % groups)) for t in (q, k, v))  # causality hides the padding
    q, k, v = (rearrange(t, "b h (r g) d -> (g b) h r d", g=groups) for t in (q, k, v))
    out = attend_phase(q, k, v, window, fused, xpos)
    return rearrange(out, "(g b) h r d -> b h (r g) d", b=b)[..., :m, :]


def attend_phase(q: Tensor, k: Tensor, v: Tensor, window: int, fused: bool | None, xpos: bool) -> Tensor:
    """Windowed causal attention of q (b, h, m, d) over k and v (b, h, r, d), whose last row is the last query's."""
    m, r = q.shape[-2], k.shape[-2]
    back = r - m
    if xpos:
        return attend_scaled_blocks(q, k, v, window, fused)
    if r - 1 <= window:
        if m == 1:
            return scaled_dot_product(q, k, v, None, False, fused)
        if back == 0:
            return scaled_dot_product(q, k, v, None, True, fused)
    block = max(window, LEAST_BLOCK)
    if block + window < r and m > block:
        if fused is False:
            return attend_local(q, k, v, window)
        return attend_chunk_and_halo(q, k, v, window, block, fused)
    return scaled_dot_product(q, k, v, band(m, r, back, window, q.device), False, fused)


def band(m: int, r: int, back: int, window: int, device: torch.device) -> Tensor:
    """Mask (m, r) of the keys that each query sees; query `i` stands at key `i + back`."""
    distance = torch.arange(back, back + m, device=device)[:, None] - torch.arange(r, device=device)
    return (distance >= 0) & (distance <= window)


def attend_chunk_and_halo(q: Tensor, k: Tensor, v: Tensor, window: int, block: int, fused: bool | None) -> Tensor:
    """Each block of queries attends to its own keys and to the `window ≤ block` keys before the block, its halo.

    For window 2 and block 3, over 6 tokens: block 1 holds queries 3, 4, 5 and sees the keys 1 … 5, of which the
    band leaves query 4 the keys 2, 3, 4. The halo of block 0 lies before the start and is masked.
    """
    b, h, m, _ = q.shape
    before, after = window - (k.shape[-2] - m), -m % block
    q = rearrange(F.pad(q, (0, 0, 0, after)), "b h (t i) d -> (b h) t i d", i=block)
    k, v = (with_halo(F.pad(t, (0, 0, before, after)), window, block) for t in (k, v))
    mask = band(block, block + window, window, window, q.device)
    if before:
        exists = torch.arange(block + window, device=q.device) >= before
        first = torch.arange(q.shape[1], device=q.device) == 0
        mask = mask & (exists | ~first[None, :, None, None])  # (1, t, i, r)
    out = scaled_dot_product(q, k, v, mask, False, fused)
    return rearrange(out, "(b h) t i d -> b h (t i) d", b=b, h=h)[..., :m, :]


def with_halo(x: Tensor, window: int, block: int) -> Tensor:
    """Rows (b, h, window + t·block, d) → (b·h, t, window + block, d): each block behind the rows before it.

    An overlapping view would copy nothing here, but its backward pass measures slower than this one's.
    """
    halo = rearrange(x[..., :window, :], "b h i d -> (b h) 1 i d")
    blocks = rearrange(x[..., window:, :], "b h (t i) d -> (b h) t i d", i=block)
    halos = torch.cat((halo, blocks[:, :-1, block - window :]), dim=1)
    return torch.cat((halos, blocks), dim=2)


def attend_local(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """The same by the package local-attention, whose queries are as many as its keys."""
    from local_attention import LocalAttention

    m, back = q.shape[-2], k.shape[-2] - q.shape[-2]
    local = LocalAttention(window, causal=True, autopad=True, exact_windowsize=True, use_rotary_pos_emb=False)
    out: Tensor = local(F.pad(q, (0, 0, back, 0)), k, v)
    return out[..., back : back + m, :]


def attend_scaled_blocks(q: Tensor, k: Tensor, v: Tensor, window: int, fused: bool | None) -> Tensor:
    """With the xPos scale: block by block, each with its first query as the reference, so that no scale overflows."""
    m, d = q.shape[-2:]
    back = k.shape[-2] - m
    outs = []
    for start in range(0, m, XPOS_BLOCK):
        stop = min(start + XPOS_BLOCK, m)
        low, high = max(start + back - window, 0), stop + back
        offset = torch.arange(low, high, device=q.device) - (start + back)
        precise = torch.promote_types(q.dtype, torch.float32)
        scale = xpos_scale(offset, d, precise)
        queries = (q[..., start:stop, :] * scale[start + back - low :]).to(q.dtype)
        keys = (k[..., low:high, :] / scale).to(k.dtype)
        mask = band(stop - start, high - low, start + back - low, window, q.device)
        outs.append(scaled_dot_product(queries, keys, v[..., low:high, :], mask, False, fused))
    return torch.cat(outs, dim=-2)


def scaled_dot_product(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, fused: bool | None
) -> Tensor:
    """softmax(q·kᵀ / √d) · v over the keys that `mask` (…, m, r) allows.

    Raises:
        ValueError: if `fused` is True and there is no fused kernel for this device, type and shape.
    """
    if fused is None:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
    if fused:
        try:
            with sdpa_kernel(FUSED_KERNELS):
                return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
        except RuntimeError as error:
            if not str(error).startswith(("No available kernel", "No viable backend")):
                raise
            raise ValueError(
                f"use_flash_attn=True, but there is no fused attention kernel for {q.dtype} on {q.device.type} with "
                f"dim_head {q.shape[-1]} and {q.shape[-2]} queries over {k.shape[-2]} keys: use float16 or bfloat16, "
                "or use_flash_attn=None for the fastest exact attention that there is"
            ) from error
    if causal:
        mask = band(q.shape[-2], k.shape[-2], 0, k.shape[-2], q.device)
    scores: Tensor = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    precise = torch.promote_types(scores.dtype, torch.float32)
    return scores.softmax(dim=-1, dtype=precise).to(v.dtype) @ v
