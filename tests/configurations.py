"""All legal configurations, as small models whose every weight matters."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st

from simple_hierarchical_transformer import HierarchicalTransformer, compressor
from simple_hierarchical_transformer import model as model_module
from simple_hierarchical_transformer.attention import Attention
from simple_hierarchical_transformer.chunk import StreamChunk
from simple_hierarchical_transformer.rotary import rotary_table

VOCABULARY = 11
SLOW = os.environ.get("HYPOTHESIS_PROFILE") == "slow"


def examples(quick: int, slow: int) -> settings:
    """How many examples a property is tried on."""
    return settings(max_examples=slow if SLOW else quick)


@st.composite
def stream_arguments(draw: st.DrawFn) -> dict[str, Any]:
    """Shape and merging: 1–4 streams, factors 1–16, every stride, window, width, merge and kernel option."""
    factors = draw(st.lists(st.sampled_from([1, 2, 4, 8, 16]), min_size=1, max_size=4, unique=True))
    strides = [draw(st.sampled_from([s for s in (1, 2, 4, 8, 16) if factor % s == 0])) for factor in factors]
    predict = draw(st.sampled_from(factors))
    strides[factors.index(predict)] = 1
    per_stream = {
        "dim": st.sampled_from([2, 4, 6, 10]),
        "dim_head": st.sampled_from([2, 4, 8]),
        "heads": st.integers(1, 3),
        "ff_mult": st.sampled_from([0.5, 1, 2, 3]),
        "window_sizes": st.sampled_from([None, 0, 1, 2, 5, 40]),
    }
    several = len(factors) > 1
    arguments = {
        "num_tokens": VOCABULARY,
        "depth": draw(st.integers(1, 3)),
        "seq_len": draw(st.integers(1, 100)),
        "hierarchies": tuple(factors),
        "hierarchical_stride": tuple(strides),
        "predict_hierarchy": predict,
        "hierarchy_merge_all": several and draw(st.booleans()),
        "merge_type": draw(st.sampled_from(["mlp", "linear"])) if several else "mlp",
        "predict_use_all_hierarchy": several and draw(st.booleans()),
        "ngram_sizes": draw(st.sampled_from([(), (), (2,), (3, 2), (2, 5)])),
        "ignore_index": draw(st.sampled_from([-100, -1, 0, 3, VOCABULARY])),
        "checkpoint_activations": draw(st.booleans()),
    } | {name: tuple(draw(values) for _ in factors) for name, values in per_stream.items()}
    arguments["compress_after"] = draw(st.integers(0, arguments["depth"] - 1)) if several else 0
    if arguments["ngram_sizes"]:
        arguments["ngram_table_size"] = draw(st.sampled_from([1, 7, 64]))
    if any(window != 0 for window in arguments["window_sizes"]):
        arguments["use_flash_attn"] = draw(st.sampled_from([None, True, False]))
        arguments["use_xpos"] = draw(st.booleans())
    return arguments


@st.composite
def loss_arguments(draw: st.DrawFn, factors: tuple[int, ...]) -> dict[str, Any]:
    """Every combination of losses and of their options, for streams of these compress factors."""
    arguments: dict[str, Any] = {
        "recon_loss_weight": draw(st.sampled_from([0.0, 0.1])),
        "hierarchical_ar_loss_weight": draw(st.sampled_from([0.0, 0.25])),
    }
    if max(factors) > 1 and draw(st.booleans()):
        arguments["prophet_loss_weight"] = 0.3
        if draw(st.booleans()):
            arguments |= {
                "prophet_loss_use_quantized": True,
                "prophet_quantized_use_embed": draw(st.booleans()),
                "rq_num_codebooks": draw(st.integers(1, 2)),
                "rq_codebook_dim": 3,
                "rq_codebook_size": 5,
            }
    weights = tuple(draw(st.sampled_from([0.0, 0.5])) for _ in factors)
    if any(weights):
        rollouts, layers = draw(st.integers(1, 3)), draw(st.integers(1, 3))
        arguments |= {
            "next_latent_loss_weight": weights,
            "next_latent_loss_type": draw(st.sampled_from(["mse_and_cosine_sim", "mse", "smooth_l1"])),
            "num_rollouts": rollouts,
            "detach_summaries": draw(st.booleans()),
            "dynamics_num_layers": layers,
            "dynamics_hidden_dim": draw(st.sampled_from([None, 3])) if layers > 1 else None,
        }
        if rollouts > 1:
            arguments["dynamic_rollout_loss_weight"] = draw(st.booleans())
            arguments["rollout_weights"] = draw(st.sampled_from([None, tuple(range(1, rollouts + 1))]))
    return arguments


@st.composite
def model_arguments(draw: st.DrawFn) -> dict[str, Any]:
    streams = draw(stream_arguments())
    factors = streams["hierarchies"]
    losses = draw(loss_arguments(factors))
    # a merge into the other streams needs something that hears of it: a layer after it, or a loss or head of theirs
    others = [i for i, factor in enumerate(factors) if factor != streams["predict_hierarchy"]]
    weights = [losses[name] for name in losses if name.endswith("_weight") and isinstance(losses[name], float)]
    heard = any(weights) and any(factors[i] > 1 for i in others)
    heard |= any(losses.get("next_latent_loss_weight", (0.0,) * len(factors))[i] for i in others)
    if streams["depth"] == 1 + streams["compress_after"] and not streams["predict_use_all_hierarchy"] and not heard:
        streams["hierarchy_merge_all"] = False
    return streams | losses


def build(arguments: dict[str, Any], *, seed: int = 0, dtype: torch.dtype = torch.float64) -> HierarchicalTransformer:
    """The model, with weights so large that every part of it shows in the logits."""
    torch.manual_seed(seed)
    model = HierarchicalTransformer(**arguments).to(dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return model


def random_ids(batch: int, length: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, VOCABULARY, (batch, length), generator=generator)


@contextmanager
def looking_up(always: bool) -> Iterator[None]:
    """Compressors look up the products of embeddings whatever the shapes, or never do."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (compressor, model_module):
            patch.setattr(module, "is_faster_looked_up", lambda *shapes: always)
        yield


def chunk_for(module: Attention, length: int, start: int = 0, dtype: torch.dtype = torch.float64) -> StreamChunk:
    """The tokens `start … start + length - 1`, for an attention that stands alone."""
    position = torch.arange(start, start + length) // module.phase_groups
    return StreamChunk(start, length, 0, module.phase_groups, rotary_table(position, module.dim_head, dtype))


SEEDS = st.integers(0, 2**31 - 1)
