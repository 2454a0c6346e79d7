"""The losses. Each receives tensors, never the model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Losses:
    """What a training step was made of; unpacks into (cross_entropy, reconstruction, prediction).

    All values are scalars before their weights, cross-entropies in nats: the loss is cross_entropy plus each part
    times its weight. Parts that are switched off are zero. The mappings go from the compress factor of a stream to
    its own value, and their sum is the part.

    `target_counts` (k,) says how many valid targets of the batch each of the k means was taken over; a mean times
    its count is a sum. See `HierarchicalTransformer.count_targets`.

    To learn from, take the loss itself: under `torch.compile`, what the output head is asked for (cross_entropy,
    reconstruction, prophet) carries no gradient of its own.
    """

    cross_entropy: Tensor
    reconstruction: Tensor
    hierarchical_ar: Tensor
    prophet: Tensor
    next_latent: Tensor
    reconstruction_by_stream: Mapping[int, Tensor] = field(default_factory=dict)
    hierarchical_ar_by_stream: Mapping[int, Tensor] = field(default_factory=dict)
    prophet_by_stream: Mapping[int, Tensor] = field(default_factory=dict)
    next_latent_by_stream: Mapping[int, Tensor] = field(default_factory=dict)
    target_counts: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))

    @property
    def prediction(self) -> Tensor:
        """The sum of the prediction losses that are on."""
        return self.hierarchical_ar + self.prophet + self.next_latent

    def __iter__(self) -> Iterator[Tensor]:
        return iter((self.cross_entropy, self.reconstruction, self.prediction))

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> Tensor:
        return (self.cross_entropy, self.reconstruction, self.prediction)[index]
