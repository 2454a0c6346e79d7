from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim import AdamW, Muon, Optimizer

from simple_hierarchical_transformer import HierarchicalTransformer
from simple_hierarchical_transformer.training import ModelArguments, TrainConfig
from simple_hierarchical_transformer.training.config import SCHEDULES
from simple_hierarchical_transformer.training.optimizer import (
    lay_out_momentum,
    learning_rate_factor,
    make_optimizers,
    optimizer_tensors,
    scale_learning_rates,
    set_optimizer_tensors,
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
        {"ngram_sizes": (2, 3), "ngram_table_size": 5},
    ],
)
def test_each_parameter_is_in_exactly_one_group(arguments: dict[str, object]) -> None:
    model = tiny_model(**arguments)
    groups = [
        group
        for optimizer in make_optimizers(model, TrainConfig(muon_lr=0.01, adamw_lr=0.003))
        for group in optimizer.param_groups
    ]
    grouped = sorted(id(parameter) for group in groups for parameter in group["params"])
    assert grouped == sorted(id(parameter) for parameter in model.parameters() if parameter.requires_grad)


def test_only_hidden_matrices_go_to_muon() -> None:
    model = tiny_model()
    matrices, ngrams, rest = split_parameters(model)
    assert not ngrams
    tables = {id(model.token_emb.weight), id(model.to_logits.weight)}
    assert matrices
    assert all(parameter.ndim == 2 and id(parameter) not in tables for parameter in matrices)
    assert tables <= {id(parameter) for parameter in rest}
    muon, adamw = make_optimizers(model, TrainConfig(muon_lr=0.01, adamw_lr=0.003))
    assert isinstance(muon, Muon)
    assert isinstance(adamw, AdamW)


def test_ngrams_have_a_learning_rate_of_their_own_and_dont_decay() -> None:
    model = tiny_model(ngram_sizes=(2,), ngram_table_size=5)
    assert model.ngrams is not None
    config = TrainConfig(ngram_lr=0.5, weight_decay=0.1, model=ModelArguments(ngram_sizes=(2,)))
    groups = [group for optimizer in make_optimizers(model, config) for group in optimizer.param_groups]
    (group,) = [g for g in groups if any(p is model.ngrams.vectors.weight for p in g["params"])]
    assert (group["lr"], group["weight_decay"], len(group["params"])) == (0.5, 0.0, 1)


def test_learning_rates_are_scaled_from_where_they_began() -> None:
    optimizers = make_optimizers(tiny_model(), TrainConfig(muon_lr=0.01, adamw_lr=0.004))
    for factor in (0.5, 0.0, 1.0, 0.25):
        scale_learning_rates(optimizers, factor)
        assert [optimizer.param_groups[0]["lr"] for optimizer in optimizers] == [0.01 * factor, 0.004 * factor]


@pytest.mark.parametrize(
    ("progress", "factor"),
    [(0, 0), (0.05, 0.5), (0.1, 1), (0.4, 1), (0.6, 1), (0.8, 0.5), (0.9, 0.25), (1, 0), (1.2, 0)],
)
def test_the_learning_rate_rises_stays_and_falls(progress: float, factor: float) -> None:
    assert learning_rate_factor(progress, TrainConfig(warmup=0.1, cooldown=0.4)) == pytest.approx(factor)


@pytest.mark.parametrize(
    ("schedule", "factors"),
    [
        ("linear", {0.05: 0.5, 0.1: 1, 0.55: 0.6, 1: 0.2}),
        ("cosine", {0.05: 0.5, 0.1: 1, 0.325: 0.2 + 0.8 * (2 + 2**0.5) / 4, 0.55: 0.6, 1: 0.2}),
        ("constant", {0.05: 0.5, 0.5: 1, 0.75: 0.6, 1: 0.2}),
    ],
)
def test_it_falls_as_the_schedule_says_to_the_share_that_is_left(schedule: str, factors: dict[float, float]) -> None:
    config = TrainConfig(schedule=schedule, warmup=0.1, final_lr=0.2)
    for progress, factor in factors.items():
        assert learning_rate_factor(progress, config) == pytest.approx(factor), progress


@given(
    progress=st.floats(0, 1.1),
    warmup=st.floats(0, 1),
    share=st.floats(0, 1),
    final=st.floats(0, 1),
    schedule=st.sampled_from(SCHEDULES),
)
def test_the_learning_rate_is_never_above_what_was_set(
    progress: float, warmup: float, share: float, final: float, schedule: str
) -> None:
    cooldown = share * (1 - warmup) if schedule == "constant" else None
    config = TrainConfig(schedule=schedule, warmup=warmup, cooldown=cooldown, final_lr=final)
    assert 0 <= learning_rate_factor(progress, config) <= 1 + 1e-12


def test_without_warmup_and_cooldown_the_learning_rate_is_constant() -> None:
    config = TrainConfig(warmup=0, cooldown=0)
    assert [learning_rate_factor(progress, config) for progress in (0, 0.5, 1)] == [1, 1, 1]


def test_matrices_decay_and_gains_do_not() -> None:
    model = tiny_model()
    config = TrainConfig(optimizer="adamw", weight_decay=0.1)
    (adamw,) = make_optimizers(model, config)
    for group in adamw.param_groups:
        assert {parameter.ndim >= 2 for parameter in group["params"]} == {group["weight_decay"] == 0.1}
    muon, rest = make_optimizers(model, TrainConfig(weight_decay=0.1))
    assert muon.param_groups[0]["weight_decay"] == rest.param_groups[0]["weight_decay"] == 0.1


def test_what_optimizers_remember_is_taken_back_to_the_bit() -> None:
    def learn(model: HierarchicalTransformer, optimizers: list[Optimizer], step: int) -> None:
        generator = torch.Generator().manual_seed(step)
        model(torch.randint(0, 16, (2, 9), generator=generator), return_loss=True)[0].backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()

    config = TrainConfig(weight_decay=0.1)
    models = [tiny_model(), tiny_model()]
    first, second = (make_optimizers(model, config) for model in models)
    for step in range(3):
        learn(models[0], first, step)
    models[1].load_state_dict(models[0].state_dict())
    tensors = optimizer_tensors(models[0], first)
    assert {name.rpartition("/")[2] for name in tensors} == {"momentum_buffer", "exp_avg", "exp_avg_sq", "step"}
    set_optimizer_tensors(models[1], second, {name: tensor.clone() for name, tensor in tensors.items()})
    for step in range(3, 6):
        learn(models[0], first, step)
        learn(models[1], second, step)
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(one, other)


def test_momentum_lies_row_by_row_whatever_the_gradients() -> None:
    """A column after the other, as a gradient came, it had other bits after it had been in a file."""
    weight = torch.nn.Parameter(torch.randn(6, 4))
    muon = Muon([weight], lr=0.1)
    lay_out_momentum([muon])
    weight.grad = torch.randn(4, 6).t()
    muon.step()
    assert muon.state[weight]["momentum_buffer"].is_contiguous()
