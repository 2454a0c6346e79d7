"""The slow, obvious way to score: one plain call of a twin that is long enough to see the whole text at once."""

from __future__ import annotations

from typing import Any

from configurations import build
from torch import Tensor

from simple_hierarchical_transformer import HierarchicalTransformer


def small(arguments: dict[str, Any], seed: int = 0) -> HierarchicalTransformer:
    """A model of which `log_probabilities` can build the twin."""
    model = build(arguments, seed=seed)
    model.arguments, model.seed = arguments, seed
    return model


def log_probabilities(model: HierarchicalTransformer, ids: Tensor) -> Tensor:
    """Of what follows each of ids (n,): (n, v), with windows that reach as far as the model's own."""
    config = model.config
    reaches = tuple(s.reach(config.seq_len) if s.window_size is None else s.window_size for s in config.streams)
    twin = build(model.arguments | {"seq_len": len(ids), "window_sizes": reaches}, seed=model.seed)
    return twin(ids[None].long()).detach()[0].log_softmax(dim=-1)
