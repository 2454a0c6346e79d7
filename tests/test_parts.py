"""Each part equals its slow, obvious definition, in outputs and in gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import slow_reference
import torch
from configurations import SEEDS, chunk_for, examples
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from simple_hierarchical_transformer import HierarchicalTransformer
from simple_hierarchical_transformer import attention as attention_module
from simple_hierarchical_transformer import blockwise as blockwise_module
from simple_hierarchical_transformer import linear as linear_module
from simple_hierarchical_transformer import norm as norm_module
from simple_hierarchical_transformer import queries_keys_values as queries_module
from simple_hierarchical_transformer import squared_relu as squared_relu_module
from simple_hierarchical_transformer.attention import Attention, attend_chunk_and_halo, attend_local, band
from simple_hierarchical_transformer.blocks import KEPT, PASSING, blocks, empty
from simple_hierarchical_transformer.blockwise import Sight, attend_blockwise, parts, pieces
from simple_hierarchical_transformer.chunk import StreamChunk
from simple_hierarchical_transformer.compressor import Compressor
from simple_hierarchical_transformer.feedforward import FeedForward
from simple_hierarchical_transformer.merge import LinearMerge, Merge
from simple_hierarchical_transformer.norm import rms_norm, shifted_rms_norm
from simple_hierarchical_transformer.queries_keys_values import queries_keys_values
from simple_hierarchical_transformer.rotary import rotary_table, rotate
from simple_hierarchical_transformer.squared_relu import (
    is_recomputed,
    linear_squared_relu_linear,
    slope,
    squared_relu,
)
from simple_hierarchical_transformer.state import StateSpec, copy_all
from simple_hierarchical_transformer.token_shift import TokenShift


def assert_same_function(
    fast: Callable[[], Tensor], slow: Callable[[], Tensor], *variables: Tensor, tolerance: float = 1e-10
) -> None:
    """Both give the same output, and the same gradient with respect to every variable."""
    outputs, weights = [], None
    gradients = []
    for function in (fast, slow):
        output = function()
        weights = torch.randn_like(output) if weights is None else weights
        outputs.append(output.detach())
        gradients.append(torch.autograd.grad((output * weights).sum(), variables, allow_unused=True))
    assert outputs[0].shape == outputs[1].shape
    assert (outputs[0] - outputs[1]).abs().max() < tolerance
    for one, other in zip(*gradients, strict=True):
        assert (one is None) == (other is None)
        assert one is None or (one - other).abs().max() < tolerance


def doubled(module: nn.Module) -> Any:
    module = module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.5)
    return module


@examples(quick=25, slow=200)
@given(
    dim_head=st.sampled_from([2, 4, 6]),
    heads=st.integers(1, 3),
    groups=st.sampled_from([1, 2, 4]),
    reach=st.sampled_from([1, 2, 3, 7, 30]),
    use_flash_attn=st.sampled_from([None, True, False]),
    use_xpos=st.booleans(),
    length=st.integers(1, 80),
    seed=SEEDS,
)
def test_attention_equals_its_definition(
    dim_head: int,
    heads: int,
    groups: int,
    reach: int,
    use_flash_attn: bool | None,
    use_xpos: bool,
    length: int,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    options = {"stride": 1, "phase_groups": groups, "reach": reach}
    module = doubled(Attention(6, dim_head, heads, **options, use_flash_attn=use_flash_attn, use_xpos=use_xpos))
    x = torch.randn(2, length, 6, dtype=torch.float64, requires_grad=True)
    slow = lambda: slow_reference.attention(module, x)  # noqa: E731
    assert_same_function(lambda: module(x, chunk_for(module, length)), slow, x, *module.parameters())


@pytest.mark.parametrize("window", [1, 2, 5, 16, 40])
@pytest.mark.parametrize("back", [0, 1])
@pytest.mark.parametrize("length", [33, 96, 100])
def test_windowed_attention_equals_that_of_local_attention(window: int, back: int, length: int) -> None:
    torch.manual_seed(0)
    q = torch.randn(2, 3, length, 4, dtype=torch.float64, requires_grad=True)
    k, v = (torch.randn(2, 3, length + back, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    block = max(window, 8)
    halo = lambda: attend_chunk_and_halo(q, k, v, window, block, None)  # noqa: E731
    assert_same_function(halo, lambda: attend_local(q, k, v, window), q, k, v)


def attend_by_mask(q: Tensor, k: Tensor, v: Tensor, window: int, groups: int) -> Tensor:
    back = torch.arange(q.shape[2])[:, None] - torch.arange(q.shape[2])
    visible = (back >= 0) & (back <= window * groups) & (back % groups == 0)
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=visible)


@examples(quick=60, slow=500)
@given(
    batch=st.integers(1, 4),
    length=st.one_of(st.integers(1, 40), st.integers(1, 500)),
    window=st.one_of(st.integers(1, 40), st.integers(1, 300)),
    groups=st.sampled_from([1, 2, 4]),
    dim_head=st.sampled_from([2, 8]),
    contiguous=st.booleans(),
    long_window=st.sampled_from([1, blockwise_module.LONG_WINDOW]),
    block=st.sampled_from([1, 4, 100]),
    seed=SEEDS,
)
def test_blockwise_attention_equals_attention_by_a_mask(
    batch: int,
    length: int,
    window: int,
    groups: int,
    dim_head: int,
    contiguous: bool,
    long_window: int,
    block: int,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    qkv = torch.randn(batch, length, 3, 2, dim_head, dtype=torch.float64, requires_grad=True)
    q, k, v = (part.transpose(1, 2) for part in qkv.unbind(2))
    if contiguous:
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    blockwise = lambda: attend_blockwise(q, k, v, window, groups)  # noqa: E731
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blockwise_module, "LONG_WINDOW", long_window)
        for name in ("LONG_BLOCK", "MOST_BLOCK", "LEAST_BLOCK"):
            patch.setattr(blockwise_module, name, min(block, getattr(blockwise_module, name)))
        assert_same_function(blockwise, lambda: attend_by_mask(q, k, v, window, groups), qkv)
        single = attend_blockwise(q.float(), k.float(), v.float(), window, groups)
        assert (single - blockwise()).abs().max() < 1e-5


def test_a_window_is_split_where_it_is_long_and_each_pair_counts_once() -> None:
    """With a band of additions, a window that covered most of the length was slower than no window."""
    for rows, window in ((1500, 1023), (1500, 1024), (1100, 1024), (1900, 1100), (3000, 1024)):
        pairs, sights = torch.zeros(rows, rows, dtype=torch.int), set()
        for piece in pieces(rows, window):
            for block in range(piece.blocks):
                first = piece.first + block * piece.queries
                queries = torch.arange(first, first + piece.queries)
                keys = torch.arange(first - piece.halo, first + piece.queries)
                for part in parts(piece):
                    own, distance = keys[part.keys], queries[:, None] - keys[part.keys]
                    visible = {
                        Sight.CAUSAL: distance >= 0, Sight.FROM_BEHIND: distance <= window,
                        Sight.BAND: (distance >= 0) & (distance <= window), Sight.ALL: distance > -1,
                    }[part.sight]  # fmt: skip
                    pairs[queries[:, None], own] += visible.int()
                    sights.add(part.sight)
        distance = torch.arange(rows)[:, None] - torch.arange(rows)
        assert torch.equal(pairs, ((distance >= 0) & (distance <= window)).int())
        assert (Sight.ALL in sights) == (window >= blockwise_module.LONG_WINDOW)


def test_a_halo_that_is_too_short_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = blockwise_module.pieces
    cut = lambda rows, window: [piece._replace(halo=max(piece.halo - 1, 0)) for piece in whole(rows, window)]  # noqa: E731
    q, k, v = (torch.randn(1, 2, 100, 4, dtype=torch.float64) for _ in range(3))
    right = attend_by_mask(q, k, v, 9, 1)
    assert (attend_blockwise(q, k, v, 9, 1) - right).abs().max() < 1e-10
    monkeypatch.setattr(blockwise_module, "pieces", cut)
    assert (attend_blockwise(q, k, v, 9, 1) - right).abs().max() > 1e-3


def test_attention_takes_the_path_that_is_made_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    for name in ("attend_blockwise", "attend_chunk_and_halo", "attend_local"):
        original = getattr(attention_module, name)
        monkeypatch.setattr(attention_module, name, lambda *args, o=original, n=name: taken.append(n) or o(*args))
    for fused in (None, True, False):
        module = Attention(8, 4, 2, stride=1, phase_groups=1, reach=5, use_flash_attn=fused, use_xpos=False)
        module(torch.randn(1, 100, 8), chunk_for(module, 100, dtype=torch.float32))
        with monkeypatch.context() as elsewhere:
            elsewhere.setattr(attention_module, "is_for_blockwise", lambda *_: False)
            module(torch.randn(1, 100, 8), chunk_for(module, 100, dtype=torch.float32))
    chunk_and_halo = ["attend_blockwise", "attend_chunk_and_halo"]
    assert taken == [*chunk_and_halo, *chunk_and_halo, "attend_local", "attend_local"]


@examples(quick=25, slow=200)
@given(batch=st.integers(1, 3), length=st.integers(1, 40), dim_head=st.sampled_from([2, 4, 6]), seed=SEEDS)
def test_queries_and_keys_are_normed_and_turned_and_values_are_not(
    batch: int, length: int, dim_head: int, seed: int
) -> None:
    torch.manual_seed(seed)
    x = torch.randn(batch, length, 6, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3 * 2 * dim_head, 6, dtype=torch.float64, requires_grad=True)
    rotary = rotary_table(torch.arange(3, 3 + length), dim_head, torch.float64)

    def plain() -> Tensor:
        q, k, v = (x @ weight.T).unflatten(2, (3, 2, dim_head)).permute(2, 0, 3, 1, 4)
        return torch.stack((rotate(slow_reference.norm(q), rotary), rotate(slow_reference.norm(k), rotary), v))

    assert_same_function(lambda: torch.stack(queries_keys_values(x, weight, rotary, 2)), plain, x, weight)


def test_a_map_that_somebody_replaced_or_listens_to_is_called() -> None:
    """Its weight isn't taken past it: adapters and hooks see every call."""
    model = HierarchicalTransformer(
        num_tokens=16, dim=8, depth=1, dim_head=4, heads=2, hierarchies=(1, 2), hierarchical_stride=(1, 2)
    ).double()
    ids = torch.randint(0, 16, (2, 30))
    expected, _ = model(ids, return_loss=True)
    gradients = torch.autograd.grad(expected, list(model.parameters()))
    maps = {name: module for name, module in model.layers.named_modules() if isinstance(module, linear_module.Linear)}
    called: set[str] = set()
    for name, module in maps.items():
        module.register_forward_hook(lambda *_, name=name: called.add(name))
    loss, _ = model(ids, return_loss=True)
    assert called == set(maps)
    assert (loss - expected).abs() < 1e-12
    for one, other in zip(torch.autograd.grad(loss, list(model.parameters())), gradients, strict=True):
        assert (one - other).abs().max() < 1e-12


