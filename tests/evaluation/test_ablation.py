"""Leaving out what single streams contribute is as if their part of every merge were zero."""

from __future__ import annotations

import copy
from collections.abc import Collection
from typing import Any

import pytest
import torch
from configurations import SEEDS, VOCABULARY, build, examples, model_arguments, random_ids
from hypothesis import given
from hypothesis import strategies as st

from simple_hierarchical_transformer import HierarchicalTransformer

THREE = {
    "num_tokens": VOCABULARY, "dim": (8, 6, 4), "depth": 2, "seq_len": 64, "dim_head": 4, "heads": 2,
    "hierarchies": (1, 4, 8), "hierarchical_stride": (1, 2, 8), "window_sizes": (3, None, None),
}  # fmt: skip


def zeroed(model: HierarchicalTransformer, factors: Collection[int]) -> HierarchicalTransformer:
    """A twin whose merges multiply what the streams of these factors give by zero."""
    twin = copy.deepcopy(model)
    for layer in twin.layers:
        for merge in layer.merge.merges if layer.merge is not None else ():
            for source, projection in zip(merge.sources, merge.projections, strict=True):
                if twin.config.streams[source].compress_factor in factors:
                    torch.nn.init.zeros_(projection.weight)
    return twin


@examples(quick=12, slow=400)
@given(data=st.data(), arguments=model_arguments(), seed=SEEDS)
def test_ablated_streams_are_merged_as_zeros_at_once_and_with_a_state(
    data: st.DataObject, arguments: dict[str, Any], seed: int
) -> None:
    model = build(arguments, seed=seed)
    factors = data.draw(st.sets(st.sampled_from(arguments["hierarchies"]), min_size=1), label="ablated")
    ids = random_ids(2, data.draw(st.integers(1, model.seq_len), label="length"), seed)
    expected = zeroed(model, factors)(ids).detach()
    scale = expected.abs().max().clamp(min=1)
    whole = model(ids, ablate_hierarchical_merge=sorted(factors))
    assert (whole - expected).abs().max() < 1e-10 * scale
    state = model.init_state(2)
    with torch.no_grad():
        chunks = [
            model(chunk, state=state, ablate_hierarchical_merge=factors)
            for chunk in ids.split(data.draw(st.integers(5, 30), label="chunk"), dim=1)
        ]
    assert (torch.cat(chunks, dim=1) - expected).abs().max() < 1e-10 * scale


@examples(quick=8, slow=200)
@given(data=st.data(), arguments=model_arguments(), seed=SEEDS)
def test_no_logit_depends_on_later_ids_with_streams_ablated(
    data: st.DataObject, arguments: dict[str, Any], seed: int
) -> None:
    model = build(arguments, seed=seed)
    factor = data.draw(st.sampled_from(arguments["hierarchies"]), label="ablated")
    ids = random_ids(2, data.draw(st.integers(1, model.seq_len), label="length"), seed)
    cut = data.draw(st.integers(0, ids.shape[1] - 1), label="cut")
    changed = ids.clone()
    changed[:, cut:] = (changed[:, cut:] + 1) % VOCABULARY
    with torch.no_grad():
        one, other = (model(each, ablate_hierarchical_merge=factor) for each in (ids, changed))
    assert torch.allclose(one[:, :cut], other[:, :cut], rtol=0, atol=1e-10)


@pytest.mark.parametrize("merge_all", [False, True])
def test_every_coarse_stream_and_all_of_them_make_a_difference_of_their_own(merge_all: bool) -> None:
    model, ids = build(THREE | {"hierarchy_merge_all": merge_all}), random_ids(2, 40, seed=1)
    with torch.no_grad():
        outputs = [model(ids, ablate_hierarchical_merge=what) for what in (False, True, 1, 4, 8, (4, 8), (1, 4, 8))]
    for i, one in enumerate(outputs):
        for other in outputs[:i]:
            assert (one - other).abs().max() > 1e-3


