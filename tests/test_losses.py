"""Each loss on an example of eight tokens that can be followed by hand, padding included."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from simple_hierarchical_transformer import HierarchicalTransformer, Losses
from simple_hierarchical_transformer.losses import cross_entropy as chunked
from simple_hierarchical_transformer.losses.cross_entropy import (
    Question,
    linear_cross_entropies,
    linear_cross_entropy,
)
from simple_hierarchical_transformer.losses.next_latent import ChunkSummarizer

PADDING = -1
#      fine position   0  1  2  3  4  5  6  7
IDS = torch.tensor([[5, 3, 8, 1, 6, 2, 7, 4], [9, 0, 2, 4, 5, PADDING, PADDING, PADDING]])
SHAPE: dict[str, Any] = {
    "num_tokens": 10, "dim": (4, 6), "depth": 1, "seq_len": 16, "dim_head": 2, "heads": 2,
    "hierarchies": (1, 4), "ignore_index": PADDING,
}  # fmt: skip
OFF = {"recon_loss_weight": 0.0, "hierarchical_ar_loss_weight": 0.0}


def build(**arguments: Any) -> HierarchicalTransformer:
    torch.manual_seed(0)
    return HierarchicalTransformer(**SHAPE | arguments).double()


def embeds_of(model: HierarchicalTransformer, stream: int = 1) -> Tensor:
    """What a stream holds after the layers, having seen all ids but the last."""
    return model(IDS[:, :-1], return_hierarchical_embeds=True)[stream]


def nats(logits: Tensor, token: int) -> Tensor:
    return -logits.log_softmax(dim=-1)[token]


def same(one: Tensor, other: Tensor) -> bool:
    return bool((one - other).abs() < 1e-10)


def test_cross_entropy_counts_every_token_but_padding() -> None:
    model = build(**OFF)
    loss, losses = model(IDS, return_loss=True)
    logits = model(IDS[:, :-1])
    expected = [nats(logits[0, p], int(IDS[0, p + 1])) for p in range(7)]
    expected += [nats(logits[1, p], int(IDS[1, p + 1])) for p in range(4)]  # 0, 2, 4, 5; id 0 counts like any other
    assert same(loss, torch.stack(expected).mean())
    assert same(losses.cross_entropy, loss)


# with a stride of 1 and seven inputs, the tokens at 2 and 6 are asked; with a stride of 2, those at 2 and 6 as well
@pytest.mark.parametrize(("stride", "tokens"), [(1, {2: 2, 6: 6}), (2, {1: 2, 3: 6}), (4, {0: 0, 1: 4})])
def test_reconstruction_asks_disjoint_tokens_for_what_they_cover(stride: int, tokens: dict[int, int]) -> None:
    model = build(**OFF | {"recon_loss_weight": 0.5}, hierarchical_stride=(1, stride))
    loss, losses = model(IDS, return_loss=True)
    head = model.objective.reconstruction["1"].to_tokens.weight.reshape(4, 4, 6)
    embeds = embeds_of(model)
    terms = []
    for row in range(2):
        for index, position in tokens.items():
            for offset in range(4):
                covered = position - 3 + offset
                if covered >= 0 and IDS[row, covered] != PADDING:
                    logits = model.to_logits.weight @ (head[offset] @ embeds[row, index])
                    terms.append(nats(logits, int(IDS[row, covered])))
    assert len(terms) == {1: 7 + 5, 2: 7 + 5, 4: 5 + 5}[stride]
    assert same(losses.reconstruction, torch.stack(terms).mean())
    assert same(loss, losses.cross_entropy + 0.5 * losses.reconstruction)
    assert losses.reconstruction_by_stream.keys() == {4}


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_hierarchical_ar_predicts_the_next_disjoint_token(stride: int) -> None:
    model = build(**OFF | {"hierarchical_ar_loss_weight": 0.5}, hierarchical_stride=(1, stride))
    loss, losses = model(IDS, return_loss=True)
    embeds, predict = embeds_of(model), model.objective.hierarchical_ar["1"].predict
    terms = []
    for row in range(2):
        for position in range(0, 7, stride):
            target = position + 4  # in input tokens, whatever the stride
            if target < 7 and IDS[row, target] != PADDING:
                predicted = predict(embeds[row, position // stride])
                terms.append(1 - F.cosine_similarity(predicted, embeds[row, target // stride], dim=0))
    assert len(terms) == {1: 3 + 1, 2: 2 + 1, 4: 1 + 1}[stride]
    assert same(losses.hierarchical_ar, torch.stack(terms).mean())
    assert same(losses.prediction, losses.hierarchical_ar)
    assert same(loss, losses.cross_entropy + 0.5 * losses.prediction)


def test_a_latent_target_carries_no_gradient() -> None:
    model = build(**OFF | {"hierarchical_ar_loss_weight": 1.0}, hierarchical_stride=(1, 4))
    captured = []
    model.compressors[1].register_forward_hook(
        lambda m, i, o: captured.append(o.detach().requires_grad_()) or captured[-1]
    )
    _, losses = model(IDS[:1], return_loss=True)
    (gradient,) = torch.autograd.grad(losses.hierarchical_ar, captured)
    assert gradient[:, 0].any()  # the token at 0 predicts
    assert not gradient[:, 1].any()  # the token at 4 is only a target


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_prophet_predicts_the_next_input_tokens(stride: int) -> None:
    model = build(**OFF, prophet_loss_weight=0.5, hierarchical_stride=(1, stride))
    loss, losses = model(IDS, return_loss=True)
    head = model.objective.prophet["1"].to_tokens.weight.reshape(4, 4, 6)
    embeds, terms = embeds_of(model), []
    for row in range(2):
        for position in (0, 4):
            for offset in range(4):
                target = position + 1 + offset
                if target < 8 and IDS[row, target] != PADDING:
                    logits = model.to_logits.weight @ (head[offset] @ embeds[row, position // stride])
                    terms.append(nats(logits, int(IDS[row, target])))
    assert len(terms) == 7 + 4  # every input token but the first, once
    assert same(losses.prophet, torch.stack(terms).mean())
    assert same(loss, losses.cross_entropy + 0.5 * losses.prediction)


@pytest.mark.parametrize("use_embed", [False, True])
@pytest.mark.parametrize("stride", [1, 4])
def test_quantised_prophet_predicts_the_codes_of_the_next_disjoint_token(stride: int, use_embed: bool) -> None:
    model = build(
        **OFF, prophet_loss_weight=0.5, prophet_loss_use_quantized=True, prophet_quantized_use_embed=use_embed,
        rq_num_codebooks=2, rq_codebook_dim=3, rq_codebook_size=5, hierarchical_stride=(1, stride),
    )  # fmt: skip
    loss, losses = model(IDS, return_loss=True)
    codes = model(IDS[:, :-1], return_random_proj_quantize_ids=True)[1]
    assert codes.shape == (2, -(-7 // stride), 2)
    assert codes.min() >= 0 and codes.max() < 5
    weight = model.objective.prophet["1"].to_codes.weight.reshape(2, 5, 6)
    embeds, terms = embeds_of(model), []
    for row in range(2):
        for position in range(0, 7, stride):
            target = position + 4
            if target < 7 and IDS[row, target] != PADDING:
                for q in range(2):
                    logits = weight[q] @ embeds[row, position // stride]
                    terms.append(nats(logits, int(codes[row, target // stride, q])))
    assert same(losses.prophet, torch.stack(terms).mean())
    assert same(loss, losses.cross_entropy + 0.5 * losses.prediction)


def test_codes_are_those_of_the_quantizer_and_follow_from_its_seed() -> None:
    options = {"prophet_loss_use_quantized": True, "rq_num_codebooks": 2, "rq_codebook_size": 64, "rq_codebook_dim": 8}
    model, other = build(**options), build(**options)
    other.load_state_dict(model.state_dict())  # holds no projection and no codebook
    codes, same_codes = (m(IDS, return_random_proj_quantize_ids=True) for m in (model, other))
    assert all(torch.equal(one, two) for one, two in zip(codes, same_codes, strict=True))
    assert codes[1].unique().numel() > 3
    assert not [name for name in model.state_dict() if "quantizer" in name]


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("stride", [1, 4])
def test_next_latent_rolls_out_through_the_dynamics(stride: int, dynamic: bool) -> None:
    model = build(
        **OFF, next_latent_loss_weight=(0.0, 0.5), next_latent_loss_type="mse", num_rollouts=2, rollout_weights=(3, 1),
        hierarchical_stride=(1, stride), dynamic_rollout_loss_weight=dynamic,
        **({"dynamic_loss_decay": 0.7} if dynamic else {}),
    )  # fmt: skip
    ids = torch.cat((IDS, IDS[:, :4]), dim=1)
    loss, losses = model(ids, return_loss=True)
    seen = ids[:, :-1]
    embeds = model(seen, return_hierarchical_embeds=True)[1]
    module, token_embeds = model.objective.next_latent["1"], model._embed(seen)
    totals: list[list[Tensor]] = [[], []]
    for row in range(2):
        for position in range(0, 11, stride):
            latent, so_far = embeds[row, position // stride], 0.0
            for rollout in (1, 2):
                target = position + 4 * rollout
                if target >= 11:
                    break
                chunk = token_embeds[row, max(target - 3, 0) : target + 1]
                latent = module.dynamics(latent[None, None], chunk.mean(dim=0)[None, None])[0, 0]
                error = (latent - embeds[row, target // stride]).pow(2).mean()
                damped = error * torch.exp(torch.tensor(-0.7 * so_far)) if dynamic else error
                so_far += float(error.detach())
                if seen[row, target] != PADDING:
                    totals[rollout - 1].append(damped)
    expected = 0.75 * torch.stack(totals[0]).mean() + 0.25 * torch.stack(totals[1]).mean()
    assert (losses.next_latent - expected).abs() < 1e-7  # float(error) above
    assert same(loss, losses.cross_entropy + 0.5 * losses.prediction)
    assert losses.next_latent_by_stream.keys() == {4}


def test_default_next_latent_loss_mixes_squared_error_and_cosine() -> None:
    model = build(**OFF, next_latent_loss_weight=(0.0, 1.0), hierarchical_stride=(1, 4))
    _, losses = model(IDS[:1], return_loss=True)
    embeds = embeds_of(model)[0]
    module, token_embeds = model.objective.next_latent["1"], model._embed(IDS[:1, :-1])
    latent = module.dynamics(embeds[:1][None], token_embeds[:, 1:5].mean(dim=1, keepdim=True))[0, 0]
    squared, cosine = (latent - embeds[1]).pow(2).mean(), F.cosine_similarity(latent, embeds[1], dim=0)
    assert same(losses.next_latent, 0.1 * squared + 0.9 * (1 - cosine))


def test_summaries_and_targets_of_the_next_latent_carry_no_gradient_unless_asked() -> None:
    for detach in (True, False):
        model = build(**OFF, next_latent_loss_weight=(0.0, 1.0), hierarchical_stride=(1, 4), detach_summaries=detach)
        captured: list[Tensor] = []
        model.token_emb.register_forward_hook(
            lambda m, i, o, seen=captured: seen.append(o.detach().requires_grad_()) or seen[-1]
        )
        _, losses = model(IDS[:1], return_loss=True)
        (gradient,) = torch.autograd.grad(losses.next_latent, captured)
        assert gradient[:, 0].any()
        assert bool(gradient[:, 1:5].any()) is not detach  # only the summary of the next chunk has seen these


def test_custom_summarizer_and_loss_are_used() -> None:
    class Last(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.map = torch.nn.Linear(6, 6, dtype=torch.float64)

        def forward(self, x: Tensor) -> Tensor:
            return self.map(x[:, ::4])

    summarizer = Last()
    model = build(
        **OFF, next_latent_loss_weight=(0.0, 1.0), hierarchical_stride=(1, 4), chunk_summarizers=(None, summarizer),
        next_latent_loss_type=lambda prediction, target: (prediction - target).abs(),
    )  # fmt: skip
    loss, _ = model(IDS, return_loss=True)
    loss.backward()
    assert summarizer.map.weight.grad is not None and summarizer.map.weight.grad.any()


def test_summary_is_the_mean_over_what_a_token_covers() -> None:
    x = torch.arange(1.0, 7.0)[None, :, None]
    summaries = ChunkSummarizer(1, 1, compress_factor=4, stride=2)(x)
    assert summaries.flatten().tolist() == [1.0, 2.0, 3.5]  # of 1; 1 2 3; 2 3 4 5


def test_losses_unpack_into_three_and_have_names() -> None:
    model = build(prophet_loss_weight=0.1, next_latent_loss_weight=(0.2, 0.3))
    loss, (ce_loss, recon_loss, prophet_loss) = model(IDS, return_loss=True)
    _, losses = model(IDS, return_loss=True)
    assert isinstance(losses, Losses) and len(losses) == 3
    assert all(torch.equal(*pair) for pair in zip(losses, (ce_loss, recon_loss, prophet_loss), strict=True))
    assert losses[1] is losses.reconstruction
    assert same(losses.prediction, losses.hierarchical_ar + losses.prophet + losses.next_latent)
    latent = losses.next_latent_by_stream
    assert latent.keys() == {1, 4} and same(losses.next_latent, latent[1] + latent[4])
    expected = ce_loss + 0.1 * recon_loss + 0.25 * losses.hierarchical_ar + 0.1 * losses.prophet
    assert same(loss, expected + 0.2 * latent[1] + 0.3 * latent[4])


def test_a_part_without_a_target_is_zero() -> None:
    model = build(prophet_loss_weight=0.1, next_latent_loss_weight=0.1)
    _, losses = model(IDS[:, :2], return_loss=True)
    assert losses.hierarchical_ar == 0 and losses.next_latent == 0
    _, losses = model(torch.full((2, 5), PADDING), return_loss=True)
    assert all(part == 0 for part in losses)


def test_padding_is_ignored_whatever_id_stands_for_it() -> None:
    """The same text, padded by an id of the vocabulary, by one just outside, by -1 and by -100: the same loss."""
    values = []
    for padding in (3, 10, -1, -100):
        model = build(ignore_index=padding, prophet_loss_weight=0.1, next_latent_loss_weight=0.1)
        ids = torch.tensor([[5, 1, 8, 1, 6, 2, 7, 4], [9, 0, 2, 4, 5, padding, padding, padding]])
        values.append(model(ids, return_loss=True)[0].item())
    assert max(values) - min(values) < 1e-12


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("logits", [90 * 64, 1 << 23])
def test_chunked_cross_entropies_equal_plain_ones(
    logits: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sum, the means, and their gradients: of the sum, asked twice, of one mean, and of sum and mean together."""
    monkeypatch.setattr(chunked, "CHUNK_LOGITS", logits)
    torch.manual_seed(0)
    x, y, weight = (torch.randn(*shape, 8, dtype=dtype, requires_grad=True) for shape in ((3, 50), (3, 7, 4), (90,)))
    inputs, shares = (x, y, weight), (0.7, 0.1)
    questions = [
        Question(rows, torch.randint(0, 90, rows.shape[:-1]), torch.rand(rows.shape[:-1]) < 0.7) for rows in (x, y)
    ]
    plain = [F.cross_entropy((q.x @ weight.T)[q.valid], q.target[q.valid]) for q in questions]
    total, means = linear_cross_entropies(questions, weight, shares, [q.valid.sum() for q in questions])
    expected_total = shares[0] * plain[0] + shares[1] * plain[1]
    tolerance = 1e-10 if dtype == torch.float64 else 1e-5
    for got, expected in ((total, expected_total), *zip(means, plain, strict=True)):
        assert (got - expected).abs() < tolerance
    asked = [(total, expected_total)] * 2 + [
        (means[1], plain[1]),
        (total + 3 * means[0], expected_total + 3 * plain[0]),
    ]
    for got, expected in asked:
        gradients = torch.autograd.grad(got, inputs, retain_graph=True)
        oracle = torch.autograd.grad(expected, inputs, retain_graph=True, allow_unused=True)
        for own, other in zip(gradients, oracle, strict=True):
            assert (own - (0 if other is None else other)).abs().max() < tolerance


