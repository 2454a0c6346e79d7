from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch.optim import AdamW, Muon

from simple_hierarchical_transformer import HierarchicalTransformer
from simple_hierarchical_transformer.training.optimizer import (
    learning_rate_factor,
    make_optimizers,
    scale_learning_rates,
    split_parameters,
)


def tiny_model(**arguments: object) -> HierarchicalTransformer:
    settings: dict[str, object] = {"dim": 8, "depth": 1, "heads": 1, "dim_head": 4, "hierarchies": (1, 2), **arguments}
    return HierarchicalTransformer(num_tokens=16, seq_len=8, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"hierarchies": 1},
        {"hierarchy_merge_all": True, "prophet_loss_weight": 0.1, "next_latent_loss_weight": 0.1},
        {"predict_use_all_hierarchy": True, "dim": (8, 12)},
    ],
)
def test_each_parameter_is_in_exactly_one_group(arguments: dict[str, object]) -> None:
    model = tiny_model(**arguments)
    groups = [group for optimizer in make_optimizers(model, 0.01, 0.003) for group in optimizer.param_groups]
    grouped = sorted(id(parameter) for group in groups for parameter in group["params"])
    assert grouped == sorted(id(parameter) for parameter in model.parameters() if parameter.requires_grad)


def test_only_hidden_matrices_go_to_muon() -> None:
    model = tiny_model()
    matrices, rest = split_parameters(model)
    tables = {id(model.token_emb.weight), id(model.to_logits.weight)}
    assert matrices
    assert all(parameter.ndim == 2 and id(parameter) not in tables for parameter in matrices)
    assert tables <= {id(parameter) for parameter in rest}
    muon, adamw = make_optimizers(model, 0.01, 0.003)
    assert isinstance(muon, Muon)
    assert isinstance(adamw, AdamW)


def test_learning_rates_are_scaled_from_where_they_began() -> None:
    optimizers = make_optimizers(tiny_model(), 0.01, 0.004)
    for factor in (0.5, 0.0, 1.0, 0.25):
        scale_learning_rates(optimizers, factor)
        assert [optimizer.param_groups[0]["lr"] for optimizer in optimizers] == [0.01 * factor, 0.004 * factor]


@pytest.mark.parametrize(
    ("progress", "factor"),
    [(0, 0), (0.05, 0.5), (0.1, 1), (0.4, 1), (0.6, 1), (0.8, 0.5), (0.9, 0.25), (1, 0), (1.2, 0)],
)
def test_the_learning_rate_rises_stays_and_falls(progress: float, factor: float) -> None:
    assert learning_rate_factor(progress, warmup=0.1, cooldown=0.4) == pytest.approx(factor)


@given(progress=st.floats(0, 1, exclude_max=True), warmup=st.floats(0, 1), share=st.floats(0, 1))
def test_the_learning_rate_is_never_above_what_was_set(progress: float, warmup: float, share: float) -> None:
    assert 0 <= learning_rate_factor(progress, warmup, cooldown=share * (1 - warmup)) <= 1


def test_without_warmup_and_cooldown_the_learning_rate_is_constant() -> None:
    assert [learning_rate_factor(progress, 0, 0) for progress in (0, 0.5, 1)] == [1, 1, 1]
