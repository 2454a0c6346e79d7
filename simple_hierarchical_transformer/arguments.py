"""The public arguments of the model, translated once into a frozen, validated configuration, and back.

A user's mistake ends here, in a `ValueError` or `TypeError` that names the argument, what it got, what is allowed
and the remedy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral
from typing import Any

from torch import nn

from .config import LatentLoss, ModelConfig, NextLatentConfig, NgramConfig, ProphetConfig, StreamConfig
from .validation import flag, number, only_with, per_stream, power_of_two, shown, whole

MERGE_TYPES = ("mlp", "linear")
NGRAM_TABLE_SIZE = 16_384
LONGEST_NGRAM = 64
NEXT_LATENT_LOSS_TYPES = ("mse_and_cosine_sim", "mse", "smooth_l1")


def build_streams(
    dim: int | Sequence[int],
    dim_head: int | Sequence[int],
    heads: int | Sequence[int],
    ff_mult: float | Sequence[float],
    hierarchies: int | Sequence[int],
    window_sizes: int | Sequence[int | None] | None,
    hierarchical_stride: int | Sequence[int],
) -> tuple[StreamConfig, ...]:
    factors = tuple(hierarchies) if isinstance(hierarchies, (tuple, list)) else (hierarchies,)
    if len(factors) == 1 and not isinstance(factors[0], Integral):
        raise TypeError(
            f"hierarchies must be a whole number, or a tuple or list of them such as (1, 8), got {shown(hierarchies)}"
        )
    if not factors:
        raise ValueError("hierarchies is empty: give at least one compress factor, such as 1 or (1, 8)")
    factors = tuple(power_of_two("every value of hierarchies", factor) for factor in factors)
    if len(set(factors)) < len(factors):
        raise ValueError(f"hierarchies must be unique compress factors, got {factors}: drop the one that stands twice")

    count = len(factors)
    streams = []
    for factor, width, width_head, num_heads, mult, window, stride in zip(
        factors,
        per_stream("dim", dim, count),
        per_stream("dim_head", dim_head, count),
        per_stream("heads", heads, count),
        per_stream("ff_mult", ff_mult, count),
        per_stream("window_sizes", window_sizes, count),
        per_stream("hierarchical_stride", hierarchical_stride, count),
        strict=True,
    ):
        at = f" of the stream with compress factor {factor}"
        stride = power_of_two(f"hierarchical_stride{at}", stride)
        if factor % stride:
            allowed = f"a power of two from 1 to {factor}" if factor > 1 else "1"
            raise ValueError(
                f"hierarchical_stride{at} must divide the factor, got {stride}: choose {allowed} for this stream (a "
                f"tuple gives each stream its own), or a factor of at least {stride}"
            )
        width = whole(f"dim{at}", width, least=2)
        if width % 2:
            raise ValueError(
                f"dim{at} must be even, since token shift splits it in two halves, got {width}: give {width + 1}"
            )
        width_head = whole(f"dim_head{at}", width_head, least=2)
        if width_head % 2:
            raise ValueError(
                f"dim_head{at} must be even, since rotary positions turn pairs of features, got {width_head}: give "
                f"{width_head + 1}"
            )
        if window is not None and isinstance(window, Integral) and window < 0:
            raise ValueError(
                f"window_sizes{at} must be None (all previous tokens), 0 (no attention) or a positive number of "
                f"previous tokens, got {window}: give None for all"
            )
        mult = number(f"ff_mult{at}", mult, positive=True)
        if int(width * mult) < 1:
            raise ValueError(f"ff_mult{at} must give a width of at least 1, got {mult} for dim {width}: raise it")
        streams.append(
            StreamConfig(
                compress_factor=factor,
                stride=stride,
                dim=width,
                dim_head=width_head,
                heads=whole(f"heads{at}", num_heads, least=1),
                ff_mult=mult,
                window_size=None if window is None else whole(f"window_sizes{at}, if not None (all),", window, least=0),
            )
        )
    return tuple(streams)


def find_predict_index(streams: tuple[StreamConfig, ...], predict_hierarchy: int | None) -> int:
    factors = tuple(stream.compress_factor for stream in streams)
    if predict_hierarchy is None:
        predict_hierarchy = min(factors)
    predict_hierarchy = whole("predict_hierarchy", predict_hierarchy, least=1)
    if predict_hierarchy not in factors:
        raise ValueError(
            f"predict_hierarchy is the compress factor of the stream that predicts and must be one of {factors}, "
            f"got {predict_hierarchy}: choose one of them, or add it to hierarchies"
        )
    index = factors.index(predict_hierarchy)
    if streams[index].stride != 1:
        raise ValueError(
            f"the predict stream (predict_hierarchy={predict_hierarchy}) must have stride 1, since it predicts after "
            f"every input token, got hierarchical_stride {streams[index].stride}: set its stride to 1, "
            "or choose another predict_hierarchy"
        )
    return index


def build_prophet(
    has_coarse: bool,
    weight: float,
    use_quantized: bool,
    quantized_use_embed: bool,
    num_codebooks: int,
    codebook_dim: int,
    codebook_size: int,
) -> ProphetConfig:
    weight = number("prophet_loss_weight", weight)
    use_quantized = flag("prophet_loss_use_quantized", use_quantized)
    only_with(
        has_coarse,
        "a stream with a compress factor above 1 in hierarchies",
        prophet_loss_weight=(weight, 0.0),
        prophet_loss_use_quantized=(use_quantized, False),
    )
    only_with(
        use_quantized,
        "prophet_loss_use_quantized=True",
        prophet_quantized_use_embed=(quantized_use_embed, False),
        rq_num_codebooks=(num_codebooks, 4),
        rq_codebook_dim=(codebook_dim, 256),
        rq_codebook_size=(codebook_size, 1024),
    )
    return ProphetConfig(
        weight=weight,
        use_quantized=use_quantized,
        quantized_use_embed=flag("prophet_quantized_use_embed", quantized_use_embed),
        num_codebooks=whole("rq_num_codebooks", num_codebooks, least=1),
        codebook_dim=whole("rq_codebook_dim", codebook_dim, least=1),
        codebook_size=whole("rq_codebook_size", codebook_size, least=2),
    )


def build_ngrams(sizes: Sequence[int], table_size: int) -> NgramConfig:
    if not isinstance(sizes, (tuple, list)):
        raise TypeError(
            f"ngram_sizes must be a tuple or list of sizes such as (2, 3, 4), or () for none, got {shown(sizes)}"
        )
    sizes = tuple(whole("every value of ngram_sizes", size, least=2, most=LONGEST_NGRAM) for size in sizes)
    if len(set(sizes)) < len(sizes):
        raise ValueError(f"ngram_sizes must differ from each other, got {sizes}: drop the one that stands twice")
    only_with(bool(sizes), "ngram_sizes", ngram_table_size=(table_size, NGRAM_TABLE_SIZE))
    return NgramConfig(sizes=sizes, table_size=whole("ngram_table_size", table_size, least=1))


def scaled_to_one(shares: tuple[float, ...]) -> tuple[float, ...]:
    """Shares whose sum is 1; as they are where it is 1 already, so that scaling them again changes no bit."""
    largest = max(shares)
    total = math.fsum(share / largest for share in shares)  # which no finite shares overflow
    scaled = tuple(share / largest / total for share in shares)
    return shares if math.isclose(math.fsum(shares), 1.0, rel_tol=1e-12) else scaled


def build_next_latent(
    streams: tuple[StreamConfig, ...],
    weight: float | Sequence[float],
    loss_type: str | LatentLoss,
    num_rollouts: int,
    chunk_summarizers: nn.Module | Sequence[nn.Module | None] | None,
    detach_summaries: bool,
    hidden_dim: int | None,
    num_layers: int,
    dynamic_weight: bool,
    decay: float,
    rollout_weights: Sequence[float] | None,
) -> NextLatentConfig:
    count = len(streams)
    weights = tuple(number("next_latent_loss_weight", w) for w in per_stream("next_latent_loss_weight", weight, count))
    only_with(
        any(weights),
        "next_latent_loss_weight > 0",
        next_latent_loss_type=(loss_type, "mse_and_cosine_sim"),
        num_rollouts=(num_rollouts, 1),
        chunk_summarizers=(chunk_summarizers, None),
        detach_summaries=(detach_summaries, True),
        dynamics_hidden_dim=(hidden_dim, None),
        dynamics_num_layers=(num_layers, 3),
        dynamic_rollout_loss_weight=(dynamic_weight, True),
        dynamic_loss_decay=(decay, 1.0),
        rollout_weights=(rollout_weights, None),
    )
    if not callable(loss_type) and loss_type not in NEXT_LATENT_LOSS_TYPES:
        raise ValueError(
            f"next_latent_loss_type must be one of {NEXT_LATENT_LOSS_TYPES}, or a callable that maps prediction and "
            f"target (b, m, d) to a loss per feature (b, m, d), got {loss_type!r}"
        )
    num_rollouts = whole("num_rollouts", num_rollouts, least=1)
    num_layers = whole("dynamics_num_layers", num_layers, least=1)
    dynamic_weight = flag("dynamic_rollout_loss_weight", dynamic_weight)
    only_with(num_layers > 1, "dynamics_num_layers > 1", dynamics_hidden_dim=(hidden_dim, None))
    only_with(
        num_rollouts > 1,
        "num_rollouts > 1",
        rollout_weights=(rollout_weights, None),
        dynamic_rollout_loss_weight=(dynamic_weight, True),
    )
    only_with(
        num_rollouts > 1 and dynamic_weight,
        "num_rollouts > 1 and dynamic_rollout_loss_weight=True",
        dynamic_loss_decay=(decay, 1.0),
    )
    summarizers = per_stream("chunk_summarizers", chunk_summarizers, count)
    for summarizer, stream_weight, stream in zip(summarizers, weights, streams, strict=True):
        if summarizer is not None and not isinstance(summarizer, nn.Module):
            raise TypeError(
                "chunk_summarizers must hold None or modules that map embeddings (b, n, d_emb) to summaries "
                f"(b, ceil(n / stride), d), got {type(summarizer).__name__}"
            )
        if summarizer is not None and stream_weight == 0:
            raise ValueError(
                f"chunk_summarizers gives one for the stream with compress factor {stream.compress_factor}, whose "
                "next_latent_loss_weight is 0: give it a weight, or None for its summarizer"
            )
    given = [s for s in summarizers if s is not None]
    if len({id(s) for s in given}) < len(given):
        raise ValueError("chunk_summarizers holds the same module for several streams: give each stream its own")
    if rollout_weights is not None and not isinstance(rollout_weights, (tuple, list)):
        raise TypeError(f"rollout_weights must be a tuple or list of one weight per rollout, got {rollout_weights!r}")
    shares = (1.0,) * num_rollouts if rollout_weights is None else tuple(rollout_weights)
    if len(shares) != num_rollouts:
        raise ValueError(
            f"rollout_weights must have one weight per rollout, got {len(shares)} for num_rollouts={num_rollouts}"
        )
    shares = tuple(number("rollout_weights", share) for share in shares)
    if sum(shares) == 0:
        raise ValueError(f"rollout_weights must not all be 0, got {shares}: switch the loss off by its weight instead")
    return NextLatentConfig(
        weights=weights,
        loss_type=loss_type,
        num_rollouts=num_rollouts,
        chunk_summarizers=summarizers,
        detach_summaries=flag("detach_summaries", detach_summaries),
        hidden_dim=None if hidden_dim is None else whole("dynamics_hidden_dim", hidden_dim, least=1),
        num_layers=num_layers,
        dynamic_weight=dynamic_weight,
        decay=number("dynamic_loss_decay", decay),
        rollout_weights=scaled_to_one(shares),
    )


def build_config(
    *,
    num_tokens: int,
    dim: int | Sequence[int],
    depth: int,
    seq_len: int,
    dim_head: int | Sequence[int],
    heads: int | Sequence[int],
    ff_mult: float | Sequence[float],
    hierarchies: int | Sequence[int],
    window_sizes: int | Sequence[int | None] | None,
    hierarchical_stride: int | Sequence[int],
    hierarchy_merge_all: bool,
    merge_type: str,
    compress_after: int,
    predict_hierarchy: int | None,
    predict_use_all_hierarchy: bool,
    ngram_sizes: Sequence[int],
    ngram_table_size: int,
    recon_loss_weight: float,
    hierarchical_ar_loss_weight: float,
    prophet_loss_weight: float,
    prophet_loss_use_quantized: bool,
    prophet_quantized_use_embed: bool,
    rq_num_codebooks: int,
    rq_codebook_dim: int,
    rq_codebook_size: int,
    next_latent_loss_weight: float | Sequence[float],
    next_latent_loss_type: str | LatentLoss,
    num_rollouts: int,
    chunk_summarizers: nn.Module | Sequence[nn.Module | None] | None,
    detach_summaries: bool,
    dynamics_hidden_dim: int | None,
    dynamics_num_layers: int,
    dynamic_rollout_loss_weight: bool,
    dynamic_loss_decay: float,
    rollout_weights: Sequence[float] | None,
    ignore_index: int,
    use_flash_attn: bool | None,
    use_xpos: bool,
    checkpoint_activations: bool,
) -> ModelConfig:
    """Check the constructor's arguments and translate them; see `HierarchicalTransformer` for their meaning.

    Raises:
        TypeError: for an argument of the wrong type.
        ValueError: for an argument outside what is allowed.
    """
    streams = build_streams(dim, dim_head, heads, ff_mult, hierarchies, window_sizes, hierarchical_stride)
    has_coarse = any(stream.is_coarse for stream in streams)
    several = len(streams) > 1
    only_with(
        has_coarse or recon_loss_weight == 0,
        "a stream with a compress factor above 1 in hierarchies",
        recon_loss_weight=(recon_loss_weight, 0.1),
    )
    only_with(
        has_coarse or hierarchical_ar_loss_weight == 0,
        "a stream with a compress factor above 1 in hierarchies",
        hierarchical_ar_loss_weight=(hierarchical_ar_loss_weight, 0.25),
    )
    only_with(several, "several hierarchies", hierarchy_merge_all=(hierarchy_merge_all, False))
    only_with(several, "several hierarchies", merge_type=(merge_type, "mlp"), compress_after=(compress_after, 0))
    if merge_type not in MERGE_TYPES:
        raise ValueError(f"merge_type must be one of {MERGE_TYPES}, got {shown(merge_type)}: choose one of them")
    depth = whole("depth", depth, least=1)
    compress_after = whole("compress_after", compress_after, least=0)
    if compress_after >= depth:
        raise ValueError(
            f"compress_after must be below depth={depth}, so that the other streams have layers, got {compress_after}: "
            "lower it, or raise depth"
        )
    only_with(several, "several hierarchies", predict_use_all_hierarchy=(predict_use_all_hierarchy, False))
    only_with(
        any(stream.window_size != 0 for stream in streams),
        "attention in some stream (a window other than 0)",
        use_flash_attn=(use_flash_attn, None),
        use_xpos=(use_xpos, False),
    )
    config = ModelConfig(
        num_tokens=whole("num_tokens", num_tokens, least=1),
        depth=depth,
        seq_len=whole("seq_len", seq_len, least=1),
        streams=streams,
        predict_index=find_predict_index(streams, predict_hierarchy),
        merge_all=flag("hierarchy_merge_all", hierarchy_merge_all),
        merge_type=merge_type,
        compress_after=compress_after,
        predict_use_all=flag("predict_use_all_hierarchy", predict_use_all_hierarchy),
        ngrams=build_ngrams(ngram_sizes, ngram_table_size),
        reconstruction_weight=number("recon_loss_weight", recon_loss_weight),
        hierarchical_ar_weight=number("hierarchical_ar_loss_weight", hierarchical_ar_loss_weight),
        prophet=build_prophet(
            has_coarse,
            prophet_loss_weight,
            prophet_loss_use_quantized,
            prophet_quantized_use_embed,
            rq_num_codebooks,
            rq_codebook_dim,
            rq_codebook_size,
        ),
        next_latent=build_next_latent(
            streams,
            next_latent_loss_weight,
            next_latent_loss_type,
            num_rollouts,
            chunk_summarizers,
            detach_summaries,
            dynamics_hidden_dim,
            dynamics_num_layers,
            dynamic_rollout_loss_weight,
            dynamic_loss_decay,
            rollout_weights,
        ),
        ignore_index=whole("ignore_index", ignore_index, least=-(2**63)),
        use_flash_attn=None if use_flash_attn is None else flag("use_flash_attn, if not None,", use_flash_attn),
        use_xpos=flag("use_xpos", use_xpos),
        checkpoint_activations=flag("checkpoint_activations", checkpoint_activations),
    )
    only_with(
        config.shared_depth > 1 or config.merge_targets(is_last=True) != (config.predict_index,),
        f"depth > {compress_after + 1} or a loss of the other streams",
        hierarchy_merge_all=(hierarchy_merge_all, False),
    )
    return config


def to_arguments(config: ModelConfig) -> dict[str, Any]:
    """The constructor arguments that build this configuration; the inverse of `build_config`."""
    streams, prophet, latent = config.streams, config.prophet, config.next_latent
    return {
        "num_tokens": config.num_tokens,
        "dim": tuple(s.dim for s in streams),
        "depth": config.depth,
        "seq_len": config.seq_len,
        "dim_head": tuple(s.dim_head for s in streams),
        "heads": tuple(s.heads for s in streams),
        "ff_mult": tuple(s.ff_mult for s in streams),
        "hierarchies": tuple(s.compress_factor for s in streams),
        "window_sizes": tuple(s.window_size for s in streams),
        "hierarchical_stride": tuple(s.stride for s in streams),
        "hierarchy_merge_all": config.merge_all,
        "merge_type": config.merge_type,
        "compress_after": config.compress_after,
        "predict_hierarchy": config.predict_stream.compress_factor,
        "predict_use_all_hierarchy": config.predict_use_all,
        "ngram_sizes": config.ngrams.sizes,
        "ngram_table_size": config.ngrams.table_size,
        "recon_loss_weight": config.reconstruction_weight,
        "hierarchical_ar_loss_weight": config.hierarchical_ar_weight,
        "prophet_loss_weight": prophet.weight,
        "prophet_loss_use_quantized": prophet.use_quantized,
        "prophet_quantized_use_embed": prophet.quantized_use_embed,
        "rq_num_codebooks": prophet.num_codebooks,
        "rq_codebook_dim": prophet.codebook_dim,
        "rq_codebook_size": prophet.codebook_size,
        "next_latent_loss_weight": latent.weights,
        "next_latent_loss_type": latent.loss_type,
        "num_rollouts": latent.num_rollouts,
        "chunk_summarizers": latent.chunk_summarizers if any(latent.chunk_summarizers) else None,
        "detach_summaries": latent.detach_summaries,
        "dynamics_hidden_dim": latent.hidden_dim,
        "dynamics_num_layers": latent.num_layers,
        "dynamic_rollout_loss_weight": latent.dynamic_weight,
        "dynamic_loss_decay": latent.decay,
        "rollout_weights": latent.rollout_weights if latent.num_rollouts > 1 else None,
        "ignore_index": config.ignore_index,
        "use_flash_attn": config.use_flash_attn,
        "use_xpos": config.use_xpos,
        "checkpoint_activations": config.checkpoint_activations,
    }
