"""What is learnt from several batches in one step equals what is learnt from all of them at once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from configurations import build, examples, model_arguments, random_ids
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from simple_hierarchical_transformer import HierarchicalTransformer

PADDING = -1
ARGUMENTS: dict[str, Any] = {
    "num_tokens": 11, "dim": (8, 4), "depth": 1, "seq_len": 16, "dim_head": 2, "heads": 2, "hierarchies": (1, 4),
    "hierarchical_stride": (1, 2), "prophet_loss_weight": 0.2, "next_latent_loss_weight": (0.0, 0.3), "num_rollouts": 2,
    "ignore_index": PADDING,
}  # fmt: skip


def gradients(model: HierarchicalTransformer) -> dict[str, Tensor]:
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad()
    return found


@examples(quick=25, slow=200)
@given(arguments=model_arguments(), data=st.data())
def test_accumulated_batches_of_unequal_padding_equal_one_big_batch(arguments: dict[str, Any], data: Any) -> None:
    model = build(arguments | {"ignore_index": PADDING})
    ids = random_ids(4, model.seq_len + 1, seed=0)
    for row in range(4):
        ids[row, data.draw(st.integers(0, ids.shape[1])) :] = PADDING
    whole, parts = model(ids, return_loss=True)
    whole.backward()
    expected = gradients(model)

    batches = ids.split(data.draw(st.sampled_from([[1, 3], [2, 2], [1, 1, 1, 1], [3, 1]])))
    counts = torch.stack([model.count_targets(batch) for batch in batches]).sum(dim=0)
    assert torch.equal(counts, parts.target_counts)
    losses = []
    for batch in batches:
        loss, own = model(batch, return_loss=True, target_counts=counts)
        assert torch.equal(own.target_counts, model.count_targets(batch))
        loss.backward()
        losses.append(torch.stack([loss, *own]).detach())
    total = torch.stack(losses).sum(dim=0)
    assert torch.allclose(total, torch.stack([whole, *parts]), atol=1e-10)
    for name, gradient in gradients(model).items():
        assert torch.allclose(gradient, expected[name], atol=1e-10), name


def test_without_the_counts_of_all_they_differ() -> None:
    """So that the test above could fail."""
    torch.manual_seed(0)
    model = HierarchicalTransformer(**ARGUMENTS).double()
    ids = torch.randint(0, 11, (2, 17))
    ids[1, 5:] = PADDING
    whole = model(ids, return_loss=True)[0]
    mean = (model(ids[:1], return_loss=True)[0] + model(ids[1:], return_loss=True)[0]) / 2
    assert (whole - mean).abs() > 1e-3


def test_each_mean_times_its_count_is_a_sum() -> None:
    torch.manual_seed(0)
    model = HierarchicalTransformer(**ARGUMENTS).double()
    ids = torch.randint(0, 11, (2, 17))
    ids[1, 5:] = PADDING
    _, losses = model(ids, return_loss=True)
    assert losses.target_counts[0] == 16 + 4
    assert len(losses.target_counts) == 1 + 1 + 1 + 1 + 2  # next token, reconstruction, latent, prophet, two rollouts


@pytest.mark.parametrize(
    ("counts", "return_loss", "error", "message"),
    [
        ([3], True, TypeError, "target_counts must be a tensor of whole numbers, got .*: give the sum of what"),
        (torch.ones(6), True, TypeError, "target_counts must be a tensor of whole numbers"),
        (
            torch.ones(5, dtype=torch.long),
            True,
            ValueError,
            r"has shape \(5,\), but this model takes 6 means: give the",
        ),
        (torch.ones(6, dtype=torch.long), False, ValueError, "has no effect without return_loss=True: set that"),
    ],
)
def test_other_counts_are_refused(counts: Any, return_loss: bool, error: type[Exception], message: str) -> None:
    model = HierarchicalTransformer(**ARGUMENTS)
    with pytest.raises(error, match=message):
        model(torch.zeros(1, 8, dtype=torch.long), return_loss=return_loss, target_counts=counts)
