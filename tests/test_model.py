"""What the model as a whole promises, beyond causality and segmentation."""

from __future__ import annotations

import copy
import io
from contextlib import redirect_stdout
from typing import Any

import pytest
import torch
from configurations import build, random_ids

from simple_hierarchical_transformer import HierarchicalTransformer

ARGUMENTS: dict[str, Any] = {
    "num_tokens": 11, "dim": (8, 4), "depth": 2, "seq_len": 64, "dim_head": 4, "heads": 2,
    "hierarchies": (1, 4), "hierarchical_stride": (1, 2), "window_sizes": (3, None),
}  # fmt: skip


def new_model(**arguments: Any) -> HierarchicalTransformer:
    torch.manual_seed(0)
    return HierarchicalTransformer(**ARGUMENTS | arguments)


def test_windowed_and_full_attention_are_one_function_where_the_window_covers_all() -> None:
    full, windowed = new_model(window_sizes=None), new_model(window_sizes=(63, 15))
    windowed.load_state_dict(full.state_dict())
    ids = random_ids(2, 64, seed=0)
    assert torch.equal(full(ids), windowed(ids))


@pytest.mark.parametrize("use_flash_attn", [None, True, False])
def test_all_attention_paths_agree(use_flash_attn: bool | None) -> None:
    arguments = ARGUMENTS | {"seq_len": 200, "window_sizes": (5, 3)}
    oracle, model = build(arguments | {"use_flash_attn": False}), build(arguments | {"use_flash_attn": use_flash_attn})
    ids = random_ids(2, 200, seed=0)
    assert (oracle(ids) - model(ids)).abs().max() < 1e-10


def test_coarse_streams_matter_and_can_be_ablated() -> None:
    model, ids = build(ARGUMENTS), random_ids(2, 30, seed=0)
    assert (model(ids) - model(ids, ablate_hierarchical_merge=True)).abs().max() > 1e-3


def test_nothing_in_forward_writes_a_buffer_or_parameter() -> None:
    model = new_model(prophet_loss_weight=0.1, prophet_loss_use_quantized=True)
    everything = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    before = {name: (tensor.clone(), tensor._version) for name, tensor in everything.items()}
    ids = random_ids(2, 40, seed=0)
    model(ids, return_loss=True)
    model.generate(ids, 5)
    after = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    assert before.keys() == after.keys()
    assert all(
        torch.equal(tensor, after[name]) and version == after[name]._version
        for name, (tensor, version) in before.items()
    )


def test_copying_and_moving_the_model_always_work() -> None:
    model, ids = new_model(prophet_loss_weight=0.1, prophet_loss_use_quantized=True), random_ids(2, 40, seed=0)
    model(ids)
    copied = copy.deepcopy(model.bfloat16())
    assert torch.equal(copied(ids), model(ids))
    loss, _ = copied(ids, return_loss=True)
    loss.backward()
    assert loss.dtype == torch.float32 and loss.isfinite()
    copied.float()(ids)
    assert copied.generate(ids, 3).shape == (2, 3)


def test_rotary_positions_stay_exact_whatever_the_type_of_the_model() -> None:
    """In bfloat16, position 40,001 is 39,936: computed there, far tokens would lose their order.

    The window reaches less far than the text, so what a state holds at its start doesn't count in the end.
    """
    model = build(
        ARGUMENTS | {"hierarchies": 1, "hierarchical_stride": 1, "window_sizes": 3, "dim": 8}, dtype=torch.float32
    )
    assert not list(model.buffers())
    ids, far = random_ids(1, 40, seed=0), 40_001
    half = copy.deepcopy(model).bfloat16()
    outputs = []
    for start in (0, far):
        state = half.init_state(1)
        state.blank_unseen()
        state.position = start
        outputs.append(torch.cat([half(chunk, state=state) for chunk in ids.split(4, dim=1)], dim=1)[:, 20:].float())
    assert (outputs[0] - outputs[1]).abs().max() < 0.05 * outputs[0].abs().max()


