"""Quantised prophet: a coarse token predicts the codes of the next disjoint one.

The codes come from a frozen random-projection quantiser (Chiu et al., BEST-RQ, arXiv 2202.01855).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .cross_entropy import Question, linear_cross_entropy

SEED = 2202_01855  # of the frozen projections and codebooks; they are derived from it, so no checkpoint holds them


def as_initialized(data: Tensor, mask: Tensor | None = None) -> None:
    """What a codebook does about its codes before it is used, when it has them."""


class FrozenQuantizer(nn.Module):
    """Tokens (b, m, dim) → codes (b, m, q), by projections and codebooks that follow from a fixed seed alone."""

    def __init__(self, dim: int, num_codebooks: int, codebook_dim: int, codebook_size: int) -> None:
        super().__init__()
        from vector_quantize_pytorch import RandomProjectionQuantizer

        self.num_codebooks = num_codebooks
        default_type, default_device = torch.get_default_dtype(), torch.get_default_device()
        torch.set_default_dtype(torch.float32)
        try:
            with torch.random.fork_rng(devices=[]), torch.device("cpu"):
                torch.default_generator.manual_seed(SEED)  # torch.manual_seed would set those of the GPUs, too
                self.quantizer = RandomProjectionQuantizer(
                    dim=dim, num_codebooks=num_codebooks, codebook_dim=codebook_dim, codebook_size=codebook_size
                )
        finally:
            torch.set_default_dtype(default_type)
        for module in self.quantizer.modules():  # what is derived is neither trained nor saved
            if hasattr(module, "init_embed_"):  # asked at each call, which no compiler can follow
                module.init_embed_ = as_initialized
            for name, buffer in list(module.named_buffers(recurse=False)):
                module.register_buffer(name, buffer, persistent=False)
            for name, parameter in list(module.named_parameters(recurse=False)):
                delattr(module, name)
                module.register_buffer(name, parameter.detach(), persistent=False)
        self.to(default_device)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FrozenQuantizer:
        """Follow the model to another device but not to another type, which would change the codes."""
        for module in self.quantizer.modules():
            for name, buffer in list(module.named_buffers(recurse=False)):
                module.register_buffer(name, buffer.to(fn(buffer).device), persistent=False)
        return self

    @torch.no_grad()
    def forward(self, tokens: Tensor) -> Tensor:
        with torch.autocast(tokens.device.type, enabled=False):
            codes: Tensor = self.quantizer(tokens.float())
        return codes.reshape(*tokens.shape[:2], self.num_codebooks)


class QuantizedProphetLoss(nn.Module):
    """Mean cross-entropy of the codes of token `j + g`, given token `j`."""

    def __init__(self, dim: int, phase_groups: int, num_codebooks: int, codebook_size: int) -> None:
        super().__init__()
        self.phase_groups = phase_groups
        self.num_codebooks = num_codebooks
        self.to_codes = nn.Linear(dim, num_codebooks * codebook_size, bias=False)

    def forward(self, embeds: Tensor, codes: Tensor, valid: Tensor) -> Tensor:
        """Of `embeds` (b, m, dim), `codes` (b, m, q) and `valid` (b, m)."""
        groups = self.phase_groups
        weights = self.to_codes.weight.chunk(self.num_codebooks)
        predicting, targets, valid = embeds[:, :-groups], codes[:, groups:], valid[:, groups:]
        losses = [
            linear_cross_entropy(Question(predicting, targets[..., q], valid), weight)
            for q, weight in enumerate(weights)
        ]
        return torch.stack(losses).mean()