@pytest.mark.parametrize("needed", ["x", "weight"])
def test_cross_entropy_takes_only_the_gradients_that_are_needed(needed: str) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(20, 8, requires_grad=needed == "x"), torch.randn(90, 8, requires_grad=needed == "weight")
    loss = linear_cross_entropy(
        Question(x, torch.randint(0, 90, (20,)), torch.ones(20, dtype=torch.bool)), weight, torch.tensor(20)
    )
    loss.backward()
    assert (x.grad is not None, weight.grad is not None) == (needed == "x", needed == "weight")


@pytest.mark.parametrize("valid", [torch.zeros(20, dtype=torch.bool), torch.zeros(0, dtype=torch.bool)])
def test_cross_entropy_without_a_target_is_zero_with_zero_gradients(valid: torch.Tensor) -> None:
    x, weight = torch.randn(len(valid), 8, requires_grad=True), torch.randn(90, 8, requires_grad=True)
    loss = linear_cross_entropy(Question(x, torch.zeros(len(valid), dtype=torch.long), valid), weight, valid.sum())
    loss.backward()
    assert loss == 0 and weight.grad.abs().max() == 0 and x.grad.shape == x.shape and not x.grad.any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_cross_entropy_is_summed_in_float32(dtype: torch.dtype) -> None:
    """In float16 the sum over a long batch was infinite, and in bfloat16 it had two digits."""
    torch.manual_seed(0)
    x, weight = (torch.randn(n, 8, dtype=dtype, requires_grad=True) for n in (20_000, 90))
    target = torch.randint(0, 90, (20_000,))
    count = torch.tensor(len(target))
    exact = F.cross_entropy(x.float() @ weight.float().T, target)
    oracle = torch.autograd.grad(exact, (x, weight))
    loss = linear_cross_entropy(Question(x, target, torch.ones_like(target, dtype=torch.bool)), weight, count)
    assert loss.dtype == torch.float32 and (loss - exact).abs() < 0.01
    for own, other in zip(torch.autograd.grad(loss, (x, weight)), oracle, strict=True):
        assert own.dtype == dtype and (own - other).abs().max() < 0.02 * other.abs().max()
    with torch.autocast("cpu", dtype):
        question = Question(x.float(), target, torch.ones_like(target, dtype=torch.bool))
        mixed = linear_cross_entropy(question, weight.float(), count)
    assert mixed.dtype == torch.float32 and (mixed - loss).abs() < 0.01


def test_codes_are_the_same_whatever_the_type_of_the_model_and_the_defaults() -> None:
    options = {"prophet_loss_use_quantized": True, "rq_num_codebooks": 2, "rq_codebook_size": 64, "rq_codebook_dim": 8}
    model = build(**options)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model.bfloat16().double()
    torch.set_default_dtype(torch.float64)
    try:
        other = build(**options)
    finally:
        torch.set_default_dtype(torch.float32)
    for changed in (model, other):
        assert all(torch.equal(before[name], buffer) for name, buffer in changed.named_buffers())


def test_quantizers_are_built_where_the_model_is_and_leave_random_numbers_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seeded = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    with torch.device("meta"):
        model = HierarchicalTransformer(**SHAPE, prophet_loss_use_quantized=True)
    assert {tensor.device.type for tensor in (*model.parameters(), *model.buffers())} == {"meta"}
    assert not seeded