def test_without_the_coarse_streams_nothing_further_than_the_fine_window_is_seen() -> None:
    """What reaches the logits from further back comes through the coarse streams alone."""
    model, ids = build(THREE), random_ids(1, 64, seed=2)
    changed = ids.clone()
    changed[:, :30] = (changed[:, :30] + 1) % VOCABULARY
    with torch.no_grad():
        for ablate, is_seen in ((False, True), (4, True), (8, True), ((4, 8), False)):
            one, other = (model(each, ablate_hierarchical_merge=ablate)[:, 50:] for each in (ids, changed))
            assert bool((one - other).abs().max() > 1e-10) is is_seen, ablate


def test_gradients_with_ablated_streams_are_those_of_the_twin() -> None:
    model, ids = build(THREE | {"hierarchy_merge_all": True}), random_ids(2, 40, seed=3)
    twin = zeroed(model, {8})
    for each, switches in ((model, {"ablate_hierarchical_merge": 8}), (twin, {})):
        each(ids, **switches).square().sum().backward()
    for (name, one), other in zip(model.named_parameters(), twin.parameters(), strict=True):
        if ".projections.2." not in name and other.grad is not None:
            gradient = torch.zeros_like(other) if one.grad is None else one.grad  # of a stream that is heard no more
            assert torch.allclose(gradient, other.grad, rtol=1e-10, atol=1e-10), name


def test_recomputed_layers_ablate_the_same() -> None:
    kept, recomputed = (build(THREE | {"checkpoint_activations": on}) for on in (False, True))
    ids = random_ids(2, 40, seed=3)
    for model in (kept, recomputed):
        model(ids, ablate_hierarchical_merge=(4,)).square().sum().backward()
    for one, other in zip(kept.parameters(), recomputed.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None)
        assert one.grad is None or torch.equal(one.grad, other.grad)


def test_in_a_model_of_one_stream_there_is_no_merge_to_leave_out() -> None:
    model = build({"num_tokens": VOCABULARY, "dim": 8, "depth": 1, "seq_len": 16, "dim_head": 4, "heads": 2})
    ids = random_ids(1, 9, seed=0)
    assert torch.equal(model(ids), model(ids, ablate_hierarchical_merge=1))


def test_the_factor_1_is_not_taken_for_true() -> None:
    model, ids = build(THREE), random_ids(1, 9, seed=0)
    state = model.init_state(1)
    model(ids, state=state, ablate_hierarchical_merge=1)
    with pytest.raises(ValueError, match=r"ablate_hierarchical_merge=True, .* begun with \[1\]"):
        model(ids, state=state, ablate_hierarchical_merge=True)


def test_a_state_refuses_another_ablation_than_it_was_begun_with_and_so_do_its_clones() -> None:
    model, ids = build(THREE), random_ids(1, 9, seed=0)
    state = model.init_state(1)
    model(ids, state=state, ablate_hierarchical_merge=[8, 4])
    for each in (state, state.clone()):
        with pytest.raises(ValueError, match=r"ablate_hierarchical_merge=\[8\], .* begun with \[4, 8\]: keep it"):
            model(ids, state=each, ablate_hierarchical_merge=8)
        model(ids, state=each, ablate_hierarchical_merge=(4, 8))
    state.rewind(3)
    model(ids, state=state, ablate_hierarchical_merge={4, 8})


@pytest.mark.parametrize(
    ("ablate", "error", "message"),
    [
        (16, ValueError, r"names the compress factor 16, but this model's streams have 1, 4, 8: choose"),
        ((8, 2, 16), ValueError, r"names the compress factors 2, 16, but"),
        (0, ValueError, r"ablate_hierarchical_merge must be at least 1, got 0"),
        (4.0, TypeError, r"True, False, a compress factor, or several of them, got 4.0 of type float"),
        (None, TypeError, r"got None of type NoneType"),
        ("all", TypeError, r"got 'all' of type str"),
        ((True, 8), TypeError, r"must be a whole number, got True"),
    ],
)
def test_what_names_no_stream_is_refused(ablate: Any, error: type[Exception], message: str) -> None:
    model = build(THREE)
    for state in (None, model.init_state(1)):
        with pytest.raises(error, match=message):
            model(random_ids(1, 9, seed=0), state=state, ablate_hierarchical_merge=ablate)


def test_no_factors_are_no_ablation() -> None:
    model, ids = build(THREE), random_ids(1, 9, seed=0)
    assert torch.equal(model(ids), model(ids, ablate_hierarchical_merge=()))
