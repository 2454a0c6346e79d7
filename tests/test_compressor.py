"""Products of embeddings that are looked up are those of the text: outputs and gradients; and shapes choose."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import slow_reference
import torch
import torch.nn.functional as F
from configurations import SEEDS, VOCABULARY, build, examples, looking_up, model_arguments, random_ids
from hypothesis import given
from hypothesis import strategies as st
from test_causality import assert_suffix_changes_nothing_before
from test_parts import assert_same_function, doubled
from test_segmentation import decode
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from simple_hierarchical_transformer import HierarchicalTransformer
from simple_hierarchical_transformer.compressor import Compressor, Projection, Source, is_faster_looked_up

CPU = torch.device("cpu")


def drawn_rows(batch: int, length: int, num_tokens: int, seed: int) -> Tensor:
    """Rows of a table of so many ids, a quarter of them padding."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(0, num_tokens, (batch, length), generator=generator)
    return rows.masked_fill(torch.rand(batch, length, generator=generator) < 0.25, num_tokens)


def with_zeros(embeddings: Tensor) -> Tensor:
    return F.pad(embeddings, (0, 0, 0, 1))


@examples(quick=40, slow=400)
@given(
    factor=st.sampled_from([2, 4, 8, 16]),
    stride=st.sampled_from([1, 2, 4, 8, 16]),
    num_tokens=st.integers(1, 12),
    batch=st.integers(1, 3),
    length=st.integers(1, 40),
    seed=SEEDS,
)
def test_looking_up_equals_the_definition_of_the_compressor(
    factor: int, stride: int, num_tokens: int, batch: int, length: int, seed: int
) -> None:
    torch.manual_seed(seed)
    module = doubled(Compressor(3, 5, compress_factor=factor, stride=min(stride, factor)))
    embeddings = torch.randn(num_tokens, 3, dtype=torch.float64, requires_grad=True)
    rows = drawn_rows(batch, length, num_tokens, seed)
    nothing = torch.full((batch, length, 3), torch.nan, dtype=torch.float64)

    def looked_up() -> Tensor:
        with looking_up(True):
            return module(nothing, source=Source(rows, with_zeros(embeddings)))

    def slow() -> Tensor:
        return slow_reference.compressor(module, with_zeros(embeddings)[rows])

    def direct() -> Tensor:
        with looking_up(False):
            return module(with_zeros(embeddings)[rows], source=Source(rows, with_zeros(embeddings)))

    assert_same_function(looked_up, slow, embeddings, *module.parameters())
    assert_same_function(looked_up, direct, embeddings, *module.parameters())


@examples(quick=10, slow=100)
@given(num_tokens=st.integers(1, 12), length=st.integers(1, 40), dim=st.integers(2, 5), seed=SEEDS)
def test_looking_up_equals_a_projection(num_tokens: int, length: int, dim: int, seed: int) -> None:
    torch.manual_seed(seed)
    module = doubled(Projection(3, dim))
    embeddings = torch.randn(num_tokens, 3, dtype=torch.float64, requires_grad=True)
    rows = drawn_rows(2, length, num_tokens, seed)
    assert_same_function(
        lambda: module(with_zeros(embeddings)[rows], source=Source(rows, with_zeros(embeddings))),
        lambda: module(with_zeros(embeddings)[rows]),
        embeddings,
        *module.parameters(),
    )


def loss_and_gradients(model: HierarchicalTransformer, ids: Tensor, always: bool) -> list[Tensor]:
    model.zero_grad()
    with looking_up(always):
        loss, _ = model(ids, return_loss=True)
        loss.backward()
    return [loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-3)])
@examples(quick=25, slow=200)
@given(data=st.data(), arguments=model_arguments(), seed=SEEDS)
def test_a_model_that_looks_up_has_the_same_loss_and_gradients(
    dtype: torch.dtype, tolerance: float, data: st.DataObject, arguments: dict[str, Any], seed: int
) -> None:
    model = build(arguments, seed=seed, dtype=dtype).train()
    ids = random_ids(2, data.draw(st.integers(2, model.seq_len + 1)), seed)
    ids[0, data.draw(st.integers(0, ids.shape[1])) :] = model.config.ignore_index
    one, other = (loss_and_gradients(model, ids, always) for always in (True, False))
    for a, b in zip(one, other, strict=True):
        assert (a - b).abs().max() <= tolerance * b.abs().max().clamp(min=1)


@examples(quick=25, slow=200)
@given(data=st.data(), arguments=model_arguments(), seed=SEEDS)
def test_what_is_looked_up_agrees_with_decoding_and_sees_nothing_later(
    data: st.DataObject, arguments: dict[str, Any], seed: int
) -> None:
    model = build(arguments, seed=seed)
    ids = random_ids(2, data.draw(st.integers(1, model.seq_len), label="length"), seed)
    with looking_up(True):
        with torch.no_grad():
            whole = model(ids)
            difference = (decode(model, ids, data) - whole).abs().max() / whole.abs().max().clamp(min=1)
        assert difference < 1e-10
        assert_suffix_changes_nothing_before(model, ids, data.draw(st.integers(0, ids.shape[1] - 1), label="cut"))


