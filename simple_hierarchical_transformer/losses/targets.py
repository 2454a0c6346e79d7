"""What the losses of a batch predict, and how many targets each has."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Counts:
    """How many targets each mean is taken over, by compress factor; scalars, one per rollout for next latents."""

    next_token: Tensor
    reconstruction: dict[int, Tensor]
    hierarchical_ar: dict[int, Tensor]
    prophet: dict[int, Tensor]
    codes: dict[int, Tensor]
    next_latent: dict[int, list[Tensor]]


@dataclass(frozen=True)
class Targets:
    """Which targets of a batch are valid, by compress factor; no loss that is switched off has an entry."""

    next_token: Tensor  # (b, n)
    reconstruction: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)  # see TokensLoss.targets
    hierarchical_ar: dict[int, Tensor] = field(default_factory=dict)  # (b, m - g)
    prophet: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    codes: dict[int, Tensor] = field(default_factory=dict)  # (b, m - g)
    next_latent: dict[int, list[Tensor]] = field(default_factory=dict)  # one per rollout

    def counts(self) -> Tensor:
        """The number of valid targets of each mean (k,), in the order in which `by_part` takes them apart."""
        masks = [self.next_token]
        masks += [valid for _, valid in self.reconstruction.values()]
        masks += self.hierarchical_ar.values()
        masks += [valid for _, valid in self.prophet.values()]
        masks += self.codes.values()
        masks += [valid for rollouts in self.next_latent.values() for valid in rollouts]
        return torch.stack([mask.sum() for mask in masks])

    def by_part(self, counts: Tensor) -> Counts:
        """Counts (k,), of this batch or of all that are learnt from together, by loss and stream."""
        left = iter(counts.unbind())
        return Counts(
            next_token=next(left),
            reconstruction={c: next(left) for c in self.reconstruction},
            hierarchical_ar={c: next(left) for c in self.hierarchical_ar},
            prophet={c: next(left) for c in self.prophet},
            codes={c: next(left) for c in self.codes},
            next_latent={c: [next(left) for _ in rollouts] for c, rollouts in self.next_latent.items()},
        )
