"""What a model costs, computed from its configuration alone: multiply-adds, activation bytes, receptive field.

Units: a multiply-add is one product and one sum, two floating-point operations. Shapes: `n` input tokens of one
sequence, `m` tokens of a stream (`ceil(n / stride)`), `d` width, `g` phase groups, `w` window.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from .breakdown import (
    ATTENTION,
    COMPRESS,
    EMBED,
    FEEDFORWARD,
    HEAD,
    HIERARCHICAL_AR,
    LAYERS,
    MERGE,
    NEXT_LATENT,
    PROPHET,
    RECONSTRUCTION,
    Breakdown,
)
from .config import ModelConfig, ProphetConfig, StreamConfig
from .squared_relu import is_recomputed

# multiply-adds


def multiply_adds(config: ModelConfig, seq_len: int, *, training: bool = False) -> Breakdown:
    """Of one sequence of `seq_len` input tokens: of all linear maps, and of attention to the keys that are visible.

    Norms, activations, sums and look-ups aren't counted, nor is what a module of `chunk_summarizers` does. Each map is
    counted in its plain form: what a compressor saves by multiplying each id's embedding once and looking the products
    up, as it does on CPUs where the text is long for its vocabulary, isn't taken off; and what a long feed-forward
    computes again on CPUs, to keep less, isn't added.

    Args:
        config: of the model.
        seq_len: input tokens; with `training`, those that are seen, one fewer than the call is given.
        training: count the losses too, and the backward pass, which takes two products for each of the forward's;
            with `checkpoint_activations` also the layers' forward that it repeats.
    """
    amounts = list(forward_products(config, seq_len))
    if training:
        again = (ATTENTION, FEEDFORWARD, MERGE) if config.checkpoint_activations else ()
        amounts = [(part, stream, (4 if part in again else 3) * amount) for part, stream, amount in amounts]
        amounts.extend(loss_products(config, seq_len))
    return Breakdown.of("multiply-adds", amounts)


def stream_length(stream: StreamConfig, seq_len: int) -> int:
    return -(-seq_len // stream.stride)


def forward_products(config: ModelConfig, seq_len: int) -> Iterator[tuple[str, int | None, int]]:
    """Part, stream and multiply-adds of every linear map and attention between the ids and the logits."""
    lengths = [stream_length(s, seq_len) for s in config.streams]
    for i, (s, m) in enumerate(zip(config.streams, lengths, strict=True)):
        c, d, inner, depth, dim_in = (
            s.compress_factor,
            s.dim,
            s.heads * s.dim_head,
            config.depth_of(i),
            config.dim_compressed(i),
        )
        if s.is_coarse:
            yield COMPRESS, c, m * (c * dim_in * d + d * d)
        elif d != dim_in:
            yield COMPRESS, c, m * dim_in * d
        if s.window_size != 0:
            pairs = visible_pairs(m, s.phase_groups, s.reach(config.seq_len))
            yield ATTENTION, c, depth * (m * 4 * d * inner + pairs * 2 * inner)
        yield FEEDFORWARD, c, depth * m * 2 * d * s.ff_dim
    has_hidden = config.merge_type == "mlp"
    for target in merges(config):
        dim = config.streams[target].dim
        for i, (s, m) in enumerate(zip(config.streams, lengths, strict=True)):
            if has_hidden or i != target:  # each is projected at its own rate, if that is lower
                yield MERGE, s.compress_factor, min(m, lengths[target]) * s.dim * (2 * dim if has_hidden else dim)
        if has_hidden:
            yield MERGE, config.streams[target].compress_factor, lengths[target] * 2 * dim * dim
    yield HEAD, None, seq_len * config.dim_head_input * config.num_tokens


def visible_pairs(tokens: int, groups: int, reach: int) -> int:
    """Pairs of a query and a key that it sees, among so many tokens of a stream.

    For 5 tokens in 2 phase groups, with a reach of 1: the phases 0 2 4 and 1 3 have 1 + 2 + 2 and 1 + 2. With a reach
    of 0, attention is left out, since each token would see itself alone.
    """
    if reach == 0:
        return 0

    def of_phase(rows: int) -> int:
        rising = min(rows, reach + 1)
        return rising * (rising + 1) // 2 + (rows - rising) * (reach + 1)

    rows, longer = divmod(tokens, groups)
    return longer * of_phase(rows + 1) + (groups - longer) * of_phase(rows)


def merges(config: ModelConfig) -> Iterator[int]:
    """The target of each merge of each layer."""
    if len(config.streams) > 1:
        for layer in range(config.shared_depth):
            yield from config.merge_targets(is_last=layer == config.shared_depth - 1)


def loss_products(config: ModelConfig, seq_len: int) -> Iterator[tuple[str, int | None, int]]:
    """Part, stream and multiply-adds of the losses beside the next token's, forward and backward."""
    prophet, latent = config.prophet, config.next_latent
    quantizes = prophet.use_quantized and prophet.weight > 0
    for s, weight in zip(config.streams, latent.weights, strict=True):
        c, d, m, groups = s.compress_factor, s.dim, stream_length(s, seq_len), s.phase_groups
        tokens = asked_tokens(s, seq_len) * config.dim_head_input * (d + config.num_tokens)
        if s.is_coarse and config.reconstruction_weight > 0:
            yield RECONSTRUCTION, c, 3 * tokens
        if s.is_coarse and config.hierarchical_ar_weight > 0:
            yield HIERARCHICAL_AR, c, 3 * max(m - groups, 0) * d * d
        if s.is_coarse and prophet.weight > 0:
            codes = max(m - groups, 0) * d * prophet.num_codebooks * prophet.codebook_size
            yield PROPHET, c, 3 * (codes if quantizes else tokens)
        if quantizes:  # the frozen quantiser has no backward pass
            yield PROPHET, c, m * quantizer_size(prophet, d)
        if weight > 0:
            yield NEXT_LATENT, c, 3 * sum(rollout_lengths(config, s, m)) * dynamics_size(config, s)
            if summarizes(config, s):
                # what is detached needs no gradient
                yield NEXT_LATENT, c, (2 if latent.detach_summaries else 3) * m * config.dim_embedding * d