@examples(quick=25, slow=200)
@given(num_tokens=st.integers(1, 6), factor=st.sampled_from([2, 4]), length=st.integers(1, 20), seed=SEEDS)
def test_of_wide_embeddings_a_compressor_makes_nothing_that_it_could_not_of_as_many_dimensions_as_ids(
    num_tokens: int, factor: int, length: int, seed: int
) -> None:
    torch.manual_seed(seed)
    wide = doubled(Compressor(9, 5, compress_factor=factor, stride=1))
    narrow = doubled(Compressor(num_tokens, 5, compress_factor=factor, stride=1))
    embeddings = torch.randn(num_tokens, 9, dtype=torch.float64)
    with torch.no_grad():
        by_place = wide.window.weight.unflatten(1, (factor, 9))
        narrow.window.weight.copy_((by_place @ embeddings.T).flatten(1))
        narrow.window.bias.copy_(wide.window.bias)
        narrow.to_out.weight.copy_(wide.to_out.weight)
    ids = torch.randint(0, num_tokens, (2, length))
    of_narrow = narrow(F.one_hot(ids, num_tokens).double())
    assert (wide(embeddings[ids]) - of_narrow).abs().max() < 1e-10


def test_embeddings_are_no_wider_than_the_vocabulary_where_they_are_compressed() -> None:
    arguments: dict[str, Any] = {"dim": (8, 32), "depth": 1, "dim_head": 4, "heads": 2, "hierarchies": (1, 2)}
    widths = {n: HierarchicalTransformer(num_tokens=n, **arguments).token_emb.embedding_dim for n in (4, 20, 40)}
    assert widths == {4: 4, 20: 20, 40: 32}
    plain = HierarchicalTransformer(num_tokens=4, **arguments | {"dim": 32, "hierarchies": 1})
    assert plain.token_emb.embedding_dim == 32
    given = {"next_latent_loss_weight": 0.1, "chunk_summarizers": (torch.nn.Identity(), None)}
    assert HierarchicalTransformer(num_tokens=4, **arguments, **given).token_emb.embedding_dim == 32


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_no_gradient_reaches_the_embeddings_of_later_ids_through_a_table(stride: int) -> None:
    """Each id occurs once, so that its row of the embeddings stands for its position."""
    model = build({**SHAPE, "num_tokens": 40, "hierarchical_stride": (1, stride), "seq_len": 40})
    ids = torch.randperm(40, generator=torch.Generator().manual_seed(0))[None]
    with looking_up(True):
        logits = model(ids)
        for position in (0, 13, 14, 15, 16, 38):
            weights = torch.randn(40, dtype=torch.float64)
            (by_row,) = torch.autograd.grad(
                (logits[0, position] * weights).sum(), model.token_emb.weight, retain_graph=True
            )
            assert by_row[ids[0, position]].any()
            assert not by_row[ids[0, position + 1 :]].any()


SHAPE: dict[str, Any] = {
    "num_tokens": VOCABULARY, "dim": (8, 6), "depth": 1, "seq_len": 64, "dim_head": 4, "heads": 2,
    "hierarchies": (1, 4), "hierarchical_stride": (1, 2),
}  # fmt: skip


def every_place_is_the_first(self: Compressor, source: Source) -> Tensor:
    look_up, rows = F.embedding_bag, len(source.table)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "embedding_bag", lambda places, products, mode: look_up(places % rows, products, mode=mode))
        return LOOKED_UP(self, source)


def one_too_late(self: Compressor, source: Source) -> Tensor:
    return LOOKED_UP(self, source._replace(rows=source.rows.roll(-1, dims=1)))


LOOKED_UP = Compressor._looked_up


