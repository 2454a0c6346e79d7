"""No output depends on what comes after it, for every legal configuration; and the check catches those that do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from configurations import SEEDS, VOCABULARY, build, examples, model_arguments, random_ids
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from simple_hierarchical_transformer import HierarchicalTransformer, attention, compressor
from simple_hierarchical_transformer.compressor import Compressor
from simple_hierarchical_transformer.norm import rms_norm
from simple_hierarchical_transformer.state import Register
from simple_hierarchical_transformer.token_shift import TokenShift


def assert_suffix_changes_nothing_before(model: HierarchicalTransformer, ids: Tensor, cut: int) -> None:
    changed = ids.clone()
    changed[:, cut:] = (changed[:, cut:] + 1) % VOCABULARY
    with torch.no_grad():
        difference = (model(ids) - model(changed)).abs().amax(dim=(0, 2))
    leaks = (difference[:cut] > 1e-10).nonzero().flatten().tolist()
    assert not leaks, f"changing ids[:, {cut}:] changes the logits at {leaks}"


def assert_gradient_of_later_embeddings_is_zero(model: HierarchicalTransformer, ids: Tensor, position: int) -> None:
    captured = []

    def capture(module: torch.nn.Module, inputs: Any, output: Tensor) -> Tensor:
        captured.append(output.detach().requires_grad_())
        return captured[-1]

    handle = model.token_emb.register_forward_hook(capture)
    logits = model(ids)
    handle.remove()
    weights = torch.randn(logits.shape[0], logits.shape[2], dtype=logits.dtype)
    (gradient,) = torch.autograd.grad((logits[:, position] * weights).sum(), captured[-1])
    later = gradient[:, position + 1 :].abs().amax(dim=(0, 2))
    leaks = (later.nonzero().flatten() + position + 1).tolist()
    assert not leaks, f"the gradient of the logits at {position} reaches the embeddings at {leaks}"


@examples(quick=60, slow=700)
@given(data=st.data(), arguments=model_arguments(), seed=SEEDS)
def test_no_logit_depends_on_later_ids(data: st.DataObject, arguments: dict[str, Any], seed: int) -> None:
    model = build(arguments, seed=seed)
    length = data.draw(st.integers(1, model.seq_len), label="length")
    ids = random_ids(2, length, seed)
    # at a border of some stream's tokens, or just beside it, or anywhere
    border = data.draw(st.sampled_from(arguments["hierarchies"])) * data.draw(st.integers(0, 8))
    cuts = {min(max(border + side, 0), length - 1) for side in (-1, 0, 1)} | {data.draw(st.integers(0, length - 1))}
    for cut in cuts:
        assert_suffix_changes_nothing_before(model, ids, cut)
    assert_gradient_of_later_embeddings_is_zero(model, ids, max(cuts))


# planted faults: each makes the model see the future in a way that has been seen in the wild


def shift_off_by_one(self: TokenShift, x: Tensor, state: Register | None = None) -> Tensor:
    stay, shift = x.chunk(2, dim=-1)
    return rms_norm(torch.cat((stay, F.pad(shift, (0, 0, 0, self.phase_groups))[:, self.phase_groups :]), dim=-1))


def no_left_pad(state: Register | None, new: Tensor, back: int) -> Tensor:
    return F.pad(new, (0, 0, 0, back))


def centred_window(q: Tensor, k: Tensor, v: Tensor, window: int, groups: int) -> Tensor:
    position = torch.arange(q.shape[-2])
    mask = (position[:, None] - position).abs() <= (window + 1) // 2
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def block_mean(self: Compressor, x: Tensor, *others: object) -> Tensor:
    c, s = self.compress_factor, self.stride
    length = -(-x.shape[1] // s)
    blocks = F.pad(x, (0, 0, 0, c + s)).unfold(1, c, s)[:, :length]
    return self.to_out(self.window(blocks.mean(dim=-1).repeat(1, 1, c)))


FAULTS: dict[str, tuple[Any, str, Callable[..., Tensor]]] = {
    "a shift off by one": (TokenShift, "forward", shift_off_by_one),
    "a missing left pad": (compressor, "extend_padded", no_left_pad),
    "a centred window": (attention, "attend_blockwise", centred_window),
    "a block mean": (Compressor, "forward", block_mean),
}
FAULTY = {
    "num_tokens": VOCABULARY, "dim": (8, 6), "depth": 2, "seq_len": 32, "dim_head": 4, "heads": 2,
    "hierarchies": (1, 4), "hierarchical_stride": (1, 2), "window_sizes": (3, None),
}  # fmt: skip


@pytest.mark.parametrize("check", [assert_suffix_changes_nothing_before, assert_gradient_of_later_embeddings_is_zero])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught(
    fault: str, check: Callable[[HierarchicalTransformer, Tensor, int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, ids = build(FAULTY), random_ids(2, 23, seed=0)
    for position in range(6, 12):
        check(model, ids, position)
    monkeypatch.setattr(*FAULTS[fault])
    with pytest.raises(AssertionError, match=r"changes the logits at|reaches the embeddings at"):
        for position in range(6, 12):
            check(model, ids, position)


def test_every_id_has_an_effect_from_its_own_position_on() -> None:
    """What the checks above look at isn't constant."""
    model, ids = build(FAULTY), random_ids(2, 23, seed=0)
    for position in range(23):
        changed = ids.clone()
        changed[:, position] = (changed[:, position] + 1) % VOCABULARY
        difference = (model(ids) - model(changed)).detach().abs().amax(dim=(0, 2))
        assert difference[position] > 1e-3