def quantizer_size(prophet: ProphetConfig, dim: int) -> int:
    """Multiply-adds of the quantiser per token: its projection, and one row of codes for each codebook.

    With several codebooks the package maps the projection to as many vectors of its own width, and back.
    """
    books, width = prophet.num_codebooks, prophet.num_codebooks * prophet.codebook_dim
    heads = 2 * books * width * width if books > 1 else 0
    return dim * width + heads + books * width * prophet.codebook_size


def asked_tokens(stream: StreamConfig, seq_len: int) -> int:
    """Input tokens that a reconstruction or a prophet tells: c for every g-th token of the stream."""
    return -(-stream_length(stream, seq_len) // stream.phase_groups) * stream.compress_factor


def rollout_lengths(config: ModelConfig, stream: StreamConfig, length: int) -> list[int]:
    """Of how many latents each rollout predicts the next."""
    ahead = range(1, config.next_latent.num_rollouts + 1)
    return [max(length - rollout * stream.phase_groups, 0) for rollout in ahead]


def dynamics_widths(config: ModelConfig, stream: StreamConfig) -> list[int]:
    """Of the dynamics network's input, of what comes out of each hidden layer, and of its output."""
    latent = config.next_latent
    return [2 * stream.dim, *[latent.hidden_dim or stream.dim] * (latent.num_layers - 1), stream.dim]


def dynamics_size(config: ModelConfig, stream: StreamConfig) -> int:
    return sum(a * b for a, b in pairwise(dynamics_widths(config, stream)))


def summarizes(config: ModelConfig, stream: StreamConfig) -> bool:
    """Whether the summaries for the dynamics network are projected."""
    given = config.next_latent.chunk_summarizers[config.streams.index(stream)]
    return given is None and stream.dim != config.dim_embedding


# activation bytes


def activation_bytes(config: ModelConfig, seq_len: int, element_size: int, *, batch_size: int = 1) -> Breakdown:
    """What a training call keeps for its backward pass, with fused attention: an estimate from the main tensors.

    It is within a quarter of what autograd saves. Not counted are parameters, and the gradients of its rows and of the
    output head, which the cross-entropy takes in its forward pass already. A compressor that looks its products up
    keeps a table of them instead of the windows that are counted. With `checkpoint_activations` it is the most at a
    time: what the streams hold between the layers, and all of the one layer that is computed again. What is within a
    long feed-forward is computed again on CPUs, and so left out.

    Args:
        config: of the model.
        seq_len: input tokens that are seen.
        element_size: bytes of one number, all of which are taken to be of the same type.
        batch_size: sequences.
    """
    kept = Breakdown.of("numbers", kept_elements(config, seq_len, batch_size))
    return kept.times(batch_size * element_size, "bytes")


def kept_elements(config: ModelConfig, seq_len: int, batch_size: int) -> Iterator[tuple[str, int | None, int]]:
    """Part, stream and numbers that are kept of one sequence.

    Each norm and squared activation keeps its output, which is the input of the linear map after it. Attention is that
    of CPUs; elsewhere windows and phases are laid out anew, and kept as such.
    """
    latent, several = config.next_latent, len(config.streams) > 1
    yield EMBED, None, seq_len * config.dim_embedding
    for i, (s, weight) in enumerate(zip(config.streams, latent.weights, strict=True)):
        c, d, m, inner = s.compress_factor, s.dim, stream_length(s, seq_len), s.heads * s.dim_head
        layers = 1 if config.checkpoint_activations else config.depth_of(i)  # whose inner tensors are kept at a time
        if s.is_coarse:
            windows = seq_len + c - 1 if batch_size == 1 else m * c  # a view of the padded embeddings, or a copy
            yield COMPRESS, c, windows * config.dim_compressed(i) + m * d
        yield COMPRESS, c, m * d
        if s.window_size != 0:
            kept = (4 + 4 * config.use_xpos) * inner  # queries, keys, values, output; what xPos scales, and pieces
            yield ATTENTION, c, layers * m * (d + kept)
        again = is_recomputed(batch_size * m * s.ff_dim, torch.device("cpu"))
        yield FEEDFORWARD, c, layers * m * (d if again else d + s.ff_dim)
        if several:
            yield MERGE, c, layers * m * d
        if config.checkpoint_activations:
            yield LAYERS, c, (config.depth_of(i) - 1) * m * d
        yield HEAD, None, m * d
        if s.is_coarse and config.reconstruction_weight > 0:
            yield RECONSTRUCTION, c, asked_tokens(s, seq_len) * config.dim_head_input
        if s.is_coarse and config.hierarchical_ar_weight > 0:
            yield HIERARCHICAL_AR, c, 2 * max(m - s.phase_groups, 0) * d
        if s.is_coarse and config.prophet.weight > 0:
            told = asked_tokens(s, seq_len) * config.dim_head_input
            yield PROPHET, c, config.prophet.num_codebooks * m * d if config.prophet.use_quantized else told
        if weight > 0:
            hidden = 2 * sum(dynamics_widths(config, s)[1:-1])  # before and after each activation
            # both inputs, normed and side by side; prediction and target
            yield NEXT_LATENT, c, sum(rollout_lengths(config, s, m)) * (6 * d + hidden)
    if config.merge_type == "mlp":
        for target in set(merges(config)) if config.checkpoint_activations else merges(config):
            s = config.streams[target]
            yield MERGE, s.compress_factor, stream_length(s, seq_len) * 2 * s.dim
    yield HEAD, None, seq_len * config.dim_head_input


# receptive field


def receptive_field(config: ModelConfig, seq_len: int, stream: int | None = None) -> int:
    """How many input tokens, itself included, a prediction in a sequence of `seq_len` of them can depend on.

    That is the most of all its positions: where a coarse stream has just emitted a token, less is behind it than
    shortly before the next.

    Args:
        config: of the model.
        seq_len: input tokens of the sequence.
        stream: index of a stream whose tokens after the layers are looked at, instead of the predictions.
    """
    strides = [s.stride for s in config.streams]
    step = 1 if stream is None else strides[stream]
    last = (seq_len - 1) // step * step
    # every place between the tokens of the coarsest stream is among these
    positions = torch.arange(last, max(last - max(strides), -1), -step, device="cpu")
    if stream is not None:
        reads = [stream]
    else:
        reads = list(range(len(strides))) if config.predict_use_all else [config.predict_index]
    earliest = earliest_inputs(config, {i: positions // strides[i] * strides[i] for i in reads})
    return int((positions - earliest).max()) + 1


def earliest_inputs(config: ModelConfig, outputs: dict[int, Tensor]) -> Tensor:
    """The first input token that some tokens depend on, given as fine positions by the index of their stream.

    What an earlier token depends on never begins later, so of all tokens that are reached only the earliest is
    followed back, stream by stream. Where a phase begins, all begin at input 0: a token of its first row sees it.
    """
    reached = dict(outputs)

    def through_block(i: int) -> None:
        s = config.streams[i]
        # one back by the shift before the feed-forward, and before attention by its window and a shift
        back = 1 + (0 if s.window_size == 0 else s.reach(config.seq_len) + 1)
        reached[i] = (reached[i] - back * s.compress_factor).clamp(min=0)

    def made_from(i: int) -> Tensor:
        """The first position that goes into the first of the stream's tokens that are reached."""
        longest = config.streams[i].compress_factor
        if i == config.predict_index:
            longest = max(longest, *config.ngrams.sizes, 1)
        return (reached[i] - longest + 1).clamp(min=0)

    for layer in reversed(range(config.shared_depth)):
        targets = config.merge_targets(is_last=layer == config.shared_depth - 1) if len(config.streams) > 1 else ()
        heard = [reached[target] for target in targets if target in reached]
        if heard:
            position = torch.stack(heard).amin(dim=0)
            for i, s in enumerate(config.streams):
                token = position // s.stride * s.stride
                reached[i] = torch.minimum(reached[i], token) if i in reached else token
        for i in reached:
            through_block(i)
    if config.compress_after:
        predict = config.predict_index
        states = [made_from(i) for i in reached if i != predict]
        reached = {predict: torch.stack([*states, *([reached[predict]] if predict in reached else [])]).amin(dim=0)}
        for _ in range(config.compress_after):
            through_block(predict)
    seen = [made_from(i) for i in reached]
    return torch.stack(seen).amin(dim=0)