@pytest.mark.parametrize("fault", [every_place_is_the_first, one_too_late])
def test_a_table_that_is_read_wrongly_is_noticed(fault: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = build(SHAPE), random_ids(2, 30, seed=0)

    def difference() -> float:
        one, other = (loss_and_gradients(model, ids, always) for always in (True, False))
        return max(float((a - b).abs().max()) for a, b in zip(one, other, strict=True))

    assert difference() < 1e-10
    monkeypatch.setattr(Compressor, "_looked_up", fault)
    assert difference() > 1e-3
    if fault is one_too_late:
        with pytest.raises(AssertionError, match="changes the logits at"), looking_up(True):
            for cut in range(10, 14):
                assert_suffix_changes_nothing_before(model, ids, cut)


# which is taken


def test_long_texts_of_a_small_vocabulary_are_looked_up_and_only_on_cpus() -> None:
    takes = is_faster_looked_up
    assert takes(308, 256, 192, CPU) and not takes(307, 256, 192, CPU)
    assert takes(513, 256, 64, CPU) and not takes(512, 256, 64, CPU)
    assert not takes(10**9, 1, 32, CPU) and not takes(10**9, 256, 4, CPU)
    assert not takes(20_000, 20_000, 1024, CPU) and takes(32_768, 20_000, 1024, CPU)
    assert not takes(10**6, 256, 1024, torch.device("cuda")) and not takes(10**6, 256, 1024, torch.device("meta"))


@pytest.mark.parametrize(
    ("batch", "length", "looked_up"),
    [(1, 128, []), (1, 129, [1]), (3, 43, [1]), (1, 256, [1]), (1, 257, [1, 2]), (4, 129, [1, 2, 4])],
)
def test_a_stream_looks_up_where_its_own_windows_are_many(
    batch: int, length: int, looked_up: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a width of 64, 64 ids are worth a table from 129 windows on."""
    torch.manual_seed(0)
    model = HierarchicalTransformer(
        num_tokens=64, dim=(64, 64, 64, 64), depth=1, seq_len=512, dim_head=4, heads=1, hierarchies=(1, 2, 4, 8),
        hierarchical_stride=(1, 1, 2, 4),
    )  # fmt: skip
    taken: list[int] = []
    monkeypatch.setattr(
        Compressor, "_looked_up", lambda self, source: taken.append(self.stride) or LOOKED_UP(self, source)
    )
    ids = torch.randint(0, 64, (batch, length))
    whole = model(ids)
    assert taken == looked_up
    taken.clear()
    assert (model(ids, state=model.init_state(batch)) - whole).abs().max() < 1e-5
    assert not taken  # a state holds embeddings


def test_what_is_multiplied_is_one_row_for_each_id_and_one_for_padding() -> None:
    module = Compressor(64, 48, compress_factor=8, stride=2)
    source = Source(torch.randint(0, 20, (3, 301)), torch.randn(21, 64, requires_grad=True))
    with FlopCounterMode(display=False) as mode:
        module(torch.empty(3, 301, 64), source=source).sum().backward()
    assert mode.get_total_flops() == 3 * 2 * (21 * 8 * 64 * 48 + 3 * 151 * 48 * 48)


# types, devices, compilation


def test_under_autocast_products_are_in_bfloat16_and_sums_in_float32() -> None:
    """In bfloat16 the gradient of an id that comes 4,000 times would stop growing at 256."""
    torch.manual_seed(0)
    module, embeddings = Compressor(64, 16, compress_factor=2, stride=1), torch.randn(4, 64)
    with torch.no_grad():
        module.window.bias.fill_(8.0)  # every unit is on
    rows = torch.zeros(1, 4000, dtype=torch.long)
    source = Source(rows, with_zeros(embeddings))
    outputs, gradients = {}, {}
    for name, always, mixed in (("exact", False, False), ("direct", False, True), ("looked up", True, True)):
        with looking_up(always), torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            outputs[name] = module(source.table[rows], source=source)
            gradients[name] = torch.autograd.grad(outputs[name].float().sum(), list(module.parameters()))
    assert outputs["looked up"].dtype == outputs["direct"].dtype == torch.bfloat16
    assert (outputs["looked up"] - outputs["exact"]).abs().max() < 0.02 * outputs["exact"].abs().max()
    for one, other in zip(gradients["looked up"], gradients["exact"], strict=True):
        assert (one - other).abs().max() < 0.02 * other.abs().max()


def test_the_same_text_gives_the_same_bits() -> None:
    model, ids = build({**SHAPE, "dim": (64, 48)}, dtype=torch.float32), random_ids(4, 65, seed=0)
    one, other = (loss_and_gradients(model, ids, True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_looking_up_has_shapes_without_data() -> None:
    with torch.device("meta"), looking_up(True):
        model = HierarchicalTransformer(**SHAPE)
        assert model(torch.zeros(2, 40, dtype=torch.long)).shape == (2, 40, VOCABULARY)


def test_looking_up_compiles_into_one_graph() -> None:
    model, ids = build({**SHAPE, "dim": (64, 48)}), random_ids(2, 60, seed=0)
    assert is_faster_looked_up(2 * 30, VOCABULARY, 64, CPU)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    (loss, _), (expected, _) = compiled(ids, return_loss=True), model(ids, return_loss=True)
    gradients = [torch.autograd.grad(value, list(model.parameters())) for value in (loss, expected)]
    assert (loss - expected).abs() < 1e-10
    assert all((one - other).abs().max() < 1e-10 for one, other in zip(*gradients, strict=True))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_looking_up_is_the_same_function_on_cuda() -> None:
    model, ids = build(SHAPE).cuda(), random_ids(2, 60, seed=0).cuda()
    one, again, other = (loss_and_gradients(model, ids, always) for always in (True, True, False))
    for a, same, b in zip(one, again, other, strict=True):
        assert torch.equal(a, same)
        assert (a - b).abs().max() < 1e-10
