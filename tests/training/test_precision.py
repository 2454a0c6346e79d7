"""Training in bfloat16 comes to what training in float32 does."""

from __future__ import annotations

import pytest
import torch

from simple_hierarchical_transformer import HierarchicalTransformer
from simple_hierarchical_transformer.text.data import load_split, train_batch
from simple_hierarchical_transformer.training import TrainConfig
from simple_hierarchical_transformer.training.optimizer import make_optimizers

STEPS = 200
LAST = 50  # steps whose mean is compared


def trained_cross_entropy(dtype: torch.dtype, autocast: bool) -> float:
    """Mean cross-entropy of the last steps of the README's training."""
    config = TrainConfig()
    split = load_split(config.data, config.seq_len)
    torch.manual_seed(config.seed)
    model = HierarchicalTransformer(**config.model_arguments(split.num_tokens)).to(dtype)
    optimizers = make_optimizers(model, config)
    losses = []
    for step in range(STEPS):
        ids = train_batch(split.train, config.seed, step, config.batch_size, config.seq_len).long()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss, parts = model(ids, return_loss=True)
        assert loss.dtype == torch.float32 and loss.isfinite()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        losses.append(parts.cross_entropy.item())
    return sum(losses[-LAST:]) / LAST


@pytest.mark.slow
def test_bfloat16_trains_as_float32_does() -> None:
    expected = trained_cross_entropy(torch.float32, autocast=False)
    assert expected < 2.5  # it has learnt something
    for dtype, autocast in ((torch.float32, True), (torch.bfloat16, False)):
        assert trained_cross_entropy(dtype, autocast) == pytest.approx(expected, rel=0.02)
