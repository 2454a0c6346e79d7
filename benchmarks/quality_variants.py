"""What docs/evidence.md tries beyond what the package has: changes to a built model, by name.

Each takes the model as the package builds it and replaces what the question is about, so that a variant differs from
its base by that alone. None has a decoding state.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from quality_contenders import BYTES
from torch import Tensor, nn

from simple_hierarchical_transformer import HierarchicalTransformer
from simple_hierarchical_transformer.chunk import StreamChunk
from simple_hierarchical_transformer.compressor import Source
from simple_hierarchical_transformer.config import StreamConfig
from simple_hierarchical_transformer.linear import Linear
from simple_hierarchical_transformer.norm import rms_norm


class Variant(nn.Module):
    """A model of the package, changed; its loss is the next byte's cross-entropy, and what changes add to it."""

    def __init__(self, model: HierarchicalTransformer, changes: Sequence[str]) -> None:
        super().__init__()
        self.model = model
        self.cap: float | None = None
        self.more: Callable[[Tensor], Tensor] | None = None  # of ids (b, n): another loss
        for change in changes:
            name, _, value = change.partition("=")
            CHANGES[name](self, value)

    @property
    def config(self) -> Any:
        return self.model.config

    def forward(self, ids: Tensor, **options: Any) -> Tensor:
        logits: Tensor = self.model(ids, **options)
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)

    def losses(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        logits = self(ids[:, :-1])
        next_byte = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        return next_byte if self.more is None else next_byte + self.more(ids[:, :-1]), next_byte


def layers_of(model: HierarchicalTransformer) -> list[Any]:
    return [*model.opening, *model.layers]


# the recipe


def gelu(variant: Variant, _: str) -> None:
    """GELU instead of the squared ReLU, in the feed-forwards."""
    for layer in layers_of(variant.model):
        for block in layer.blocks:
            feed = block.feedforward
            block.feedforward = nn.Sequential(feed.expand, nn.GELU(), feed.to_out)


def zero_init(variant: Variant, _: str) -> None:
    """Output projections of all residual branches begin at zero."""
    for layer in layers_of(variant.model):
        for name, weight in layer.named_parameters():
            if name.endswith("to_out.weight"):
                nn.init.zeros_(weight)


def initial_scale(variant: Variant, value: str) -> None:
    """Initial weights of all matrices of the layers, times this."""
    for layer in layers_of(variant.model):
        for weight in layer.parameters():
            if weight.ndim == 2:
                with torch.no_grad():
                    weight.mul_(float(value))


def soft_cap(variant: Variant, value: str) -> None:
    variant.cap = float(value)


def tied_head(variant: Variant, _: str) -> None:
    variant.model.to_logits.weight = variant.model.token_emb.weight


def embedding_skip(variant: Variant, _: str) -> None:
    """Every block of the predict stream but the first also gets the stream's first tokens, times a learned vector."""
    model, predict = variant.model, variant.config.predict_index
    dim = variant.config.predict_stream.dim
    variant.skips = nn.ParameterList(torch.zeros(dim) for _ in list(model.layers)[1:])
    first: list[Tensor] = []

    def note(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        first[:] = [inputs[0]]

    def add(gain: nn.Parameter) -> Callable[..., tuple[Any, ...]]:
        return lambda _, inputs: (inputs[0] + gain * first[0], *inputs[1:])

    blocks = [layer.blocks[predict] for layer in model.layers]
    blocks[0].register_forward_pre_hook(note)
    for block, gain in zip(blocks[1:], variant.skips, strict=True):
        block.register_forward_pre_hook(add(gain))


class FreeAttention(nn.Module):
    """An attention whose queries, keys and values are made in the open, so that they can be changed."""

    def __init__(self, plain: Any, normed: bool, values: list[Tensor] | None) -> None:
        super().__init__()
        self.plain, self.normed, self.values = plain, normed, values
        self.mix = nn.Parameter(torch.tensor(0.5)) if values is not None else None
        self.is_first = False

    def forward(self, x: Tensor, chunk: StreamChunk, state: None = None) -> Tensor:
        from simple_hierarchical_transformer.rotary import rotate

        qk, v = self.plain._split(x)
        q, k = rotate(rms_norm(qk) if self.normed else qk, chunk.rotary).unbind(1)
        if self.values is not None:
            if self.is_first:
                self.values[:] = [v]
            else:
                v = self.mix * v + (1 - self.mix) * self.values[0]
        out = self.plain._attend_joined(q, k, v, chunk, None)
        projected: Tensor = self.plain.to_out(rearrange(out, "b h m d -> b m (h d)"))
        return projected


def without_qk_norm(variant: Variant, _: str) -> None:
    for layer in layers_of(variant.model):
        for block in layer.blocks:
            block.attention = FreeAttention(block.attention, False, None)


def value_residual(variant: Variant, _: str) -> None:
    """Values are mixed with those of the stream's first layer (Zhou et al., arXiv 2410.17897)."""
    for stream in range(len(variant.config.streams)):
        values: list[Tensor] = []
        for i, layer in enumerate(variant.model.layers):
            free = FreeAttention(layer.blocks[stream].attention, True, values)
            if i == 0:
                free.is_first, free.mix = True, None
            layer.blocks[stream].attention = free


# merging


class Tell(nn.Module):
    """Coarse tokens (b, m, d) → what they add to each fine position (b, n, d0), by one linear map at their own rate.

    With `per_position`, a vector for each of the `s` positions that hear of a token; else one, repeated.
    """

    def __init__(self, dim: int, dim_fine: int, stride: int, per_position: bool) -> None:
        super().__init__()
        self.stride, self.per_position = stride, per_position
        self.map = Linear(dim, dim_fine * (stride if per_position else 1), bias=False)
        nn.init.zeros_(self.map.weight)

    def forward(self, coarse: Tensor, length: int) -> Tensor:
        told = self.map(rms_norm(coarse))
        if self.per_position:
            told = rearrange(told, "b m (s d) -> b (m s) d", s=self.stride)
        else:
            told = told.repeat_interleave(self.stride, dim=1)
        return told[:, :length]


class Fill(nn.Module):
    """What the fine stream has seen since the coarse token that it hears of: the mean of its states, mapped."""

    def __init__(self, dim: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.map = Linear(dim, dim, bias=False)
        nn.init.zeros_(self.map.weight)

    def forward(self, fine: Tensor) -> Tensor:
        length = fine.shape[1]
        padded = F.pad(rms_norm(fine), (0, 0, 0, -length % self.stride))
        strides = rearrange(padded, "b (m s) d -> b m s d", s=self.stride)
        counts = torch.arange(1, self.stride + 1, device=fine.device)[:, None]
        means = rearrange(strides.cumsum(dim=2) / counts, "b m s d -> b (m s) d")
        filled: Tensor = self.map(means[:, :length])
        return filled


class Attend(nn.Module):
    """Fine tokens attend to all coarse tokens that stand no later than they do."""

    def __init__(self, dim: int, dim_fine: int, stride: int, heads: int) -> None:
        super().__init__()
        self.stride, self.heads = stride, heads
        self.to_q = Linear(dim_fine, dim_fine, bias=False)
        self.to_kv = Linear(dim, 2 * dim_fine, bias=False)
        self.to_out = Linear(dim_fine, dim_fine, bias=False)
        nn.init.zeros_(self.to_out.weight)

    def forward(self, fine: Tensor, coarse: Tensor) -> Tensor:
        q = rms_norm(rearrange(self.to_q(rms_norm(fine)), "b n (h d) -> b h n d", h=self.heads))
        k, v = rearrange(self.to_kv(rms_norm(coarse)), "b m (two h d) -> two b h m d", two=2, h=self.heads)
        n, m = q.shape[2], k.shape[2]
        visible = torch.arange(m, device=q.device) * self.stride <= torch.arange(n, device=q.device)[:, None]
        out = F.scaled_dot_product_attention(q, rms_norm(k), v, attn_mask=visible)
        attended: Tensor = self.to_out(rearrange(out, "b h n d -> b n (h d)"))
        return attended


class Merge(nn.Module):
    """Stands in for a layer's merge; the first stream is the fine one."""

    def __init__(self, streams: Sequence[StreamConfig], how: str) -> None:
        super().__init__()
        fine, *coarse = streams
        self.how = how
        if how == "attention":
            self.tells = nn.ModuleList(Attend(s.dim, fine.dim, s.stride, fine.heads) for s in coarse)
        else:
            self.tells = nn.ModuleList(Tell(s.dim, fine.dim, s.stride, how == "per position") for s in coarse)
        self.fills = nn.ModuleList(Fill(fine.dim, s.stride) for s in coarse) if how == "filled" else ()

    def init_state(self, spec: Any) -> None:
        return None

    def forward(
        self,
        streams: Sequence[Tensor],
        chunks: Sequence[StreamChunk],
        state: None = None,
        sources: frozenset[int] | None = None,
    ) -> list[Tensor]:
        fine, *coarse = streams
        merged = fine
        for i, (tell, tokens) in enumerate(zip(self.tells, coarse, strict=True), start=1):
            if sources is None or i in sources:
                merged = merged + (tell(fine, tokens) if self.how == "attention" else tell(tokens, fine.shape[1]))
        for fill in self.fills:
            merged = merged + fill(fine)
        return [merged, *coarse]


def merging(how: str) -> Callable[[Variant, str], None]:
    def change(variant: Variant, _: str) -> None:
        for layer in variant.model.layers:
            layer.merge = Merge(variant.config.streams, how)

    return change


class Idle(nn.Module):
    """Stands in for a block that a stream does without."""

    def forward(self, x: Tensor, chunk: StreamChunk, state: None = None) -> Tensor:
        return x


def fine_idle(variant: Variant, value: str) -> None:
    """In the first so many of the layers that have coarse blocks, the fine stream has none: they only merge into it."""
    for layer in list(variant.model.layers)[: int(value)]:
        layer.blocks[0] = Idle()


# compressing


class AttentionCompressor(nn.Module):
    """A learned query attends to the `c` tokens that a coarse token summarises."""

    def __init__(self, dim_in: int, stream: StreamConfig) -> None:
        super().__init__()
        self.c, self.s, self.heads = stream.compress_factor, stream.stride, stream.heads
        self.query = nn.Parameter(torch.randn(stream.heads, stream.dim_head) * stream.dim_head**-0.5)
        self.place = nn.Parameter(torch.zeros(self.c, dim_in))
        self.to_kv = Linear(dim_in, 2 * stream.heads * stream.dim_head, bias=False)
        self.to_out = Linear(stream.heads * stream.dim_head, stream.dim, bias=False)

    def forward(self, x: Tensor, skip: int = 0, state: None = None, source: Source | None = None) -> Tensor:
        if source is not None:
            x = F.embedding(source.rows, source.table)
        windows = rearrange(F.pad(x, (0, 0, self.c - 1, 0)).unfold(1, self.c, self.s), "b m d c -> b m c d")
        k, v = rearrange(self.to_kv(windows + self.place), "b m c (two h d) -> two b m h c d", two=2, h=self.heads)
        scores = torch.einsum("hd,bmhcd->bmhc", self.query, k) * k.shape[-1] ** -0.5
        out = torch.einsum("bmhc,bmhcd->bmhd", scores.softmax(dim=-1), v)
        compressed: Tensor = self.to_out(rearrange(out, "b m h d -> b m (h d)"))
        return compressed


def attention_compressor(variant: Variant, _: str) -> None:
    model = variant.model
    for i, stream in enumerate(variant.config.streams):
        if stream.is_coarse:
            model.compressors[i] = AttentionCompressor(variant.config.dim_compressed(i), stream)


class Select(nn.Module):
    """A coarse token is made of what stands at its own position alone, as in H-Net (arXiv 2507.07955)."""

    def __init__(self, dim_in: int, stream: StreamConfig) -> None:
        super().__init__()
        self.s = stream.stride
        self.map = Linear(dim_in, stream.dim, bias=False)

    def forward(self, x: Tensor, skip: int = 0, state: None = None, source: Source | None = None) -> Tensor:
        selected: Tensor = self.map(x[:, :: self.s])
        return selected


def select(variant: Variant, _: str) -> None:
    for i, stream in enumerate(variant.config.streams):
        if stream.is_coarse:
            variant.model.compressors[i] = Select(variant.config.dim_compressed(i), stream)


def autoencoder(variant: Variant, value: str) -> None:
    """The coarse tokens before the layers tell, by a linear decoder, the bytes that they cover; value: its weight."""
    model, streams = variant.model, variant.config.streams
    variant.decoders = nn.ModuleList(
        Linear(s.dim, s.compress_factor * BYTES, bias=False) if s.is_coarse else nn.Identity() for s in streams
    )

    held: list[list[Tensor]] = []
    compress = model._compress

    def noting(*given: Any, **options: Any) -> tuple[list[Tensor], list[Tensor]]:
        compressed, opened = compress(*given, **options)
        held[:] = [compressed]
        return compressed, opened

    def reconstruction(ids: Tensor) -> Tensor:
        total = torch.zeros(())
        for tokens, decode, s in zip(held[0], variant.decoders, streams, strict=True):
            if s.is_coarse:
                c = s.compress_factor
                target = F.pad(ids, (c - 1, 0), value=-100).unfold(1, c, s.stride)
                scores = rearrange(decode(tokens), "b m (c v) -> (b m c) v", c=c)
                total = total + F.cross_entropy(scores, target.reshape(-1), ignore_index=-100)
        return float(value) * total

    model._compress = noting
    variant.more = reconstruction


def share_attention(variant: Variant, _: str) -> None:
    """All streams of a layer, which are of one width, attend with the same weights."""
    for layer in variant.model.layers:
        first, *others = layer.blocks
        for block in others:
            block.attention.to_qkv, block.attention.to_out = first.attention.to_qkv, first.attention.to_out


def share_blocks(variant: Variant, _: str) -> None:
    """The streams of a layer, which are of one width, go through the same weights altogether."""
    share_attention(variant, "")
    for layer in variant.model.layers:
        first, *others = layer.blocks
        for block in others:
            block.feedforward = first.feedforward


CHANGES: dict[str, Callable[[Variant, str], None]] = {
    "GELU": gelu,
    "zero-initialised outputs": zero_init,
    "initial scale": initial_scale,
    "soft cap": soft_cap,
    "tied head": tied_head,
    "embedding skip": embedding_skip,
    "no QK norm": without_qk_norm,
    "value residual": value_residual,
    "merge per position": merging("per position"),
    "merge by attention": merging("attention"),
    "merge filled": merging("filled"),
    "fine idle": fine_idle,
    "attention compressor": attention_compressor,
    "select": select,
    "autoencoder": autoencoder,
    "shared attention": share_attention,
    "shared blocks": share_blocks,
}
