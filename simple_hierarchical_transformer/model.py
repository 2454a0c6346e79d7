"""The model: check, embed, compress, layers, norm, head.

Shapes: `b` batch, `n` input tokens, `m` tokens of a stream (`ceil(n / stride)` for a whole sequence), `d` width.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .arguments import NGRAM_TABLE_SIZE, build_config
from .chunk import StreamChunk
from .compressor import Compressor, Projection, Source, is_faster_looked_up
from .config import LatentLoss
from .description import DescriptionMixin
from .generation import GenerationMixin
from .inputs import (
    check_ablation,
    check_can_draft,
    check_ids,
    check_length,
    check_returns,
    check_state,
    check_target_counts,
    check_vocabulary,
    merged_sources,
)
from .layer import Layer, LayerState, recomputed
from .linear import Linear, is_untouched
from .losses import Losses
from .losses.objective import Objective
from .merge import Hold
from .modules import module_list
from .naming import names_its_arguments
from .ngrams import NgramEmbedding
from .norm import rms_norm
from .sharing import SharingMixin
from .state import DecodingState, Register, StateNode, StateSpec
from .validation import flag, whole

INIT_STD = 0.02  # of the embedding and the output head
# what x-transformers, nanoGPT and transformers call our arguments
ELSEWHERE = {
    "vocab_size": "num_tokens", "d_model": "dim", "hidden_size": "dim", "n_embd": "dim", "n_layer": "depth",
    "num_layers": "depth", "n_layers": "depth", "num_hidden_layers": "depth", "n_head": "heads", "num_heads": "heads",
    "n_heads": "heads", "attn_dim_head": "dim_head", "max_seq_len": "seq_len", "block_size": "seq_len",
    "max_position_embeddings": "seq_len", "stride": "hierarchical_stride", "attn_flash": "use_flash_attn",
    "pad_id": "ignore_index", "pad_value": "ignore_index",
}  # fmt: skip


@dataclass
class ModelState(StateNode):
    compressors: tuple[Register | None, ...]
    ngrams: Register | None
    opening: tuple[LayerState, ...]
    layers: tuple[LayerState, ...]
    holds: tuple[Register | None, ...]
    drafts: tuple[Register | None, ...]  # the last token of each stream that drafts, where that was asked for


def last(hidden: Tensor, count: int | None) -> Tensor:
    """The last `count` positions of hidden (b, n, d), or all."""
    return hidden if count is None else hidden[:, -count:]


class HierarchicalTransformer(GenerationMixin, DescriptionMixin, SharingMixin, nn.Module):
    """A causal language model of several streams of tokens, fine and coarse, merged in every layer.

    With one stream of factor 1, the default, it is a plain transformer. Arguments "per stream" take one value for
    all streams, or a tuple or list with one per stream in the order of `hierarchies`.

    Args:
        num_tokens: size of the vocabulary.
        dim: width of a stream, per stream; even.
        depth: number of layers.
        seq_len: longest sequence of a call without a state, in input tokens, and the reach of a full window.
        dim_head: width of an attention head, per stream; even.
        heads: attention heads, per stream.
        ff_mult: hidden width of the feed-forward as a multiple of the stream's width, per stream.
        hierarchies: compress factor of each stream: how many input tokens one of its tokens summarises. Unique
            positive powers of two.
        window_sizes: how many previous tokens of its phase a token attends to, per stream; None for all, 0 for no
            attention.
        hierarchical_stride: a stream emits one token every so many input tokens, per stream; a power of two that
            divides the factor.
        hierarchy_merge_all: merge into all streams, not into the predict stream only.
        merge_type: "mlp" pools all streams, the receiving one too, in a hidden layer; "linear" adds one linear map of
            each other stream, at that stream's own rate.
        compress_after: layers of the predict stream alone, after which the other streams begin: they are compressed
            from what it holds then, and go through the layers that are left. 0: all begin in the embeddings.
        predict_hierarchy: compress factor of the stream that predicts; the finest by default. Its stride must be 1.
        predict_use_all_hierarchy: compute the logits from all streams.
        ngram_sizes: give the tokens of the predict stream a vector for each n-gram of these sizes that ends there,
            looked up by its hash (arXiv 2412.09871); none by default.
        ngram_table_size: rows of the table that each size has.
        recon_loss_weight: weight of the coarse streams' reconstruction of what they summarise.
        hierarchical_ar_loss_weight: weight of the coarse streams' prediction of their next disjoint token.
        prophet_loss_weight: weight of the coarse streams' prediction of the next `c` input tokens.
        prophet_loss_use_quantized: let the prophet predict the codes of the next disjoint token instead.
        prophet_quantized_use_embed: quantise the tokens after the layers, not before them.
        rq_num_codebooks: codebooks of the random-projection quantiser.
        rq_codebook_dim: width of a codebook.
        rq_codebook_size: codes of a codebook.
        next_latent_loss_weight: weight of the prediction of next latents (arXiv 2511.05963), per stream.
        next_latent_loss_type: 'mse_and_cosine_sim', 'mse', 'smooth_l1', or a callable that maps prediction and
            target (b, m, d) to a loss per feature.
        num_rollouts: how many latents ahead are predicted.
        chunk_summarizers: modules that map the embeddings (b, n, max(dim)) to summaries (b, m, d), per stream; None
            for a mean.
        detach_summaries: let no gradient flow from the summaries into the embeddings.
        dynamics_hidden_dim: hidden width of the dynamics network; the stream's by default.
        dynamics_num_layers: its layers.
        dynamic_rollout_loss_weight: count a rollout the less the worse those before it did.
        dynamic_loss_decay: how fast.
        rollout_weights: weight of each rollout; equal by default. They are scaled to a sum of 1.
        ignore_index: the id that stands for padding: embedded as zeros, and never a target of any loss.
        use_flash_attn: None for the fastest exact attention, True for fused kernels only, False for the plain
            softmax.
        use_xpos: scale queries and keys as in xPos (arXiv 2212.10554), beside the rotary positions.
        checkpoint_activations: in training, keep for the backward pass only what the streams hold between the layers,
            and compute each layer again when its turn comes (arXiv 1604.06174): the same gradients, bit for bit on
            CPUs, for less memory and more time. Without gradients, or with a state, it changes nothing.

    Raises:
        TypeError: for an argument of the wrong type.
        ValueError: for an argument outside what is allowed. Each message names the argument and the remedy.
    """

    @names_its_arguments(
        "HierarchicalTransformer", elsewhere=ELSEWHERE, examples={"num_tokens": 256, "dim": 512, "depth": 6}
    )
    def __init__(
        self,
        *,
        num_tokens: int,
        dim: int | Sequence[int],
        depth: int,
        seq_len: int = 2048,
        dim_head: int | Sequence[int] = 64,
        heads: int | Sequence[int] = 8,
        ff_mult: float | Sequence[float] = 4,
        hierarchies: int | Sequence[int] = 1,
        window_sizes: int | Sequence[int | None] | None = None,
        hierarchical_stride: int | Sequence[int] = 1,
        hierarchy_merge_all: bool = False,
        merge_type: str = "mlp",
        compress_after: int = 0,
        predict_hierarchy: int | None = None,
        predict_use_all_hierarchy: bool = False,
        ngram_sizes: Sequence[int] = (),
        ngram_table_size: int = NGRAM_TABLE_SIZE,
        recon_loss_weight: float = 0.1,
        hierarchical_ar_loss_weight: float = 0.25,
        prophet_loss_weight: float = 0.0,
        prophet_loss_use_quantized: bool = False,
        prophet_quantized_use_embed: bool = False,
        rq_num_codebooks: int = 4,
        rq_codebook_dim: int = 256,
        rq_codebook_size: int = 1024,
        next_latent_loss_weight: float | Sequence[float] = 0.0,
        next_latent_loss_type: str | LatentLoss = "mse_and_cosine_sim",
        num_rollouts: int = 1,
        chunk_summarizers: nn.Module | Sequence[nn.Module | None] | None = None,
        detach_summaries: bool = True,
        dynamics_hidden_dim: int | None = None,
        dynamics_num_layers: int = 3,
        dynamic_rollout_loss_weight: bool = True,
        dynamic_loss_decay: float = 1.0,
        rollout_weights: Sequence[float] | None = None,
        ignore_index: int = -100,
        use_flash_attn: bool | None = None,
        use_xpos: bool = False,
        checkpoint_activations: bool = False,
    ) -> None:
        arguments = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        super().__init__()
        self.config = config = build_config(**arguments)
        self.seq_len = config.seq_len
        self.num_tokens = config.num_tokens

        self.token_emb = nn.Embedding(config.num_tokens, config.dim_embedding)
        self.compressors: Sequence[Compressor | Projection] = module_list(
            Compressor(config.dim_compressed(i), s.dim, compress_factor=s.compress_factor, stride=s.stride)
            if s.is_coarse
            else Projection(config.dim_compressed(i), s.dim)
            for i, s in enumerate(config.streams)
        )
        ngrams = config.ngrams
        self.ngrams = (
            NgramEmbedding(config.predict_stream.dim, ngrams.sizes, ngrams.table_size) if ngrams.sizes else None
        )
        self.opening = module_list(Layer(config, (config.predict_stream,), ()) for _ in range(config.compress_after))
        self.layers = module_list(
            Layer(config, config.streams, config.merge_targets(is_last=i == config.shared_depth - 1))
            for i in range(config.shared_depth)
        )
        predict_stride = config.predict_stream.stride
        self.holds = module_list(
            Hold(s.stride, predict_stride, s.dim) for s in (config.streams if config.predict_use_all else ())
        )
        self.to_logits = Linear(config.dim_head_input, config.num_tokens, bias=False)
        self.objective = Objective(config)
        self._init_weights()

    def _init_weights(self) -> None:
        """Small embeddings and logits, and residual branches that start small, the smaller the deeper the model."""
        nn.init.normal_(self.token_emb.weight, std=INIT_STD)
        nn.init.normal_(self.to_logits.weight, std=INIT_STD)
        for layer in (*self.opening, *self.layers):
            for name, weight in layer.named_parameters():
                if name.endswith("to_out.weight") or (name.startswith("merge") and self.config.merge_type == "linear"):
                    nn.init.normal_(weight, std=0.5 * (2 * self.config.depth * weight.shape[1]) ** -0.5)

    @property
    def device(self) -> torch.device:
        return self.token_emb.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.token_emb.weight.dtype

    def init_state(self, batch_size: int, *, max_rewind: int = 16, drafts: bool = False) -> DecodingState:
        """An empty decoding state: nothing seen yet. Its memory is allocated at once, for good.

        Args:
            batch_size: sequences that are decoded together.
            max_rewind: how many tokens `state.rewind` can take back; the state holds as many more. A chunk of at most
                so many tokens is decoded without moving any key or value, so give at least 1 for single steps.
            drafts: also hold what speculative decoding drafts from; needs a prophet loss.

        Raises:
            TypeError, ValueError: unless batch_size is a positive and max_rewind a non-negative whole number, and for
                `drafts` with a model that can't draft.
        """
        batch_size, max_rewind = whole("batch_size", batch_size, least=1), whole("max_rewind", max_rewind, least=0)
        if flag("drafts", drafts):
            check_can_draft(self.config)
        spec = StateSpec(
            batch_size=batch_size, max_rewind=max_rewind, dtype=self.dtype, device=self.device, drafts=drafts
        )
        parts = ModelState(
            compressors=tuple(compressor.init_state(spec) for compressor in self.compressors),
            ngrams=self.ngrams.init_state(spec) if self.ngrams is not None else None,
            opening=tuple(layer.init_state(spec) for layer in self.opening),
            layers=tuple(layer.init_state(spec) for layer in self.layers),
            holds=tuple(hold.init_state(spec) for hold in self.holds),
            drafts=tuple(
                Register(spec, stride=s.stride, keep=1, dim=s.dim) if drafts and s.is_coarse else None
                for s in self.config.streams
            ),
        )
        return DecodingState(spec, self.config, parts)

    @overload
    def forward(
        self, ids: Tensor, return_loss: Literal[True], *, target_counts: Tensor | None = None
    ) -> tuple[Tensor, Losses]: ...

    @overload
    def forward(
        self,
        ids: Tensor,
        return_loss: Literal[False] = False,
        state: DecodingState | None = None,
        ablate_hierarchical_merge: bool | int | Collection[int] = False,
        *,
        logits_to_keep: int | None = None,
    ) -> Tensor: ...

    @overload
    def forward(
        self,
        ids: Tensor,
        return_loss: bool = False,
        state: DecodingState | None = None,
        ablate_hierarchical_merge: bool | int | Collection[int] = False,
        return_hierarchical_token_embeds: bool = False,
        return_hierarchical_embeds: bool = False,
        return_random_proj_quantize_ids: bool = False,
        logits_to_keep: int | None = None,
        target_counts: Tensor | None = None,
    ) -> Any: ...

    def forward(
        self,
        ids: Tensor,
        return_loss: bool = False,
        state: DecodingState | None = None,
        ablate_hierarchical_merge: bool | int | Collection[int] = False,
        return_hierarchical_token_embeds: bool = False,
        return_hierarchical_embeds: bool = False,
        return_random_proj_quantize_ids: bool = False,
        logits_to_keep: int | None = None,
        target_counts: Tensor | None = None,
    ) -> Any:
        """Logits, or the loss, or what the streams hold.

        Args:
            ids: token ids (b, n) of any integer type; n at most `seq_len`, or any length with a state.
            return_loss: train: predict ids[:, 1:] from ids[:, :-1].
            state: made by `init_state`: the ids continue what it has seen, and it is advanced.
            ablate_hierarchical_merge: True leaves all merges out, to see what they contribute. A compress factor, or
                several, leave out what these streams contribute: in every layer each merge, into whatever stream and
                into that stream itself, pools the other streams as if these were zero. They are still computed,
                merged into, and read by the logits where predict_use_all_hierarchy is on.
            return_hierarchical_token_embeds: return the tokens of each stream before the layers.
            return_hierarchical_embeds: return the tokens of each stream after the layers.
            return_random_proj_quantize_ids: return each stream's codes; needs prophet_loss_use_quantized.
            logits_to_keep: compute the logits of the last so many positions only; of all by default.
            target_counts: with return_loss, what each mean's sum over its valid targets is divided by (k,): the sum
                of `count_targets` over all batches that are learnt from in one step, so that their losses add up to
                that of one big batch. Their own counts by default.

        Returns:
            Logits (b, n, num_tokens); or `(loss, losses)`, see `Losses`; or a list with, for each stream, tokens
            (b, m, d) or codes (b, m, rq_num_codebooks).

        Raises:
            TypeError, ValueError: for ids or a state that don't fit, or flags that contradict each other.
        """
        ids = check_ids(ids)
        if ids.device.type == "cpu" and not torch.compiler.is_compiling():
            check_vocabulary(ids, self.num_tokens, self.config.ignore_index)
        check_returns(
            self.config,
            state is not None,
            return_loss=return_loss,
            return_hierarchical_token_embeds=return_hierarchical_token_embeds,
            return_hierarchical_embeds=return_hierarchical_embeds,
            return_random_proj_quantize_ids=return_random_proj_quantize_ids,
            has_logits_to_keep=logits_to_keep is not None,
        )
        if target_counts is not None:
            check_target_counts(target_counts, return_loss)
        ablated = check_ablation(ablate_hierarchical_merge, self.config)
        check_length(ids, self.seq_len, return_loss, state is not None)
        if logits_to_keep is not None:
            whole("logits_to_keep, if not None,", logits_to_keep, least=1)
        if state is not None:
            check_state(state, self.config, ids, self.dtype, self.device, ablated)
        merge = merged_sources(ablated, self.config)
        if state is not None:
            state.begin(ids.shape[1])
            logits = self.decode(ids, state, self.chunks(state.position, ids.shape[1]), merge, logits_to_keep)
            state.advance(ids.shape[1], ablated)
            return logits

        inputs = ids[:, :-1] if return_loss else ids
        chunks = self.chunks(0, inputs.shape[1])
        source = self._source(inputs)
        embedded = self._embed(inputs) if source is None else F.embedding(source.rows, source.table)
        compressed, opened = self._compress(inputs, embedded, chunks, source=source)
        if return_hierarchical_token_embeds:
            return compressed
        embeds = self._layers(opened, chunks, merge=merge)
        if return_hierarchical_embeds:
            return embeds
        if return_random_proj_quantize_ids:
            return self.objective.codes(compressed, embeds)
        hidden = self._head_input(embeds, chunks)
        if return_loss:
            weight = self.to_logits.weight
            return self.objective(ids, hidden, weight, embedded, compressed, embeds, target_counts)
        return self.to_logits(last(hidden, logits_to_keep))

    def count_targets(self, ids: Tensor) -> Tensor:
        """How many valid targets a batch has for each mean that its loss is made of, without computing it.

        Where a step learns from several batches with padding, in turns or on several devices, give the sum of their
        counts to each `forward(ids, return_loss=True, target_counts=…)`: gradients and losses then add up to those
        of all of them at once.

        Args:
            ids: token ids (b, n + 1), as `forward` takes them with return_loss.

        Returns:
            Whole numbers (k,), in an order that depends on the model alone.
        """
        ids = check_ids(ids)
        check_length(ids, self.seq_len, True, False)
        return self.objective.count_targets(ids)

    def decode(
        self,
        ids: Tensor,
        state: DecodingState,
        chunks: Sequence[StreamChunk],
        merge: bool | frozenset[int] = True,
        logits_to_keep: int | None = None,
    ) -> Tensor:
        """Logits (b, n, v) of a chunk of ids (b, n), noted in the state; what `forward` does between its checks.

        A step that is captured or compiled calls it directly: it asks for no number from the device, and leaves to
        the caller that the state takes over what its leaves have noted.
        """
        parts = state.parts
        assert isinstance(parts, ModelState)
        _, opened = self._compress(ids, self._embed(ids), chunks, parts)
        embeds = self._layers(opened, chunks, parts, merge=merge)
        for register, tokens in zip(parts.drafts, embeds, strict=True):
            if register is not None and tokens.shape[1]:
                register.extend(tokens)
        logits: Tensor = self.to_logits(last(self._head_input(embeds, chunks, parts), logits_to_keep))
        return logits

    def chunks(self, position: int, length: int, at: Tensor | None = None) -> list[StreamChunk]:
        """What a call on `length` input tokens from fine position `position` computes of each stream.

        `at` (1,), where a captured step runs at many positions, is the actual one, and `position` stands for it.
        """
        dtype = torch.promote_types(self.dtype, torch.float32)
        return [StreamChunk.of(s, position, length, dtype, self.device, at) for s in self.config.streams]

    def _embed(self, ids: Tensor) -> Tensor:
        """(b, n) → (b, n, d_emb), of unit root mean square; zeros for padding."""
        padding = ids == self.config.ignore_index
        embedded = rms_norm(self.token_emb(ids.masked_fill(padding, 0)))
        return embedded.masked_fill(padding[..., None], 0)

    def _source(self, ids: Tensor) -> Source | None:
        """The embeddings of the vocabulary, of unit root mean square, where it is much shorter than the ids (b, n)."""
        is_faster = is_faster_looked_up(ids.numel(), self.num_tokens, self.config.dim_embedding, ids.device)
        if not (is_faster and is_untouched(self.token_emb, kind=nn.Embedding)):
            return None
        table = F.pad(rms_norm(self.token_emb.weight), (0, 0, 0, 1))
        return Source(ids.masked_fill(ids == self.config.ignore_index, self.num_tokens), table)

    def _compress(
        self,
        ids: Tensor,
        embedded: Tensor,
        chunks: Sequence[StreamChunk],
        parts: ModelState | None = None,
        source: Source | None = None,
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Ids (b, n) and embeddings (b, n, d_emb) → the tokens (b, m, d) of each stream, of unit root mean square.

        And the same as all layers take them: where coarse streams begin in the predict stream's states, that has been
        through its first layers then.
        """
        predict = self.config.predict_index
        states = parts.compressors if parts else (None,) * len(self.compressors)
        first = self.compressors[predict](embedded, 0, states[predict], source)
        if self.ngrams is not None:
            padding = ids == self.config.ignore_index
            first = first + self.ngrams(ids, padding, parts.ngrams if parts else None)
        opened = first = rms_norm(first)
        if self.opening:
            for i, layer in enumerate(self.opening):
                (opened,) = self._layer(layer, [opened], [chunks[predict]], parts.opening[i] if parts else None, True)
            embedded, source = rms_norm(opened), None
        compressed = []
        for i, (compress, chunk, state) in enumerate(zip(self.compressors, chunks, states, strict=True)):
            tokens = first if i == predict else compress(embedded, chunk.skip, state, source)
            compressed.append(rms_norm(tokens) if i != predict and tokens.shape[1] else tokens)
        return compressed, [opened if i == predict else tokens for i, tokens in enumerate(compressed)]

    def _layers(
        self,
        streams: list[Tensor],
        chunks: Sequence[StreamChunk],
        parts: ModelState | None = None,
        *,
        merge: bool | frozenset[int],
    ) -> list[Tensor]:
        """What each stream holds after the layers and its final norm."""
        for i, layer in enumerate(self.layers):
            streams = self._layer(layer, streams, chunks, parts.layers[i] if parts else None, merge)
        return [rms_norm(x) if x.shape[1] else x for x in streams]

    def _layer(
        self,
        layer: Layer,
        streams: list[Tensor],
        chunks: Sequence[StreamChunk],
        state: LayerState | None,
        merge: bool | frozenset[int],
    ) -> list[Tensor]:
        if self.config.checkpoint_activations and state is None and torch.is_grad_enabled():
            return recomputed(layer, streams, chunks, merge)
        after: list[Tensor] = layer(streams, chunks, state, merge)
        return after

    def _head_input(
        self, embeds: Sequence[Tensor], chunks: Sequence[StreamChunk], parts: ModelState | None = None
    ) -> Tensor:
        """What the logits come from (b, n, d): the predict stream, or all streams side by side."""
        predict = self.config.predict_index
        if not self.config.predict_use_all:
            return embeds[predict]
        states = parts.holds if parts else (None,) * len(self.holds)
        held = [
            hold(x if x.shape[1] else None, chunk, chunks[predict], state)
            for hold, x, chunk, state in zip(self.holds, embeds, chunks, states, strict=True)
        ]
        return torch.cat(held, dim=-1)

    def draft(self, state: DecodingState) -> Tensor:
        """What coarse tokens predict beyond the next input token: log-probabilities (b, k, v), k from 0 to c - 1.

        Of the fine positions `state.position + 1 …`: what comes at `state.position` is known from the logits. Where
        several streams reach a position, their probabilities are averaged. The state must hold drafts.
        """
        parts = state.parts
        assert isinstance(parts, ModelState) and state.position > 0
        predicted = []
        for i, (stream, register) in enumerate(zip(self.config.streams, parts.drafts, strict=True)):
            if register is not None:
                # the last token stands at `position - 1 - passed`, and predicts the c positions after that
                passed = (state.position - 1) % stream.stride
                predicted.append(self.objective.predict_tokens(i, register.held)[:, passed + 1 :])
        longest = max(vectors.shape[1] for vectors in predicted)
        mixed = predicted[0].new_zeros(state.batch_size, longest, self.num_tokens, dtype=torch.float32)
        count = mixed.new_zeros(longest, 1)
        for vectors in predicted:
            mixed[:, : vectors.shape[1]] += self.to_logits(vectors).float().softmax(dim=-1)
            count[: vectors.shape[1]] += 1
        return (mixed / count).log()