NEEDS_CUDA = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=NEEDS_CUDA)])
def test_bfloat16_and_autocast_run(device: str) -> None:
    model = new_model(prophet_loss_weight=0.1, next_latent_loss_weight=0.1).to(device)
    ids = random_ids(2, 65, seed=0).to(device)
    exact, _ = model(ids, return_loss=True)
    with torch.autocast(device, torch.bfloat16):
        mixed, _ = model(ids, return_loss=True)
        chunks = model.init_state(2)
        decoded = torch.cat([model(chunk, state=chunks) for chunk in ids[:, :64].split(7, dim=1)], dim=1)
        whole = model(ids[:, :64])
    mixed.backward()
    pure, _ = model.bfloat16()(ids, return_loss=True)
    pure.backward()
    assert mixed.dtype == pure.dtype == torch.float32
    assert (mixed - exact).abs() < 0.02 * exact and (pure - exact).abs() < 0.02 * exact
    assert (decoded - whole).abs().max() < 0.05 * whole.abs().max()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16])
def test_ids_of_any_integer_type_are_the_same(dtype: torch.dtype) -> None:
    model, ids = new_model(), random_ids(2, 20, seed=0)
    assert torch.equal(model(ids), model(ids.to(dtype)))
    assert torch.equal(model(ids, return_loss=True)[0], model(ids.to(dtype), return_loss=True)[0])


def test_every_length_works() -> None:
    model = new_model(prophet_loss_weight=0.1, next_latent_loss_weight=0.1, num_rollouts=2)
    for length in range(1, 65):
        assert model(random_ids(1, length, seed=length)).shape == (1, length, 11)
        loss, _ = model(random_ids(1, length + 1, seed=length), return_loss=True)
        assert loss.isfinite()


def test_padding_changes_no_logit_before_it_and_no_cross_entropy() -> None:
    model = build(ARGUMENTS | {"prophet_loss_weight": 0.1, "next_latent_loss_weight": 0.1})
    ids = random_ids(1, 20, seed=0)
    padded = torch.cat((ids, torch.full((1, 9), -100)), dim=1)
    assert (model(ids) - model(padded)[:, :20]).abs().max() < 1e-12
    assert (
        model(ids, return_loss=True)[1].cross_entropy - model(padded, return_loss=True)[1].cross_entropy
    ).abs() < 1e-12


def test_byte_zero_is_trained_like_every_other() -> None:
    model = new_model()
    loss, _ = model(torch.zeros(1, 20, dtype=torch.long), return_loss=True)
    assert loss > 2  # log 11
    loss.backward()
    assert model.to_logits.weight.grad[0].any()


def test_embeddings_and_codes_of_the_streams_are_returned() -> None:
    model = new_model(prophet_loss_use_quantized=True, rq_num_codebooks=3)
    ids = random_ids(2, 13, seed=0)
    for name in ("return_hierarchical_token_embeds", "return_hierarchical_embeds"):
        fine, coarse = model(ids, **{name: True})
        assert fine.shape == (2, 13, 8) and coarse.shape == (2, 7, 4)
    fine, coarse = model(ids, return_random_proj_quantize_ids=True)
    assert fine.shape == (2, 13, 3) and coarse.shape == (2, 7, 3)
    assert not coarse.is_floating_point()


def test_one_stream_is_a_plain_transformer() -> None:
    model = HierarchicalTransformer(num_tokens=11, dim=8, depth=2, dim_head=4, heads=2)
    ids = random_ids(2, 30, seed=0)
    loss, (cross_entropy, reconstruction, prediction) = model(ids, return_loss=True)
    assert loss == cross_entropy and reconstruction == prediction == 0
    assert not [name for name, _ in model.named_parameters() if "merge" in name or "compressors" in name]


def test_same_seed_same_bits() -> None:
    results = []
    for _ in range(2):
        model = new_model(prophet_loss_weight=0.1, prophet_loss_use_quantized=True)
        loss, _ = model(random_ids(2, 40, seed=0), return_loss=True)
        loss.backward()
        results.append([loss, *(p.grad for p in model.parameters())])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_building_a_quantizer_draws_no_random_number_of_the_users() -> None:
    new_model(prophet_loss_use_quantized=True)
    after = torch.rand(1)
    new_model()
    assert torch.equal(after, torch.rand(1))


def test_the_library_prints_nothing() -> None:
    with redirect_stdout(io.StringIO()) as printed:
        new_model(window_sizes=(1000, None)).generate(random_ids(1, 3, seed=0), 3)
    assert printed.getvalue() == ""
