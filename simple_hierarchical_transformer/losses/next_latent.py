"""Next latent prediction (Teoh et al., arXiv 2511.05963)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..config import LatentLoss, NextLatentConfig, StreamConfig
from ..modules import module_list
from ..norm import rms_norm
from .cross_entropy import masked_mean

COSINE_SHARE = 0.9


def mse_and_cosine_sim(prediction: Tensor, target: Tensor) -> Tensor:
    """A tenth of the squared error, and nine tenths of one minus the cosine similarity; (b, m, d) each."""
    cosine = 1 - F.cosine_similarity(prediction, target, dim=-1)
    return F.mse_loss(prediction, target, reduction="none").lerp(rearrange(cosine, "b m -> b m 1"), COSINE_SHARE)


def mse(prediction: Tensor, target: Tensor) -> Tensor:
    return F.mse_loss(prediction, target, reduction="none")


def smooth_l1(prediction: Tensor, target: Tensor) -> Tensor:
    return F.smooth_l1_loss(prediction, target, reduction="none")


LOSS_FUNCTIONS: dict[str, LatentLoss] = {"mse_and_cosine_sim": mse_and_cosine_sim, "mse": mse, "smooth_l1": smooth_l1}


class ChunkSummarizer(nn.Module):
    """Mean embedding of the tokens that each stream token covers: (b, n, dim_in) → (b, m, dim_out)."""

    def __init__(self, dim_in: int, dim_out: int, compress_factor: int, stride: int) -> None:
        super().__init__()
        self.compress_factor = compress_factor
        self.stride = stride
        self.project = nn.Identity() if dim_in == dim_out else nn.Linear(dim_in, dim_out, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        c, s = self.compress_factor, self.stride
        chunks = F.pad(x, (0, 0, c - 1, 0)).unfold(1, c, s)
        position = torch.arange(chunks.shape[1], device=x.device) * s
        count = (position + 1).clamp(max=c)
        summaries: Tensor = self.project(chunks.sum(dim=-1) / rearrange(count, "m -> m 1"))
        return summaries


class LatentDynamics(nn.Module):
    """The next latent: the current one (b, m, dim) plus a step that depends on it and on the next summary."""

    def __init__(self, dim: int, dim_hidden: int, num_layers: int) -> None:
        super().__init__()
        widths = [2 * dim, *[dim_hidden] * (num_layers - 1), dim]
        self.layers = module_list(nn.Linear(a, b) for a, b in pairwise(widths))
        with torch.no_grad():  # the first steps are small: the next latent starts out near the current one
            self.layers[-1].weight.mul_(0.1)
            self.layers[-1].bias.zero_()

    def forward(self, latent: Tensor, summary: Tensor) -> Tensor:
        x = torch.cat((rms_norm(latent), rms_norm(summary)), dim=-1)
        for i, layer in enumerate(self.layers):
            x = layer(F.gelu(x) if i else x)
        return latent + x


class NextLatentLoss(nn.Module):
    """Token `j` predicts the latents of `j + g`, `j + 2g`, …, one rollout after the other, given their summaries.

    Targets carry no gradient, and neither do summaries unless `detach_summaries=False`. With dynamic weights, a
    rollout counts the less the worse those before it did: exp(-decay · loss so far).
    """

    def __init__(self, config: NextLatentConfig, index: int, stream: StreamConfig, dim_embedding: int) -> None:
        super().__init__()
        self.config = config
        self.phase_groups = stream.phase_groups
        given = config.chunk_summarizers[index]
        self.summarizer = (
            ChunkSummarizer(dim_embedding, stream.dim, stream.compress_factor, stream.stride)
            if given is None
            else given
        )
        self.dynamics = LatentDynamics(stream.dim, config.hidden_dim or stream.dim, config.num_layers)

    def targets(self, valid: Tensor) -> list[Tensor]:
        """Of `valid` (b, m), which tokens count: what each rollout predicts."""
        return [valid[:, rollout * self.phase_groups :] for rollout in range(1, self.config.num_rollouts + 1)]

    def forward(
        self, embeds: Tensor, token_embeds: Tensor, valids: Sequence[Tensor], counts: Sequence[Tensor]
    ) -> Tensor:
        """Of `embeds` (b, m, dim) and the embeddings of the input tokens (b, n, d_emb).

        `valids` say of each rollout which targets count, and `counts` what their sum is divided by.
        """
        config, groups = self.config, self.phase_groups
        loss_function = LOSS_FUNCTIONS[config.loss_type] if isinstance(config.loss_type, str) else config.loss_type
        summaries = self.summarizer(token_embeds.detach() if config.detach_summaries else token_embeds)
        if summaries.shape != embeds.shape:
            raise ValueError(
                f"a module of chunk_summarizers returned {tuple(summaries.shape)}, but this stream needs "
                f"{tuple(embeds.shape)}: (batch, ceil(n / stride), dim of the stream)"
            )

        precise = torch.promote_types(embeds.dtype, torch.float32)
        latent, total, damping = embeds, embeds.new_zeros((), dtype=precise), None
        for rollout, (share, valid, count) in enumerate(zip(config.rollout_weights, valids, counts, strict=True), 1):
            ahead = rollout * groups
            latent = self.dynamics(latent[:, : max(embeds.shape[1] - ahead, 0)], summaries[:, ahead:])
            loss = loss_function(latent.to(precise), embeds[:, ahead:].detach().to(precise))
            if loss.shape != latent.shape:
                raise ValueError(
                    f"next_latent_loss_type must return a loss per feature {tuple(latent.shape)}, got "
                    f"{tuple(loss.shape)}: leave the mean to the model (reduction='none')"
                )
            loss = loss.mean(dim=-1)  # (b, m)
            weighted = loss
            if config.dynamic_weight:
                damping = torch.zeros_like(loss) if damping is None else damping[:, : loss.shape[1]]
                weighted = loss * torch.exp(-config.decay * damping)
                damping = damping + loss.detach()
            total = total + share * masked_mean(weighted, valid, count)
        return total
