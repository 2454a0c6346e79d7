"""Every parameter learns, in every legal configuration."""

from __future__ import annotations

from typing import Any

import torch
from configurations import SEEDS, build, examples, model_arguments, random_ids
from hypothesis import given
from hypothesis import strategies as st

from simple_hierarchical_transformer import HierarchicalTransformer


@examples(quick=40, slow=300)
@given(arguments=model_arguments(), seed=SEEDS)
def test_every_parameter_gets_a_gradient_from_one_backward_pass(arguments: dict[str, Any], seed: int) -> None:
    # long enough that every stream has tokens ahead of it, and so wide that no layer has only units that are off by
    # chance; -100, so that no id is padding by chance
    wide = {"dim": tuple(dim + 10 for dim in arguments["dim"]), "ff_mult": 2}
    model = build(arguments | wide | {"seq_len": 100, "ignore_index": -100}, seed=seed).train()
    loss, _ = model(random_ids(2, 101, seed), return_loss=True)
    loss.backward()
    lacking = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not lacking, f"without a gradient: {lacking}"


@examples(quick=20, slow=100)
@given(data=st.data(), arguments=model_arguments(), seed=SEEDS)
def test_no_loss_or_gradient_is_missing_or_nan_on_short_or_padded_text(
    data: st.DataObject, arguments: dict[str, Any], seed: int
) -> None:
    model = build(arguments, seed=seed).train()
    ids = random_ids(2, data.draw(st.integers(2, model.seq_len + 1)), seed)
    ids[0, data.draw(st.integers(0, ids.shape[1])) :] = model.config.ignore_index
    loss, losses = model(ids, return_loss=True)
    loss.backward()
    assert loss.isfinite()
    assert all(part.isfinite() for part in losses)
    gradients = {name: p.grad for name, p in model.named_parameters()}
    assert not [name for name, g in gradients.items() if g is None or not g.isfinite().all()]


def test_a_loss_that_is_switched_off_has_no_parameters() -> None:
    shape = {"num_tokens": 9, "dim": 4, "depth": 1, "hierarchies": (1, 2), "dim_head": 2, "heads": 1}
    off = HierarchicalTransformer(**shape, recon_loss_weight=0.0, hierarchical_ar_loss_weight=0.0)
    assert not list(off.objective.parameters())


def test_gradients_come_from_a_fresh_model_too() -> None:
    torch.manual_seed(0)
    model = HierarchicalTransformer(
        num_tokens=9, dim=(8, 4), depth=2, hierarchies=(1, 4), dim_head=2, heads=2, hierarchy_merge_all=True,
        next_latent_loss_weight=0.1,
    )  # fmt: skip
    loss, _ = model(torch.randint(0, 9, (2, 40)), return_loss=True)
    loss.backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())
