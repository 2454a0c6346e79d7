"""All losses of a model, put together: which are on, their heads, and their weighted sum."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ..config import ModelConfig
from ..modules import module_list
from . import Losses
from .cross_entropy import Question, linear_cross_entropies
from .hierarchical_ar import HierarchicalARLoss
from .next_latent import NextLatentLoss
from .quantized_prophet import FrozenQuantizer, QuantizedProphetLoss
from .targets import Targets
from .tokens import ProphetLoss, ReconstructionLoss, TokensLoss


class Objective(nn.Module):
    """Holds the head of each loss by the index of its stream: what a zero weight switches off isn't built."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.reconstruction = nn.ModuleDict()
        self.hierarchical_ar = nn.ModuleDict()
        self.prophet = nn.ModuleDict()
        self.next_latent = nn.ModuleDict()
        prophet, dim_head = config.prophet, config.dim_head_input
        for i, s in enumerate(config.streams):
            key = str(i)
            if s.is_coarse and config.reconstruction_weight > 0:
                self.reconstruction[key] = ReconstructionLoss(s.dim, s.compress_factor, s.stride, dim_head)
            if s.is_coarse and config.hierarchical_ar_weight > 0:
                self.hierarchical_ar[key] = HierarchicalARLoss(s.dim, s.phase_groups)
            if s.is_coarse and prophet.weight > 0:
                self.prophet[key] = (
                    QuantizedProphetLoss(s.dim, s.phase_groups, prophet.num_codebooks, prophet.codebook_size)
                    if prophet.use_quantized
                    else ProphetLoss(s.dim, s.compress_factor, s.stride, dim_head)
                )
            if config.next_latent.weights[i] > 0:
                self.next_latent[key] = NextLatentLoss(config.next_latent, i, s, config.dim_embedding)
        self.quantizers = module_list(
            FrozenQuantizer(s.dim, prophet.num_codebooks, prophet.codebook_dim, prophet.codebook_size)
            for s in (config.streams if prophet.use_quantized else ())
        )

    def codes(self, compressed: Sequence[Tensor], embeds: Sequence[Tensor]) -> list[Tensor]:
        """Codes (b, m, q) of each stream's tokens (b, m, d), before the layers or after them."""
        tokens = embeds if self.config.prophet.quantized_use_embed else compressed
        return [quantize(x) for quantize, x in zip(self.quantizers, tokens, strict=True)]

    def predict_tokens(self, stream: int, embeds: Tensor) -> Tensor:
        """What the last token of a coarse stream's embeds (b, m, d) predicts, as the output head reads it.

        Vectors (b, c, dim_head), of the c input tokens after the one at which it stands.
        """
        prophet = self.prophet[str(stream)]
        assert isinstance(prophet, ProphetLoss)
        return prophet.vectors(embeds[:, -1:])[:, 0]

    def targets(self, valid: Tensor) -> Targets:
        """What each loss is about to predict, of ids of which `valid` (b, n + 1) count; the streams see the first n."""
        seen = valid[:, :-1]
        targets = Targets(next_token=valid[:, 1:])
        for i, s in enumerate(self.config.streams):
            key, c, length = str(i), s.compress_factor, -(-seen.shape[1] // s.stride)
            # for latents and codes: a token counts where the input at its own position does
            tokens = seen[:, :: s.stride]
            disjoint = tokens[:, s.phase_groups :]
            if key in self.reconstruction:
                targets.reconstruction[c] = told(self.reconstruction[key]).targets(length, seen)
            if key in self.hierarchical_ar:
                targets.hierarchical_ar[c] = disjoint
            if key in self.prophet:
                if self.config.prophet.use_quantized:
                    targets.codes[c] = disjoint
                else:
                    targets.prophet[c] = told(self.prophet[key]).targets(length, valid)
            if key in self.next_latent:
                rolled_out = self.next_latent[key]
                assert isinstance(rolled_out, NextLatentLoss)
                targets.next_latent[c] = rolled_out.targets(tokens)
        return targets

    def count_targets(self, ids: Tensor) -> Tensor:
        """How many valid targets (k,) each mean is taken over, of ids (b, n + 1)."""
        return self.targets(ids != self.config.ignore_index).counts()

    def forward(
        self,
        ids: Tensor,
        hidden: Tensor,
        output_weight: Tensor,
        embedded: Tensor,
        compressed: Sequence[Tensor],
        embeds: Sequence[Tensor],
        target_counts: Tensor | None = None,
    ) -> tuple[Tensor, Losses]:
        """The weighted loss, and its parts.

        Args:
            ids: (b, n + 1); the streams have seen the first n.
            hidden: what the logits come from (b, n, dim_head), and
            output_weight: the output head (vocabulary, dim_head).
            embedded: embeddings of the first n ids (b, n, d_emb).
            compressed: the tokens (b, m, d) of each stream before the layers, and
            embeds: after them.
            target_counts: what the sums over valid targets are divided by, (k,); their own counts by default.
        """
        config = self.config
        valid = ids != config.ignore_index
        ids = ids.masked_fill(~valid, 0)
        targets = self.targets(valid)
        own = targets.counts()
        if target_counts is not None and target_counts.shape != own.shape:
            raise ValueError(
                f"target_counts has shape {tuple(target_counts.shape)}, but this model takes {len(own)} means: give "
                "the sum of what its own count_targets(ids) returns for each batch"
            )
        counts = targets.by_part(own if target_counts is None else target_counts)
        codes = self.codes(compressed, embeds) if targets.codes else []

        # what the output head is asked, at once
        next_token = Question(hidden, ids[:, 1:], targets.next_token)
        reconstructions: dict[int, Question] = {}
        prophecies: dict[int, Question] = {}
        hierarchical_ar, prophet, next_latent = {}, {}, {}
        for i, s in enumerate(config.streams):
            key, c, x = str(i), s.compress_factor, embeds[i]
            if c in targets.reconstruction:
                reconstructions[c] = self.reconstruction[key](x, ids[:, :-1], *targets.reconstruction[c])
            if c in targets.hierarchical_ar:
                hierarchical_ar[c] = self.hierarchical_ar[key](x, targets.hierarchical_ar[c], counts.hierarchical_ar[c])
            if c in targets.codes:
                prophet[c] = self.prophet[key](x, codes[i], targets.codes[c], counts.codes[c])
            if c in targets.prophet:
                prophecies[c] = self.prophet[key](x, ids, *targets.prophet[c])
            if c in targets.next_latent:
                next_latent[c] = self.next_latent[key](x, embedded, targets.next_latent[c], counts.next_latent[c])

        loss, (cross_entropy, *means) = linear_cross_entropies(
            [next_token, *reconstructions.values(), *prophecies.values()],
            output_weight,
            [
                1.0,
                *[config.reconstruction_weight] * len(reconstructions),
                *[config.prophet.weight] * len(prophecies),
            ],
            [counts.next_token, *counts.reconstruction.values(), *counts.prophet.values()],
        )
        reconstruction = dict(zip(reconstructions, means, strict=False))
        prophet |= dict(zip(prophecies, means[len(reconstructions) :], strict=True))

        zero = cross_entropy.new_zeros(())
        losses = Losses(
            cross_entropy=cross_entropy,
            reconstruction=sum(reconstruction.values(), zero),
            hierarchical_ar=sum(hierarchical_ar.values(), zero),
            prophet=sum(prophet.values(), zero),
            next_latent=sum(next_latent.values(), zero),
            reconstruction_by_stream=reconstruction,
            hierarchical_ar_by_stream=hierarchical_ar,
            prophet_by_stream=prophet,
            next_latent_by_stream=next_latent,
            target_counts=own,
        )
        loss = loss + config.hierarchical_ar_weight * losses.hierarchical_ar
        if config.prophet.use_quantized:
            loss = loss + config.prophet.weight * losses.prophet
        for stream, weight in zip(config.streams, config.next_latent.weights, strict=True):
            if stream.compress_factor in next_latent:
                loss = loss + weight * next_latent[stream.compress_factor]
        return loss, losses


def told(module: nn.Module) -> TokensLoss:
    """The module of a dictionary, as what it is."""
    assert isinstance(module, TokensLoss)
    return module