def small_model() -> HierarchicalTransformer:
    torch.manual_seed(0)
    return HierarchicalTransformer(
        num_tokens=16, dim=8, depth=2, dim_head=4, heads=2, hierarchies=(1, 2), hierarchical_stride=(1, 2)
    )


@pytest.mark.parametrize("part", ["attention", "feedforward", "attention.to_out", "feedforward.to_out", "merge"])
@pytest.mark.parametrize("gradients", [True, False])
def test_what_a_hook_has_seen_is_not_written_to(part: str, gradients: bool) -> None:
    """Residuals were added in the memory of what a part had returned, whoever held it."""
    model, ids, seen = small_model(), torch.randint(0, 16, (2, 20)), []
    layer = model.layers[0]
    module = layer.merge.merges[0] if part == "merge" else layer.blocks[0].get_submodule(part)
    module.register_forward_hook(lambda module, given, out: seen.append((out, out.detach().clone())))
    with torch.set_grad_enabled(gradients):
        model(ids)
    assert len(seen) == 1 and torch.equal(*seen[0])


@pytest.mark.parametrize("part", ["attention", "feedforward", "attention.to_out", "feedforward.to_out", "merge", "all"])
def test_backward_hooks_see_gradients_and_change_none(part: str) -> None:
    """What a module with such a hook returns is a view that can't be written to."""
    model, ids, called = small_model(), torch.randint(0, 16, (2, 20)), []
    expected = torch.autograd.grad(model(ids, return_loss=True)[0], list(model.parameters()))
    layer = model.layers[0]
    note = lambda *_: called.append(part)  # noqa: E731
    if part == "all":
        handle = torch.nn.modules.module.register_module_full_backward_hook(note)
    else:
        module = layer.merge.merges[0] if part == "merge" else layer.blocks[0].get_submodule(part)
        handle = module.register_full_backward_hook(note)
    try:
        model(ids, return_loss=True)[0].backward()
    finally:
        handle.remove()
    assert called
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        assert (parameter.grad - gradient).abs().max() < 1e-5


