"""No option is silently ignored: each changes parameters, the state, or an output."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from simple_hierarchical_transformer import HierarchicalTransformer

BASE: dict[str, Any] = {
    "num_tokens": 11, "dim": (8, 6), "depth": 2, "seq_len": 24, "dim_head": 4, "heads": 2,
    "hierarchies": (1, 4), "hierarchical_stride": (1, 2), "window_sizes": (3, None),
}  # fmt: skip
LATENT = {"next_latent_loss_weight": (0.0, 0.5)}
ROLLOUTS = LATENT | {"num_rollouts": 2}
QUANTIZED = {
    "prophet_loss_weight": 0.5, "prophet_loss_use_quantized": True, "rq_num_codebooks": 2, "rq_codebook_dim": 4,
    "rq_codebook_size": 8,
}  # fmt: skip

# option: (what it is compared on top of, its value there)
CHANGES: dict[str, tuple[dict[str, Any], Any]] = {
    "num_tokens": ({}, 12),
    "dim": ({}, (8, 4)),
    "depth": ({}, 3),
    "seq_len": ({}, 12),
    "dim_head": ({}, (4, 2)),
    "heads": ({}, (2, 1)),
    "ff_mult": ({}, (4, 2)),
    "hierarchies": ({}, (1, 8)),
    "window_sizes": ({}, (4, None)),
    "hierarchical_stride": ({}, (1, 4)),
    "hierarchy_merge_all": ({}, True),
    "predict_hierarchy": ({"hierarchical_stride": 1}, 4),
    "predict_use_all_hierarchy": ({}, True),
    "merge_type": ({}, "linear"),
    "compress_after": ({"depth": 2}, 1),
    "ngram_sizes": ({}, (2, 3)),
    "ngram_table_size": ({"ngram_sizes": (2, 3)}, 7),
    "recon_loss_weight": ({}, 0.2),
    "hierarchical_ar_loss_weight": ({}, 0.5),
    "prophet_loss_weight": ({}, 0.5),
    "prophet_loss_use_quantized": ({"prophet_loss_weight": 0.5}, True),
    "prophet_quantized_use_embed": (QUANTIZED, True),
    "rq_num_codebooks": (QUANTIZED, 3),
    "rq_codebook_dim": (QUANTIZED, 5),
    "rq_codebook_size": (QUANTIZED, 9),
    "next_latent_loss_weight": ({}, (0.0, 0.5)),
    "next_latent_loss_type": (LATENT, "smooth_l1"),
    "num_rollouts": (LATENT, 2),
    "chunk_summarizers": (LATENT, "every other token"),
    "detach_summaries": (LATENT, False),
    "dynamics_hidden_dim": (LATENT, 3),
    "dynamics_num_layers": (LATENT, 2),
    "dynamic_rollout_loss_weight": (ROLLOUTS, False),
    "dynamic_loss_decay": (ROLLOUTS, 0.5),
    "rollout_weights": (ROLLOUTS, (1, 2)),
    "ignore_index": ({}, 3),
    "use_flash_attn": ({}, False),
    "use_xpos": ({}, True),
    "checkpoint_activations": ({}, True),
}


class EveryOther(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x[:, ::2])


def fingerprint(arguments: dict[str, Any]) -> dict[str, Any]:
    """All that an option may change, from the same random numbers."""
    if "chunk_summarizers" in arguments:
        arguments = arguments | {"chunk_summarizers": (None, EveryOther(8, 6))}
    torch.manual_seed(0)
    model = HierarchicalTransformer(**arguments)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    ids = torch.randint(0, 11, (2, 13), generator=torch.Generator().manual_seed(2))
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.detach()) or kept[-1], lambda x: x):
        loss, _ = model(ids, return_loss=True)
    loss.backward()
    state = model.init_state(2, max_rewind=0)
    for chunk in ids.repeat(1, 3).split(6, dim=1):
        logits = model(chunk, state=state)
    return {
        "shapes": {name: tuple(p.shape) for name, p in model.named_parameters()},
        "logits": model(ids[:, :12]).tolist(),
        "decoded": logits.tolist(),
        "loss": loss.item(),
        "gradient": model.token_emb.weight.grad.tolist(),
        "kept for the backward pass": [tuple(tensor.shape) for tensor in kept],
        "state": state.nbytes,
        "kernels": kernels(model, ids),
    }


def kernels(model: HierarchicalTransformer, ids: Tensor) -> list[str]:
    with torch.profiler.profile() as profile:
        model(ids[:, :12])
    return sorted({event.key for event in profile.key_averages() if "attention" in event.key or "softmax" in event.key})


@pytest.mark.parametrize("option", CHANGES)
def test_option_changes_parameters_state_or_output(option: str) -> None:
    on_top_of, value = CHANGES[option]
    base = BASE | on_top_of
    before, after = fingerprint(base), fingerprint(base | {option: value})
    assert [name for name in before if before[name] != after[name]]


def test_every_option_is_tried() -> None:
    parameters = inspect.signature(HierarchicalTransformer.__init__).parameters
    assert CHANGES.keys() == parameters.keys() - {"self"}


def test_lists_are_as_good_as_tuples_and_one_value_stands_for_all() -> None:
    lists = HierarchicalTransformer(
        num_tokens=11, dim=[8, 8], depth=2, hierarchies=[1, 4], window_sizes=[3, 3], hierarchical_stride=[1, 1]
    )
    plain = HierarchicalTransformer(num_tokens=11, dim=8, depth=2, hierarchies=(1, 4), window_sizes=3)
    assert lists.config == plain.config


def test_only_fused_kernels_run_where_they_are_asked_for_and_none_where_they_are_not() -> None:
    ids = torch.randint(0, 11, (2, 24))
    fused = kernels(HierarchicalTransformer(**BASE, use_flash_attn=True), ids)
    plain = kernels(HierarchicalTransformer(**BASE, use_flash_attn=False), ids)
    assert any("flash" in name for name in fused) and not any("softmax" in name for name in fused)
    assert any("softmax" in name for name in plain) and not any("attention" in name for name in plain)
