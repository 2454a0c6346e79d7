from __future__ import annotations

from collections import Counter

import pytest
import torch
from configurations import build, random_ids
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from simple_hierarchical_transformer import HierarchicalTransformer
from simple_hierarchical_transformer.cost import receptive_field
from simple_hierarchical_transformer.ngrams import NgramEmbedding

SHAPE = {"num_tokens": 11, "dim": 8, "depth": 1, "heads": 1, "dim_head": 4, "seq_len": 64}
MASK = 2**64 - 1


def by_hand(module: NgramEmbedding, ids: list[int | None]) -> Tensor:
    """Each token on its own, in whole numbers of any size; None is padding."""
    vectors = []
    nothing = 0 * module.vectors.weight.sum(dim=0)
    for position, token in enumerate(ids):
        total = nothing
        for table, size in enumerate(module.sizes):
            hashed = 0
            for back in range(size):
                before = ids[position - back] if position >= back else None
                hashed = (hashed + (0 if before is None else before + 1)) * 0x5851F42D4C957F2D & MASK
            signed = hashed - 2**64 if hashed >> 63 else hashed
            mixed = (signed ^ (signed >> 32)) * 0x5851F42D4C957F2D & MASK
            signed = mixed - 2**64 if mixed >> 63 else mixed
            if token is not None:
                total = total + module.vectors.weight[table * module.table_size + (signed >> 24) % module.table_size]
        vectors.append(total)
    return torch.stack(vectors)


def embedding(sizes: tuple[int, ...], table_size: int) -> NgramEmbedding:
    torch.manual_seed(0)
    module = NgramEmbedding(4, sizes, table_size).double()
    torch.nn.init.normal_(module.vectors.weight)
    return module


@given(
    sizes=st.lists(st.integers(2, 6), min_size=1, max_size=4, unique=True),
    table_size=st.sampled_from([1, 7, 64, 1000]),
    ids=st.lists(st.none() | st.integers(0, 300) | st.integers(0, 2**40), min_size=1, max_size=20),
)
def test_each_token_gets_the_vectors_of_the_ngrams_that_end_there(
    sizes: list[int], table_size: int, ids: list[int | None]
) -> None:
    module = embedding(tuple(sizes), table_size)
    padding = torch.tensor([[token is None for token in ids]])
    given_ids = torch.tensor([[-100 if token is None else token for token in ids]])
    expected = by_hand(module, ids)
    torch.testing.assert_close(module(given_ids, padding)[0], expected, rtol=0, atol=1e-10)
    (gradient,) = torch.autograd.grad(module(given_ids, padding).square().sum(), module.vectors.weight)
    (by_definition,) = torch.autograd.grad(expected.square().sum(), module.vectors.weight)
    torch.testing.assert_close(gradient, by_definition, rtol=0, atol=1e-10)


@pytest.mark.parametrize("size", [2, 3, 4, 8])
def test_hashes_of_text_spread_evenly(size: int) -> None:
    """As many n-grams share a row as would if each row were drawn by lot, within five standard deviations."""
    text = (__doc__ or "") + open(__file__).read()  # noqa: SIM115
    ids = torch.tensor([list(text.encode())])
    module = embedding((size,), 4096)
    counted = torch.nn.functional.pad(ids + 1, (size - 1, 0))
    rows = module.rows(counted)[0, :, 0].tolist()
    grams = {tuple(counted[0, i : i + size].tolist()): row for i, row in enumerate(rows)}
    used, balls, bins = len(set(grams.values())), len(grams), module.table_size
    expected = bins * (1 - (1 - 1 / bins) ** balls)
    assert abs(used - expected) < 5 * expected**0.5 * (balls / bins) ** 0.5 + 5
    assert max(Counter(grams.values()).values()) < 10 + 5 * balls / bins


def test_begins_as_a_model_without_ngrams() -> None:
    ids = random_ids(2, 20, 0)
    torch.manual_seed(0)
    plain = HierarchicalTransformer(**SHAPE)
    model = HierarchicalTransformer(**SHAPE, ngram_sizes=(2, 3))
    missing = model.load_state_dict(plain.state_dict(), strict=False).missing_keys
    assert missing == ["ngrams.vectors.weight"]
    assert torch.equal(model(ids), plain(ids))


def test_only_rows_that_occur_get_a_gradient() -> None:
    model = build(SHAPE | {"ngram_sizes": (3,), "ngram_table_size": 1000})
    ids = random_ids(1, 9, 0)
    loss, _ = model(ids, return_loss=True)
    loss.backward()
    gradient = model.ngrams.vectors.weight.grad
    assert 1 <= int(gradient.any(dim=-1).sum()) <= 8


def test_the_predict_stream_receives_them_whatever_its_factor() -> None:
    arguments = SHAPE | {"hierarchies": (1, 2), "predict_hierarchy": 2, "dim": (8, 6), "ngram_sizes": (2,)}
    model = build(arguments)
    assert model.ngrams.vectors.embedding_dim == 6
    ids = random_ids(1, 12, 0)
    before = model(ids, return_hierarchical_token_embeds=True)
    with torch.no_grad():
        model.ngrams.vectors.weight.add_(1.0).mul_(torch.randn_like(model.ngrams.vectors.weight))
    after = model(ids, return_hierarchical_token_embeds=True)
    assert torch.equal(before[0], after[0])
    assert not torch.equal(before[1], after[1])


def test_a_state_remembers_ids_that_no_half_could_hold() -> None:
    """bfloat16 has 8 bits of precision; ids have 15 and more."""
    arguments = SHAPE | {"num_tokens": 50_000, "ngram_sizes": (4,), "ngram_table_size": 4096}
    model = HierarchicalTransformer(**arguments).to(torch.bfloat16).eval()
    state = model.init_state(1)
    ids = torch.tensor([[40_001, 40_003, 40_007, 40_009]])
    for chunk in ids.split(1, dim=1):
        model(chunk, state=state)
    assert state.parts.ngrams.held.flatten().tolist() == [40_004, 40_008, 40_010]


def test_their_rows_are_counted_with_the_embedding() -> None:
    model = HierarchicalTransformer(**SHAPE, ngram_sizes=(2, 3), ngram_table_size=100)
    parameters = model.num_parameters()
    assert parameters.total == sum(p.numel() for p in model.parameters())
    assert parameters.by_part()["embed"] == 11 * 8 + 2 * 100 * 8
    assert model.describe().cache_bytes.total == model.init_state(1).nbytes


@pytest.mark.parametrize("sizes", [(2,), (5, 3)])
def test_the_receptive_field_counts_what_a_hash_sees(sizes: tuple[int, ...]) -> None:
    model = build(SHAPE | {"window_sizes": 0, "ngram_sizes": sizes, "ngram_table_size": 1000})
    ids = random_ids(1, 20, 0)
    last = model(ids)[0, -1]
    changed = []
    for place in range(20):
        other = ids.clone()
        other[0, place] = (ids[0, place] + 1) % 11
        changed.append(bool((model(other)[0, -1] - last).abs().max() > 1e-12))
    assert receptive_field(model.config, 20) == 20 - changed.index(True) == 1 + max(sizes)
