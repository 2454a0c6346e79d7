"""Activations that are computed again instead of kept: the same loss and gradients to the bit, for less memory."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from configurations import SEEDS, build, examples, model_arguments, random_ids
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from simple_hierarchical_transformer import HierarchicalTransformer

ARGUMENTS: dict[str, Any] = {
    "num_tokens": 11, "dim": (8, 4), "depth": 3, "seq_len": 64, "dim_head": 4, "heads": 2,
    "hierarchies": (1, 4), "hierarchical_stride": (1, 2), "window_sizes": (3, None),
}  # fmt: skip
ONE_STREAM = {"hierarchies": 1, "hierarchical_stride": 1, "window_sizes": 3, "dim": 8}
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "one stream": ONE_STREAM,
    "merged into all": {"hierarchy_merge_all": True, "predict_use_all_hierarchy": True},
    "without attention": {"window_sizes": 0},
    "plain softmax and xPos": {"use_flash_attn": False, "use_xpos": True},
    "prophet": {"prophet_loss_weight": 0.1},
    "quantized prophet": {"prophet_loss_weight": 0.1, "prophet_loss_use_quantized": True},
    "next latent": {"next_latent_loss_weight": 0.1, "num_rollouts": 2},
}


def pair(
    arguments: dict[str, Any], *, seed: int = 0, dtype: torch.dtype = torch.float32
) -> list[HierarchicalTransformer]:
    """The same model twice: one keeps all activations, the other computes them again."""
    return [build(arguments | {"checkpoint_activations": on}, seed=seed, dtype=dtype).train() for on in (False, True)]


def gradients(model: HierarchicalTransformer, loss: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(model.parameters())))


def all_equal(kept: list[Tensor], computed_again: list[Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(kept, computed_again, strict=True))


@examples(quick=40, slow=300)
@given(data=st.data(), arguments=model_arguments(), seed=SEEDS)
def test_loss_and_gradients_are_the_same_to_the_bit(data: st.DataObject, arguments: dict[str, Any], seed: int) -> None:
    ids = random_ids(2, data.draw(st.integers(2, arguments["seq_len"] + 1)), seed)
    results = []
    for model in pair(arguments, seed=seed):
        loss, losses = model(ids, return_loss=True)
        results.append([loss, *losses, *gradients(model, loss)])
    assert all_equal(*results)


@pytest.mark.parametrize("changed", CONFIGURATIONS.values(), ids=CONFIGURATIONS)
def test_under_autocast_they_are_the_same_to_the_bit(changed: dict[str, Any]) -> None:
    results = []
    for model in pair(ARGUMENTS | changed):
        with torch.autocast("cpu", torch.bfloat16):
            loss, losses = model(random_ids(2, 65, seed=0), return_loss=True)
        results.append([loss, *losses, *gradients(model, loss)])
    assert all_equal(*results)


@pytest.mark.parametrize("changed", CONFIGURATIONS.values(), ids=CONFIGURATIONS)
def test_they_are_the_same_again_where_the_graph_is_kept(changed: dict[str, Any]) -> None:
    _, model = pair(ARGUMENTS | changed)
    loss, _ = model(random_ids(2, 65, seed=0), return_loss=True)
    once = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
    assert all_equal(list(once), gradients(model, loss))


def test_gradients_of_logits_and_of_ablated_merges_are_the_same_to_the_bit() -> None:
    for switches in ({}, {"ablate_hierarchical_merge": True}, {"logits_to_keep": 5}):
        results = []
        for model in pair(ARGUMENTS):
            logits = model(random_ids(2, 64, seed=0), **switches)
            logits.square().mean().backward()
            results.append([logits, *(p.grad for p in model.parameters() if p.grad is not None)])
        assert len(results[0]) > 10 and all_equal(*results)


@contextmanager
def calls(model: nn.Module) -> Iterator[list[nn.Module]]:
    """The layers that are called meanwhile, in their order."""
    called: list[nn.Module] = []
    handles = [layer.register_forward_pre_hook(lambda layer, _: called.append(layer)) for layer in model.layers]
    yield called
    for handle in handles:
        handle.remove()


def test_each_layer_is_computed_once_more_and_the_last_one_first() -> None:
    _, model = pair(ARGUMENTS)
    with calls(model) as called:
        loss, _ = model(random_ids(2, 65, seed=0), return_loss=True)
        assert called == list(model.layers)
        loss.backward()
        assert called == [*model.layers, *reversed(model.layers)]


def test_without_gradients_or_with_a_state_it_changes_nothing() -> None:
    kept, model = pair(ARGUMENTS)
    ids = random_ids(2, 40, seed=0)
    with calls(model) as called:
        with torch.no_grad():
            assert torch.equal(model(ids), kept(ids))
            assert torch.equal(model(ids, return_loss=True)[0], kept(ids, return_loss=True)[0])
        decoded = [each(ids, state=each.init_state(2)) for each in (model, kept)]
        assert torch.equal(*decoded)
        for logits in decoded:
            logits.sum().backward()
        assert called == list(model.layers) * 3
    assert all_equal(*([p.grad for p in each.layers.parameters()] for each in (model, kept)))
    assert torch.equal(*(each.generate(ids, 9, temperature=0) for each in (model, kept)))


def test_what_the_streams_hold_is_let_go_by_the_backward_pass() -> None:
    """Also where the loss is still at hand, as in a loop that logs it later."""
    _, model = pair(ARGUMENTS)
    inputs: list[weakref.ref[Tensor]] = []
    for layer in model.layers:
        layer.register_forward_pre_hook(lambda _, given: inputs.extend(weakref.ref(x) for x in given[0]))
    gc.disable()
    try:
        loss, _ = model(random_ids(2, 65, seed=0), return_loss=True)
        assert [x for x in inputs if x() is not None]
        loss.backward()
        assert not [x for x in inputs if x() is not None]
    finally:
        gc.enable()


@pytest.mark.slow
@pytest.mark.parametrize("changed", [c for name, c in CONFIGURATIONS.items() if name != "quantized prophet"])
def test_compiled_it_is_one_graph_and_the_same_function(changed: dict[str, Any]) -> None:
    _, model = pair(ARGUMENTS | changed | {"depth": 1})
    ids = random_ids(2, 41, seed=0)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    (loss, _), (expected, _) = compiled(ids, return_loss=True), model(ids, return_loss=True)
    assert (loss - expected).abs() < 1e-5
    pairs = zip(gradients(model, loss), gradients(model, expected), strict=True)
    assert all((one - other).abs().max() < 1e-5 for one, other in pairs)
