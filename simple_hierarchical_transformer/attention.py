"""Causal attention of one stream, with a window, phase groups and rotary positions.

Shapes: `b` batch, `h` heads, `m` query tokens, `r` rows of a phase, `g` phase groups, `w` window, `d` features of a
head, `t` blocks, `i` queries of a block.

A query sees itself and `w` tokens back in steps of `g`. For g = 2, w = 1:

    key       0 1 2 3 4 5
    query 4       x   x        itself, and token 2; token 3 is of the other phase
    query 5         x   x

Phase by phase, or with the phases folded into the heads, this is plain windowed attention over every `g`-th token.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from .blockwise import LEAST_BLOCK, attend_blockwise
from .chunk import StreamChunk
from .linear import Linear, has_own_backward, linear_for_residual
from .norm import rms_norm
from .queries_keys_values import queries_keys_values
from .ring import KeyValueRing
from .rotary import rotate, xpos_scale
from .state import StateSpec

FUSED_KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION]
XPOS_BLOCK = 512  # queries that share one reference for the xPos scale


class Attention(nn.Module):
    """Causal multi-head attention of normed tokens (b, m, dim) → (b, m, dim).

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
        self.to_qkv = Linear(dim, 3 * heads * dim_head, bias=False)
        self.to_out = Linear(heads * dim_head, dim, bias=False)

    def init_state(self, spec: StateSpec) -> KeyValueRing | None:
        if self.reach == 0:
            return None
        return KeyValueRing(
            spec,
            stride=self.stride,
            phase_groups=self.phase_groups,
            heads=self.heads,
            dim_head=self.dim_head,
            reach=self.reach,
        )

    def forward(self, x: Tensor, chunk: StreamChunk, state: KeyValueRing | None = None) -> Tensor:
        if self.reach == 0:  # a full window over no more input tokens than one token summarises
            _, out = self._split(x)
        else:
            assert chunk.rotary is not None
            if has_own_backward(self.to_qkv):
                q, k, v = queries_keys_values(x, self.to_qkv.weight, chunk.rotary, self.heads)
            else:
                qk, v = self._split(x)
                q, k = rotate(rms_norm(qk), chunk.rotary).to(v.dtype).unbind(1)
            if state is not None and state.takes_in_place(chunk):
                out = self._attend_in_place(q, k, v, chunk, state)
            else:
                out = self._attend_joined(q, k, v, chunk, state)
        joined_heads = rearrange(out, "b h m d -> b m (h d)")
        if has_own_backward(self.to_out):
            return linear_for_residual(joined_heads, self.to_out.weight)
        projected: Tensor = self.to_out(joined_heads)
        return projected

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys (b, 2, h, m, d), and values (b, h, m, d), all as the linear map has them."""
        qkv = rearrange(self.to_qkv(x), "b m (three h d) -> b three h m d", three=3, h=self.heads)
        return qkv[:, :2], qkv[:, 2]

    def _attend_in_place(self, q: Tensor, k: Tensor, v: Tensor, chunk: StreamChunk, ring: KeyValueRing) -> Tensor:
        """A few tokens (b, h, m, d), written into the ring first; phase by phase."""
        outs = []
        for i in range(min(chunk.length, self.phase_groups)):
            own = slice(i, None, self.phase_groups)
            row, phase = divmod(chunk.start + i, self.phase_groups)
            keys, values, sight = ring.put(phase, row, k[:, :, own], v[:, :, own], chunk, ages=self.use_xpos)
            queries, keys, values, visible = q[:, :, own], keys.to(q.dtype), values.to(q.dtype), None
            if sight is not None:
                age, visible = sight
                if self.use_xpos:  # the newest query is the reference
                    queries, keys = scaled(queries, keys, age[:, 0] - age[-1, 0], -age[-1])
            outs.append(scaled_dot_product(queries, keys, values, visible, False, self.use_flash_attn))
        if len(outs) == 1:
            return outs[0]
        out = torch.empty_like(q)
        for i, attended in enumerate(outs):
            out[:, :, i :: self.phase_groups] = attended
        return out

    def _attend_joined(self, q: Tensor, k: Tensor, v: Tensor, chunk: StreamChunk, ring: KeyValueRing | None) -> Tensor:
        """A whole sequence, or a chunk joined to what a ring holds, with the phases folded into the heads.

        Where a chunk begins in the middle of a round through the phases, the tokens that the round began with are
        taken from the ring, so that all phases have as many rows; nobody asks what they see.
        """
        groups, m = self.phase_groups, q.shape[2]
        is_whole = ring is None or chunk.start == 0
        if ring is not None:
            ring.note(k, v, chunk.start)
        if is_whole and m > 1 and not self.use_xpos and is_for_blockwise(q, self.use_flash_attn):
            return attend_blockwise(q, k, v, self.reach, groups)
        first = 0 if ring is None else chunk.start % groups
        keys, values = k, v
        if ring is not None and first:
            keys, values = joined(ring.round_before(chunk.start), (keys, values))
        after = -(first + m) % groups  # causality hides the padding
        if first or after:
            q = F.pad(q, (0, 0, first, after))
            keys, values = (F.pad(t, (0, 0, 0, after)) for t in (keys, values))
        if groups > 1:
            q, keys, values = (rearrange(t, "b h (r g) d -> b (h g) r d", g=groups) for t in (q, keys, values))
        if ring is not None and chunk.start >= groups:
            keys, values = joined(ring.rows_before(chunk.start), (keys, values))
        out = attend_phase(q, keys, values, self.reach, self.use_flash_attn, self.use_xpos)
        if groups > 1:
            out = rearrange(out, "b (h g) r d -> b h (r g) d", g=groups)
        return out[:, :, first : first + m]


def is_for_blockwise(q: Tensor, fused: bool | None) -> bool:
    return q.device.type == "cpu" and fused is not False and not torch.compiler.is_compiling()


def joined(held: Sequence[Tensor], new: Sequence[Tensor]) -> list[Tensor]:
    """New keys and values (b, h, r, d) behind those that a ring held."""
    return [torch.cat((before.to(after.dtype), after), dim=2) for before, after in zip(held, new, strict=True)]


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
    if back == 0 and m > window > 0:  # the first rows see all before them, so that no kernel has to look at the rest
        first = scaled_dot_product(q[..., :window, :], k[..., :window, :], v[..., :window, :], None, True, fused)
        mask = band(m - window, r, window, window, q.device)
        return torch.cat((first, scaled_dot_product(q[..., window:, :], k, v, mask, False, fused)), dim=-2)
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
    m = q.shape[-2]
    back = k.shape[-2] - m
    outs = []
    for start in range(0, m, XPOS_BLOCK):
        stop = min(start + XPOS_BLOCK, m)
        low, high = max(start + back - window, 0), stop + back
        offset = torch.arange(low, high, device=q.device) - (start + back)
        queries, keys = scaled(q[..., start:stop, :], k[..., low:high, :], offset[start + back - low :], offset)
        mask = band(stop - start, high - low, start + back - low, window, q.device)
        outs.append(scaled_dot_product(queries, keys, v[..., low:high, :], mask, False, fused))
    return torch.cat(outs, dim=-2)


def scaled(q: Tensor, k: Tensor, query_offset: Tensor, key_offset: Tensor) -> tuple[Tensor, Tensor]:
    """Queries and keys with the xPos scale, given how far after one reference each stands."""
    precise = torch.promote_types(q.dtype, torch.float32)
    queries = q * xpos_scale(query_offset, q.shape[-1], precise)
    keys = k / xpos_scale(key_offset, k.shape[-1], precise)
    return queries.to(q.dtype), keys.to(k.dtype)


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
