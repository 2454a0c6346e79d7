"""torch.compile takes a call as one graph, once for each shape, and computes what the model itself does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_causality import assert_suffix_changes_nothing_before
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from simple_hierarchical_transformer import HierarchicalTransformer

SMALL: dict[str, Any] = {
    "num_tokens": 64, "dim": (16, 32), "depth": 2, "heads": 2, "dim_head": 8, "seq_len": 256, "hierarchies": (1, 4),
    "hierarchical_stride": (1, 4), "window_sizes": (16, None),
}  # fmt: skip
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "two streams": {},
    "one stream": {"hierarchies": 1, "hierarchical_stride": 1, "dim": 16, "window_sizes": None},
    "overlapping tokens": {"hierarchical_stride": (1, 1), "window_sizes": (16, 8)},
    "merges into all streams": {"hierarchy_merge_all": True, "predict_use_all_hierarchy": True},
    "next latents": {"next_latent_loss_weight": 0.1, "num_rollouts": 2},
    "a prophet": {"prophet_loss_weight": 0.1},
    "a quantised prophet": {
        "prophet_loss_weight": 0.1, "prophet_loss_use_quantized": True, "rq_codebook_dim": 8, "rq_codebook_size": 16,
    },
    "xPos": {"use_xpos": True},
    "a plain softmax": {"use_flash_attn": False, "window_sizes": None},
}  # fmt: skip


QUICK = ("two streams", "next latents", "a quantised prophet")
EACH = [
    pytest.param(changed, id=name, marks=() if name in QUICK else pytest.mark.slow)
    for name, changed in CONFIGURATIONS.items()
]


class Compiled:
    def __init__(self, model: nn.Module, backend: str) -> None:
        torch._dynamo.reset()
        self.counter = CompileCounterWithBackend(backend)
        self.call: Any = torch.compile(model, backend=self.counter, fullgraph=True)

    @property
    def graphs(self) -> int:
        return int(self.counter.frame_count)


def assert_same(compiled: Compiled, model: HierarchicalTransformer, length: int) -> None:
    """Loss, gradients, and the logits of an evaluation."""
    ids = torch.randint(0, model.num_tokens, (2, length + 1))
    losses = [call(ids, return_loss=True) for call in (compiled.call, model)]
    gradients = [torch.autograd.grad(loss, list(model.parameters())) for loss, _ in losses]
    assert (losses[0][0] - losses[1][0]).abs() < 1e-5
    for one, other in zip(losses[0][1], losses[1][1], strict=True):
        assert (one - other).abs() < 1e-5
    for one, other in zip(*gradients, strict=True):
        assert (one - other).abs().max() < 1e-4


@pytest.mark.parametrize("changed", EACH)
def test_a_training_call_is_one_graph_and_a_second_length_one_more(changed: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = HierarchicalTransformer(**SMALL | changed)
    compiled = Compiled(model, "eager")
    for _ in range(3):
        assert_same(compiled, model, 100)
    assert compiled.graphs == 1
    for _ in range(2):
        assert_same(compiled, model, 140)
    assert compiled.graphs <= 2


def test_fifty_batches_of_one_shape_are_compiled_once() -> None:
    model = HierarchicalTransformer(**SMALL)
    compiled = Compiled(model, "eager")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(50):
        loss, _ = compiled.call(torch.randint(0, 64, (2, 65)), return_loss=True)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert compiled.graphs == 1


def test_an_evaluation_is_one_graph_and_a_second_length_one_more() -> None:
    model = HierarchicalTransformer(**SMALL).eval()
    compiled = Compiled(model, "eager")
    with torch.no_grad():
        for length in (100, 100, 140, 140):
            ids = torch.randint(0, 64, (2, length))
            assert (compiled.call(ids) - model(ids)).abs().max() < 1e-5
        assert compiled.graphs == 2
        ids = torch.randint(0, 64, (2, 101))
        (loss, _), (expected, _) = compiled.call(ids, return_loss=True), model(ids, return_loss=True)
        assert (loss - expected).abs() < 1e-5


@pytest.mark.parametrize("changed", EACH)
def test_a_compiled_model_sees_nothing_later(changed: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = HierarchicalTransformer(**SMALL | changed).double().eval()
    compiled = Compiled(model, "aot_eager")
    ids = torch.randint(0, 64, (2, 50))
    for position in (0, 1, 17, 32, 49):
        assert_suffix_changes_nothing_before(compiled.call, ids, position)


@pytest.mark.slow
@pytest.mark.parametrize("changed", CONFIGURATIONS.values(), ids=CONFIGURATIONS)
def test_what_inductor_makes_of_it_is_the_same_function(changed: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = HierarchicalTransformer(**SMALL | changed)
    compiled = Compiled(model, "inductor")
    for length in (100, 100, 140):
        assert_same(compiled, model, length)
    assert compiled.graphs <= 2