def test_a_part_that_somebody_replaced_keeps_what_it_returns() -> None:
    model, ids = small_model(), torch.randint(0, 16, (2, 20))
    model.layers[0].blocks[0].feedforward = nn.Identity()
    model(ids, return_loss=True)[0].backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_an_embedding_that_somebody_listens_to_is_called_however_long_the_text() -> None:
    model = HierarchicalTransformer(num_tokens=16, dim=64, depth=1, dim_head=4, heads=2, hierarchies=(1, 2))
    called = []
    model.token_emb.register_forward_hook(lambda *_: called.append(True))
    for length in (10, 1000):
        model(torch.randint(0, 16, (1, length)))
    assert len(called) == 2


@pytest.mark.parametrize("most", [40, 100, 300])
def test_norms_and_queries_are_the_same_in_many_blocks(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Long texts are taken block by block, and what a token takes from before it may be in the block before."""
    torch.manual_seed(0)
    x = torch.randn(3, 29, 8, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(24, 8, dtype=torch.float64, requires_grad=True)
    table = rotary_table(torch.arange(29), 4, torch.float64)
    functions: list[Callable[[], Tensor]] = [
        lambda: rms_norm(x), *(lambda back=back: shifted_rms_norm(x, back, x.dtype) for back in (1, 2, 4, 40)),
        lambda: torch.cat(queries_keys_values(x, weight, table, 2), dim=-1),
    ]  # fmt: skip
    for function in functions:
        out = function()
        by_out = torch.randn_like(out)
        whole = torch.autograd.grad(out, (x, weight), by_out, allow_unused=True)
        with monkeypatch.context() as patch:
            small = lambda shape, device, **options: blocks(shape, device, most=most)  # noqa: E731
            patch.setattr(norm_module, "blocks", small)
            patch.setattr(queries_module, "blocks", small)
            in_blocks = function()
            found = torch.autograd.grad(in_blocks, (x, weight), by_out, allow_unused=True)
        assert (in_blocks - out).abs().max() < 1e-12
        for one, other in zip(found, whole, strict=True):
            assert (one is None) == (other is None) and (one is None or (one - other).abs().max() < 1e-10)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gradients_under_autocast_point_where_those_of_float32_do(dtype: torch.dtype) -> None:
    model, ids = small_model(), torch.randint(0, 16, (4, 100))
    gradients = []
    for enabled in (False, True):
        with torch.autocast("cpu", dtype, enabled=enabled):
            loss, _ = model(ids, return_loss=True)
        gradients.append(torch.autograd.grad(loss, list(model.parameters())))
    for name, one, other in zip(dict(model.named_parameters()), *gradients, strict=True):
        assert torch.cosine_similarity(one.flatten(), other.flatten(), dim=0) > 0.99, name


def test_xpos_stays_finite_and_exact_over_a_long_full_window() -> None:
    """Scales of far tokens underflow to the zero that they are, and never overflow."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 1, n, 4) for n in (3, 60_000, 60_000))
    out = attention_module.attend_phase(q, k, v, 60_000, None, True)
    double = attention_module.attend_phase(q.double(), k.double(), v.double(), 60_000, None, True)
    assert out.isfinite().all()
    assert (out - double).abs().max() < 1e-5


def test_band_of_window_two() -> None:
    assert band(3, 4, 1, 2, torch.device("cpu")).int().tolist() == [[1, 1, 0, 0], [1, 1, 1, 0], [0, 1, 1, 1]]


@examples(quick=25, slow=200)
@given(
    factor=st.sampled_from([2, 4, 8]),
    stride=st.sampled_from([1, 2, 4, 8]),
    length=st.integers(1, 40),
    seed=SEEDS,
)
def test_compressor_equals_its_definition(factor: int, stride: int, length: int, seed: int) -> None:
    torch.manual_seed(seed)
    module = doubled(Compressor(3, 5, compress_factor=factor, stride=min(stride, factor)))
    x = torch.randn(2, length, 3, dtype=torch.float64, requires_grad=True)
    assert_same_function(lambda: module(x), lambda: slow_reference.compressor(module, x), x, *module.parameters())


@examples(quick=25, slow=200)
@given(groups=st.sampled_from([1, 2, 4, 8]), length=st.integers(1, 40), seed=SEEDS)
def test_token_shift_equals_its_definition(groups: int, length: int, seed: int) -> None:
    torch.manual_seed(seed)
    module = TokenShift(6, stride=1, phase_groups=groups)
    x = torch.randn(2, length, 6, dtype=torch.float64, requires_grad=True)
    assert_same_function(lambda: module(x), lambda: slow_reference.token_shift(x, groups), x)


def test_token_shift_of_two_phases() -> None:
    x = torch.tensor([[[10.0, 1.0], [20.0, 2.0], [30.0, 3.0], [40.0, 4.0]]])
    shifted = TokenShift(2, stride=1, phase_groups=2)(x)
    assert torch.equal(shifted, rms_norm(torch.tensor([[[10.0, 0], [20, 0], [30, 1], [40, 2]]])))


@examples(quick=50, slow=400)
@given(
    kind=st.sampled_from([Merge, LinearMerge]),
    strides=st.lists(st.sampled_from([1, 2, 4, 8]), min_size=2, max_size=4),
    target=st.integers(0, 3),
    length=st.integers(1, 40),
    seed=SEEDS,
)
def test_merge_equals_one_map_of_all_streams_side_by_side(
    kind: type[Merge] | type[LinearMerge], strides: list[int], target: int, length: int, seed: int
) -> None:
    torch.manual_seed(seed)
    dims = [4, 2, 6, 3][: len(strides)]
    module = doubled(kind(dims, strides, target % len(strides)))
    streams = [
        torch.randn(2, -(-length // s), d, dtype=torch.float64, requires_grad=True)
        for s, d in zip(strides, dims, strict=True)
    ]
    chunks = [StreamChunk(0, x.shape[1]) for x in streams]
    assert_same_function(
        lambda: module(streams, chunks),
        lambda: slow_reference.merge(module, streams, strides),
        *(x for i, x in enumerate(streams) if i in module.sources),
        *module.parameters(),
    )


def test_rms_norm_equals_its_definition() -> None:
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    assert_same_function(lambda: rms_norm(x), lambda: slow_reference.norm(x), x)
    zero = torch.zeros(2, 4, requires_grad=True)
    rms_norm(zero).sum().backward()
    assert zero.grad is not None and zero.grad.isfinite().all()


@examples(quick=25, slow=200)
@given(
    ratios=st.lists(st.sampled_from([1, 1, 2, 4]), max_size=3),
    length=st.integers(1, 20),
    has_bias=st.booleans(),
    recompute=st.booleans(),
    seed=SEEDS,
)
def test_maps_with_a_squared_relu_between_equal_their_definition(
    ratios: list[int], length: int, has_bias: bool, recompute: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    ratios = [1, *ratios]
    double = {"dtype": torch.float64, "requires_grad": True}
    inputs = [torch.randn(2, -(-length // ratio), 3 + i, **double) for i, ratio in enumerate(ratios)]
    weights = [torch.randn(7, x.shape[-1], **double) for x in inputs]
    to_out, bias = torch.randn(4, 7, **double), torch.randn(7, **double) if has_bias else None

    def plain() -> Tensor:
        sums = torch.zeros(7, dtype=torch.float64) if bias is None else bias
        for x, weight, ratio in zip(inputs, weights, ratios, strict=True):
            sums = sums + (x @ weight.T).repeat_interleave(ratio, dim=1)[:, :length]
        return sums.relu() ** 2 @ to_out.T

    own = lambda: linear_squared_relu_linear(inputs, weights, to_out, bias, ratios, recompute)  # noqa: E731
    assert_same_function(own, plain, *inputs, *weights, to_out, *([bias] if bias is not None else []))
    with pytest.MonkeyPatch.context() as patch:  # many parts, as wide models have
        patch.setattr(squared_relu_module, "CACHED", 14)
        patch.setattr(squared_relu_module, "MULTIPLIED", 14)
        assert_same_function(own, plain, *inputs, *weights, to_out)


def test_a_long_feed_forward_keeps_its_input_alone_and_gives_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    module = FeedForward(8, 48)
    kept: list[int] = []

    def gradients(length: int) -> tuple[list[int], list[Tensor]]:
        x = torch.randn(2, length, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
            out = module(x)
        return list(kept), [out, *torch.autograd.grad((out * out).sum(), [x, *module.parameters()])]

    keeps, expected = gradients(20)
    assert 2 * 20 * 48 in keeps
    monkeypatch.setattr(squared_relu_module, "is_recomputed", lambda elements, device: True)
    recomputes, found = gradients(20)
    assert sum(keeps) - sum(recomputes) == 2 * 20 * 48
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    monkeypatch.undo()
    assert is_recomputed(squared_relu_module.MULTIPLIED + 1, torch.device("cpu"))
    assert not is_recomputed(squared_relu_module.MULTIPLIED, torch.device("cpu"))
    assert not is_recomputed(2 * squared_relu_module.MULTIPLIED, torch.device("cuda"))


def test_a_map_for_a_residual_is_a_map() -> None:
    x, weight = (torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((2, 5, 3), (4, 3)))
    assert_same_function(lambda: linear_module.linear_for_residual(x, weight), lambda: x @ weight.T, x, weight)
    assert torch.autograd.gradcheck(linear_module.linear_for_residual, (x, weight))


def test_what_passes_leaves_room_for_what_is_kept() -> None:
    """The C library gives an aligned tensor no place of exactly its own size: a fifth of a step's memory was holes."""
    like = torch.zeros(1, dtype=torch.float32)
    made = empty((2, 3, 4), like, PASSING)
    assert made.shape == (2, 3, 4) and made.is_contiguous() and made.dtype == like.dtype and made._base is None
    kept = empty((2, 3, 4), like, KEPT)
    assert made.untyped_storage().nbytes() - 128 >= kept.untyped_storage().nbytes() >= made.nbytes + 128
    assert empty((2, 3), like.double().to("meta"), KEPT).device.type == "meta"


def test_our_own_backward_passes_equal_finite_differences() -> None:
    x, weight, to_out = (torch.randn(*shape, dtype=torch.float64) for shape in ((2, 4, 6), (5, 6), (3, 5)))
    for variable in (x, weight, to_out):
        variable.requires_grad_()
    assert torch.autograd.gradcheck(rms_norm, x)
    assert torch.autograd.gradcheck(lambda x: shifted_rms_norm(x, 2, x.dtype), x)
    assert torch.autograd.gradcheck(
        lambda *args: linear_squared_relu_linear([args[0]], [args[1]], args[2]), (x, weight, to_out)
    )


@pytest.mark.parametrize("frozen", range(4))
def test_frozen_weights_get_no_gradient_and_change_none(frozen: int) -> None:
    model = HierarchicalTransformer(num_tokens=16, dim=8, depth=1, dim_head=4, heads=2, hierarchies=(1, 2)).double()
    ids = torch.randint(0, 16, (2, 30))
    model(ids, return_loss=True)[0].backward()
    expected = {name: p.grad for name, p in model.named_parameters()}
    for i, p in enumerate(model.parameters()):
        p.grad = None
        p.requires_grad_(i % 4 != frozen)
    model(ids, return_loss=True)[0].backward()
    for name, p in model.named_parameters():
        assert (p.grad is not None) == p.requires_grad
        assert p.grad is None or (p.grad - expected[name]).abs().max() < 1e-12


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_slope_of_the_squared_relu_is_finite_in_every_type(dtype: torch.dtype) -> None:
    """A guard of 1e-30 is 0 in float16, and made the gradient of every unit that is off NaN."""
    x = torch.tensor([-1.0, 0.0, 0.01, 0.5, 3.0], dtype=dtype)
    assert torch.allclose(slope(squared_relu(x)), 2 * x.relu(), rtol=0.02)


def test_a_long_chunk_after_a_short_one_takes_linear_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """With two phases and one token in the state, a mask of all queries by all keys was built."""
    masks = []
    original = attention_module.scaled_dot_product

    def remember(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *options: Any) -> Tensor:
        masks.append(0 if mask is None else mask.numel())
        return original(q, k, v, mask, *options)

    monkeypatch.setattr(attention_module, "scaled_dot_product", remember)
    module = Attention(8, 4, 2, stride=1, phase_groups=4, reach=5, use_flash_attn=None, use_xpos=False)
    spec = StateSpec(batch_size=1, max_rewind=0, dtype=torch.float32, device=torch.device("cpu"))
    state = module.init_state(spec)
    for start, length in ((0, 1), (1, 4000)):
        module(torch.randn(1, length, 8), chunk_for(module, length, start, torch.float32), state)
        copy_all(state.noted())
    assert sum(masks) < 4000 * 100


@examples(quick=25, slow=200)
@given(rows=st.integers(1, 20), d=st.integers(1, 40), parts=st.integers(1, 5), bias=st.booleans(), seed=SEEDS)
def test_a_linear_map_in_parts_is_the_same_function(rows: int, d: int, parts: int, bias: bool, seed: int) -> None:
    torch.manual_seed(seed)
    linear = nn.Linear(d, linear_module.PARTS * parts, bias=bias).double()
    x = torch.randn(2, rows, d, dtype=torch.float64)
    with torch.no_grad():
        assert (linear_module.linear_in_parts(x, linear.weight, linear.bias) - linear(x)).abs().max() < 1e-12


def test_few_rows_are_multiplied_in_parts_and_only_in_float32_on_cpus_without_gradients() -> None:
    weight = torch.zeros(1024, 512)
    with torch.no_grad():
        takes = linear_module.is_faster_in_parts
        assert all(takes(torch.zeros(1, rows, 512), weight) for rows in (1, 4, 8))
        assert not takes(torch.zeros(1, 9, 512), weight)
        assert takes(torch.zeros(4, 1, 512), weight[:512]) and not takes(torch.zeros(5, 1, 512), weight[:512])
        assert not takes(torch.zeros(1, 512), weight[:64]) and not takes(torch.zeros(1, 512), weight[:1023])
        assert not takes(torch.zeros(1, 512).double(), weight.double())
        assert not takes(torch.zeros(0, 512), weight)
        with torch.autocast("cpu", torch.bfloat16):
            assert not takes(torch.zeros(1, 512), weight)
    assert not takes(torch.zeros(1, 512), weight)


def test_single_steps_of_a_wide_model_equal_the_whole() -> None:
    """Wide enough for products in parts, which smaller models never take."""
    torch.manual_seed(0)
    model = HierarchicalTransformer(
        num_tokens=64, dim=(512, 256), depth=1, seq_len=32, hierarchies=(1, 4), hierarchical_stride=(1, 4)
    )
    ids = torch.randint(0, 64, (2, 20))
    with torch.no_grad():
        for chunk in (1, 7):
            state = model.init_state(2)
            steps = torch.cat([model(part, state=state) for part in ids.split(chunk, dim=1)], dim=1)
            assert (steps - model(ids)).abs().max() < 1e-5


@examples(quick=50, slow=500)
@given(
    batch=st.integers(1, 5),
    length=st.integers(1, 50),
    width=st.integers(1, 9),
    most=st.integers(1, 300),
    multiple=st.sampled_from([1, 2, 4]),
)
def test_blocks_are_all_tokens_once_and_not_too_many_at_a_time(
    batch: int, length: int, width: int, most: int, multiple: int
) -> None:
    count = torch.zeros(batch, length)
    for own in blocks((batch, length, width), count.device, most=most, multiple=multiple):
        count[own] += 1
        assert count[own].numel() * width <= max(most, multiple * width)
        assert own[1].start % multiple == 0
    assert (count == 1).all()
    everything = (slice(0, batch), slice(0, length))
    assert list(blocks((batch, length, width), torch.device("meta"), most=most)) == [everything]
